//! `forget`: removes an attachment with all that was made of it, or one superseded generation.
//!
//! Chunks go in batches, then the attachment's own object while its row still holds its key, then
//! the rows, and last the objects of its texts. Each step may run again. Text and verdicts go when
//! no other attachment of the tenant has the same bytes: that is decided and done under the lock
//! of the bytes, in one transaction, which leaves a note of the objects to be removed after it.
//! The event says what was removed.
//!
//! Objects know no fence: the lease is looked at just before each is removed, and a worker that
//! loses it in between removes what its successor would remove too, because no key of a text is
//! used twice, and no key of an upload as long as clients name a new one for each, as they must.

use crate::context::Context;
use crate::domain::{AttachmentId, GenerationId};
use crate::job::{Done, Job, JobError, Turn};
use crate::jobs::fetch::{check_place, find};
use crate::queue::Payload;
use crate::store::attachments::{self, Attachment};
use crate::store::events::{Event, announce};
use crate::store::leftovers::{self, Leftovers, Place};
use crate::store::{bytes, chunks, extractions, generations, verdicts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

const CHUNKS_AT_ONCE: i64 = 2000;

/// What is to be forgotten.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Forget {
    Attachment(AttachmentId),
    Generation(GenerationId),
}

impl Payload for Forget {
    const KIND: &'static str = "forget";

    fn key(&self) -> Option<String> {
        Some(match self {
            Self::Attachment(id) => id.to_string(),
            Self::Generation(id) => id.to_string(),
        })
    }
}

impl Job for Forget {
    const TIMEOUT: Duration = Duration::from_hours(1);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        match self {
            Self::Generation(id) => {
                delete_chunks(ctx, turn, *id).await?;
                let mut tx = turn.begin(ctx).await?;
                generations::delete(&mut tx, *id).await?;
                turn.finish(tx).await
            }
            Self::Attachment(id) => {
                if let Some(attachment) = find(ctx, turn, *id).await? {
                    forget(ctx, turn, &attachment).await?;
                }
                remove_leftovers(ctx, turn, *id).await
            }
        }
    }
}

/// Removes the attachment's object and every row; notes what else is to go.
async fn forget(ctx: &Context, turn: &Turn, attachment: &Attachment) -> Result<(), JobError> {
    let mut tx = turn.begin(ctx).await?;
    let indexes = generations::of_attachment(&mut *tx, attachment.id).await?;
    tx.commit().await?;
    let mut removed_chunks = 0;
    for &generation in &indexes {
        removed_chunks += delete_chunks(ctx, turn, generation).await?;
    }
    // A row that names a foreign place never had an object of ours.
    let own = check_place(ctx, attachment).is_ok();
    if own {
        delete_object(ctx, turn, &attachment.bucket, &attachment.key).await?;
    }

    let mut tx = turn.begin(ctx).await?;
    if let Some(sha256) = &attachment.sha256 {
        bytes::lock(&mut tx, turn.workspace(), sha256).await?;
    }
    for &generation in &indexes {
        generations::delete(&mut tx, generation).await?;
    }
    attachments::delete(&mut tx, attachment.id).await?;
    let objects = match &attachment.sha256 {
        Some(sha256) if !bytes::in_use(&mut tx, sha256).await? => {
            verdicts::delete(&mut tx, sha256).await?;
            extractions::delete(&mut tx, sha256).await?
        }
        _ => Vec::new(),
    };
    let removed = json!({
        "chunks": removed_chunks, "generations": indexes.len(), "objects": u8::from(own), "artefacts": objects.len(),
    });
    leftovers::note(&mut tx, turn.workspace(), attachment.id, &Leftovers { objects, removed }).await?;
    tx.commit().await?;
    Ok(())
}

/// Removes the objects that the rows left behind, and tells that all is gone.
async fn remove_leftovers(ctx: &Context, turn: &Turn, id: AttachmentId) -> Result<Done, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let left = leftovers::find(&mut *tx, id).await?;
    tx.commit().await?;
    let Some(Leftovers { objects, removed: body }) = left else { return Ok(turn.nothing_to_write()) };
    for Place { bucket, key } in &objects {
        delete_object(ctx, turn, bucket, key).await?;
    }
    let mut tx = turn.begin(ctx).await?;
    leftovers::settle(&mut tx, id).await?;
    announce(&mut tx, turn.workspace(), &Event::Attachment { id, status: "forgotten", body }).await?;
    turn.finish(tx).await
}

/// Removes an object, if the lease still holds just before.
async fn delete_object(ctx: &Context, turn: &Turn, bucket: &str, key: &str) -> Result<(), JobError> {
    turn.begin(ctx).await?.commit().await?;
    Ok(ctx.objects.delete(bucket, key).await?)
}

async fn delete_chunks(ctx: &Context, turn: &Turn, generation: GenerationId) -> Result<u64, JobError> {
    let mut removed = 0;
    loop {
        let mut tx = turn.begin(ctx).await?;
        let some = chunks::delete_some(&mut tx, generation, CHUNKS_AT_ONCE).await?;
        tx.commit().await?;
        removed += some;
        if some == 0 {
            return Ok(removed);
        }
    }
}
