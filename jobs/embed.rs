//! `embed`: turns a resource's extracted text into searchable chunks.
//!
//! After `extract`; the last step. The plan of chunks is fixed first, then batches are embedded
//! and written under the fence, so a restart goes on after the last batch that committed. The
//! generation is shown to retrieval by one update when its last chunk is there; the attachment
//! is READY with its last generation. Texts the tenant has vectors for are not embedded again.

mod batch;

use crate::chunk::{self, Chunker, decode_plan, encode_plan};
use crate::context::Context;
use crate::domain::{Completeness, GenerationId, IndexStatus, Span};
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::jobs::Forget;
use crate::objects::Pin;
use crate::queue::{Payload, enqueue};
use crate::store::events::{Event, announce};
use crate::store::extractions::{self, Extraction};
use crate::store::generations::{self, Generation, Plan};
use crate::store::outcomes::{self, Reason};
use crate::store::{Tx, chunks, resources};
use anyhow::anyhow;
use batch::{Batch, Source};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two progress events of one generation; final ones are never left out.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Embeds one generation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Embed {
    pub generation: GenerationId,
}

impl Payload for Embed {
    const KIND: &'static str = "embed";

    fn key(&self) -> Option<String> {
        Some(self.generation.to_string())
    }
}

impl Job for Embed {
    const TIMEOUT: Duration = Duration::from_hours(24);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let Some((generation, extraction)) = find(ctx, turn, self.generation).await? else {
            return Ok(turn.nothing_to_write());
        };
        let room = ctx.spool.room()?;
        let text = room.path().join("text");
        download(ctx, &extraction, &text).await?;
        let (space, plan) = match &generation.plan {
            Some(encoded) => (
                generation.space.unwrap_or_default(),
                decode_plan(encoded).map_err(|error| JobError::fatal("bad_plan", error))?,
            ),
            None => make_plan(ctx, turn, &generation, &extraction, &text).await?,
        };
        let source =
            Source::open(&text, extraction.facts.pages.clone(), extraction.facts.language.clone(), space)?;
        write_missing(ctx, turn, &generation, &plan, source).await?;
        finish(ctx, turn, &generation, &extraction, plan.is_empty()).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        let Some(generation) = generations::find(&mut **tx, self.generation).await? else { return Ok(()) };
        match generation.attachment {
            Some(attachment) => {
                outcomes::fail(tx, attachment, Reason { code: &why.code, text: &why.reason }).await
            }
            None => {
                let detail = json!({ "code": why.code, "reason": why.reason });
                generations::finish(tx, generation.id, IndexStatus::Failed, &detail).await
            }
        }
    }
}

/// The generation and its text, unless it has ended or was forgotten.
async fn find(
    ctx: &Context,
    turn: &Turn,
    id: GenerationId,
) -> Result<Option<(Generation, Extraction)>, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let Some(generation) = generations::find(&mut *tx, id).await? else { return Ok(None) };
    let extraction = match generation.extraction {
        Some(id) => extractions::get(&mut *tx, id).await?,
        None => None,
    };
    tx.commit().await?;
    let open = matches!(generation.status, IndexStatus::Chunking | IndexStatus::Embedding);
    Ok(extraction.filter(|_| open).map(|extraction| (generation, extraction)))
}

async fn download(ctx: &Context, extraction: &Extraction, into: &Path) -> Result<(), JobError> {
    let pin =
        Pin { bucket: extraction.bucket.clone(), key: extraction.key.clone(), etag: None, version_id: None };
    let landed = ctx.objects.download(&pin, into).await?;
    if landed.sha256 != extraction.facts.text_sha256 {
        return Err(JobError::transient(anyhow!(
            "the stored text {} is not the one extracted",
            extraction.key
        )));
    }
    Ok(())
}

async fn make_plan(
    ctx: &Context,
    turn: &Turn,
    generation: &Generation,
    extraction: &Extraction,
    text: &Path,
) -> Result<(i32, Vec<Span>), JobError> {
    let mut wanted = ctx.settings.chunk.clone();
    wanted.size = generation.wanted_size.map_or(wanted.size, |size| size as usize);
    wanted.overlap = generation.wanted_overlap.map_or(wanted.overlap, |overlap| overlap as usize);
    let (size, overlap) = chunk::sizes(&wanted, ctx.embedder.max_tokens());
    let chunker = Chunker::new(ctx.embedder.tokenizer(), size, overlap)?;
    let (path, syntax) = (text.to_owned(), extraction.facts.syntax);
    let plan = tokio::task::spawn_blocking(move || chunker.plan(&path, syntax))
        .await
        .map_err(|error| JobError::fatal("chunking_failed", error))??;

    let mut tx = turn.begin(ctx).await?;
    let space = chunks::ensure_space(&mut tx, ctx.embedder.space()).await?;
    let fixed = Plan {
        space,
        chunk_size: size as i32,
        chunk_overlap: overlap as i32,
        encoded: &encode_plan(&plan),
        total: plan.len() as i32,
    };
    generations::set_plan(&mut tx, generation.id, &fixed).await?;
    tell(&mut tx, turn, generation, IndexStatus::Embedding, 0, Some(fixed.total)).await?;
    tx.commit().await?;
    Ok((space, plan))
}

/// Embeds and writes every chunk that is not stored yet. A batch is written while the next one
/// is embedded; both together are one checkpoint, so a crash repeats no more than that.
async fn write_missing(
    ctx: &Context,
    turn: &Turn,
    generation: &Generation,
    plan: &[Span],
    source: Source,
) -> Result<(), JobError> {
    let mut tx = turn.begin(ctx).await?;
    let stored: HashSet<i32> = chunks::stored(&mut *tx, generation.id).await?.into_iter().collect();
    tx.commit().await?;
    let missing: Vec<(i32, Span)> =
        (0..).zip(plan.iter().copied()).filter(|(ord, _)| !stored.contains(ord)).collect();
    let mut told = Instant::now();
    let mut ready: Option<Batch> = None;
    for spans in missing.chunks((ctx.settings.embed.checkpoint / 2).max(1)) {
        let write = async {
            match ready.take() {
                Some(batch) => store(ctx, turn, generation, plan.len(), &batch, &mut told).await,
                None => Ok(()),
            }
        };
        let (embedded, written) = tokio::join!(source.embed(ctx, turn, spans), write);
        written?;
        ready = Some(embedded?);
    }
    match ready {
        Some(batch) => store(ctx, turn, generation, plan.len(), &batch, &mut told).await,
        None => Ok(()),
    }
}

async fn store(
    ctx: &Context,
    turn: &Turn,
    generation: &Generation,
    total: usize,
    batch: &Batch,
    told: &mut Instant,
) -> Result<(), JobError> {
    let mut tx = turn.begin(ctx).await?;
    chunks::insert(&mut tx, generation.id, batch.space, batch.language.as_deref(), &batch.chunks).await?;
    let done = generations::add_done(&mut tx, generation.id, batch.chunks.len() as i32).await?;
    if told.elapsed() >= PROGRESS_EVERY {
        tell(&mut tx, turn, generation, IndexStatus::Embedding, done, Some(total as i32)).await?;
        *told = Instant::now();
    }
    tx.commit().await?;
    Ok(())
}

async fn finish(
    ctx: &Context,
    turn: &Turn,
    generation: &Generation,
    extraction: &Extraction,
    no_chunks: bool,
) -> Result<Done, JobError> {
    let completeness = &extraction.facts.completeness;
    let status = match completeness {
        _ if no_chunks => IndexStatus::Empty,
        Completeness::Complete | Completeness::Empty => IndexStatus::Indexed,
        Completeness::NeedsOcr { .. } | Completeness::Partial { .. } | Completeness::Truncated { .. } => {
            IndexStatus::Partial
        }
    };
    let mut tx = turn.begin(ctx).await?;
    let total = chunks::count(&mut *tx, generation.id).await? as i32;
    generations::finish(&mut tx, generation.id, status, &json!(completeness)).await?;
    resources::flip(&mut tx, generation.resource, generation.id).await?;
    for old in generations::superseded(&mut *tx, generation.resource).await? {
        enqueue(&mut tx, turn.workspace(), &Forget::Generation(old)).await?;
    }
    tell(&mut tx, turn, generation, status, total, Some(total)).await?;
    if let Some(attachment) = generation.attachment {
        outcomes::ready_when_indexed(&mut tx, turn.workspace(), attachment).await?;
    }
    turn.finish(tx).await
}

async fn tell(
    tx: &mut Tx,
    turn: &Turn,
    generation: &Generation,
    status: IndexStatus,
    done: i32,
    total: Option<i32>,
) -> Result<(), JobError> {
    let event = Event::Index {
        id: generation.id,
        attachment: generation.attachment,
        status: status.as_str(),
        done,
        total,
    };
    announce(tx, turn.workspace(), &event).await?;
    Ok(())
}
