//! The guarded client against live servers on loopback; decoys count their connections.

use gristmill::config;
use gristmill::fetch::{FetchError, Fetcher, Refusal};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server with one answer for each path; it counts who connects.
pub struct Server {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn server(host: &str, answers: Vec<(&'static str, Vec<u8>)>) -> Server {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let answers = Arc::new(answers);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..n]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                match answers.iter().find(|(known, _)| *known == path) {
                    Some((_, answer)) => drop(stream.write_all(answer).await),
                    // No answer at all: the connection hangs.
                    None => tokio::time::sleep(Duration::from_secs(30)).await,
                }
            });
        }
    });
    Server { port, connections, task }
}

pub fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn status(line: &str, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n").into_bytes()
}

fn to(location: &str) -> Vec<u8> {
    status("302 Found", &format!("location: {location}\r\n"))
}

/// Allows 127.0.0.1 alone, so a decoy on 127.0.0.2 is out of bounds.
fn fetcher() -> Fetcher {
    Fetcher::new(&settings(&["127.0.0.1/32"])).unwrap()
}

fn settings(allow: &[&str]) -> config::Fetch {
    config::Fetch {
        max_bytes: 100_000,
        connect_seconds: 2,
        total_seconds: 2,
        max_redirects: 3,
        allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

async fn get(fetcher: &Fetcher, url: &str) -> Result<gristmill::fetch::Fetched, FetchError> {
    let into = tempfile::NamedTempFile::new().unwrap();
    let landed = fetcher.download(url, into.path()).await?;
    let bytes = std::fs::read(into.path()).unwrap();
    assert_eq!(landed.sha256, hex::encode(Sha256::digest(&bytes)));
    assert_eq!(landed.size, bytes.len() as u64);
    Ok(landed)
}

#[tokio::test]
async fn a_file_is_brought_with_its_name_type_and_hash() {
    let headers = "content-type: application/pdf\r\ncontent-disposition: attachment; filename=\"r.pdf\"\r\n";
    let server = server("127.0.0.1", vec![("/a", ok(headers, b"%PDF-")), ("/b/c.txt", ok("", b"x"))]).await;
    let base = format!("http://127.0.0.1:{}", server.port);
    let fetched = get(&fetcher(), &format!("{base}/a")).await.unwrap();
    assert_eq!(fetched.file_name.as_deref(), Some("r.pdf"));
    assert_eq!(fetched.content_type.as_deref(), Some("application/pdf"));
    let fetched = get(&fetcher(), &format!("{base}/b/c.txt")).await.unwrap();
    assert_eq!((fetched.file_name.as_deref(), fetched.final_url), (Some("c.txt"), format!("{base}/b/c.txt")));
}

#[tokio::test]
async fn with_empty_settings_loopback_gets_no_connection() {
    let decoy = server("127.0.0.1", vec![("/", ok("", b"secret"))]).await;
    let closed = Fetcher::new(&settings(&[])).unwrap();
    for host in ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let wrong = get(&closed, &format!("http://{host}:{}/", decoy.port)).await.unwrap_err();
        let refused = matches!(wrong, FetchError::Refused { reason: Refusal::Address { .. } });
        assert!(refused && !wrong.is_transient(), "{host}: {wrong:?}");
    }
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn redirects_to_a_decoy_give_it_no_connection() {
    let decoy = server("127.0.0.2", vec![("/", ok("", b"secret"))]).await;
    let port = decoy.port;
    let front = server(
        "127.0.0.1",
        vec![
            ("/direct", to(&format!("http://127.0.0.2:{port}/"))),
            ("/hop", to("/direct")),
            ("/hophop", to("/hop")),
            ("/mapped", to(&format!("http://[::ffff:127.0.0.2]:{port}/"))),
            ("/odd", to(&format!("http://0x7f000002:{port}/"))),
            ("/slashes", to(&format!("//127.0.0.2:{port}/"))),
        ],
    )
    .await;
    let fetcher = fetcher();
    for path in ["direct", "hop", "hophop", "mapped", "odd", "slashes"] {
        let wrong = get(&fetcher, &format!("http://127.0.0.1:{}/{path}", front.port)).await.unwrap_err();
        let refused = matches!(wrong, FetchError::Refused { reason: Refusal::Address { .. } });
        assert!(refused, "{path}: {wrong:?}");
    }
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
    // The decoy does listen: opened by the settings, it answers.
    let open = Fetcher::new(&settings(&["127.0.0.0/8"])).unwrap();
    get(&open, &format!("http://127.0.0.1:{}/hophop", front.port)).await.unwrap();
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn redirects_are_followed_only_so_far_and_only_to_the_web() {
    let server = server(
        "127.0.0.1",
        vec![
            ("/4", to("/3")),
            ("/3", to("2")),
            ("/2", to("/1")),
            ("/1", ok("", b"here")),
            ("/0", to("/4")),
            ("/file", to("file:///etc/passwd")),
            ("/login", to("http://user:pw@127.0.0.1/")),
            ("/nowhere", status("302 Found", "")),
        ],
    )
    .await;
    let (fetcher, base) = (fetcher(), format!("http://127.0.0.1:{}", server.port));
    assert_eq!(get(&fetcher, &format!("{base}/4")).await.unwrap().final_url, format!("{base}/1"));
    for (path, why) in [
        ("0", Refusal::TooManyRedirects { limit: 3 }),
        ("file", Refusal::Scheme),
        ("login", Refusal::Credentials),
        ("nowhere", Refusal::BadRedirect),
    ] {
        match get(&fetcher, &format!("{base}/{path}")).await {
            Err(FetchError::Refused { reason }) => assert_eq!(reason, why, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn statuses_say_whether_to_come_back() {
    let server = server(
        "127.0.0.1",
        vec![
            ("/404", status("404 Not Found", "")),
            ("/403", status("403 Forbidden", "")),
            ("/500", status("500 Oops", "")),
            ("/429", status("429 Slow", "retry-after: 7\r\n")),
            ("/503", status("503 Busy", "")),
            ("/206", status("206 Partial", "")),
        ],
    )
    .await;
    let fetcher = fetcher();
    for (path, transient, wait) in [
        ("404", false, None),
        ("403", false, None),
        ("500", true, None),
        ("429", true, Some(Duration::from_secs(7))),
        ("503", true, None),
        ("206", false, None),
    ] {
        let wrong = get(&fetcher, &format!("http://127.0.0.1:{}/{path}", server.port)).await.unwrap_err();
        assert_eq!((wrong.is_transient(), wrong.retry_after()), (transient, wait), "{path}: {wrong:?}");
    }
}

#[tokio::test]
async fn size_and_time_are_bounded_whatever_the_headers_say() {
    let long = vec![b'x'; 100_001];
    let mut endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
    endless.extend(&long);
    let mut cut = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n".to_vec();
    cut.extend(b"half");
    let server =
        server("127.0.0.1", vec![("/told", ok("", &long)), ("/untold", endless), ("/cut", cut)]).await;
    let (fetcher, base) = (fetcher(), format!("http://127.0.0.1:{}", server.port));
    for path in ["told", "untold"] {
        let wrong = get(&fetcher, &format!("{base}/{path}")).await.unwrap_err();
        assert!(matches!(wrong, FetchError::TooLarge { limit: 100_000 }), "{path}: {wrong:?}");
    }
    let wrong = get(&fetcher, &format!("{base}/cut")).await.unwrap_err();
    assert!(matches!(wrong, FetchError::Cut { at: 4 }) && wrong.is_transient(), "{wrong:?}");
    let wrong = get(&fetcher, &format!("{base}/hangs")).await.unwrap_err();
    assert!(matches!(wrong, FetchError::Timeout) && wrong.is_transient(), "{wrong:?}");
}

#[tokio::test]
async fn nobody_listening_is_worth_another_try_and_the_url_is_not_told() {
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap().port()
    };
    let wrong = get(&fetcher(), &format!("http://127.0.0.1:{port}/x?token=canary")).await.unwrap_err();
    assert!(matches!(wrong, FetchError::Unreachable(_)) && wrong.is_transient(), "{wrong:?}");
    assert!(!format!("{wrong} {wrong:?}").contains("canary"));
}
