//! The guarded HTTP client: bytes from a URL that a user named.
//!
//! Before it: a job with a `source_url`. After it: a local file with size and sha256. Every
//! address is checked where it is used (literal hosts here, names in the connector's own
//! resolver), redirects are followed by hand and each hop is checked again, and proxies of the
//! environment are ignored, because behind one nobody filters.

mod address;
mod error;
mod name;
mod resolver;

pub use error::{FetchError, Refusal};

use crate::config;
use address::refusal;
use ipnet::IpNet;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, redirect};
use resolver::{Guard, Lookup, System};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use url::{Host, Url};

/// Longest wait that a server's Retry-After is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);
/// A body without a byte for so long is given up before the total deadline.
const STALL: Duration = Duration::from_secs(30);

/// A client that reaches only the public Internet, and the networks the settings allow.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: Client,
    allow: Arc<[IpNet]>,
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
        Self::with_lookup(settings, System)
    }

    fn with_lookup(settings: &config::Fetch, lookup: impl Lookup) -> Result<Self, FetchError> {
        // Whoever comes second finds a provider installed: the same one, or one as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let allow: Arc<[IpNet]> = settings.allow.clone().into();
        #[expect(clippy::disallowed_methods, reason = "this is the guarded client of fetch")]
        let client = Client::builder()
            .dns_resolver(Guard { lookup: Arc::new(lookup), allow: Arc::clone(&allow) })
            .redirect(redirect::Policy::none())
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(Duration::from_secs(settings.connect_seconds))
            .read_timeout(STALL)
            .user_agent(concat!("gristmill/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(FetchError::Client)?;
        Ok(Self {
            client,
            allow,
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
            self.check(&url)?;
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

    /// What can be told of a URL before any lookup. Literal addresses never see the resolver,
    /// so they are judged here; the URL parser has folded their odd spellings already.
    fn check(&self, url: &Url) -> Result<(), Refusal> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Credentials);
        }
        let address: IpAddr = match url.host() {
            None | Some(Host::Domain("")) => return Err(Refusal::NoHost),
            Some(Host::Domain(_)) => return Ok(()),
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
        };
        match refusal(address, &self.allow) {
            None => Ok(()),
            Some(network) => Err(Refusal::Address { host: address.to_string(), address, network }),
        }
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

/// Where a redirect leads; never from https down to http.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, Refusal> {
    let location = headers.get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let next = from.join(location.ok_or(Refusal::BadRedirect)?).map_err(|_| Refusal::BadRedirect)?;
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(Refusal::Downgrade);
    }
    Ok(next)
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
