//! What can go wrong between us and an object store, and whether trying again helps.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("no such object or bucket")]
    Missing,
    #[error("the object is not the one that was pinned (expected etag {expected:?}, found {found:?})")]
    Changed { expected: Option<String>, found: Option<String> },
    #[error("the object store refuses access")]
    Denied,
    #[error("the object has {} bytes, the limit is {limit}", at_least(*.size))]
    TooLarge { size: Option<u64>, limit: u64 },
    #[error("the body was cut at {at} of {} bytes, after {resumes} resumptions", at_least(*.of))]
    Cut { at: u64, of: Option<u64>, resumes: u32 },
    #[error("the body stalled at {at} bytes, after {resumes} resumptions")]
    Stalled { at: u64, resumes: u32 },
    #[error("the bytes received do not match the store's own checksum or length")]
    Corrupt,
    #[error("the object store is unavailable (status {status:?}): {detail}")]
    Unavailable { status: Option<u16>, detail: String },
    #[error("the object store rejects the request (status {status:?}, code {code:?}): {detail}")]
    Rejected { status: Option<u16>, code: Option<String>, detail: String },
    #[error("set both objects.access_key and objects.secret_key, or neither")]
    HalfCredentials,
    #[error("local file: {0}")]
    File(#[from] std::io::Error),
}

fn at_least(size: Option<u64>) -> String {
    size.map_or_else(|| "unknown".to_owned(), |n| n.to_string())
}

impl ObjectError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Cut { .. }
            | Self::Stalled { .. }
            | Self::Corrupt
            | Self::Unavailable { .. }
            | Self::File(_) => true,
            Self::Missing
            | Self::Changed { .. }
            | Self::Denied
            | Self::TooLarge { .. }
            | Self::Rejected { .. }
            | Self::HalfCredentials => false,
        }
    }
}

/// Sorts an SDK error, whose own retries are over by now.
pub(super) fn from_sdk<E>(error: &SdkError<E, HttpResponse>) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let detail = || DisplayErrorContext(error).to_string();
    let status = error.raw_response().map(|r| r.status().as_u16());
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    match (status, error) {
        (Some(404), _) => ObjectError::Missing,
        (Some(401 | 403), _) => ObjectError::Denied,
        // 416: a resumption beyond the end of what is there now.
        (Some(412 | 416), _) => ObjectError::Changed { expected: None, found: None },
        (None, SdkError::ConstructionFailure(_)) => {
            ObjectError::Rejected { status, code: None, detail: detail() }
        }
        // A 2xx that could not be read is the connection's fault.
        (None | Some(..300 | 408 | 409 | 429 | 500..), _) => {
            ObjectError::Unavailable { status, detail: detail() }
        }
        (Some(_), _) => ObjectError::Rejected { status, code: code.map(str::to_owned), detail: detail() },
    }
}
