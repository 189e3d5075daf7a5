//! `fetch`: makes sure an attachment's bytes lie in the bucket, and pins them.
//!
//! The first step; `scan` is next. An uploaded or generated object is looked at; a remote one
//! is brought through the guarded client. Nothing is parsed here.

use crate::context::Context;
use crate::domain::{AttachmentId, AttachmentStatus, Origin};
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::jobs::Scan;
use crate::objects::ObjectError;
use crate::queue::{Payload, Terms, enqueue_as};
use crate::store::Tx;
use crate::store::attachments::{self, Attachment, Stored};
use crate::store::outcomes::{self, Reason};
use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// Brings or looks at one attachment's bytes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Fetch {
    pub attachment: AttachmentId,
}

impl Payload for Fetch {
    const KIND: &'static str = "fetch";

    fn key(&self) -> Option<String> {
        Some(self.attachment.to_string())
    }
}

impl Job for Fetch {
    const TIMEOUT: Duration = Duration::from_mins(15);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let Some(attachment) = find(ctx, turn, self.attachment).await? else {
            // Forgotten while the job waited: there is nothing left to do.
            return Ok(turn.nothing_to_write());
        };
        check_place(ctx, &attachment)?;
        let stored = match (attachment.status, attachment.origin) {
            (
                AttachmentStatus::Requested | AttachmentStatus::Planned | AttachmentStatus::Uploading,
                Origin::Remote,
            ) => bring(ctx, &attachment).await?,
            (
                AttachmentStatus::Requested
                | AttachmentStatus::Planned
                | AttachmentStatus::Uploading
                | AttachmentStatus::Stored,
                _,
            ) => look(ctx, turn, &attachment).await?,
            _ => return Ok(turn.nothing_to_write()),
        };

        let mut tx = turn.begin(ctx).await?;
        attachments::set_stored(&mut tx, &attachment, &stored).await?;
        let scan = Scan { attachment: attachment.id };
        enqueue_as(&mut tx, turn.workspace(), &scan, &Terms { parent: Some(turn.job()), ..Terms::default() })
            .await?;
        let body = json!({ "size": stored.size });
        outcomes::tell(&mut tx, turn.workspace(), attachment.id, AttachmentStatus::Stored, body).await?;
        turn.finish(tx).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        outcomes::fail(tx, self.attachment, Reason { code: &why.code, text: &why.reason }).await
    }
}

/// The attachment as it is now, read under the fence.
pub(super) async fn find(
    ctx: &Context,
    turn: &Turn,
    id: AttachmentId,
) -> Result<Option<Attachment>, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let attachment = attachments::find(&mut *tx, id).await?;
    tx.commit().await?;
    Ok(attachment)
}

/// The row names bucket and key, and rows are written by clients: the worker's wide rights are
/// used on the tenant's own part of the configured bucket only.
pub(super) fn check_place(ctx: &Context, attachment: &Attachment) -> Result<(), JobError> {
    if attachment.bucket != ctx.settings.objects.bucket {
        let reason = anyhow!("the bucket {:?} is not the one this worker serves", attachment.bucket);
        return Err(JobError::refused("foreign_bucket", reason));
    }
    ctx.objects
        .key_belongs(attachment.workspace, &attachment.key)
        .map_err(|error| JobError::refused("foreign_key", error))
}

/// Looks for an object so often before it is said to be missing: stores may lag behind a notice.
const LOOKS: i32 = 4;

async fn look(ctx: &Context, turn: &Turn, attachment: &Attachment) -> Result<Stored, JobError> {
    let head = match ctx.objects.head(&attachment.bucket, &attachment.key).await {
        Err(ObjectError::Missing) if turn.attempt >= LOOKS => {
            let reason =
                anyhow!("no object {:?} in bucket {:?}: upload it first", attachment.key, attachment.bucket);
            return Err(JobError::refused("object_missing", reason));
        }
        head => head?,
    };
    if head.size > ctx.settings.objects.max_bytes {
        let limit = ctx.settings.objects.max_bytes;
        return Err(JobError::refused(
            "too_large",
            anyhow!("the object has {} bytes, the limit is {limit}", head.size),
        ));
    }
    if attachment.size.is_some_and(|promised| promised as u64 != head.size) {
        let promised = attachment.size.unwrap_or_default();
        let reason = anyhow!("the object has {} bytes, {promised} were promised: upload it again", head.size);
        return Err(JobError::refused("size_mismatch", reason));
    }
    Ok(Stored {
        size: head.size as i64,
        etag: head.etag,
        version_id: head.version_id,
        mime: head.content_type,
        ..Stored::default()
    })
}

async fn bring(ctx: &Context, attachment: &Attachment) -> Result<Stored, JobError> {
    let url = attachment.source_url.as_deref().unwrap_or_default();
    let room = ctx.spool.room()?;
    let file = room.path().join("remote");
    let fetched = ctx.fetcher.download(url, &file).await?;
    let mime = fetched.content_type.clone();
    let uploaded = ctx.objects.upload(&attachment.bucket, &attachment.key, &file, mime.as_deref()).await?;
    Ok(Stored {
        size: uploaded.head.size as i64,
        etag: uploaded.head.etag,
        version_id: uploaded.head.version_id,
        sha256: Some(uploaded.sha256),
        mime,
        name: fetched.file_name,
    })
}
