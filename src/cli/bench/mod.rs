//! `gristmill bench`: speed as ratios within one run, never as a test.

pub mod embed;
mod job;
mod mcp;
mod queue;
mod turns;

use crate::cli::house::House;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use embed::Texts;
use std::path::PathBuf;
use std::process::ExitCode;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// The whole embed job's chunks a second, as a ratio to raw ONNX Runtime's best layout.
    Embed(Embed),
    /// Enqueue, drain and latency of the queue, beside a bare SKIP LOCKED loop and other queues.
    Queue(queue::Queue),
    /// What a small tenant waits beside a large one, and what the large one loses.
    Fairness(turns::Fairness),
    /// What a claim takes when a million jobs of a thousand workspaces wait.
    Claim(turns::Claim),
    /// A pooled MCP call beside a bare one, and many of them in flight.
    Mcp(mcp::Mcp),
}

impl Bench {
    pub(super) async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::Embed(embed) => embed.run(house).await,
            Self::Queue(queue) => queue.run(house).await,
            Self::Fairness(fairness) => fairness.run(house).await,
            Self::Claim(claim) => claim.run(house).await,
            Self::Mcp(mcp) => mcp.run(house).await,
        }
    }
}

/// Arguments of `bench embed`.
#[derive(Debug, Args)]
pub struct Embed {
    /// Chunks to measure with.
    #[arg(long, default_value_t = 512)]
    chunks: usize,
    /// Rounds; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A folder of text files to take the chunks from; default is prose made up on the spot.
    #[arg(long)]
    texts: Option<PathBuf>,
}

impl Embed {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let ctx = house.context().await?;
        let texts = Texts::gather(&ctx.embedder, self.texts.as_deref(), self.chunks)?;
        println!("{} chunks of {} tokens on average", texts.len(), texts.mean_tokens());
        let cores = std::thread::available_parallelism()?.get();
        let settings = &house.settings;
        let layouts = embed::layouts(cores);
        let deps = &settings.embedded.deps_dir;
        let swept = tokio::task::block_in_place(|| {
            embed::sweep(&settings.embed, deps, &texts, (&layouts, self.rounds))
        })?;
        println!("raw ONNX Runtime:\n{}", embed::table(&swept));
        let best = embed::best(&swept).context("nothing was measured")?.median();
        let job = job::chunks_per_second(house, &ctx, texts.document(), self.rounds).await?;
        let job = job.get(job.len() / 2).copied().unwrap_or_default();
        println!(
            "the whole embed job: {job:.1} chunks/s, {:.2} of the best raw layout ({best:.1})",
            job / best
        );
        Ok(ExitCode::SUCCESS)
    }
}
