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
use crate::scan::{Claims, Outcome, ScanError};
use crate::store::Tx;
use crate::store::attachments::{self, Attachment};
use crate::store::outcomes::{self, Reason};
use crate::store::verdicts::{self, Verdict};
use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Between two looks whether clamd is there again.
const CLAMD_PAUSE: Duration = Duration::from_secs(5);

/// Scans one attachment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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
        let judged = judge(ctx, turn, &attachment, &landed, &file).await?;
        conclude(ctx, turn, &attachment, &landed, &judged).await
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

/// The scanner's verdict; that of an earlier look at the same bytes under the same signatures,
/// where there is one. What the file claims to be is looked at each time.
async fn judge(
    ctx: &Context,
    turn: &Turn,
    attachment: &Attachment,
    landed: &Landed,
    file: &Path,
) -> Result<Judged, JobError> {
    let claims = Claims {
        name: attachment.name.clone().or_else(|| attachment.key.rsplit('/').next().map(str::to_owned)),
        mime: attachment.mime.clone(),
    };
    let engine = ctx.scanner.engine().await.map_err(|error| match error {
        // Its version does not depend on the file: clamd is away, and files wait until it is back.
        ScanError::Clamd(error) => JobError::Wait { delay: CLAMD_PAUSE, reason: error.to_string() },
        other => other.into(),
    })?;
    let mut tx = turn.begin(ctx).await?;
    let known = verdicts::find(&mut *tx, &landed.sha256, &engine.name, &engine.signature_version).await?;
    tx.commit().await?;
    if let Some(verdict) = known {
        let identity = ctx.scanner.identify(file, &claims).await?;
        return Ok(Judged {
            verdict: Some(verdict),
            refusal: identity.refusal,
            mime: identity.detected_mime,
        });
    }
    let report = ctx.scanner.scan(file, &claims).await?;
    let mime = report.detected_mime.clone();
    let mut limits_hit = report.limits_hit;
    let (outcome, signature, detail) = match report.outcome {
        // What a clean file was noted for is no limit: only remarks remain.
        Outcome::Clean => ("CLEAN", None, Some(std::mem::take(&mut limits_hit).join(", "))),
        Outcome::Infected { signature } => ("INFECTED", Some(signature), None),
        Outcome::Unscannable { reason } => ("UNSCANNABLE", None, Some(reason)),
        Outcome::Refused { reason } => return Ok(Judged { verdict: None, refusal: Some(reason), mime }),
    };
    let verdict = Verdict {
        sha256: landed.sha256.clone(),
        outcome: outcome.to_owned(),
        engine: report.engine,
        signature_version: report.signature_version,
        signature,
        detail: detail.filter(|text| !text.is_empty()),
        limits_hit,
        detected_mime: report.detected_mime,
        size: landed.size as i64,
    };
    Ok(Judged { verdict: Some(verdict), refusal: None, mime })
}

/// What the scan says of the bytes, and of what they claim to be.
struct Judged {
    /// None: refused for its claims before anything was scanned.
    verdict: Option<Verdict>,
    refusal: Option<String>,
    mime: String,
}

async fn conclude(
    ctx: &Context,
    turn: &Turn,
    attachment: &Attachment,
    landed: &Landed,
    judged: &Judged,
) -> Result<Done, JobError> {
    let (workspace, id) = (turn.workspace(), attachment.id);
    let mut tx = turn.begin(ctx).await?;
    attachments::set_truth(&mut tx, id, &landed.sha256, landed.size as i64, &judged.mime).await?;
    if let Some(verdict) = &judged.verdict {
        verdicts::record(&mut tx, workspace, verdict).await?;
    }
    match (&judged.verdict, &judged.refusal) {
        (Some(Verdict { signature: Some(signature), engine, .. }), _) => {
            let text = format!("{engine} found {signature}");
            outcomes::quarantine(&mut tx, id, Reason { code: "infected", text: &text }).await?;
        }
        (_, Some(refusal)) => {
            outcomes::fail(&mut tx, id, Reason { code: "type_refused", text: refusal }).await?;
        }
        (Some(verdict), None) if verdict.outcome == "CLEAN" => {
            let terms = Terms { parent: Some(turn.job()), ..Terms::default() };
            enqueue_as(&mut tx, workspace, &Extract { attachment: id }, &terms).await?;
        }
        (verdict, None) => {
            let text =
                verdict.as_ref().and_then(|v| v.detail.as_deref()).unwrap_or("it could not be scanned");
            outcomes::fail(&mut tx, id, Reason { code: "unscannable", text }).await?;
        }
    }
    turn.finish(tx).await
}
