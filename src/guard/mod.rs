//! The guard of everything that goes out: which addresses an address of somebody else's choice
//! may lead to.
//!
//! Whoever sends a request to a URL that a user, a document or a server named makes its client
//! here and has each URL checked first. Names are judged in the connector's own resolver, so no
//! second lookup can answer differently; literal hosts never see a resolver and are judged by
//! [`Guard::check`]. No redirect is followed by the client, for each hop must be checked, and
//! proxies of the environment are ignored, because behind one nobody filters.

mod address;
mod resolver;

pub use resolver::{Lookup, System};

use address::refusal;
use ipnet::IpNet;
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Client, redirect};
use resolver::{Blocked, Filter};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use url::{Host, Url};

/// Why a URL is not even asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is not a URL")]
    NotAUrl,
    #[error("only http and https are fetched")]
    Scheme,
    #[error("it carries credentials")]
    Credentials,
    #[error("it names no host")]
    NoHost,
    #[error("{host} leads to {address}, which is {network}")]
    Address { host: String, address: IpAddr, network: &'static str },
    #[error("it redirects from https to http")]
    Downgrade,
    #[error("it redirects more than {limit} times")]
    TooManyRedirects { limit: usize },
    #[error("it redirects to nowhere")]
    BadRedirect,
}

/// What may be reached: the public Internet, and the networks the settings allow.
#[derive(Debug, Clone)]
pub struct Guard<L = System> {
    lookup: Arc<L>,
    allow: Arc<[IpNet]>,
}

impl Guard {
    /// With the operating system's resolver.
    pub fn new(allow: &[IpNet]) -> Self {
        Self::with_lookup(allow, System)
    }
}

impl<L: Lookup> Guard<L> {
    /// With another way to look names up.
    pub fn with_lookup(allow: &[IpNet], lookup: L) -> Self {
        Self { lookup: Arc::new(lookup), allow: allow.into() }
    }

    /// A client whose names lead only to what may be reached. `stall`: so long without a byte
    /// ends an answer.
    pub fn client(&self, connect: Duration, stall: Option<Duration>) -> reqwest::Result<Client> {
        // Whoever comes second finds a provider installed: the same one, or one as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "this is where guarded clients are made")]
        let mut client = Client::builder()
            .dns_resolver(Filter { lookup: Arc::clone(&self.lookup), allow: Arc::clone(&self.allow) })
            .redirect(redirect::Policy::none())
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(connect)
            .user_agent(concat!("gristmill/", env!("CARGO_PKG_VERSION")));
        if let Some(stall) = stall {
            client = client.read_timeout(stall);
        }
        client.build()
    }

    /// What can be told of a URL before any lookup; the URL parser has folded odd spellings of
    /// addresses already.
    pub fn check(&self, url: &Url) -> Result<(), Refusal> {
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
        self.admit(&address.to_string(), address)
    }

    /// Whether `address`, which `host` leads to, may be reached: for connections that are not HTTP.
    pub fn admit(&self, host: &str, address: IpAddr) -> Result<(), Refusal> {
        match refusal(address, &self.allow) {
            None => Ok(()),
            Some(network) => Err(Refusal::Address { host: host.to_owned(), address, network }),
        }
    }
}

/// What the guard refused, where that is why a request failed.
pub fn refused(error: &(dyn std::error::Error + 'static)) -> Option<Refusal> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(Blocked { host, address, network }) = inner.downcast_ref() {
            return Some(Refusal::Address { host: host.clone(), address: *address, network });
        }
        cause = inner.source();
    }
    None
}

/// Where a redirect leads; never from https down to http.
pub fn target(from: &Url, headers: &HeaderMap) -> Result<Url, Refusal> {
    let location = headers.get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let next = from.join(location.ok_or(Refusal::BadRedirect)?).map_err(|_| Refusal::BadRedirect)?;
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(Refusal::Downgrade);
    }
    Ok(next)
}
