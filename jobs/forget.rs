//! `forget`: removes an attachment with all that was made of it, or one superseded generation.
//!
//! Chunks go in batches, then objects, then the rows; each step may run again. Text and
//! verdicts go when no other attachment of the tenant has the same bytes. The event says what
//! was removed.

use crate::context::Context;
use crate::domain::{AttachmentId, GenerationId};
use crate::job::{Done, Job, JobError, Turn};
use crate::jobs::fetch::{check_place, find};
use crate::queue::Payload;
use crate::store::attachments::{self, Attachment};
use crate::store::events::{Event, announce};
use crate::store::{chunks, extractions, generations, verdicts};
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
            Self::Attachment(id) => match find(ctx, turn, *id).await? {
                Some(attachment) => forget(ctx, turn, &attachment).await,
                None => Ok(turn.nothing_to_write()),
            },
        }
    }
}

async fn forget(ctx: &Context, turn: &Turn, attachment: &Attachment) -> Result<Done, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let indexes = generations::of_attachment(&mut *tx, attachment.id).await?;
    tx.commit().await?;
    let mut removed_chunks = 0;
    for &generation in &indexes {
        removed_chunks += delete_chunks(ctx, turn, generation).await?;
    }
    let artefacts = artefacts_of_its_own(ctx, turn, attachment).await?;
    // A row that names a foreign place never had an object of ours.
    let mut objects = 0;
    if check_place(ctx, attachment).is_ok() {
        ctx.objects.delete(&attachment.bucket, &attachment.key).await?;
        objects += 1;
    }
    for (bucket, key) in &artefacts {
        ctx.objects.delete(bucket, key).await?;
    }

    let mut tx = turn.begin(ctx).await?;
    for &generation in &indexes {
        generations::delete(&mut tx, generation).await?;
    }
    if let Some(sha256) = attachment.sha256.as_deref().filter(|_| !artefacts.is_empty()) {
        extractions::delete(&mut tx, sha256).await?;
        verdicts::delete(&mut tx, sha256).await?;
    }
    attachments::delete(&mut tx, attachment.id).await?;
    let body = json!({
        "chunks": removed_chunks, "generations": indexes.len(), "objects": objects, "artefacts": artefacts.len(),
    });
    announce(&mut tx, turn.workspace(), &Event::Attachment { id: attachment.id, status: "forgotten", body })
        .await?;
    turn.finish(tx).await
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

/// The texts of these bytes, when no other attachment of the tenant has the same.
async fn artefacts_of_its_own(
    ctx: &Context,
    turn: &Turn,
    attachment: &Attachment,
) -> Result<Vec<(String, String)>, JobError> {
    let Some(sha256) = &attachment.sha256 else { return Ok(Vec::new()) };
    let mut tx = turn.begin(ctx).await?;
    let shared = attachments::bytes_shared(&mut tx, attachment.id, sha256).await?;
    let artefacts = if shared { Vec::new() } else { extractions::of_bytes(&mut *tx, sha256).await? };
    tx.commit().await?;
    Ok(artefacts)
}
