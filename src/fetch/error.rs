//! Why a URL was not downloaded, and whether trying again helps.

use crate::guard::{Refusal, refused};
use std::time::Duration;

/// Why nothing was downloaded.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the URL is refused: {reason}")]
    Refused { reason: Refusal },
    #[error("nothing is there (status {code})")]
    NotFound { code: u16 },
    #[error("the server answered with status {code}")]
    Status { code: u16 },
    #[error("the server asks to come back later (status {code})")]
    Busy { code: u16, retry_after: Option<Duration> },
    #[error("the file has more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the server took too long")]
    Timeout,
    #[error("the server could not be reached: {0}")]
    Unreachable(#[source] reqwest::Error),
    #[error("the answer broke off after {at} bytes")]
    Cut { at: u64 },
    #[error("the client could not be made: {0}")]
    Client(#[source] reqwest::Error),
    #[error("local file: {0}")]
    File(#[from] std::io::Error),
}

impl FetchError {
    /// Whether the same URL may give the file later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Timeout | Self::Unreachable(_) | Self::Cut { .. } | Self::File(_) => {
                true
            }
            Self::Status { code } => matches!(code, 408 | 425 | 500 | 502 | 504),
            Self::Refused { .. } | Self::NotFound { .. } | Self::TooLarge { .. } | Self::Client(_) => false,
        }
    }

    /// What the server asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Sorts what reqwest says before there is an answer.
    pub(super) fn sending(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        if error.is_builder() {
            return Self::Refused { reason: Refusal::NotAUrl };
        }
        if let Some(reason) = refused(&error) {
            return Self::Refused { reason };
        }
        // The URL may hold a token in its query: it stays out of logs and error columns.
        Self::Unreachable(error.without_url())
    }
}

impl From<Refusal> for FetchError {
    fn from(reason: Refusal) -> Self {
        Self::Refused { reason }
    }
}
