//! `gristmill eval-docs DIR`: every file of a manifest through the whole pipeline, held against
//! what the manifest expects: final states, phrases, token F1, CPU and memory of the children.

use crate::cli::house::House;
use crate::cli::{ingest, watch};
use crate::context::Context;
use crate::domain::{AttachmentId, WorkspaceId};
use crate::extract::score::{Case, Expect, manifest, phrases_found, token_f1};
use crate::objects::Pin;
use crate::runtime::{Worker, every_kind};
use crate::store::reports::Standing;
use crate::store::{attachments, extractions, tenants};
use clap::Args;
use comfy_table::Table;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `eval-docs`.
#[derive(Debug, Args)]
pub struct EvalDocs {
    /// A folder with `docs_manifest.jsonl`.
    folder: PathBuf,
    /// List the phrases that were not found.
    #[arg(long)]
    missing: bool,
}

/// What became of one file.
struct Judged {
    case: Case,
    standing: Standing,
    text: String,
}

impl EvalDocs {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let cases = manifest(&self.folder.join("docs_manifest.jsonl"))?;
        let ctx = house.context().await?;
        let owner = house.owner().await?;
        let name = format!("eval-{}", uuid::Uuid::now_v7());
        let workspace = tenants::ensure_workspace(&mut *owner.acquire().await?, &name).await?;
        let (began, pid) = (Instant::now(), std::process::id());
        let judged = judge(&ctx, workspace, &self.folder, cases).await?;
        let wall = began.elapsed().as_secs_f64();

        println!("{}", by_format(&judged));
        let unexpected: Vec<_> = judged.iter().filter(|j| !as_expected(j)).collect();
        for judged in &unexpected {
            let Standing { status, index, failure, .. } = &judged.standing;
            println!(
                "not as expected ({:?}): {} is {status} {} {}",
                judged.case.expect,
                judged.case.file,
                index.as_deref().unwrap_or_default(),
                failure.as_deref().unwrap_or_default()
            );
        }
        if self.missing {
            print_missing(&judged);
        }
        let quality = figures(&judged, &self.folder)?;
        let (cpu, peak) = children();
        println!(
            "{} of {} files as expected; {quality}; {:.1} files/CPU-second of the children ({cpu:.0} s), \
             peak child {} MiB; {wall:.0} s in all, worker pid {pid} throughout",
            judged.len() - unexpected.len(),
            judged.len(),
            judged.len() as f64 / cpu,
            peak / 1024,
        );
        tenants::delete(&owner, workspace).await?;
        Ok(if unexpected.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }
}

async fn judge(
    ctx: &std::sync::Arc<Context>,
    workspace: WorkspaceId,
    folder: &Path,
    cases: Vec<Case>,
) -> anyhow::Result<Vec<Judged>> {
    let worker = Worker::start(ctx, every_kind)?;
    let into = ingest::Into { workspace, knowledge_base: None };
    let mut ids = Vec::new();
    for case in &cases {
        ids.push(ingest::file(ctx, into, &folder.join(&case.file)).await?);
    }
    let ended = watch::until_final(ctx, workspace, &ids).await;
    worker.stop().await;
    let mut judged = Vec::new();
    for ((case, standing), id) in cases.into_iter().zip(ended?).zip(ids) {
        let text = extracted(ctx, workspace, id).await?.unwrap_or_default();
        judged.push(Judged { case, standing, text });
    }
    Ok(judged)
}

/// The stored text of an attachment, if it has one.
async fn extracted(
    ctx: &Context,
    workspace: WorkspaceId,
    id: AttachmentId,
) -> anyhow::Result<Option<String>> {
    let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
    let Some(attachment) = attachments::find(&mut *tx, id).await? else { return Ok(None) };
    let sha256 = attachment.sha256.unwrap_or_default();
    let Some(extraction) = extractions::find(&mut *tx, &sha256, &ctx.extractor.revision()).await? else {
        return Ok(None);
    };
    tx.commit().await?;
    let room = ctx.spool.room()?;
    let file = room.path().join("text");
    let pin = Pin { bucket: extraction.bucket, key: extraction.key, etag: None, version_id: None };
    ctx.objects.download(&pin, &file).await?;
    Ok(Some(tokio::fs::read_to_string(file).await?))
}

/// Whether the file came to an end that the manifest allows.
fn as_expected(judged: &Judged) -> bool {
    let (status, index) = (judged.standing.status.as_str(), judged.standing.index.as_deref());
    let code = judged.standing.failure_code.as_deref().unwrap_or_default();
    let has_text = !judged.text.trim().is_empty();
    let told = index.is_some_and(|index| index != "INDEXED") || has_text;
    match judged.case.expect {
        // EMPTY is right where the manifest itself names nothing that stands on a page.
        Expect::Text => {
            let blank = judged.case.contains.is_empty() && judged.case.expected_text.is_none();
            status == "READY" && (has_text || index == Some("NEEDS_OCR") || (blank && index == Some("EMPTY")))
        }
        Expect::EncryptedError => match status {
            "FAILED" => code == "parser_encrypted" || code == "unscannable",
            _ => status == "READY" && has_text,
        },
        Expect::NoCrash => code != "parser_crashed" && (status == "FAILED" || told),
        Expect::HostileOrMalformed => status == "FAILED" || told,
        Expect::OcrOrEmpty => status == "READY" && told,
    }
}

fn by_format(judged: &[Judged]) -> Table {
    let mut rows: BTreeMap<(&str, String), (usize, i32)> = BTreeMap::new();
    for one in judged {
        let state = match (&one.standing.failure_code, &one.standing.index) {
            (Some(code), _) => format!("{} {code}", one.standing.status),
            (None, index) => format!("{} {}", one.standing.status, index.as_deref().unwrap_or_default()),
        };
        let row = rows.entry((&one.case.format, state)).or_default();
        row.0 += 1;
        row.1 += one.standing.done;
    }
    let mut table = crate::cli::table::table(["format", "state", "files", "chunks"]);
    for ((format, state), (files, chunks)) in rows {
        table.add_row([format.to_owned(), state, files.to_string(), chunks.to_string()]);
    }
    table
}

fn figures(judged: &[Judged], folder: &Path) -> anyhow::Result<String> {
    let mut found = [0; 2];
    let mut asked = [0; 2];
    let mut scores = Vec::new();
    for one in judged {
        for (n, phrases) in [&one.case.contains, &one.case.contains_hard].into_iter().enumerate() {
            found[n] += phrases_found(&one.text, phrases);
            asked[n] += phrases.len();
        }
        if let Some(expected) = &one.case.expected_text {
            scores.push(token_f1(&one.text, &std::fs::read_to_string(folder.join(expected))?));
        }
    }
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    Ok(format!(
        "phrases {} of {} ({:.1} %), hard ones {} of {}, token F1 {mean:.3} over {} files",
        found[0],
        asked[0],
        100.0 * found[0] as f64 / asked[0].max(1) as f64,
        found[1],
        asked[1],
        scores.len()
    ))
}

fn print_missing(judged: &[Judged]) {
    for one in judged {
        for phrase in &one.case.contains {
            if phrases_found(&one.text, std::slice::from_ref(phrase)) == 0 {
                println!("missing in {}: {phrase}", one.case.file);
            }
        }
    }
}

/// CPU seconds of all ended children, and the most memory one of them held, in KiB.
fn children() -> (f64, i64) {
    // SAFETY: getrusage fills the struct it is given; all zero is a valid one.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss)
}
