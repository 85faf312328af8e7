//! The vault's side of a call of KMS, for tests that look at what the broker's client says.

use casemate_broker::kms::Conversation;
use casemate_protocol::broker::{self, BrokerReply, BrokerRequest, NoResponse, PART_LEN};
use casemate_protocol::{BoundedBytes, Bytes, frame};
use casemate_vault::link::kms::{Endpoint, Exchange, KmsRequest, Response};
use tokio::sync::mpsc;

/// What the vault would have asked for.
#[derive(Clone)]
pub struct Question {
    pub endpoint: Endpoint,
    pub key_arn: String,
    pub group: String,
    pub document: Vec<u8>,
    pub wrapped: Option<Vec<u8>>,
}

impl Question {
    fn asked(&self) -> KmsRequest<'_> {
        KmsRequest {
            key_arn: &self.key_arn,
            group: &self.group,
            network: Bytes([5; 32]),
            document: &self.document,
            wrapped: self.wrapped.as_deref(),
        }
    }

    pub fn context(&self) -> Vec<(String, String)> {
        let network = Bytes([5_u8; 32]).to_string();
        vec![("casemate:group".to_owned(), self.group.clone()), ("casemate:network".to_owned(), network)]
    }
}

/// A conversation with a vault that asks this, and the responses that it got.
pub fn conversation(question: Question) -> (Conversation, mpsc::UnboundedReceiver<Response>) {
    let (to_vault, from_broker) = mpsc::channel(64);
    let (to_broker, from_vault) = mpsc::unbounded_channel();
    let (told, responses) = mpsc::unbounded_channel();
    tokio::spawn(vault(question, from_broker, to_broker, told));
    (Conversation::new(7, to_vault, from_vault), responses)
}

async fn vault(
    question: Question,
    mut from_broker: mpsc::Receiver<Vec<u8>>,
    to_broker: mpsc::UnboundedSender<BrokerRequest>,
    told: mpsc::UnboundedSender<Response>,
) {
    let mut exchange = None;
    while let Some(bytes) = from_broker.recv().await {
        let (inner, _) = frame::split(&bytes, 1 << 20).unwrap().unwrap();
        let (channel, inner) = frame::split_channel(inner).unwrap();
        let answer = broker::decode_reply(inner).unwrap();
        assert_eq!((channel, answer.id), (0, 7));
        let (attempt, came) = match answer.content {
            BrokerReply::Request { attempt, headers, body } => {
                match Exchange::begin(&question.endpoint, &question.asked(), &headers, body.as_ref()) {
                    Ok(begun) => {
                        exchange = Some(begun);
                        (attempt, Ok(None))
                    }
                    Err(why) => (attempt, Err(why)),
                }
            }
            BrokerReply::TlsIn { attempt, bytes } => {
                let Some(running) = &mut exchange else { continue };
                let came = match bytes {
                    Some(bytes) => running.incoming(bytes.as_ref()),
                    None => Err(NoResponse::Closed),
                };
                (attempt, came)
            }
            other => panic!("{other:?}"),
        };
        let out = exchange.as_mut().map(Exchange::outgoing).unwrap_or_default();
        for part in out.chunks(PART_LEN) {
            let bytes = BoundedBytes::new(part.to_vec()).unwrap();
            to_broker.send(BrokerRequest::TlsOut { attempt, bytes }).unwrap();
        }
        let said = match came {
            Ok(None) => continue,
            Ok(Some(response)) => {
                let _ = told.send(Response { status: response.status, body: response.body.clone() });
                BrokerRequest::Response { attempt, status: response.status, body: response.body }
            }
            Err(why) => BrokerRequest::NoResponse { attempt, why },
        };
        exchange = None;
        to_broker.send(said).unwrap();
    }
}
