//! clamd: a false one that misbehaves on the wire, and the real one where it is installed.

use super::*;
use std::process::{Child, Command, Stdio};

/// How a false clamd treats a stream; its VERSION is always in order.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    Says(&'static [u8]),
    Hangs,
    /// Closes without a word, unread bytes behind it: the client sees a reset.
    Resets,
    /// Says that the stream is too long in the middle of it, and hangs up.
    Refuses,
}

pub async fn fake(manner: Manner) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut command = [0; 10];
                stream.read_exact(&mut command[..9]).await.ok()?;
                if &command[..9] == b"zVERSION\0" {
                    return stream.write_all(b"ClamAV 1.4.6/27000/Sun Nov 22 2026\0").await.ok();
                }
                stream.read_exact(&mut command[9..]).await.ok()?;
                match manner {
                    Manner::Hangs => tokio::time::sleep(Duration::from_mins(1)).await,
                    Manner::Resets => {}
                    Manner::Refuses => {
                        stream.read_exact(&mut [0; 1000]).await.ok()?;
                        stream.write_all(b"INSTREAM size limit exceeded. ERROR\0").await.ok()?;
                    }
                    Manner::Says(reply) => {
                        loop {
                            let length = stream.read_u32().await.ok()?;
                            if length == 0 {
                                break;
                            }
                            stream.read_exact(&mut vec![0; length as usize]).await.ok()?;
                        }
                        stream.write_all(reply).await.ok()?;
                    }
                }
                Some(())
            });
        }
    });
    (address, task)
}

async fn with_fake(manner: Manner) -> Result<Outcome, ScanError> {
    let (address, task) = fake(manner).await;
    let scanner = Scanner::new(&settings(&address)).unwrap().patience(Duration::from_millis(800));
    let file = write(b"honest words");
    let found = scanner.scan(file.path(), &Claims::default()).await.map(|report| report.outcome);
    task.abort();
    found
}

#[tokio::test]
async fn replies_become_verdicts_and_silence_does_not() {
    assert_eq!(with_fake(Manner::Says(b"stream: OK\0")).await.unwrap(), Outcome::Clean);
    let infected = with_fake(Manner::Says(b"stream: Win.Worm FOUND\0")).await.unwrap();
    assert_eq!(infected, Outcome::Infected { signature: "Win.Worm".to_owned() });
    for reply in [
        &b"stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND\0"[..],
        b"stream: Heuristics.Encrypted.Zip FOUND\0",
        b"INSTREAM size limit exceeded. ERROR\0",
    ] {
        let outcome = with_fake(Manner::Says(reply)).await.unwrap();
        assert!(matches!(outcome, Outcome::Unscannable { .. }), "{outcome:?}");
    }
    for manner in [
        Manner::Says(b""),
        Manner::Says(b"stream: OK"),
        Manner::Says(b"stream: OK\n"),
        Manner::Says(b"whatever\0"),
        Manner::Hangs,
        Manner::Resets,
    ] {
        let wrong = with_fake(manner).await.unwrap_err();
        assert!(matches!(wrong, ScanError::Clamd(_)) && wrong.is_transient(), "{manner:?}: {wrong:?}");
    }
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_the_stream_is_read() {
    let (address, task) = fake(Manner::Refuses).await;
    let scanner = Scanner::new(&settings(&address)).unwrap().patience(Duration::from_secs(5));
    let long = report(&scanner, &dense(8 << 20), "a.bin").await;
    task.abort();
    assert!(matches!(long.outcome, Outcome::Unscannable { .. }), "{:?}", long.outcome);
}

#[tokio::test]
async fn a_clamd_that_is_down_leaves_the_file_unjudged() {
    let (address, task) = fake(Manner::Hangs).await;
    task.abort();
    // Aborted but perhaps not yet dropped: wait until nobody listens.
    let _ = task.await;
    let scanner = Scanner::new(&settings(&address)).unwrap();
    let file = write(b"honest words");
    let wrong = scanner.scan(file.path(), &Claims::default()).await.unwrap_err();
    assert!(matches!(wrong, ScanError::Clamd(_)) && wrong.is_transient(), "{wrong:?}");
}

#[tokio::test]
async fn clamds_ok_is_not_asked_for_what_is_beyond_our_limits() {
    let (address, task) = fake(Manner::Says(b"stream: OK\0")).await;
    let small = config::Scan { clamd_max_bytes: 1000, ..settings(&address) };
    let large = report(&Scanner::new(&small).unwrap(), &dense(2000), "a.bin").await;
    assert!(matches!(large.outcome, Outcome::Unscannable { .. }), "{:?}", large.outcome);
    assert_eq!(large.limits_hit, ["clamd_max_bytes"]);
    let bomb = report(&Scanner::new(&settings(&address)).unwrap(), &nested(10), "a.zip").await;
    assert!(matches!(bomb.outcome, Outcome::Unscannable { .. }), "{:?}", bomb.outcome);
    task.abort();
}

/// A real clamd with two signatures of our own; it dies with this value.
struct Clamd {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Clamd {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn start() -> Option<Clamd> {
    let binary = ["/usr/sbin/clamd", "/usr/local/sbin/clamd", "/usr/bin/clamd"]
        .into_iter()
        .find(|p| Path::new(p).exists());
    let Some(binary) = binary else {
        eprintln!("skipped: no clamd binary (package clamav-daemon)");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let (dir, socket) = (folder.path().display().to_string(), folder.path().join("clamd.sock"));
    std::fs::create_dir(folder.path().join("db")).unwrap();
    std::fs::create_dir(folder.path().join("scratch")).unwrap();
    let signatures =
        format!("Local.Eicar.Body:0:*:{}\nLocal.Canary:0:*:{}\n", hex::encode(eicar()), hex::encode(CANARY));
    std::fs::write(folder.path().join("db/local.ndb"), signatures).unwrap();
    let user = if is_root() { "User root\n" } else { "" };
    let config = format!(
        "Foreground yes\n{user}DatabaseDirectory {dir}/db\nTemporaryDirectory {dir}/scratch\n\
         LocalSocket {}\nFixStaleSocket yes\nLogFile {dir}/clamd.log\nSelfCheck 0\nMaxThreads 4\n\
         StreamMaxLength 25M\nMaxFileSize 25M\nMaxScanSize 100M\nMaxFiles 10000\nMaxRecursion 16\n\
         AlertExceedsMax yes\nAlertEncrypted yes\n",
        socket.display()
    );
    std::fs::write(folder.path().join("clamd.conf"), config).unwrap();
    let child = Command::new(binary)
        .arg("-c")
        .arg(folder.path().join("clamd.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let clamd = Clamd { child, address: format!("unix:{}", socket.display()), _folder: folder };
    let scanner = Scanner::new(&settings(&clamd.address)).unwrap();
    for _ in 0..200 {
        if scanner.engine().await.is_ok() {
            return Some(clamd);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("clamd did not come up: see {dir}/clamd.log");
}

const CANARY: &[u8] = b"gristmill-canary-5b1e0f";

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

#[tokio::test]
async fn a_real_clamd_finds_what_only_it_knows_and_clears_the_rest() {
    let Some(clamd) = start().await else { return };
    let limits = config::Scan { clamd_max_bytes: 25 * MIB, required: true, ..settings(&clamd.address) };
    let scanner = Scanner::new(&limits).unwrap();
    let engine = scanner.engine().await.unwrap();
    assert_eq!(engine.name, "gristmill+clamd");
    assert!(engine.signature_version.contains("ClamAV 1."), "{engine:?}");
    for (name, bytes) in infected() {
        let found = report(&scanner, &bytes, name).await;
        assert!(matches!(found.outcome, Outcome::Infected { .. }), "{name}: {:?}", found.outcome);
    }
    for (name, bytes) in [
        ("a.txt", CANARY.to_vec()),
        ("a.zip", zip_of(&[("x", CANARY)])),
        ("a.docx", docx_with(CANARY)),
        ("a.pdf", pdf_with(&zlib_of(CANARY), "/FlateDecode")),
    ] {
        match report(&scanner, &bytes, name).await.outcome {
            Outcome::Infected { signature } => assert!(signature.contains("Canary"), "{name}: {signature}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let honest = report(&scanner, &docx_with(b"picture"), "a.docx").await;
    assert_eq!(honest.outcome, Outcome::Clean);
}

#[tokio::test]
async fn what_a_real_clamd_calls_ok_without_looking_is_still_not_clean() {
    let Some(clamd) = start().await else { return };
    let scanner = Scanner::new(&settings(&clamd.address)).unwrap();
    // Both get `stream: OK` from clamd 1.4.6.
    let mut hidden = vec![0; 30 << 20];
    hidden.extend(eicar());
    let deep = report(&scanner, &zip_of(&[("hidden", &hidden)]), "a.zip").await;
    assert_ne!(deep.outcome, Outcome::Clean);
    let zeros = report(&scanner, &zeros_in_zip(128 << 20), "b.zip").await;
    assert!(matches!(zeros.outcome, Outcome::Unscannable { .. }), "{:?}", zeros.outcome);
    // Above its StreamMaxLength it refuses in the middle of the stream.
    let long = report(&scanner, &dense(30 << 20), "c.bin").await;
    assert!(matches!(long.outcome, Outcome::Unscannable { .. }), "{:?}", long.outcome);
    assert!(long.limits_hit[0].starts_with("clamd:"), "{:?}", long.limits_hit);
}
