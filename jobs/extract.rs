//! `extract`: turns an attachment's clean bytes into text, once for each content.
//!
//! After `scan`; `embed` is next for each resource of the attachment. The text is an object
//! named by the sha256 of its source and the extractor's revision, so the same bytes are read
//! once per workspace. A file without text ends here as EMPTY or `NEEDS_OCR`.

use crate::context::Context;
use crate::domain::{AttachmentId, AttachmentStatus, Completeness, IndexStatus};
use crate::extract::Hint;
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::jobs::Embed;
use crate::jobs::fetch::{check_place, find};
use crate::jobs::scan::download;
use crate::queue::{Payload, Terms, enqueue_as};
use crate::store::attachments::Attachment;
use crate::store::events::{Event, announce};
use crate::store::extractions::{self, Extraction, NewExtraction};
use crate::store::outcomes::{self, Reason};
use crate::store::{Tx, generations, resources, verdicts};
use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Extracts one attachment's text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Extract {
    pub attachment: AttachmentId,
}

impl Payload for Extract {
    const KIND: &'static str = "extract";

    fn key(&self) -> Option<String> {
        Some(self.attachment.to_string())
    }
}

impl Job for Extract {
    const TIMEOUT: Duration = Duration::from_mins(30);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let Some(attachment) = find(ctx, turn, self.attachment).await? else {
            return Ok(turn.nothing_to_write());
        };
        if !matches!(
            attachment.status,
            AttachmentStatus::Scanning | AttachmentStatus::Ready | AttachmentStatus::Attached
        ) {
            return Ok(turn.nothing_to_write());
        }
        check_place(ctx, &attachment)?;
        let known = begin(ctx, turn, &attachment).await?;
        let extraction = match known {
            Some(extraction) => extraction,
            None => extract(ctx, turn, &attachment).await?,
        };
        hand_on(ctx, turn, &attachment, &extraction).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        outcomes::fail(tx, self.attachment, Reason { code: &why.code, text: &why.reason }).await
    }
}

fn sha256_of(attachment: &Attachment) -> &str {
    // The scan that asked for this job wrote it.
    attachment.sha256.as_deref().unwrap_or_default()
}

/// Opens a generation for each resource, and finds the text if these bytes were read before.
async fn begin(ctx: &Context, turn: &Turn, attachment: &Attachment) -> Result<Option<Extraction>, JobError> {
    let mut tx = turn.begin(ctx).await?;
    if !verdicts::is_clean(&mut *tx, sha256_of(attachment)).await? {
        let reason = anyhow!("no scan found these bytes clean; enqueue `scan`");
        return Err(JobError::fatal("not_scanned", reason));
    }
    for resource in resources::ensure(&mut tx, attachment).await? {
        generations::open(&mut tx, turn.workspace(), resource).await?;
    }
    let known = extractions::find(&mut *tx, sha256_of(attachment), &ctx.extractor.revision()).await?;
    tx.commit().await?;
    Ok(known)
}

async fn extract(ctx: &Context, turn: &Turn, attachment: &Attachment) -> Result<Extraction, JobError> {
    let room = ctx.spool.room()?;
    let (source, text) = (room.path().join("object"), room.path().join("text"));
    download(ctx, attachment, &source).await?;
    let name = attachment.name.clone().or_else(|| attachment.key.rsplit('/').next().map(str::to_owned));
    let hint = Hint { name, mime: attachment.mime.clone() };
    let facts = ctx.extractor.extract(&source, &hint, &text).await?;
    let revision = ctx.extractor.revision();
    let key = artefact_key(ctx, attachment, &revision);
    ctx.objects.upload(&attachment.bucket, &key, &text, Some("text/plain; charset=utf-8")).await?;

    let mut tx = turn.begin(ctx).await?;
    let new = NewExtraction {
        sha256: sha256_of(attachment),
        extractor: &revision,
        bucket: &attachment.bucket,
        key: &key,
        facts: &facts,
    };
    let id = extractions::record(&mut tx, turn.workspace(), &new).await?;
    tx.commit().await?;
    Ok(Extraction { id, bucket: attachment.bucket.clone(), key, facts })
}

/// Where the text of some bytes lies: the same bytes and extractor give the same key. It stays
/// under 126 bytes, the longest key the embedded store takes in parts (it makes a file name of it).
fn artefact_key(ctx: &Context, attachment: &Attachment, revision: &str) -> String {
    let revision = hex::encode(&Sha256::digest(revision.as_bytes())[..4]);
    ctx.objects.tenant_key(attachment.workspace, &format!("texts/{}-{revision}.txt", sha256_of(attachment)))
}

async fn hand_on(
    ctx: &Context,
    turn: &Turn,
    attachment: &Attachment,
    of: &Extraction,
) -> Result<Done, JobError> {
    let mut tx = turn.begin(ctx).await?;
    for generation in generations::await_text(&mut *tx, attachment.id).await? {
        let end = match &of.facts.completeness {
            Completeness::Empty => Some(IndexStatus::Empty),
            Completeness::NeedsOcr { .. } if of.facts.text_bytes == 0 => Some(IndexStatus::NeedsOcr),
            _ => None,
        };
        generations::set_text(&mut tx, generation, of.id).await?;
        let status = end.unwrap_or(IndexStatus::Chunking);
        if end.is_some() {
            generations::finish(&mut tx, generation, status, &json!(of.facts.completeness)).await?;
        } else {
            generations::set_stage(&mut tx, generation, status).await?;
            let terms = Terms { parent: Some(turn.job()), ..Terms::default() };
            enqueue_as(&mut tx, turn.workspace(), &Embed { generation }, &terms).await?;
        }
        let status = status.as_str();
        let event =
            Event::Index { id: generation, attachment: Some(attachment.id), status, done: 0, total: None };
        announce(&mut tx, turn.workspace(), &event).await?;
    }
    outcomes::ready_when_indexed(&mut tx, turn.workspace(), attachment.id).await?;
    turn.finish(tx).await
}
