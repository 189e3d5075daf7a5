//! Why there is no answer, and whether asking again helps.

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;
use std::time::Duration;

/// Longest wait that a provider's word is believed.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// Of a provider's own explanation.
const LONGEST_WORDS: usize = 500;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    #[error("the model's name is none")]
    Model,
    #[error("the key is no header value")]
    Key,
    #[error("the settings name no address for this provider")]
    Address,
    #[error("the provider does not accept the key (status {code})")]
    Denied { code: u16 },
    #[error("the provider refuses the request (status {code}): {words}")]
    Rejected { code: u16, words: String },
    #[error("the provider's limit is reached (status {code})")]
    Busy { code: u16, retry_after: Option<Duration> },
    #[error("the provider is in trouble (status {code})")]
    Trouble { code: u16, retry_after: Option<Duration> },
    #[error("the answer has not the shape that the provider documents")]
    Shape,
    #[error("the answer has more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the provider took too long")]
    Timeout { sent: bool },
    #[error("the provider could not be reached: {0}")]
    Unreachable(#[source] reqwest::Error),
    #[error("the connection was lost before the answer: {0}")]
    Lost(#[source] reqwest::Error),
    #[error("the answer broke off after {at} bytes")]
    Cut { at: u64 },
}

impl GroundError {
    /// Whether the provider may have seen the question, and so may charge for it.
    pub fn was_sent(&self) -> bool {
        match self {
            Self::Model | Self::Key | Self::Address | Self::Unreachable(_) => false,
            Self::Timeout { sent } => *sent,
            _ => true,
        }
    }

    /// Whether the same question may be answered later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. }
                | Self::Trouble { .. }
                | Self::Timeout { .. }
                | Self::Unreachable(_)
                | Self::Lost(_)
                | Self::Cut { .. }
        )
    }

    /// What the provider asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } | Self::Trouble { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn sending(error: reqwest::Error) -> Self {
        let error = error.without_url();
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Self::Timeout { sent: false },
            (true, false) => Self::Unreachable(error),
            (false, true) => Self::Timeout { sent: true },
            (false, false) => Self::Lost(error),
        }
    }

    /// Sorts a status; `body` holds no key any more.
    pub(super) fn status(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let code = status.as_u16();
        let error = serde_json::from_str::<Value>(body).unwrap_or_default();
        let retry_after = wait(headers, &error["error"]);
        match code {
            401 | 403 => Self::Denied { code },
            429 => Self::Busy { code, retry_after },
            408 | 500..=599 => Self::Trouble { code, retry_after },
            _ => {
                // xAI gives `error` as a text; the others give an object with a `message`.
                let error = &error["error"];
                let words = error["message"].as_str().or(error.as_str()).unwrap_or(body);
                Self::Rejected { code, words: words.chars().take(LONGEST_WORDS).collect() }
            }
        }
    }
}

/// Retry-After, or the `RetryInfo` that Gemini puts into the body instead.
fn wait(headers: &HeaderMap, error: &Value) -> Option<Duration> {
    let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::trim);
    let in_header = header.and_then(|value| {
        value.parse::<f64>().ok().or_else(|| {
            let date = chrono::DateTime::parse_from_rfc2822(value).ok()?;
            Some(date.signed_duration_since(chrono::Utc::now()).to_std().unwrap_or_default().as_secs_f64())
        })
    });
    let in_body = || {
        error["details"]
            .as_array()?
            .iter()
            .find_map(|detail| detail["retryDelay"].as_str()?.strip_suffix('s')?.parse::<f64>().ok())
    };
    let seconds = in_header.or_else(in_body)?;
    Duration::try_from_secs_f64(seconds).ok().map(|wait| wait.min(LONGEST_WAIT))
}
