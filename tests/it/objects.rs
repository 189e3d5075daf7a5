//! Objects against the real embedded server, with a layer before it that breaks things.

use gristmill::config;
use gristmill::objects::{ObjectError, Objects, Patience, Pin};
use gristmill::runtime::embedded_s3::EmbeddedS3;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BUCKET: &str = "gristmill";
const KEY: &str = "tenant/a.bin";

/// What happens to one GET.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Pass,
    Unavailable,
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// The body stops after so many bytes, the connection stays open.
    Stall(usize),
    /// One byte of the body is another.
    Flip(usize),
}

#[derive(Debug)]
struct Plan {
    next: VecDeque<Fault>,
    rest: Fault,
    gets: usize,
}

/// A proxy on the wire; each connection carries one request.
struct Proxy {
    endpoint: String,
    plan: Arc<Mutex<Plan>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    async fn before(upstream: &str, next: &[Fault], rest: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let plan = Arc::new(Mutex::new(Plan { next: next.iter().copied().collect(), rest, gets: 0 }));
        let (shared, upstream) = (Arc::clone(&plan), upstream.trim_start_matches("http://").to_owned());
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (plan, upstream) = (Arc::clone(&shared), upstream.clone());
                // A broken connection is what this is for.
                tokio::spawn(async move { drop(pass(client, &upstream, &plan).await) });
            }
        });
        Self { endpoint, plan, task }
    }

    fn gets(&self) -> usize {
        self.plan.lock().unwrap().gets
    }
}

async fn head_of(stream: &mut TcpStream) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok((bytes, rest));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn pass(mut client: TcpStream, upstream: &str, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let (head, rest) = head_of(&mut client).await?;
    let fault = if head.starts_with(b"GET /") {
        let mut plan = plan.lock().unwrap();
        plan.gets += 1;
        let rest = plan.rest;
        plan.next.pop_front().unwrap_or(rest)
    } else {
        Fault::Pass
    };
    if matches!(fault, Fault::Unavailable) {
        let reply = b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        return client.write_all(reply).await;
    }
    let mut server = TcpStream::connect(upstream).await?;
    let head = String::from_utf8_lossy(&head).replacen("\r\n", "\r\nconnection: close\r\n", 1);
    server.write_all(head.as_bytes()).await?;
    server.write_all(&rest).await?;
    if matches!(fault, Fault::Pass) {
        tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    let (reply, mut body) = head_of(&mut server).await?;
    client.write_all(&reply).await?;
    server.read_to_end(&mut body).await?;
    match fault {
        Fault::Cut(n) => client.write_all(&body[..n.min(body.len())]).await?,
        Fault::Stall(n) => {
            client.write_all(&body[..n.min(body.len())]).await?;
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        Fault::Flip(n) => {
            body[n] ^= 1;
            client.write_all(&body).await?;
        }
        Fault::Pass | Fault::Unavailable => {}
    }
    client.shutdown().await
}

fn settings(endpoint: &str, max_bytes: u64) -> config::Objects {
    config::Objects {
        endpoint: endpoint.to_owned(),
        region: "us-east-1".to_owned(),
        bucket: BUCKET.to_owned(),
        path_style: true,
        tenant_prefix: "{workspace}/".to_owned(),
        max_bytes,
        access_key: Some("gristmill".to_owned().into()),
        secret_key: Some("not-a-secret".to_owned().into()),
    }
}

fn door(endpoint: &str) -> Objects {
    let patience = Patience {
        stall: Duration::from_millis(400),
        resumes: 3,
        backoff: Duration::from_millis(300),
        ..Patience::default()
    };
    Objects::with_patience(&settings(endpoint, 256 << 20), patience).unwrap()
}

struct World {
    folder: tempfile::TempDir,
    server: EmbeddedS3,
    direct: Objects,
}

impl World {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = EmbeddedS3::start(&folder.path().join("s3"), "gristmill", "not-a-secret").await.unwrap();
        let direct = door(&server.endpoint);
        direct.ensure_bucket(BUCKET).await.unwrap();
        Self { folder, server, direct }
    }

    fn file(&self, name: &str, size: usize, seed: u32) -> (PathBuf, String) {
        let bytes: Vec<u8> = (0..size as u32)
            .map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let path = self.folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        (path, hex::encode(Sha256::digest(&bytes)))
    }

    /// Puts three megabytes and gives their pin and sha256.
    async fn put(&self, seed: u32) -> (Pin, String) {
        let (path, sha256) = self.file("source", 3 << 20, seed);
        let put = self.direct.upload(BUCKET, KEY, &path, Some("application/pdf")).await.unwrap();
        assert_eq!(put.sha256, sha256);
        (pin(Some(&put.head.etag)), sha256)
    }

    fn landing(&self) -> PathBuf {
        self.folder.path().join("landed")
    }
}

fn pin(etag: Option<&str>) -> Pin {
    Pin { bucket: BUCKET.to_owned(), key: KEY.to_owned(), etag: etag.map(str::to_owned), version_id: None }
}

fn sha256_of(path: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(path).unwrap()))
}

#[tokio::test]
async fn an_object_goes_up_comes_down_is_listed_and_deleted() {
    let world = World::open().await;
    let (pin, sha256) = world.put(1).await;
    let head = world.direct.head(BUCKET, KEY).await.unwrap();
    assert_eq!((head.size, head.content_type.as_deref()), (3 << 20, Some("application/pdf")));
    let landed = world.direct.download(&pin, &world.landing()).await.unwrap();
    assert_eq!((landed.size, &landed.sha256), (3 << 20, &sha256));
    assert_eq!(sha256_of(&world.landing()), sha256);
    let listed = world.direct.list(BUCKET, "tenant/").await.unwrap();
    assert_eq!(listed.iter().map(|l| l.key.as_str()).collect::<Vec<_>>(), [KEY]);
    assert!(world.direct.list(BUCKET, "other/").await.unwrap().is_empty());
    world.direct.delete(BUCKET, KEY).await.unwrap();
    world.direct.delete(BUCKET, KEY).await.unwrap();
    assert!(matches!(world.direct.head(BUCKET, KEY).await, Err(ObjectError::Missing)));
    assert!(matches!(world.direct.download(&pin, &world.landing()).await, Err(ObjectError::Missing)));
    world.server.stop().await;
}

#[tokio::test]
async fn a_large_file_goes_up_in_parts() {
    let world = World::open().await;
    let (path, sha256) = world.file("large", (40 << 20) + 7, 3);
    let put = world.direct.upload(BUCKET, KEY, &path, None).await.unwrap();
    assert_eq!((put.head.size, &put.sha256), ((40 << 20) + 7, &sha256));
    let landed = world.direct.download(&pin(Some(&put.head.etag)), &world.landing()).await.unwrap();
    assert_eq!(landed.sha256, sha256);
}

#[tokio::test]
async fn an_empty_file_and_odd_keys_survive_the_round_trip() {
    let world = World::open().await;
    let (path, sha256) = world.file("empty", 0, 0);
    for key in ["tenant/empty", "tenant/Übersicht 2026 (1).txt", "tenant/a+b&c=d%20e.txt"] {
        world.direct.upload(BUCKET, key, &path, None).await.unwrap();
        let pin = Pin { key: key.to_owned(), ..pin(None) };
        let landed = world.direct.download(&pin, &world.landing()).await.unwrap();
        assert_eq!((landed.size, &landed.sha256), (0, &sha256), "{key}");
    }
}

#[tokio::test]
async fn two_refusals_with_503_are_outlived() {
    let world = World::open().await;
    let (pin, sha256) = world.put(1).await;
    let faults = [Fault::Unavailable, Fault::Unavailable];
    let proxy = Proxy::before(&world.server.endpoint, &faults, Fault::Pass).await;
    let landed = door(&proxy.endpoint).download(&pin, &world.landing()).await.unwrap();
    assert_eq!((landed.sha256, proxy.gets()), (sha256, 3));
}

#[tokio::test]
async fn a_body_cut_in_the_middle_is_resumed_where_it_broke() {
    let world = World::open().await;
    let (pin, sha256) = world.put(1).await;
    let faults = [Fault::Cut(1_500_000), Fault::Cut(700_000)];
    let proxy = Proxy::before(&world.server.endpoint, &faults, Fault::Pass).await;
    let landed = door(&proxy.endpoint).download(&pin, &world.landing()).await.unwrap();
    assert_eq!((landed.size, landed.sha256, proxy.gets()), (3 << 20, sha256.clone(), 3));
    assert_eq!(sha256_of(&world.landing()), sha256);
}

#[tokio::test]
async fn a_stalled_body_is_resumed_after_the_stall_time() {
    let world = World::open().await;
    let (pin, sha256) = world.put(1).await;
    let proxy = Proxy::before(&world.server.endpoint, &[Fault::Stall(1_000_000)], Fault::Pass).await;
    let begin = Instant::now();
    let landed = door(&proxy.endpoint).download(&pin, &world.landing()).await.unwrap();
    assert_eq!(landed.sha256, sha256);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_body_that_is_always_cut_is_given_up_and_worth_another_try() {
    let world = World::open().await;
    let (pin, _) = world.put(1).await;
    let proxy = Proxy::before(&world.server.endpoint, &[], Fault::Cut(1_000)).await;
    let wrong = door(&proxy.endpoint).download(&pin, &world.landing()).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::Cut { resumes: 3, .. }), "{wrong:?}");
    assert!(wrong.is_transient());
    assert_eq!(proxy.gets(), 4);
}

#[tokio::test]
async fn a_body_with_another_byte_is_not_taken() {
    let world = World::open().await;
    let (pin, _) = world.put(1).await;
    let proxy = Proxy::before(&world.server.endpoint, &[], Fault::Flip(2_000_000)).await;
    let wrong = door(&proxy.endpoint).download(&pin, &world.landing()).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::Corrupt), "{wrong:?}");
    // Also where the resumption hides it from the SDK's own check.
    let faults = [Fault::Cut(1_000_000), Fault::Flip(1_000)];
    let proxy = Proxy::before(&world.server.endpoint, &faults, Fault::Pass).await;
    let wrong = door(&proxy.endpoint).download(&pin, &world.landing()).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::Corrupt), "{wrong:?}");
}

#[tokio::test]
async fn an_object_replaced_after_the_pin_is_not_taken() {
    let world = World::open().await;
    let (old, _) = world.put(1).await;
    world.put(2).await;
    let wrong = world.direct.download(&old, &world.landing()).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::Changed { .. }), "{wrong:?}");
    assert!(!wrong.is_transient());
    let never = world.direct.download(&pin(Some("\"0123\"")), &world.landing()).await.unwrap_err();
    assert!(matches!(never, ObjectError::Changed { .. }), "{never:?}");
}

#[tokio::test]
async fn an_object_replaced_during_the_download_is_not_stitched_together() {
    let world = World::open().await;
    world.put(1).await;
    let proxy = Proxy::before(&world.server.endpoint, &[Fault::Cut(1_000_000)], Fault::Pass).await;
    let (objects, into) = (door(&proxy.endpoint), world.landing());
    // Without a pin: the first answer's etag must bind the rest.
    let download = tokio::spawn(async move { objects.download(&pin(None), &into).await });
    while proxy.gets() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.put(2).await;
    let wrong = download.await.unwrap().unwrap_err();
    assert!(matches!(wrong, ObjectError::Changed { .. }), "{wrong:?}");
}

#[tokio::test]
async fn the_size_ceiling_holds_for_both_ways() {
    let world = World::open().await;
    let (pin, _) = world.put(1).await;
    let small = Objects::new(&settings(&world.server.endpoint, 1 << 20)).unwrap();
    let wrong = small.download(&pin, &world.landing()).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::TooLarge { limit: 1_048_576, .. }), "{wrong:?}");
    let (path, _) = world.file("big", 2 << 20, 0);
    let wrong = small.upload(BUCKET, KEY, &path, None).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::TooLarge { .. }), "{wrong:?}");
}

#[tokio::test]
async fn wrong_keys_no_keys_and_half_of_them_are_told_apart() {
    let world = World::open().await;
    let (pin, _) = world.put(1).await;
    let right = settings(&world.server.endpoint, 1 << 30);
    let wrong_secret = config::Objects { secret_key: Some("wrong".to_owned().into()), ..right.clone() };
    let unsigned = config::Objects { access_key: None, secret_key: None, ..right.clone() };
    for settings in [wrong_secret, unsigned] {
        let wrong = Objects::new(&settings).unwrap().download(&pin, &world.landing()).await.unwrap_err();
        assert!(matches!(wrong, ObjectError::Denied), "{wrong:?}");
    }
    let half = config::Objects { secret_key: None, ..right };
    assert!(matches!(Objects::new(&half), Err(ObjectError::HalfCredentials)));
}

#[tokio::test]
async fn a_store_that_is_down_is_worth_another_try() {
    let world = World::open().await;
    let (pin, _) = world.put(1).await;
    let (objects, into) = (world.direct.clone(), world.landing());
    world.server.stop().await;
    let wrong = objects.download(&pin, &into).await.unwrap_err();
    assert!(matches!(wrong, ObjectError::Unavailable { status: None, .. }), "{wrong:?}");
    assert!(wrong.is_transient());
}

#[tokio::test]
async fn many_workers_may_make_the_bucket_at_once() {
    let world = World::open().await;
    let all = (0..8).map(|_| world.direct.ensure_bucket("made-at-once"));
    for made in futures::future::join_all(all).await {
        made.unwrap();
    }
}
