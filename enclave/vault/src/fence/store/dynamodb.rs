//! The record in DynamoDB: one item of a table, whose partition key is the string attribute `group`.
//!
//! The table is named by its whole ARN in every request: a name alone would be looked up in the account of anyone who the credentials
//! belong to. Reads are strongly consistent. A swap is a `PutItem` whose condition compares version, term and the record itself.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_fence::{GroupId, Record, StoreOp, StoreResponse};
use casemate_protocol::arn::TableArn;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;
use serde::Deserialize;
use serde_json::{Value, json};

use super::sigv4::{Signer, amz_date};
use super::{Carrier, Store, post};
use crate::link::tls::{Endpoint, Response};
use crate::platform::clock::Clock;

const CONTENT_TYPE: &str = "application/x-amz-json-1.0";

/// A table of DynamoDB.
pub struct Dynamodb<C> {
    carrier: Arc<C>,
    clock: Arc<dyn Clock>,
    place: GroupId,
    endpoint: Endpoint,
    table: TableArn,
    credentials: Option<StoreCredentials>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetItem {
    item: Option<Item>,
}

#[derive(Deserialize)]
struct Item {
    record: Binary,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binary {
    b: String,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(rename = "__type", default)]
    kind: String,
}

impl<C: Carrier> Dynamodb<C> {
    /// This table.
    pub fn new(carrier: Arc<C>, clock: Arc<dyn Clock>, place: GroupId, endpoint: Endpoint, table: TableArn) -> Self {
        Self { carrier, clock, place, endpoint, table, credentials: None }
    }

    fn key(&self) -> Value {
        json!({ "S": format!("{}/{}", self.place.group, self.place.network) })
    }

    fn call(&self, operation: &str, body: &Value) -> Result<Response, StoreTrouble> {
        let Some(StoreCredentials::Dynamodb { access_key_id, secret_access_key }) = &self.credentials else {
            return Err(StoreTrouble::NoCredentials);
        };
        let body = body.to_string();
        let date = amz_date(self.clock.unix_ms().ok_or(StoreTrouble::NotAsked)?);
        let target = format!("DynamoDB_20120810.{operation}");
        let signed = [
            ("content-type", CONTENT_TYPE),
            ("host", self.endpoint.authority.as_str()),
            ("x-amz-date", date.as_str()),
            ("x-amz-target", target.as_str()),
        ];
        let credentials = Signer { access_key_id, secret_access_key, region: self.table.region(), service: "dynamodb" };
        let authorization = credentials.authorization(&date, &signed, body.as_bytes());
        let headers = [
            ("content-type", CONTENT_TYPE),
            ("x-amz-date", date.as_str()),
            ("x-amz-target", target.as_str()),
            ("authorization", authorization.as_str()),
        ];
        self.carrier.exchange(&self.endpoint, &post("/", &self.endpoint, &headers, body.as_bytes()))
    }

    fn read(&self) -> Result<Option<Record>, StoreTrouble> {
        let body =
            json!({ "TableName": self.table.to_string(), "Key": { "group": self.key() }, "ConsistentRead": true });
        let response = self.call("GetItem", &body)?;
        if response.status != 200 {
            return Err(StoreTrouble::Status { status: response.status });
        }
        let GetItem { item } = serde_json::from_slice(response.body.as_ref()).map_err(|_| StoreTrouble::Record)?;
        let Some(Item { record }) = item else { return Ok(None) };
        let bytes = BASE64_STANDARD.decode(record.b).map_err(|_| StoreTrouble::Record)?;
        Record::decode(&bytes, &self.place).map(Some).map_err(|_| StoreTrouble::Record)
    }

    fn put(&self, old: Option<&Record>, new: &Record) -> Result<bool, StoreTrouble> {
        let number = |n: u64| json!({ "N": n.to_string() });
        let binary = |record: &Record| json!({ "B": BASE64_STANDARD.encode(record.encode(&self.place)) });
        let item = json!({
            "group": self.key(),
            "version": number(new.version),
            "generation": number(new.term),
            "record": binary(new),
        });
        let mut body = json!({ "TableName": self.table.to_string(), "Item": item });
        let condition = match old {
            None => json!({
                "ConditionExpression": "attribute_not_exists(#k)",
                "ExpressionAttributeNames": { "#k": "group" },
            }),
            Some(old) => json!({
                "ConditionExpression": "#v = :v AND #g = :g AND #r = :r",
                "ExpressionAttributeNames": { "#v": "version", "#g": "generation", "#r": "record" },
                "ExpressionAttributeValues": {
                    ":v": number(old.version), ":g": number(old.term), ":r": binary(old),
                },
            }),
        };
        if let (Value::Object(body), Value::Object(condition)) = (&mut body, condition) {
            body.extend(condition);
        }
        let response = self.call("PutItem", &body)?;
        if response.status == 200 {
            return Ok(true);
        }
        let fault: Option<Fault> = serde_json::from_slice(response.body.as_ref()).ok();
        match fault {
            Some(Fault { kind }) if kind.ends_with("#ConditionalCheckFailedException") => Ok(false),
            _ => Err(StoreTrouble::Status { status: response.status }),
        }
    }
}

impl<C: Carrier> Store for Dynamodb<C> {
    fn kind(&self) -> RecordKind {
        RecordKind::Dynamodb
    }

    fn identity(&self) -> Option<String> {
        Some(self.table.to_string())
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        let heard = |put: bool| if put { StoreResponse::Swapped } else { StoreResponse::Conflict };
        let heard = match question {
            StoreOp::Read => self.read().map(StoreResponse::Record),
            StoreOp::Create(new) => self.put(None, new).map(heard),
            StoreOp::Swap { old, new } => self.put(Some(old), new).map(heard),
        };
        heard.map_or_else(|trouble| (StoreResponse::Unclear, Some(trouble)), |heard| (heard, None))
    }

    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        let fits = matches!(credentials, StoreCredentials::Dynamodb { .. });
        if fits {
            self.credentials = Some(credentials.clone());
        }
        fits
    }

    fn is_open(&self) -> bool {
        self.credentials.is_some()
    }
}
