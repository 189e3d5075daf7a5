//! Our own queue through the real runtime: claim, lease, fence and acknowledgement as in service.

use crate::cli::bench::queue::figures::{Asked, Figures, Meter, per_second};
use crate::cli::bench::queue::ground::Ground;
use crate::cli::bench::queue::task::{Size, Task};
use crate::config::Config;
use crate::context::Context;
use crate::domain::WorkspaceId;
use crate::embed::Embedder;
use crate::job::{Done, Job, JobError, Turn};
use crate::queue::{self, Lane, Payload, Terms};
use crate::runtime::{Registry, Worker};
use crate::store::{bench, tenants};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const SLICE: usize = 1000;

/// Jobs have no way to their caller but this.
static METER: Meter = Meter::new();

/// How a drained job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing to write: acknowledged with others, in a batch.
    Batched,
    /// In a fenced transaction of its own, as a job with an effect.
    OwnTransaction,
}

/// Bulk work that does nothing.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Noop(Asked);

impl Payload for Noop {
    const KIND: &'static str = "bench_noop";
}

impl Job for Noop {
    const TIMEOUT: Duration = Duration::from_secs(10);

    async fn run(&self, _: &Context, turn: &Turn) -> Result<Done, JobError> {
        METER.begin(self.0);
        Ok(turn.nothing_to_write())
    }
}

/// Bulk work whose only effect is its own end.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Effect(Asked);

impl Payload for Effect {
    const KIND: &'static str = "bench_effect";
}

impl Job for Effect {
    const TIMEOUT: Duration = Duration::from_secs(10);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        METER.begin(self.0);
        let tx = turn.begin(ctx).await?;
        turn.finish(tx).await
    }
}

/// What a person waits for: the interactive lane notifies.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Prompt(Asked);

impl Payload for Prompt {
    const KIND: &'static str = "bench_prompt";
    const LANE: Lane = Lane::Interactive;
}

impl Job for Prompt {
    const TIMEOUT: Duration = Duration::from_secs(10);

    async fn run(&self, _: &Context, turn: &Turn) -> Result<Done, JobError> {
        METER.begin(self.0);
        Ok(turn.nothing_to_write())
    }
}

fn registry() -> Registry {
    Registry::default().with::<Noop>().with::<Effect>().with::<Prompt>()
}

/// A migrated database with a tenant, and the worker's handles on it.
pub struct Mill {
    pub ctx: Arc<Context>,
    /// The pool of whoever logs in: sees every tenant.
    pub owner: PgPool,
    pub workspace: WorkspaceId,
    _folder: tempfile::TempDir,
}

impl Mill {
    pub async fn build(ground: &Ground, settings: &Config, size: &Size) -> anyhow::Result<Self> {
        let owner = ground.pool().await?;
        crate::MIGRATOR.run(&owner).await?;
        let workspace = tenants::ensure_workspace(&mut *owner.acquire().await?, "bench").await?;
        let folder = tempfile::tempdir()?;
        let mut settings = settings.clone();
        settings.database.url = Some(SecretString::from(ground.url.to_string()));
        settings.embedded.data_dir = folder.path().to_owned();
        settings.queue.concurrency = size.concurrency;
        // One tenant has the whole worker.
        settings.queue.workspace_cap = 2 * size.concurrency as u32;
        let db = crate::store::connect(&settings.database).await?;
        registry().publish(&db).await?;
        let ctx = Context::with(settings, std::env::current_exe()?, db, Embedder::hashing(8))?;
        Ok(Self { ctx: Arc::new(ctx), owner, workspace, _folder: folder })
    }

    pub async fn close(self) {
        self.ctx.db.close().await;
        self.owner.close().await;
    }
}

/// One task of our queue. `ending` matters to a drain alone.
pub async fn measure(
    ground: &Ground,
    (settings, ending): (&Config, Ending),
    task: Task,
    size: &Size,
) -> anyhow::Result<Figures> {
    let mill = Mill::build(ground, settings, size).await?;
    let figures = match task {
        Task::Enqueue => Figures {
            single_per_second: Some(produce::<Noop>(&mill, size, Noop).await?),
            notified_per_second: Some(produce::<Prompt>(&mill, size, Prompt).await?),
            ..Figures::default()
        },
        Task::Drain => drain(&mill, ending, size).await?,
        Task::Latency { rate, seconds } => latency(&mill, rate, (rate * seconds) as usize).await?,
    };
    mill.close().await;
    Ok(figures)
}

async fn produce<P: Payload>(mill: &Mill, size: &Size, payload: fn(Asked) -> P) -> anyhow::Result<f64> {
    let share = size.singles / size.producers;
    let start = Instant::now();
    let mut producers = JoinSet::new();
    for _ in 0..size.producers {
        let (owner, workspace) = (mill.owner.clone(), mill.workspace);
        producers.spawn(async move {
            for _ in 0..share {
                queue::enqueue(&mut *owner.acquire().await?, workspace, &payload(Asked::now())).await?;
            }
            anyhow::Ok(())
        });
    }
    for produced in producers.join_all().await {
        produced?;
    }
    Ok(per_second(share * size.producers, start))
}

/// Enqueues `size.jobs` in bulk, then works them off.
pub async fn drain(mill: &Mill, ending: Ending, size: &Size) -> anyhow::Result<Figures> {
    let bulk = Some(match ending {
        Ending::Batched => fill(mill, size.jobs, Noop).await?,
        Ending::OwnTransaction => fill(mill, size.jobs, Effect).await?,
    });
    bench::vacuum_analyze(&mill.owner).await?;
    METER.expect(size.jobs);
    let limit = Duration::from_secs(size.limit_seconds);
    let start = Instant::now();
    let worker = Worker::start(&mill.ctx, registry)?;
    let figures = if METER.all(limit).await {
        while bench::unfinished(&mill.owner).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Figures { drain_per_second: Some(per_second(size.jobs, start)), ..Figures::default() }
    } else {
        let begun = METER.begun();
        let drain_per_second = Some(per_second(begun, start));
        Figures { drain_per_second, cut_off_after: Some(begun), ..Figures::default() }
    };
    worker.stop().await;
    Ok(Figures { bulk_per_second: bulk, ..figures })
}

/// Enqueues in bulk; jobs a second.
async fn fill<P: Payload>(mill: &Mill, jobs: usize, payload: fn(Asked) -> P) -> anyhow::Result<f64> {
    let mut conn = mill.owner.acquire().await?;
    let start = Instant::now();
    for begin in (0..jobs).step_by(SLICE) {
        let slice: Vec<P> = (begin..jobs.min(begin + SLICE)).map(|_| payload(Asked::now())).collect();
        queue::enqueue_many(&mut conn, mill.workspace, &slice, &Terms::default()).await?;
    }
    Ok(per_second(jobs, start))
}

async fn latency(mill: &Mill, rate: u64, expected: usize) -> anyhow::Result<Figures> {
    METER.expect(expected);
    let worker = Worker::start(&mill.ctx, registry)?;
    // The listener and the first connections are up by then.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
    let mut callers = JoinSet::new();
    for _ in 0..expected {
        ticks.tick().await;
        let (owner, workspace) = (mill.owner.clone(), mill.workspace);
        callers.spawn(async move {
            let asked = Prompt(Asked::now());
            queue::enqueue(&mut *owner.acquire().await?, workspace, &asked).await?;
            anyhow::Ok(())
        });
    }
    for called in callers.join_all().await {
        called?;
    }
    METER.all(Duration::from_secs(30)).await;
    worker.stop().await;
    Ok(Figures { latencies_ms: Some(METER.latencies()), ..Figures::default() })
}
