//! What stands still: an attachment or an index in a state that is not final, with no job that
//! would move it. Its next step is queued again, once; if it stands still again, it fails and says so.

use super::{HOUR, Sweep};
use crate::domain::{AttachmentId, AttachmentStatus, IndexStatus, WorkspaceId};
use crate::job::JobError;
use crate::jobs::{Embed, Extract, Fetch, Scan};
use crate::queue::{Enqueued, Payload, Terms, enqueue_as};
use crate::store::outcomes::{self, Reason};
use crate::store::sweeps::{self, StuckAttachment, StuckGeneration};
use crate::store::{Tx, attachments, generations};
use serde_json::json;
use std::time::Duration;

const CODE: &str = "stuck";
const MINUTE: Duration = Duration::from_mins(1);
/// Each is a transaction of its own; the next run takes the next ones.
const MOST: i32 = 200;

pub(super) async fn attachments(sweep: &mut Sweep<'_>) -> Result<(), JobError> {
    let settings = &sweep.ctx.settings.tidy;
    let (uploads, others) = (HOUR * settings.upload_hours, MINUTE * settings.stuck_minutes);
    let mut tx = sweep.turn.begin(sweep.ctx).await?;
    let stuck = sweeps::stuck_attachments(&mut tx, uploads, others, MOST).await?;
    tx.commit().await?;
    for one in stuck {
        let mut tx = enter(sweep, one.workspace).await?;
        let ended = attachment(sweep, &mut tx, &one).await?;
        tx.commit().await?;
        count(sweep, ended);
    }
    Ok(())
}

pub(super) async fn generations(sweep: &mut Sweep<'_>) -> Result<(), JobError> {
    let deadline = MINUTE * sweep.ctx.settings.tidy.stuck_minutes;
    let mut tx = sweep.turn.begin(sweep.ctx).await?;
    let stuck = sweeps::stuck_generations(&mut tx, deadline, MOST).await?;
    tx.commit().await?;
    for one in stuck {
        let mut tx = enter(sweep, one.workspace).await?;
        let ended = generation(sweep, &mut tx, &one).await?;
        tx.commit().await?;
        count(sweep, ended);
    }
    Ok(())
}

/// What became of one that stood still.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Revived,
    Failed,
    /// Somebody moved it meanwhile.
    Left,
}

fn count(sweep: &mut Sweep<'_>, ended: Ended) {
    match ended {
        Ended::Revived => sweep.count("revived", 1),
        Ended::Failed => sweep.count("stuck", 1),
        Ended::Left => {}
    }
}

/// A transaction under this job's fence that then sees the tenant.
async fn enter(sweep: &Sweep<'_>, workspace: WorkspaceId) -> Result<Tx, JobError> {
    let mut tx = sweep.turn.begin(sweep.ctx).await?;
    sweeps::visit(&mut tx, workspace).await?;
    Ok(tx)
}

async fn attachment(sweep: &Sweep<'_>, tx: &mut Tx, one: &StuckAttachment) -> Result<Ended, JobError> {
    use AttachmentStatus::{Planned, Requested, Scanning, Stored, Uploading};
    // Held until the end: a job that begins now waits, and then sees what was written.
    if !attachments::lock(tx, one.id).await? {
        return Ok(Ended::Left);
    }
    let now = attachments::find(&mut **tx, one.id).await?;
    let jobs = sweeps::has_job(tx, one.workspace, &["fetch", "scan", "extract", "forget"], one.id.0).await?;
    if jobs || now.is_none_or(|now| now.status != one.status) {
        return Ok(Ended::Left);
    }
    if one.revived > 0 {
        let reason = format!(
            "it stood at {} with no job, was taken up again, and stands still once more: look for what ends its jobs, then enqueue `fetch`",
            one.status
        );
        outcomes::fail(tx, one.id, Reason { code: CODE, text: &reason }).await?;
        return Ok(Ended::Failed);
    }
    let again = match one.status {
        Requested | Planned | Uploading | Stored => {
            revive(sweep, tx, one.workspace, &Fetch { attachment: one.id }).await?
        }
        Scanning => revive(sweep, tx, one.workspace, &Scan { attachment: one.id }).await?,
        _ => false,
    };
    if again && sweeps::revive_attachment(tx, one.id, one.status).await? {
        return Ok(Ended::Revived);
    }
    Ok(Ended::Left)
}

async fn generation(sweep: &Sweep<'_>, tx: &mut Tx, one: &StuckGeneration) -> Result<Ended, JobError> {
    if let Some(attachment) = one.attachment
        && !attachments::lock(tx, attachment).await?
    {
        return Ok(Ended::Left);
    }
    let now = generations::find(&mut **tx, one.id).await?;
    let open = now.is_some_and(|now| {
        use IndexStatus::{Chunking, Embedding, Extracting, Pending};
        matches!(now.status, Pending | Extracting | Chunking | Embedding)
    });
    if !open || sweeps::has_job(tx, one.workspace, &["embed", "forget"], one.id.0).await? {
        return Ok(Ended::Left);
    }
    let again = match one.attachment {
        _ if one.revived > 0 => false,
        _ if one.has_text => revive(sweep, tx, one.workspace, &Embed { generation: one.id }).await?,
        Some(attachment) => {
            let jobs = ["fetch", "scan", "extract", "forget"];
            if sweeps::has_job(tx, one.workspace, &jobs, attachment.0).await? {
                return Ok(Ended::Left);
            }
            revive_text(sweep, tx, one.workspace, attachment).await?
        }
        None => false,
    };
    if again && sweeps::revive_generation(tx, one.id).await? {
        return Ok(Ended::Revived);
    }
    let reason = "no job works on its index, and queueing the next step again did not help or cannot: look for what ends its jobs, then enqueue `fetch`";
    if let Some(attachment) = one.attachment {
        outcomes::fail(tx, attachment, Reason { code: CODE, text: reason }).await?;
    } else {
        let detail = json!({ "code": CODE, "reason": reason });
        generations::finish(tx, one.id, IndexStatus::Failed, &detail).await?;
    }
    Ok(Ended::Failed)
}

/// The text comes from `extract`, which several indexes of one attachment share.
async fn revive_text(
    sweep: &Sweep<'_>,
    tx: &mut Tx,
    workspace: WorkspaceId,
    attachment: AttachmentId,
) -> Result<bool, JobError> {
    revive(sweep, tx, workspace, &Extract { attachment }).await
}

async fn revive<P: Payload>(
    sweep: &Sweep<'_>,
    tx: &mut Tx,
    workspace: WorkspaceId,
    step: &P,
) -> Result<bool, JobError> {
    let terms = Terms { parent: Some(sweep.turn.job()), ..Terms::default() };
    Ok(matches!(enqueue_as(tx, workspace, step, &terms).await?, Enqueued::New(_)))
}
