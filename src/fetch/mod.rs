//! Downloads: bytes from a URL that a user named.
//!
//! Before it: a job with a `source_url`. After it: a local file with size and sha256. Redirects
//! are followed by hand, and each hop passes the guard again.

mod error;
mod name;

pub use crate::guard::Refusal;
pub use error::FetchError;

use crate::config;
use crate::guard::{Guard, Lookup, System, target};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use url::Url;

/// Longest wait that a server's Retry-After is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);
/// A body without a byte for so long is given up before the total deadline.
const STALL: Duration = Duration::from_secs(30);

/// A client that reaches only the public Internet, and the networks the settings allow.
#[derive(Debug, Clone)]
pub struct Fetcher<L = System> {
    guard: Guard<L>,
    client: Client,
    max_bytes: u64,
    max_redirects: usize,
    total: Duration,
}

/// A file that was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// What the server declares; only a claim.
    pub content_type: Option<String>,
    pub final_url: String,
    /// From Content-Disposition, else from the URL; never a path.
    pub file_name: Option<String>,
}

impl Fetcher {
    /// Makes the client with the operating system's resolver and certificate store.
    pub fn new(settings: &config::Fetch) -> Result<Self, FetchError> {
        Self::with_guard(settings, Guard::new(&settings.allow))
    }
}

impl<L: Lookup> Fetcher<L> {
    fn with_guard(settings: &config::Fetch, guard: Guard<L>) -> Result<Self, FetchError> {
        let connect = Duration::from_secs(settings.connect_seconds);
        Ok(Self {
            client: guard.client(connect, Some(STALL)).map_err(FetchError::Client)?,
            guard,
            max_bytes: settings.max_bytes,
            max_redirects: settings.max_redirects,
            total: Duration::from_secs(settings.total_seconds),
        })
    }

    /// Downloads `url` into the file `into`, which is created or overwritten.
    ///
    /// After an error the file may hold an unfinished part and must not be read.
    pub async fn download(&self, url: &str, into: &Path) -> Result<Fetched, FetchError> {
        tokio::time::timeout(self.total, self.download_in_time(url, into))
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    async fn download_in_time(&self, url: &str, into: &Path) -> Result<Fetched, FetchError> {
        let mut url = Url::parse(url).map_err(|_| Refusal::NotAUrl)?;
        let mut hops = 0;
        let response = loop {
            self.guard.check(&url)?;
            let wish = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            let response = wish.send().await.map_err(FetchError::sending)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                break response;
            }
            if hops == self.max_redirects {
                return Err(Refusal::TooManyRedirects { limit: self.max_redirects }.into());
            }
            hops += 1;
            url = target(&url, response.headers())?;
        };
        let response = accept(response)?;
        self.save(response, &url, into).await
    }

    async fn save(&self, mut response: Response, url: &Url, into: &Path) -> Result<Fetched, FetchError> {
        let limit = self.max_bytes;
        if response.content_length().is_some_and(|size| size > limit) {
            return Err(FetchError::TooLarge { limit });
        }
        let mut file = tokio::fs::File::create(into).await?;
        let (mut hasher, mut size) = (Sha256::new(), 0);
        loop {
            let bytes = match response.chunk().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(e) if e.is_timeout() => return Err(FetchError::Timeout),
                Err(_) => return Err(FetchError::Cut { at: size }),
            };
            size += bytes.len() as u64;
            if size > limit {
                return Err(FetchError::TooLarge { limit });
            }
            hasher.update(&bytes);
            file.write_all(&bytes).await?;
        }
        file.flush().await?;
        let disposition = text(response.headers(), &CONTENT_DISPOSITION);
        Ok(Fetched {
            size,
            sha256: hex::encode(hasher.finalize()),
            content_type: text(response.headers(), &CONTENT_TYPE),
            final_url: url.to_string(),
            file_name: name::file_name(disposition.as_deref(), url),
        })
    }
}

/// Sorts the status; only 200 carries the file (206 would be a piece of one).
fn accept(response: Response) -> Result<Response, FetchError> {
    let code = response.status().as_u16();
    match code {
        200 | 203 => Ok(response),
        404 | 410 => Err(FetchError::NotFound { code }),
        429 | 503 => {
            let asked = text(response.headers(), &RETRY_AFTER);
            Err(FetchError::Busy { code, retry_after: asked.as_deref().and_then(retry_after) })
        }
        _ => Err(FetchError::Status { code }),
    }
}

/// Seconds or a date (RFC 9110, section 10.2.3), at most an hour.
fn retry_after(value: &str) -> Option<Duration> {
    let wait = if let Ok(seconds) = value.trim().parse() {
        Duration::from_secs(seconds)
    } else {
        let date = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?;
        date.signed_duration_since(chrono::Utc::now()).to_std().unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

fn text(headers: &HeaderMap, name: &reqwest::header::HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests;
