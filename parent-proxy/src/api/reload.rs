//! `POST /reload`, `GET /reload`, SIGHUP: read the certificates again, ask the enclave for its keys again.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_protocol::{Reply, Request};
use serde_json::json;
use tracing::{error, info};

use super::App;
use super::keys::json_body;
use crate::group::Group;
use crate::tls::Tls;

/// Where the last reload stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Running,
    Completed,
    CompletedWithErrors(String),
    Failed(String),
}

impl Stage {
    fn word(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::CompletedWithErrors(_) => "completed_with_errors",
            Self::Failed(_) => "failed",
        }
    }
}

/// The reload of this process: one at a time.
#[derive(Clone)]
pub struct Reload {
    stage: Arc<Mutex<Stage>>,
    enclave: Group,
    /// Of each listener.
    tls: Vec<Arc<Tls>>,
}

impl Reload {
    /// Nothing reloaded yet.
    pub fn new(enclave: Group, tls: Vec<Arc<Tls>>) -> Self {
        Self { stage: Arc::new(Mutex::new(Stage::Idle)), enclave, tls }
    }

    fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// Begins, unless one is running.
    pub fn begin(&self) -> bool {
        {
            let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if *stage == Stage::Running {
                return false;
            }
            *stage = Stage::Running;
        }
        tokio::spawn(self.clone().run());
        true
    }

    async fn run(self) {
        let mut errors = Vec::new();
        for tls in &self.tls {
            match tls.reload() {
                Ok(false) => {}
                Ok(true) => {
                    info!("the clients' authorities are others now: connections that the old ones admitted end");
                }
                Err(e) => {
                    error!(error = %format_args!("{e:#}"), "the certificates were not reloaded; the old ones stay");
                    errors.push(format!("the certificates were not reloaded, the old ones stay: {e:#}"));
                }
            }
        }
        let keys = match self.enclave.call(Request::Info).await {
            Ok(Reply::Info(info)) => Some(info.keys),
            _ => None,
        };
        let stage = match (keys, errors.is_empty()) {
            (Some(keys), true) => {
                info!(keys, "reloaded");
                Stage::Completed
            }
            (Some(_), false) => Stage::CompletedWithErrors(errors.join("; ")),
            (None, _) => {
                errors.push("the enclave is away".into());
                Stage::Failed(errors.join("; "))
            }
        };
        self.set(stage);
    }
}

pub(super) async fn start(State(app): State<Arc<App>>) -> Response {
    let (status, body) = if app.reload.begin() {
        (StatusCode::ACCEPTED, json!({ "status": "accepted", "message": "reload started" }))
    } else {
        let running = "a reload is running";
        (StatusCode::CONFLICT, json!({ "status": "running", "message": running, "error": running }))
    };
    let mut response = json_body(&body);
    *response.status_mut() = status;
    response
}

pub(super) async fn status(State(app): State<Arc<App>>) -> Response {
    let stage = app.reload.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let body = match &stage {
        Stage::CompletedWithErrors(message) | Stage::Failed(message) => {
            json!({ "status": stage.word(), "message": message })
        }
        _ => json!({ "status": stage.word() }),
    };
    json_body(&body)
}
