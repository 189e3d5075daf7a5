//! Why a call has no answer, and whether the server may have seen it.

use crate::guard::{Refusal, refused};
use std::time::Duration;

/// Why a tool's row describes no request.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("`{key}` is missing")]
    Missing { key: &'static str },
    #[error("the tool's settings are not as they should be: {0}")]
    Settings(#[from] serde_json::Error),
    #[error("the document is neither JSON nor YAML: {0}")]
    Unreadable(String),
    #[error("the document has more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the document is not OpenAPI 3.0 or 3.1")]
    Version,
    #[error("the document has no operation {0}")]
    NoOperation(String),
    #[error("{0} refers to nothing in the document, to another document, or to itself")]
    Reference(String),
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error("{0} is no address to send requests to")]
    Endpoint(String),
    #[error("placeholders may not stand in {0}")]
    Placeholder(&'static str),
    #[error("the input schema has no property {0}, for which there is a placeholder")]
    Undeclared(String),
    #[error("the header {0} may not be set by a tool")]
    Header(String),
    #[error("the input schema is no JSON Schema: {0}")]
    Schema(String),
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the credential was saved for {saved}, not for {asked}")]
    Origin { saved: String, asked: String },
    #[error("the credential cannot be used for a request: {0}")]
    Credential(&'static str),
    #[error("the idempotency key is no header value")]
    IdempotencyKey,
    #[error("the address is refused: {reason}")]
    Refused { reason: Refusal, sent: bool },
    #[error("the server asks to come back later (status {code})")]
    Busy { code: u16, retry_after: Duration },
    #[error("the server took too long")]
    Timeout { sent: bool },
    #[error("the server could not be reached: {0}")]
    Unreachable(#[source] reqwest::Error),
    #[error("the connection was lost before the answer: {0}")]
    Lost(#[source] reqwest::Error),
    #[error("the answer broke off after {at} bytes")]
    Cut { at: u64 },
}

impl ApiError {
    /// Whether the server may have seen the call, and so may have acted on it.
    ///
    /// After [`ApiError::Busy`] it did see it; with a 429 it said itself that it put it off.
    pub fn was_sent(&self) -> bool {
        match self {
            Self::Origin { .. } | Self::Credential(_) | Self::IdempotencyKey | Self::Unreachable(_) => false,
            Self::Refused { sent, .. } | Self::Timeout { sent } => *sent,
            Self::Busy { .. } | Self::Lost(_) | Self::Cut { .. } => true,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::Timeout { .. }
            | Self::Unreachable(_)
            | Self::Lost(_)
            | Self::Cut { .. } => true,
            Self::Origin { .. } | Self::Credential(_) | Self::IdempotencyKey | Self::Refused { .. } => false,
        }
    }

    /// What the server asked us to wait; it has put the call off itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Sorts what reqwest says before there is an answer. `hops`: requests sent before this one.
    pub(super) fn sending(error: reqwest::Error, hops: usize) -> Self {
        if let Some(reason) = refused(&error) {
            return Self::Refused { reason, sent: hops > 0 };
        }
        // The URL may hold a credential in its query: it stays out of logs and error columns.
        let error = error.without_url();
        match (error.is_connect() && hops == 0, error.is_timeout()) {
            (true, true) => Self::Timeout { sent: false },
            (true, false) => Self::Unreachable(error),
            (false, true) => Self::Timeout { sent: true },
            (false, false) => Self::Lost(error),
        }
    }
}
