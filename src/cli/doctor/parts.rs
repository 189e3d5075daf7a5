//! Everything but the database: objects, scanner, extraction, model, runtimes, disk.

use super::{Findings, within};
use crate::cli::house::House;
use crate::config::{self, Config};
use crate::domain::Space;
use crate::embed::Embedder;
use crate::extract::{Extractor, Hint};
use crate::objects::{ObjectError, Objects, Pin};
use crate::scan::{Claims, Outcome, Scanner};
use anyhow::{Context as _, ensure};
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

const PROBE: &str = "gristmill doctor was here";
/// Less than this and a large file or two fill the disk.
const SPOOL_BYTES: u64 = 2 << 30;

/// The bucket: an object is put, looked at, read and removed.
pub async fn objects(house: &House, fault: Option<String>, findings: &mut Findings) {
    let settings = &house.settings.objects;
    let place = if settings.endpoint.is_empty() { "AWS" } else { &settings.endpoint };
    let place = format!("bucket {} at {place}", settings.bucket);
    if let Some(fault) = fault {
        return findings.failed(
            "objects",
            format!("the embedded S3 server did not start: {fault}"),
            "see the message",
        );
    }
    match within(Box::pin(probe(settings, house.has_own_store()))).await {
        Ok(()) => findings.ok("objects", format!("{place}: put, read and removed a probe")),
        Err(error) => {
            let todo = "check objects.endpoint, .bucket, .region and the keys; the keys need get, put, list and delete";
            findings.failed("objects", format!("{place}: {error}"), todo);
        }
    }
}

async fn probe(settings: &config::Objects, is_ours: bool) -> anyhow::Result<()> {
    let objects = Objects::new(settings)?;
    if is_ours {
        objects.ensure_bucket(&settings.bucket).await?;
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), PROBE)?;
    let key = format!("gristmill-doctor/{}", Uuid::now_v7());
    objects.upload(&settings.bucket, &key, file.path(), None).await.context("put")?;
    let read = read(&objects, &settings.bucket, &key).await;
    objects.delete(&settings.bucket, &key).await.context("delete")?;
    ensure!(read? == PROBE, "what was read is not what was put");
    match objects.head(&settings.bucket, &key).await {
        Err(ObjectError::Missing) => Ok(()),
        Ok(_) => anyhow::bail!("the probe {key} is still there after it was deleted"),
        Err(error) => Err(error).context("head"),
    }
}

async fn read(objects: &Objects, bucket: &str, key: &str) -> anyhow::Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    let pin = Pin { bucket: bucket.to_owned(), key: key.to_owned(), etag: None, version_id: None };
    objects.download(&pin, file.path()).await.context("get")?;
    Ok(std::fs::read_to_string(file.path())?)
}

/// clamd and the built-in rules: a harmless file is scanned.
pub async fn scanner(settings: &Config, findings: &mut Findings) {
    let scan = &settings.scan;
    if scan.clamd.trim().is_empty() && !scan.required {
        let todo = "uploads of strangers want clamd: set scan.clamd and scan.required";
        return findings.warning("scanner", "built-in rules alone", todo);
    }
    match within(scan_probe(scan)).await {
        Ok(engine) => {
            let remark = format!(
                "clamd's StreamMaxLength must be scan.clamd_max_bytes ({}) or more",
                scan.clamd_max_bytes
            );
            findings.ok("scanner", format!("{engine}; {remark}"));
        }
        Err(error) => {
            findings.failed("scanner", error, "start clamd with its signatures, or correct scan.clamd");
        }
    }
}

async fn scan_probe(settings: &config::Scan) -> anyhow::Result<String> {
    let scanner = Scanner::new(settings)?.patience(Duration::from_secs(20));
    let engine = scanner.engine().await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), PROBE)?;
    let claims = Claims { name: Some("probe.txt".to_owned()), mime: None };
    let report = scanner.scan(file.path(), &claims).await?;
    ensure!(matches!(report.outcome, Outcome::Clean), "a harmless text is said to be {:?}", report.outcome);
    Ok(format!("{} {}", engine.name, engine.signature_version))
}

/// The child process that reads documents.
pub async fn extraction(settings: &Config, findings: &mut Findings) {
    let began = Instant::now();
    match within(extract_probe(&settings.extract)).await {
        Ok(()) => {
            findings.ok("extraction", format!("a child read a text in {} ms", began.elapsed().as_millis()));
        }
        Err(error) => {
            let todo = "children run this very program under extract.memory_bytes and the other limits";
            findings.failed("extraction", error, todo);
        }
    }
}

async fn extract_probe(settings: &config::Extract) -> anyhow::Result<()> {
    let extractor = Extractor::new(settings, std::env::current_exe()?);
    let folder = tempfile::tempdir()?;
    let (source, into) = (folder.path().join("source"), folder.path().join("text"));
    std::fs::write(&source, PROBE)?;
    let hint = Hint { name: Some("probe.txt".to_owned()), mime: Some("text/plain".to_owned()) };
    extractor.extract(&source, &hint, &into).await?;
    let text = std::fs::read_to_string(into)?;
    ensure!(text.trim() == PROBE, "the child read {text:?}");
    Ok(())
}

/// The programs that read pictures of text.
pub fn ocr(settings: &Config, findings: &mut Findings) {
    if settings.extract.ocr == config::Ocr::Off {
        return findings.ok("ocr", "off, as extract.ocr says");
    }
    let programs = ["tesseract", "pdftoppm"].map(|name| (name, crate::extract::helper(name)));
    let missing: Vec<_> = programs.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
    let there: Vec<_> = programs
        .iter()
        .filter_map(|(_, path)| path.as_ref())
        .map(|path| path.display().to_string())
        .collect();
    if missing.is_empty() {
        findings.ok("ocr", there.join(", "));
    } else {
        let todo = "scanned pages and pictures end as NEEDS_OCR: install tesseract-ocr and poppler-utils";
        findings.warning("ocr", format!("not installed: {}", missing.join(", ")), todo);
    }
}

/// ONNX Runtime and the model: one text is embedded.
pub async fn model(settings: &Config, findings: &mut Findings) -> Option<Space> {
    match within(embed_probe(settings)).await {
        Ok(space) => {
            findings.ok("model", format!("{}, {} dimensions", space.model, space.dimensions));
            Some(space)
        }
        Err(error) => {
            let todo =
                "`make deps` brings ONNX Runtime and a model; or set embed.model and embed.onnxruntime";
            findings.failed("model", error, todo);
            None
        }
    }
}

async fn embed_probe(settings: &Config) -> anyhow::Result<Space> {
    // One session is enough to see that it works.
    let mut embed = settings.embed.clone();
    embed.sessions = 1;
    let embedder = Embedder::open(&embed, &settings.embedded.deps_dir).await?;
    let vectors = embedder.embed(vec![PROBE.to_owned()]).await?;
    let space = embedder.space().clone();
    let length = vectors.first().map_or(0, Vec::len);
    ensure!(length == space.dimensions as usize, "a vector has {length} numbers, not {}", space.dimensions);
    Ok(space)
}

/// Where the files of jobs at work lie.
pub fn spool(settings: &Config, findings: &mut Findings) {
    let folder = settings.embedded.data_dir.join("spool");
    let written = std::fs::create_dir_all(&folder).and_then(|()| {
        let file = tempfile::NamedTempFile::new_in(&folder)?;
        std::fs::write(file.path(), PROBE)
    });
    if let Err(error) = written {
        let says = format!("{} cannot be written: {error}", folder.display());
        return findings.failed("spool", says, "set embedded.data_dir to a folder of the worker's");
    }
    // Helper programs and uploads use the system's own.
    for place in [folder.as_path(), &std::env::temp_dir()] {
        match free_bytes(place) {
            Ok(free) if free < SPOOL_BYTES => {
                let says = format!("{} MiB are free in {}", free >> 20, place.display());
                findings.warning("spool", says, "documents at work need room for themselves and their texts");
            }
            Ok(free) => findings.ok("spool", format!("{}: {} GiB free", place.display(), free >> 30)),
            Err(error) => findings.warning("spool", format!("{}: {error}", place.display()), "is it there?"),
        }
    }
}

fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL and the struct is the one the call fills.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it is filled.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail * stat.f_frsize)
}
