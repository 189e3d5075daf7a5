//! `gristmill eval DIR…`: ingests each set through the product's own pipeline, then compares.

use super::beir::Set;
use super::{Line, Setting, compare, table};
use crate::cli::house::House;
use crate::cli::{ingest, watch};
use crate::context::Context;
use crate::domain::{ResourceId, WorkspaceId};
use crate::runtime::{Worker, every_kind};
use crate::store::search::Filters;
use crate::store::{chunks, resources, tenants};
use anyhow::Context as _;
use clap::Args;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// Folders with corpus.jsonl, queries.jsonl and qrels.tsv, or a folder of such folders.
    #[arg(required = true)]
    sets: Vec<PathBuf>,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let ctx = house.context().await?;
        let mut all = serde_json::Map::new();
        for folder in sets_below(&self.sets)? {
            let set = Set::read(&folder)?;
            let name =
                folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            if !self.json {
                println!("{name}: {} documents, {} questions", set.documents.len(), set.questions.len());
            }
            let lines = measure(house, &ctx, &set).await?;
            if self.json {
                all.insert(name, serde_json::to_value(&lines)?);
            } else {
                println!("{}\n", table(&lines));
            }
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn sets_below(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut sets = Vec::new();
    for path in paths {
        if path.join("corpus.jsonl").exists() {
            sets.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut inside: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        inside.retain(|folder| folder.join("corpus.jsonl").exists());
        inside.sort();
        sets.extend(inside);
    }
    anyhow::ensure!(!sets.is_empty(), "no folder here holds a corpus.jsonl");
    Ok(sets)
}

async fn measure(house: &House, ctx: &std::sync::Arc<Context>, set: &Set) -> anyhow::Result<Vec<Line>> {
    let owner = house.owner().await?;
    let name = format!("eval-{}", uuid::Uuid::now_v7());
    let workspace = tenants::ensure_workspace(&mut *owner.acquire().await?, &name).await?;
    let room = ctx.spool.room()?;
    let worker = Worker::start(ctx, every_kind)?;
    let documents = ingest_set(ctx, workspace, set, room.path()).await;
    worker.stop().await;
    let documents = documents?;

    // One at a time, as `search` does: an int8 model's vectors depend a little on their batch.
    let mut vectors = Vec::new();
    for question in &set.questions {
        vectors.extend(ctx.embedder.embed(vec![question.text.clone()]).await?);
    }
    let search = &ctx.settings.search;
    let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
    let setting = Setting {
        space_id: chunks::ensure_space(&mut tx, ctx.embedder.space()).await?,
        vectors: &vectors,
        documents: &documents,
        filters: Filters::default(),
        candidates: search.candidates,
        ef_search: search.ef_search,
        rrf_k: search.rrf_k,
        alpha: search.alpha,
    };
    let lines = compare(&mut tx, set, &setting).await?;
    tx.commit().await?;
    // A measurement leaves nothing behind.
    for object in
        ctx.objects.list(&ctx.settings.objects.bucket, &ctx.objects.tenant_key(workspace, "")).await?
    {
        ctx.objects.delete(&ctx.settings.objects.bucket, &object.key).await?;
    }
    tenants::delete(&owner, workspace).await?;
    Ok(lines)
}

/// Ingests each document as a file; answers which resource is which document.
async fn ingest_set(
    ctx: &Context,
    workspace: WorkspaceId,
    set: &Set,
    room: &Path,
) -> anyhow::Result<HashMap<ResourceId, String>> {
    let into = ingest::Into { workspace, knowledge_base: None };
    let mut ids = Vec::new();
    for (n, document) in set.documents.iter().enumerate() {
        let file = room.join(format!("{n}.txt"));
        std::fs::write(&file, document.body())?;
        ids.push(ingest::file(ctx, into, &file).await?);
        std::fs::remove_file(&file)?;
    }
    let ended = watch::until_final(ctx, workspace, &ids).await?;
    if let Some(lost) = ended.iter().find(|s| s.status != "READY") {
        let why = lost.failure.as_deref().unwrap_or_default();
        tracing::warn!(file = lost.name, why, "a document was not ingested");
    }
    let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
    let mut documents = HashMap::new();
    for (id, document) in ids.iter().zip(&set.documents) {
        for resource in resources::of_attachment(&mut *tx, *id).await? {
            documents.insert(resource, document.id.clone());
        }
    }
    Ok(documents)
}
