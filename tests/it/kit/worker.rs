//! A worker process that knows one kind more than the program: [`Strike`], whose effect can be
//! counted.
//!
//! The program itself has no such kind, so the test binary runs itself again: [`works`] is the
//! child, and does nothing unless [`start`] started it. It embeds with word hashes.

use crate::kit::process::Process;
use crate::world::program;
use gristmill::config::Config;
use gristmill::context::Context;
use gristmill::embed::Embedder;
use gristmill::job::{Done, Job, JobError, Turn};
use gristmill::queue::Payload;
use gristmill::runtime::{Registry, Worker, every_kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Set for the child alone.
const MARK: &str = "GRISTMILL_TEST_STRIKER";

/// Where the effects go. Nothing makes a row unique: a doubled effect is two rows.
pub const EFFECTS: &str = "
    CREATE TABLE public.effects (n bigint NOT NULL, attempt int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE INDEX ON public.effects (n);
    GRANT SELECT, INSERT ON public.effects TO gristmill_worker";

/// Works for a while, then writes its one row.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Strike {
    pub n: i64,
    pub ms: u64,
}

impl Payload for Strike {
    const KIND: &'static str = "strike";
}

impl Job for Strike {
    const TIMEOUT: Duration = Duration::from_mins(1);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        tokio::time::sleep(Duration::from_millis(self.ms)).await;
        let mut tx = turn.begin(ctx).await?;
        sqlx::query("INSERT INTO public.effects (n, attempt) VALUES ($1, $2)")
            .bind(self.n)
            .bind(turn.attempt)
            .execute(&mut *tx)
            .await?;
        turn.finish(tx).await
    }
}

pub fn registry() -> Registry {
    every_kind().with::<Strike>()
}

/// Starts such a worker; `settings` are `GRISTMILL__…` pairs.
pub fn start(url: &str, log: &Path, settings: &[(&str, String)]) -> anyhow::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--ignored", "--exact", "--nocapture", "kit::worker::works"])
        .env(MARK, "1")
        .env("DATABASE_URL", url)
        .envs(settings.iter().map(|(name, value)| (name, value)));
    Ok(Process::start(&mut command, log)?)
}

/// Not a test: the worker process that [`start`] runs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of other tests"]
async fn works() -> anyhow::Result<()> {
    if std::env::var(MARK).is_err() {
        return Ok(());
    }
    let settings = Config::load(None)?;
    tracing_subscriber::fmt()
        .with_env_filter(&settings.log.filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let mut told = signal(SignalKind::terminate())?;
    let db = gristmill::store::connect(&settings.database).await?;
    let ctx = Arc::new(Context::with(settings, program(), db, Embedder::hashing(64))?);
    let worker = Worker::start(&ctx, registry)?;
    told.recv().await;
    worker.stop().await;
    Ok(())
}
