//! `gristmill bench queue --bloat`: how large the jobs' table grows when very many pass through,
//! and what is left of that after pruning.
//!
//! Waves of jobs are enqueued, worked off by the real worker, and pruned but for the last wave,
//! as a worker with a short memory would. A table that does not bloat stops growing after the
//! second wave.

use crate::cli::bench::queue::ground::Ground;
use crate::cli::bench::queue::ours;
use crate::cli::bench::queue::task::Size;
use crate::cli::table::table;
use crate::config::Config;
use crate::store::bench::{self, Extent};
use serde::Serialize;
use std::time::Instant;

const WAVES: usize = 10;

/// The table after a stage.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    name: String,
    seconds: f64,
    pruned: i64,
    extent: Extent,
}

/// Sends `size.jobs` through in waves, and looks at the table after each.
pub async fn measure(ground: &Ground, settings: &Config, size: &Size) -> anyhow::Result<Vec<Stage>> {
    let mill = ours::Mill::build(ground, settings, size).await?;
    let db = &mill.owner;
    let start = Instant::now();
    let stage = async |name: String, pruned| {
        let extent = bench::extent(db).await?;
        eprintln!("{name}: {} rows, {} MB", extent.rows, megabytes(extent.table_bytes + extent.index_bytes));
        anyhow::Ok(Stage { name, seconds: start.elapsed().as_secs_f64(), pruned, extent })
    };
    let mut stages = vec![stage("empty".into(), 0).await?];
    let wave = Size { jobs: size.jobs / WAVES, ..size.clone() };
    for number in 1..=WAVES {
        let began = Instant::now();
        let drained = ours::drain(&mill, ours::Ending::Batched, &wave).await?;
        anyhow::ensure!(drained.cut_off_after.is_none(), "wave {number} was not worked off in time");
        let pruned = bench::prune(db, began.elapsed().as_secs_f64()).await?;
        stages.push(stage(format!("wave {number} done, older ones pruned"), pruned).await?);
    }
    let pruned = bench::prune(db, 0.0).await?;
    stages.push(stage("all pruned".into(), pruned).await?);
    bench::vacuum_jobs(db).await?;
    stages.push(stage("and vacuumed".into(), 0).await?);
    mill.close().await;
    Ok(stages)
}

/// The stages, with the largest extent named.
pub fn tell(stages: &[Stage], server: &bench::Server) -> String {
    let mut told = table(["stage", "after s", "pruned", "rows", "dead rows", "table MB", "indexes MB"]);
    for Stage { name, seconds, pruned, extent } in stages {
        told.add_row([
            name.clone(),
            format!("{seconds:.0}"),
            pruned.to_string(),
            extent.rows.to_string(),
            extent.dead_rows.to_string(),
            megabytes(extent.table_bytes),
            megabytes(extent.index_bytes),
        ]);
    }
    let peak = stages.iter().map(|stage| stage.extent.table_bytes + stage.extent.index_bytes).max();
    let through: i64 = stages.iter().map(|stage| stage.pruned).sum();
    format!(
        "Postgres {}, fsync {}; dead rows as the statistics have them\n\n{told}\n\n{through} jobs went through; at most {} MB",
        server.version,
        server.fsync,
        megabytes(peak.unwrap_or_default())
    )
}

fn megabytes(bytes: i64) -> String {
    format!("{:.1}", bytes as f64 / 1_048_576.0)
}
