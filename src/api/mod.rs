//! The custom tool `API`: one HTTP request that an operator described, filled in with a model's
//! arguments.
//!
//! Before it: a tool's row ([`Tool::read`]) and arguments that nobody trusts. They are judged by
//! the JSON Schema, set into their places so that none can leave its own, and sent through the
//! guard. After it: a [`ToolOutput`], whatever the server said; an error only where there is no
//! answer, or where the server asks to come back. A credential goes to the origin it was saved
//! for and is never carried over a redirect.

mod auth;
mod body;
mod error;
mod openapi;
mod operation;
mod place;
mod schema;
mod send;
mod template;
mod tool;
mod yaml;

pub use error::{ApiError, ToolError};
pub use tool::Tool;

use crate::config;
use crate::domain::{Saved, ToolOutput};
use crate::guard::Guard;
use reqwest::Client;
use serde_json::{Map, Value};
use std::time::Duration;

/// One call of a tool.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub tool: &'a Tool,
    pub arguments: &'a Map<String, Value>,
    pub saved: Option<Saved<'a>>,
    /// Sent as `Idempotency-Key`.
    pub idempotency_key: Option<&'a str>,
}

/// The client of all API tools.
#[derive(Debug, Clone)]
pub struct Api {
    guard: Guard,
    client: Client,
    total: Duration,
    max_bytes: u64,
    max_redirects: usize,
}

impl Api {
    /// Makes the client, whose connections all pass `guard`.
    pub fn new(settings: &config::Api, guard: Guard) -> reqwest::Result<Self> {
        Ok(Self {
            client: guard.client(Duration::from_secs(settings.connect_seconds), None)?,
            guard,
            total: Duration::from_secs(settings.total_seconds),
            max_bytes: settings.max_bytes,
            max_redirects: settings.max_redirects,
        })
    }

    /// Sends the request that `call` describes and reads its answer.
    ///
    /// Wrong arguments and error statuses are outputs, for the model to read. Nothing was
    /// connected to before every check had passed.
    pub async fn call(&self, call: &Call<'_>) -> Result<ToolOutput, ApiError> {
        if let Err(faults) = call.tool.judge(call.arguments).await {
            return Ok(ToolOutput::error(faults));
        }
        let mut request = match call.tool.fill(call.arguments) {
            Ok(request) => request,
            Err(misfit) => return Ok(ToolOutput::error(misfit.to_string())),
        };
        if let Some(key) = call.idempotency_key {
            request.header("idempotency-key", key).map_err(|_| ApiError::IdempotencyKey)?;
        }
        self.guard.check(&request.url).map_err(|reason| ApiError::Refused { reason, sent: false })?;
        if let Some(saved) = &call.saved {
            auth::apply(saved, &mut request)?;
        }
        tokio::time::timeout(self.total, self.converse(request, call))
            .await
            .unwrap_or(Err(ApiError::Timeout { sent: true }))
    }
}
