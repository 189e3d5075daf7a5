//! The other side of `gristmill bench embed`: the whole `embed` job, database and all, over the
//! same texts and in the same run as the raw sweep.

use crate::cli::house::House;
use crate::cli::{ingest, watch};
use crate::context::Context;
use crate::runtime::{Worker, every_kind};
use crate::store::{jobs, tenants};
use std::path::Path;
use std::sync::Arc;

/// Chunks a second from the embed job's start to its end, each round in a fresh workspace.
pub async fn chunks_per_second(
    house: &House,
    ctx: &Arc<Context>,
    text: &str,
    rounds: usize,
) -> anyhow::Result<Vec<f64>> {
    let owner = house.owner().await?;
    let room = ctx.spool.room()?;
    let mut rates = Vec::new();
    for round in 0..rounds {
        let file = room.path().join(format!("round-{round}.txt"));
        std::fs::write(&file, text)?;
        let name = format!("bench-{}", uuid::Uuid::now_v7());
        let workspace = tenants::ensure_workspace(&mut *owner.acquire().await?, &name).await?;
        rates.push(once(ctx, workspace, &file).await?);
        tenants::delete(&owner, workspace).await?;
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates)
}

async fn once(ctx: &Arc<Context>, workspace: crate::domain::WorkspaceId, file: &Path) -> anyhow::Result<f64> {
    let into = ingest::Into { workspace, knowledge_base: None };
    let worker = Worker::start(ctx, every_kind)?;
    let id = ingest::file(ctx, into, file).await?;
    let ended = watch::until_final(ctx, workspace, &[id]).await;
    worker.stop().await;
    let chunks: i32 = ended?.iter().map(|standing| standing.done).sum();
    let seconds = jobs::seconds_of_last(&ctx.db, workspace, "embed").await?;
    Ok(f64::from(chunks) / seconds)
}
