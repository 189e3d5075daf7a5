//! `scan`: decides whether an attachment's bytes may be parsed.
//!
//! After `fetch`; `extract` is next when the verdict is CLEAN. An infected file is QUARANTINED,
//! one that cannot be scanned or is refused FAILED; "not scanned" is never "clean". The same
//! bytes under the same signatures are not scanned twice.

use crate::context::Context;
use crate::domain::{AttachmentId, AttachmentStatus};
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::jobs::Extract;
use crate::jobs::fetch::{check_place, find};
use crate::objects::{Landed, Pin};
use crate::queue::{Payload, Terms, enqueue_as};
use crate::scan::{Claims, Outcome};
use crate::store::Tx;
use crate::store::attachments::{self, Attachment};
use crate::store::outcomes::{self, Reason};
use crate::store::verdicts::{self, Verdict};
use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Scans one attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scan {
    pub attachment: AttachmentId,
}

impl Payload for Scan {
    const KIND: &'static str = "scan";

    fn key(&self) -> Option<String> {
        Some(self.attachment.to_string())
    }
}

impl Job for Scan {
    const TIMEOUT: Duration = Duration::from_mins(15);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let Some(attachment) = find(ctx, turn, self.attachment).await? else {
            return Ok(turn.nothing_to_write());
        };
        match attachment.status {
            AttachmentStatus::Stored => begin(ctx, turn, &attachment).await?,
            AttachmentStatus::Scanning => {}
            _ => return Ok(turn.nothing_to_write()),
        }
        check_place(ctx, &attachment)?;
        let room = ctx.spool.room()?;
        let file = room.path().join("object");
        let landed = download(ctx, &attachment, &file).await?;
        let verdict = judge(ctx, turn, &attachment, &landed, &file).await?;
        conclude(ctx, turn, &attachment, &verdict).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        outcomes::fail(tx, self.attachment, Reason { code: &why.code, text: &why.reason }).await
    }
}

async fn begin(ctx: &Context, turn: &Turn, attachment: &Attachment) -> Result<(), JobError> {
    let mut tx = turn.begin(ctx).await?;
    attachments::advance(&mut tx, attachment.id, AttachmentStatus::Scanning).await?;
    outcomes::tell(&mut tx, turn.workspace(), attachment.id, AttachmentStatus::Scanning, json!({})).await?;
    tx.commit().await?;
    Ok(())
}

/// Brings the pinned bytes and holds them against what was promised of them.
pub(super) async fn download(
    ctx: &Context,
    attachment: &Attachment,
    into: &Path,
) -> Result<Landed, JobError> {
    let pin = Pin {
        bucket: attachment.bucket.clone(),
        key: attachment.key.clone(),
        etag: attachment.etag.clone(),
        version_id: attachment.version_id.clone(),
    };
    let landed = ctx.objects.download(&pin, into).await?;
    if attachment.sha256.as_ref().is_some_and(|promised| *promised != landed.sha256) {
        let reason =
            anyhow!("the object's sha256 is {}, not the one promised: upload it again", landed.sha256);
        return Err(JobError::refused("checksum_mismatch", reason));
    }
    Ok(landed)
}

async fn judge(
    ctx: &Context,
    turn: &Turn,
    attachment: &Attachment,
    landed: &Landed,
    file: &Path,
) -> Result<Verdict, JobError> {
    let engine = ctx.scanner.engine().await?;
    let mut tx = turn.begin(ctx).await?;
    let known = verdicts::find(&mut *tx, &landed.sha256, &engine.name, &engine.signature_version).await?;
    tx.commit().await?;
    if let Some(verdict) = known {
        return Ok(verdict);
    }
    let claims = Claims {
        name: attachment.name.clone().or_else(|| attachment.key.rsplit('/').next().map(str::to_owned)),
        mime: attachment.mime.clone(),
    };
    let report = ctx.scanner.scan(file, &claims).await?;
    let (outcome, signature, detail) = match report.outcome {
        Outcome::Clean => ("CLEAN", None, None),
        Outcome::Infected { signature } => ("INFECTED", Some(signature), None),
        Outcome::Unscannable { reason } => ("UNSCANNABLE", None, Some(reason)),
        Outcome::Refused { reason } => ("REFUSED", None, Some(reason)),
    };
    Ok(Verdict {
        sha256: landed.sha256.clone(),
        outcome: outcome.to_owned(),
        engine: report.engine,
        signature_version: report.signature_version,
        signature,
        detail,
        limits_hit: report.limits_hit,
        detected_mime: report.detected_mime,
        size: landed.size as i64,
    })
}

async fn conclude(
    ctx: &Context,
    turn: &Turn,
    attachment: &Attachment,
    verdict: &Verdict,
) -> Result<Done, JobError> {
    let (workspace, id) = (turn.workspace(), attachment.id);
    let mut tx = turn.begin(ctx).await?;
    attachments::set_truth(&mut tx, id, &verdict.sha256, verdict.size, &verdict.detected_mime).await?;
    verdicts::record(&mut tx, workspace, verdict).await?;
    let detail = verdict.detail.as_deref().unwrap_or_default();
    match verdict.outcome.as_str() {
        "CLEAN" => {
            let terms = Terms { parent: Some(turn.job()), ..Terms::default() };
            enqueue_as(&mut tx, workspace, &Extract { attachment: id }, &terms).await?;
        }
        "INFECTED" => {
            let text =
                format!("{} found {}", verdict.engine, verdict.signature.as_deref().unwrap_or("a signature"));
            outcomes::quarantine(&mut tx, id, Reason { code: "infected", text: &text }).await?;
        }
        "UNSCANNABLE" => outcomes::fail(&mut tx, id, Reason { code: "unscannable", text: detail }).await?,
        _ => outcomes::fail(&mut tx, id, Reason { code: "type_refused", text: detail }).await?,
    }
    turn.finish(tx).await
}
