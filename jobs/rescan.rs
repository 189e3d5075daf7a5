//! `rescan`: looks again at files that were found clean by older signatures.
//!
//! By the clock, and only with clamd. A run finds files of all tenants and queues one job for
//! each content, in its own workspace and behind its other work. Such a file stays as readable as
//! it was while it is looked at; if it is infected, it and every twin are QUARANTINED and leave
//! retrieval in the same transaction, and their chunks are deleted after it.

use crate::context::Context;
use crate::domain::{AttachmentId, AttachmentStatus};
use crate::job::{Done, Job, JobError, Turn};
use crate::jobs::Forget;
use crate::jobs::fetch::{check_place, find};
use crate::jobs::scan::{download, judge};
use crate::queue::{Payload, Terms, enqueue, enqueue_as};
use crate::scan::ScanError;
use crate::store::outcomes::{self, Reason};
use crate::store::verdicts::{self, Verdict};
use crate::store::{Tx, generations, sweeps};
use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Behind whatever else the tenant has waiting.
const PRIORITY: i32 = -100;

/// Between two looks whether clamd is there again.
const CLAMD_PAUSE: Duration = Duration::from_mins(1);

/// Looks again at one attachment's bytes; without one, finds those that need it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Rescan {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentId>,
}

impl Payload for Rescan {
    const KIND: &'static str = "rescan";

    fn key(&self) -> Option<String> {
        self.attachment.map(|id| id.to_string())
    }
}

impl Job for Rescan {
    const TIMEOUT: Duration = Duration::from_mins(15);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        if ctx.settings.scan.clamd.trim().is_empty() {
            let reason = anyhow!("scan.clamd is empty: the built-in rules alone find nothing new");
            return Err(JobError::fatal("no_clamd", reason));
        }
        match self.attachment {
            Some(id) => look_again(ctx, turn, id).await,
            None => find_old(ctx, turn).await,
        }
    }
}

async fn find_old(ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
    let settings = &ctx.settings.rescan;
    let engine = ctx.scanner.engine().await.map_err(|error| match error {
        ScanError::Clamd(error) => JobError::Wait { delay: CLAMD_PAUSE, reason: error.to_string() },
        other => other.into(),
    })?;
    let age = Duration::from_hours(24) * settings.after_days;
    let mut tx = turn.begin(ctx).await?;
    let by = (engine.name.as_str(), engine.signature_version.as_str());
    let found = sweeps::to_rescan(&mut tx, by, age, settings.batch as i32).await?;
    for &(workspace, attachment) in &found {
        let terms = Terms { priority: PRIORITY, parent: Some(turn.job()), ..Terms::default() };
        enqueue_as(&mut tx, workspace, &Rescan { attachment: Some(attachment) }, &terms).await?;
    }
    let done = turn.finish(tx).await?;
    if !found.is_empty() {
        tracing::info!(files = found.len(), signatures = engine.signature_version, "will be scanned again");
    }
    Ok(done)
}

async fn look_again(ctx: &Context, turn: &Turn, id: AttachmentId) -> Result<Done, JobError> {
    let Some(attachment) = find(ctx, turn, id).await? else { return Ok(turn.nothing_to_write()) };
    if !matches!(attachment.status, AttachmentStatus::Ready | AttachmentStatus::Attached) {
        return Ok(turn.nothing_to_write());
    }
    check_place(ctx, &attachment)?;
    let room = ctx.spool.room()?;
    let file = room.path().join("object");
    let landed = download(ctx, &attachment, &file).await?;
    // A refusal of what the file claims to be is no news of its bytes.
    let Some(verdict) = judge(ctx, turn, &attachment, &landed, &file).await?.verdict else {
        return Ok(turn.nothing_to_write());
    };
    let mut tx = turn.begin(ctx).await?;
    verdicts::record(&mut tx, turn.workspace(), &verdict).await?;
    match (&verdict.signature, verdict.outcome.as_str()) {
        (Some(signature), _) => withdraw(&mut tx, turn, &verdict, signature).await?,
        (None, "CLEAN") => {}
        // It was clean to an older look. It stays readable, and is not parsed anew.
        (None, _) => {
            tracing::warn!(attachment = %id, detail = verdict.detail, "can no longer be scanned");
        }
    }
    turn.finish(tx).await
}

/// Takes every file of the tenant with these bytes out of use and out of retrieval.
async fn withdraw(tx: &mut Tx, turn: &Turn, verdict: &Verdict, signature: &str) -> Result<(), JobError> {
    let text = format!("{} found {signature} when it looked again", verdict.engine);
    for id in sweeps::readable_with(tx, &verdict.sha256).await? {
        outcomes::quarantine(tx, id, Reason { code: "infected", text: &text }).await?;
        sweeps::hide(tx, id).await?;
        for generation in generations::of_attachment(&mut **tx, id).await? {
            enqueue(tx, turn.workspace(), &Forget::Generation(generation)).await?;
        }
    }
    Ok(())
}
