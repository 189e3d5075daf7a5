//! The guard as a whole: spellings of a URL, and names that answer differently each time.

use super::*;
use reqwest::header::LOCATION;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;

fn settings(allow: &[&str]) -> config::Fetch {
    config::Fetch {
        max_bytes: 1 << 20,
        connect_seconds: 2,
        total_seconds: 5,
        max_redirects: 3,
        allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

fn refused(url: &str) -> Result<(), Refusal> {
    let fetcher = Fetcher::new(&settings(&[])).unwrap();
    fetcher.guard.check(&Url::parse(url).map_err(|_| Refusal::NotAUrl)?)
}

#[test]
fn odd_spellings_of_a_private_address_are_seen_through() {
    for url in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://127.0.0.1:80/",
        "http://①②⑦.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://169.254.169.254/latest/meta-data/",
        "http:\\\\10.0.0.1\\x",
    ] {
        assert!(matches!(refused(url), Err(Refusal::Address { .. })), "{url}: {:?}", refused(url));
    }
}

#[test]
fn other_schemes_and_credentials_are_refused() {
    for (url, why) in [
        ("file:///etc/passwd", Refusal::Scheme),
        ("ftp://8.8.8.8/x", Refusal::Scheme),
        ("gopher://8.8.8.8/x", Refusal::Scheme),
        ("data:text/plain,x", Refusal::Scheme),
        ("http://user@8.8.8.8/", Refusal::Credentials),
        ("http://user:pw@8.8.8.8/", Refusal::Credentials),
        ("http://8.8.8.8@127.0.0.1/", Refusal::Credentials),
        ("http://", Refusal::NotAUrl),
        ("//8.8.8.8/", Refusal::NotAUrl),
        ("http://127.0.0.1.1/", Refusal::NotAUrl),
    ] {
        assert_eq!(refused(url), Err(why), "{url}");
    }
    assert_eq!(refused("https://8.8.8.8/x"), Ok(()));
    assert_eq!(refused("http://example.com/x"), Ok(()));
}

/// Answers the first question with a reserved address and every later one with loopback.
struct Rebinding(Arc<AtomicUsize>);

impl Lookup for Rebinding {
    async fn lookup(&self, _host: String) -> io::Result<Vec<IpAddr>> {
        let first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(vec![if first { "240.0.0.1" } else { "127.0.0.1" }.parse().unwrap()])
    }
}

#[tokio::test]
async fn a_name_that_turns_to_loopback_gets_no_connection() {
    let decoy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = decoy.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let fetcher =
        Fetcher::with_guard(&settings(&[]), Guard::with_lookup(&[], Rebinding(Arc::clone(&asked)))).unwrap();
    let into = tempfile::NamedTempFile::new().unwrap();
    for _ in 0..3 {
        let wrong = fetcher.download(&format!("http://rebind.test:{port}/"), into.path()).await.unwrap_err();
        assert!(matches!(wrong, FetchError::Refused { reason: Refusal::Address { .. } }), "{wrong:?}");
        assert!(!wrong.is_transient());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 3, "every attempt is resolved, and filtered, anew");
    let nobody = tokio::time::timeout(Duration::from_millis(100), decoy.accept()).await;
    assert!(nobody.is_err(), "the decoy was connected to");
}

#[tokio::test]
async fn localhost_by_name_is_refused_by_default() {
    let decoy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = decoy.local_addr().unwrap().port();
    let fetcher = Fetcher::new(&settings(&[])).unwrap();
    let into = tempfile::NamedTempFile::new().unwrap();
    let wrong = fetcher.download(&format!("http://localhost:{port}/"), into.path()).await.unwrap_err();
    assert!(matches!(wrong, FetchError::Refused { reason: Refusal::Address { .. } }), "{wrong:?}");
    assert!(tokio::time::timeout(Duration::from_millis(100), decoy.accept()).await.is_err());
}

#[test]
fn retry_after_is_read_as_seconds_or_date_and_capped() {
    assert_eq!(retry_after("120"), Some(Duration::from_mins(2)));
    assert_eq!(retry_after("999999"), Some(LONGEST_RETRY_AFTER));
    assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
    assert_eq!(retry_after("soon"), None);
}

#[test]
fn a_redirect_from_https_to_http_is_refused() {
    let led = |from: &str, location: &str| {
        let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
        target(&Url::parse(from).unwrap(), &headers).map(|url| url.to_string())
    };
    assert_eq!(led("https://a.test/x", "http://a.test/x"), Err(Refusal::Downgrade));
    assert_eq!(led("https://a.test/x/y", "../z"), Ok("https://a.test/z".to_owned()));
    assert_eq!(led("http://a.test/x", "//b.test/"), Ok("http://b.test/".to_owned()));
    assert_eq!(led("http://a.test/x", "http://[bad"), Err(Refusal::BadRedirect));
    let none = target(&Url::parse("http://a.test/").unwrap(), &HeaderMap::new());
    assert_eq!(none, Err(Refusal::BadRedirect));
}
