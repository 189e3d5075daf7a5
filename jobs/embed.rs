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
use futures::stream::{self, StreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Batches of a checkpoint: two being embedded, one waiting, one being written.
const IN_HAND: usize = 4;

/// Between two progress events of one generation; final ones are never left out.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Embeds one generation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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
        let building = Building { ctx, turn, generation: &generation, extraction: &extraction };
        let (space, plan) = match &generation.plan {
            Some(encoded) => {
                let plan = decode_plan(encoded).map_err(|error| JobError::fatal("bad_plan", error))?;
                (generation.space.unwrap_or_default(), plan)
            }
            None => building.make_plan(&text).await?,
        };
        let facts = &extraction.facts;
        let source = Source::open(&text, facts.pages.clone(), facts.language.clone(), space)?;
        building.write_missing(&plan, source).await?;
        building.finish(plan.is_empty()).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        let Some(generation) = generations::find(&mut **tx, self.generation).await? else { return Ok(()) };
        if let Some(attachment) = generation.attachment {
            outcomes::fail(tx, attachment, Reason { code: &why.code, text: &why.reason }).await
        } else {
            let detail = json!({ "code": why.code, "reason": why.reason });
            generations::finish(tx, generation.id, IndexStatus::Failed, &detail).await
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

/// A generation under construction.
struct Building<'a> {
    ctx: &'a Context,
    turn: &'a Turn,
    generation: &'a Generation,
    extraction: &'a Extraction,
}

impl Building<'_> {
    async fn make_plan(&self, text: &Path) -> Result<(i32, Vec<Span>), JobError> {
        let Self { ctx, generation, .. } = *self;
        let mut wanted = ctx.settings.chunk.clone();
        wanted.size = generation.wanted_size.map_or(wanted.size, |size| size as usize);
        wanted.overlap = generation.wanted_overlap.map_or(wanted.overlap, |overlap| overlap as usize);
        let (size, overlap) = chunk::sizes(&wanted, ctx.embedder.max_tokens());
        let chunker = Chunker::new(ctx.embedder.tokenizer(), size, overlap)?;
        let (path, syntax) = (text.to_owned(), self.extraction.facts.syntax);
        let plan = tokio::task::spawn_blocking(move || chunker.plan(&path, syntax))
            .await
            .map_err(|error| JobError::fatal("chunking_failed", error))??;

        let mut tx = self.turn.begin(ctx).await?;
        let space = chunks::ensure_space(&mut tx, ctx.embedder.space()).await?;
        let fixed = Plan {
            space,
            chunk_size: size as i32,
            chunk_overlap: overlap as i32,
            encoded: &encode_plan(&plan),
            total: plan.len() as i32,
        };
        generations::set_plan(&mut tx, generation.id, &fixed).await?;
        self.tell(&mut tx, IndexStatus::Embedding, 0, fixed.total).await?;
        tx.commit().await?;
        Ok((space, plan))
    }

    /// Embeds and writes every chunk that is not stored yet. Batches are embedded while those
    /// before them are written; what is in hand at once ([`IN_HAND`] batches) is one checkpoint,
    /// so a crash repeats no more than that.
    async fn write_missing(&self, plan: &[Span], source: Source) -> Result<(), JobError> {
        let mut tx = self.turn.begin(self.ctx).await?;
        let stored: HashSet<i32> = chunks::stored(&mut *tx, self.generation.id).await?.into_iter().collect();
        tx.commit().await?;
        let missing: Vec<(i32, Span)> =
            (0..).zip(plan.iter().copied()).filter(|(ord, _)| !stored.contains(ord)).collect();
        let step = (self.ctx.settings.embed.checkpoint / IN_HAND).max(1);
        let source = &source;
        let embedding = missing.chunks(step).map(|spans| source.embed(self.ctx, self.turn, spans));
        let embedding: Vec<_> = embedding.collect();

        let (give, mut take) = mpsc::channel::<Batch>(1);
        let embed = async move {
            let mut embedded = stream::iter(embedding).buffered(2);
            while let Some(batch) = embedded.next().await {
                // The writer ends before its time only with an error of its own.
                if give.send(batch?).await.is_err() {
                    break;
                }
            }
            Ok::<_, JobError>(())
        };
        let write = async {
            let mut told = Instant::now();
            while let Some(batch) = take.recv().await {
                self.store(&batch, plan.len() as i32, &mut told).await?;
            }
            Ok(())
        };
        tokio::try_join!(embed, write)?;
        Ok(())
    }

    async fn store(&self, batch: &Batch, total: i32, told: &mut Instant) -> Result<(), JobError> {
        let mut tx = self.turn.begin(self.ctx).await?;
        let id = self.generation.id;
        chunks::insert(&mut tx, id, batch.space, batch.language.as_deref(), &batch.chunks).await?;
        let done = generations::add_done(&mut tx, id, batch.chunks.len() as i32).await?;
        if told.elapsed() >= PROGRESS_EVERY {
            self.tell(&mut tx, IndexStatus::Embedding, done, total).await?;
            *told = Instant::now();
        }
        tx.commit().await?;
        Ok(())
    }

    async fn finish(&self, no_chunks: bool) -> Result<Done, JobError> {
        let Self { ctx, turn, generation, extraction } = *self;
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
        self.tell(&mut tx, status, total, total).await?;
        if let Some(attachment) = generation.attachment {
            outcomes::ready_when_indexed(&mut tx, turn.workspace(), attachment).await?;
        }
        turn.finish(tx).await
    }

    async fn tell(&self, tx: &mut Tx, status: IndexStatus, done: i32, total: i32) -> Result<(), JobError> {
        let Generation { id, attachment, .. } = *self.generation;
        let event = Event::Index { id, attachment, status: status.as_str(), done, total: Some(total) };
        announce(tx, self.turn.workspace(), &event).await?;
        Ok(())
    }
}
