//! `GET /metrics`, in the text format of OpenMetrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use casemate_protocol::{Reply, Request};

use super::{App, Failure};
use crate::enclave::Unavailable;
use crate::readiness::Verdict;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    // Keys may have come through another proxy since this one connected.
    let reply = match app.enclave.get(None) {
        Some(enclave) => enclave.call(Request::Info).await,
        None => Err(Unavailable::Away),
    };
    let keys = match reply {
        Ok(Reply::Info(info)) => Some(info.keys),
        _ => None,
    };
    let verdict = app.enclave.verdict();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected { app, keys, verdict }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map_err(|_| Failure::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// What is counted elsewhere, read when it is asked for.
struct Collected {
    app: Arc<App>,
    /// Nothing while the enclave does not say.
    keys: Option<u32>,
    verdict: Verdict,
}

impl std::fmt::Debug for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collected")
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut one = |name: &str, help: &str, metric: &dyn Dyn| metric.write(&mut encoder, name, help);
        let Self { app, keys, verdict } = self;
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        one(
            "casemate_enclave_connections",
            "Connections to the enclave that are up",
            &ConstGauge::new(number(app.enclave.connections_up())),
        )?;
        let held = app.enclave.holder().is_some() && verdict.blocks_in_ms().is_some();
        one(
            "casemate_fence_held",
            "Whether an enclave of this proxy holds the fence, and the slot is within its ceilings: 1, or 0",
            &ConstGauge::new(i64::from(held)),
        )?;
        one(
            "casemate_ready",
            "Whether a block could be signed now, as /readyz says: 1, or 0",
            &ConstGauge::new(i64::from(verdict.is_ready())),
        )?;
        let silence = verdict.readiness.and_then(|readiness| readiness.silence).map_or(0, |silence| silence.ms);
        let answered = verdict.readiness.and_then(|readiness| readiness.store_answered_ms);
        for (name, help, ms) in [
            (
                "casemate_blocks_in_seconds",
                "Until a block may be signed; absent where that cannot be foreseen",
                verdict.blocks_in_ms(),
            ),
            (
                "casemate_attestations_in_seconds",
                "Until an attestation may be signed; absent where that cannot be foreseen",
                verdict.attestations_in_ms(),
            ),
            (
                "casemate_fence_store_silent_seconds",
                "For how long the fence's store has owed an answer; 0 where it owes none",
                Some(silence),
            ),
            ("casemate_fence_store_answer_age_seconds", "Since the last clear answer of the fence's store", answered),
        ] {
            if let Some(ms) = ms {
                one(name, help, &ConstGauge::new(i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX)))?;
            }
        }
        if let Some(keys) = keys {
            one("casemate_enclave_keys", "Keys that sign", &ConstGauge::new(i64::from(*keys)))?;
        }
        let Some(egress) = &app.egress else { return Ok(()) };
        for (name, help, count) in [
            (
                "casemate_egress_connections",
                "Connections that the enclave has made through this host",
                &egress.connected,
            ),
            (
                "casemate_egress_refused",
                "Connections that the enclave asked for to hosts that are not on the list",
                &egress.refused,
            ),
            ("casemate_egress_failed", "Hosts on the list that could not be reached", &egress.failed),
            ("casemate_egress_credentials", "Credentials handed to the enclave", &egress.credentials),
            ("casemate_egress_blobs_stored", "Sealed blobs written to the disk", &egress.stored),
        ] {
            one(name, help, &ConstCounter::new(count.load(Ordering::Relaxed)))?;
        }
        Ok(())
    }
}

/// Gauges and counters alike.
trait Dyn {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Dyn for M {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}
