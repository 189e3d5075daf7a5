//! The resolver the connector itself uses: what it lets through is what is connected to, so
//! no second lookup can answer differently.

use super::address::refusal;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Asks for the addresses of a name: the system's resolver, or a test's.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, host: String) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
}

/// The operating system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Lookup for System {
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// A name all of whose addresses are out of reach.
#[derive(Debug, thiserror::Error)]
#[error("{host} has no address that may be reached ({address} is {network})")]
pub(super) struct Blocked {
    pub host: String,
    pub address: IpAddr,
    pub network: &'static str,
}

pub(super) struct Filter<L> {
    pub lookup: Arc<L>,
    pub allow: Arc<[IpNet]>,
}

impl<L: Lookup> Resolve for Filter<L> {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, allow) = (Arc::clone(&self.lookup), Arc::clone(&self.allow));
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let answers = lookup.lookup(host.clone()).await?;
            let kept = keep(host, answers, &allow)?;
            Ok(Box::new(kept.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

/// Of a mixed answer only the addresses that may be reached.
fn keep(host: String, answers: Vec<IpAddr>, allow: &[IpNet]) -> Result<Vec<IpAddr>, Blocked> {
    let mut blocked = None;
    let kept: Vec<_> = answers
        .into_iter()
        .filter(|&address| match refusal(address, allow) {
            None => true,
            Some(network) => {
                blocked = Some((address, network));
                false
            }
        })
        .collect();
    match (kept.is_empty(), blocked) {
        (true, Some((address, network))) => Err(Blocked { host, address, network }),
        _ => Ok(kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_answer_keeps_only_what_may_be_reached() {
        let answers = ["10.0.0.1", "8.8.8.8", "::1", "2606:4700::1"].map(|a| a.parse().unwrap());
        let kept = keep("x.test".to_owned(), answers.to_vec(), &[]).unwrap();
        assert_eq!(kept, ["8.8.8.8", "2606:4700::1"].map(|a| a.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn an_answer_of_private_addresses_alone_is_blocked_and_named() {
        let wrong = keep("x.test".to_owned(), vec!["169.254.169.254".parse().unwrap()], &[]).unwrap_err();
        assert_eq!(wrong.network, "link-local");
    }
}
