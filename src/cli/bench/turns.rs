//! `gristmill bench fairness` and `gristmill bench claim`: what a small tenant waits beside a
//! large one, and what a claim costs when a million jobs wait.

use crate::cli::bench::queue::ground::{Ground, Server};
use crate::cli::bench::queue::ours::Mill;
use crate::cli::bench::queue::task::Size;
use crate::cli::house::House;
use crate::cli::table::table;
use crate::context::Context;
use crate::domain::WorkspaceId;
use crate::job::{Done, Job, JobError, Turn};
use crate::queue::desk::{self, Ask, Place};
use crate::queue::{Lane, Payload, Terms, enqueue_many};
use crate::runtime::{Registry, Worker};
use crate::store::{bench, tenants};
use anyhow::Context as _;
use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const SLICE: usize = 1000;

/// Work that takes its time and no processor.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Nap {
    milliseconds: u64,
}

impl Payload for Nap {
    const KIND: &'static str = "bench_nap";
}

impl Job for Nap {
    const TIMEOUT: Duration = Duration::from_mins(1);

    async fn run(&self, _: &Context, turn: &Turn) -> Result<Done, JobError> {
        tokio::time::sleep(Duration::from_millis(self.milliseconds)).await;
        Ok(turn.nothing_to_write())
    }
}

fn registry() -> Registry {
    Registry::default().with::<Nap>()
}

/// Arguments of `bench fairness`.
#[derive(Debug, clap::Args)]
pub struct Fairness {
    /// Jobs of the large tenant.
    #[arg(long, default_value_t = 10_000)]
    jobs: usize,
    /// Jobs that the small tenant adds while the large one's are worked off.
    #[arg(long, default_value_t = 10)]
    few: usize,
    /// How long each job takes, in milliseconds.
    #[arg(long, default_value_t = 50)]
    milliseconds: u64,
    /// Places of the worker (queue.concurrency).
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
}

impl Fairness {
    pub(super) async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let told = on_a_server(house, async |server| {
            let (alone, _) = self.once(house, &server.lay().await?, 0).await?;
            let (beside, waits) = self.once(house, &server.lay().await?, self.few).await?;
            Ok(self.tell(alone, beside, &waits))
        });
        println!("{}", told.await?);
        Ok(ExitCode::SUCCESS)
    }

    /// Jobs a second of the large tenant, and what each job of the small one waited, in seconds.
    async fn once(&self, house: &House, ground: &Ground, few: usize) -> anyhow::Result<(f64, Vec<f64>)> {
        let mill = Mill::build(ground, &house.settings, &size(self.concurrency)).await?;
        registry().publish(&mill.owner).await?;
        let mut conn = mill.owner.acquire().await?;
        let small = tenants::ensure_workspace(&mut conn, "small").await?;
        let mut ask = async |workspace: WorkspaceId, jobs: usize| {
            let naps = vec![Nap { milliseconds: self.milliseconds }; jobs];
            for slice in naps.chunks(SLICE) {
                enqueue_many(&mut conn, workspace, slice, &Terms::default()).await?;
            }
            anyhow::Ok(())
        };
        ask(mill.workspace, self.jobs).await?;
        let start = Instant::now();
        let worker = Worker::start(&mill.ctx, registry)?;
        while bench::finished(&mill.owner, mill.workspace.0).await? < (self.jobs / 5) as i64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ask(small, few).await?;
        // A pool closes when the last connection is back.
        drop(conn);
        while bench::unfinished(&mill.owner).await? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rate = self.jobs as f64 / start.elapsed().as_secs_f64();
        worker.stop().await;
        let mut waits = bench::waits(&mill.owner, small.0).await?;
        waits.sort_by(f64::total_cmp);
        mill.close().await;
        Ok((rate, waits))
    }

    fn tell(&self, alone: f64, beside: f64, waits: &[f64]) -> String {
        let Self { jobs, few, milliseconds, concurrency } = self;
        let mut told = table(["what", "figure", "goal"]);
        let behind = *jobs as f64 * 0.8 / beside;
        let rows = [
            ("the large tenant alone, jobs/s", format!("{alone:.1}"), String::new()),
            ("beside the small one, jobs/s", format!("{beside:.1}"), String::new()),
            ("it loses", format!("{:.1} %", 100.0 * (1.0 - beside / alone)), "≤ 10 %".into()),
            ("a job of the small one waits, p50", seconds(at(waits, 0.5)), String::new()),
            ("p95", seconds(at(waits, 0.95)), "≤ 2 s".into()),
            ("behind the backlog it would have waited", seconds(behind), String::new()),
        ];
        for (what, figure, goal) in rows {
            told.add_row([what.to_owned(), figure, goal]);
        }
        format!(
            "{jobs} jobs of {milliseconds} ms, {few} more of another tenant, {concurrency} places\n\n{told}"
        )
    }
}

/// Arguments of `bench claim`.
#[derive(Debug, clap::Args)]
pub struct Claim {
    /// Jobs that wait.
    #[arg(long, default_value_t = 1_000_000)]
    jobs: i64,
    /// Workspaces they belong to.
    #[arg(long, default_value_t = 1000)]
    workspaces: i64,
    /// Jobs taken by a claim.
    #[arg(long, default_value_t = 10)]
    want: i32,
    /// Claims measured.
    #[arg(long, default_value_t = 1000)]
    claims: usize,
}

impl Claim {
    pub(super) async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let told = on_a_server(house, async |server| {
            let mut told = table(["waiting", "claims", "p50 ms", "p99 ms", "slowest", "goal of p99"]);
            let mut plan = String::new();
            for waiting in [self.jobs / 100, self.jobs] {
                let ground = server.lay().await?;
                let (times, its_plan) = self.once(house, &ground, waiting).await?;
                let ms = |share| format!("{:.2}", at(&times, share) * 1000.0);
                told.add_row([
                    waiting.to_string(),
                    times.len().to_string(),
                    ms(0.5),
                    ms(0.99),
                    ms(1.0),
                    "≤ 20".into(),
                ]);
                plan = its_plan;
            }
            let Self { want, workspaces, .. } = self;
            Ok(format!(
                "claims of {want} over {workspaces} workspaces\n\n{told}\n\nthe search within a workspace:\n{plan}"
            ))
        });
        println!("{}", told.await?);
        Ok(ExitCode::SUCCESS)
    }

    async fn once(&self, house: &House, ground: &Ground, waiting: i64) -> anyhow::Result<(Vec<f64>, String)> {
        let mill = Mill::build(ground, &house.settings, &size(16)).await?;
        registry().publish(&mill.owner).await?;
        eprintln!("{waiting} jobs are made to wait");
        bench::flood(&mill.owner, Nap::KIND, waiting, self.workspaces).await?;
        bench::vacuum_analyze(&mill.owner).await?;
        let ask = Ask {
            worker: "bench".into(),
            lane: Lane::Bulk,
            kinds: ["fetch", "scan", "extract", "embed", Nap::KIND].map(str::to_owned).to_vec(),
            lease: Duration::from_secs(30),
            workspace_cap: 1000,
        };
        let (mut times, mut place) = (Vec::new(), Place::default());
        let mut conn = mill.ctx.db.acquire().await?;
        for _ in 0..self.claims {
            let start = Instant::now();
            let taken = desk::claim(&mut *conn, &ask, self.want, &mut place).await?;
            times.push(start.elapsed().as_secs_f64());
            if taken.is_empty() {
                break;
            }
        }
        drop(conn);
        let plan = bench::claim_plan(&mill.owner, Nap::KIND).await?;
        mill.close().await;
        times.sort_by(f64::total_cmp);
        Ok((times, plan))
    }
}

/// Runs on databases of its own, which are dropped however it ends.
async fn on_a_server(
    house: &House,
    measured: impl AsyncFnOnce(&mut Server) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let url = house.settings.database.url.as_ref().context("set DATABASE_URL")?.expose_secret();
    let mut server = Server::new(url)?;
    let told = tokio::select! {
        told = measured(&mut server) => Some(told),
        _ = tokio::signal::ctrl_c() => None,
    };
    server.clear().await?;
    told.context("interrupted")?
}

fn size(concurrency: usize) -> Size {
    Size { jobs: 0, singles: 0, producers: 1, concurrency, limit_seconds: 600 }
}

/// The value that a share of the sorted ones does not exceed.
fn at(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

fn seconds(time: f64) -> String {
    format!("{time:.2} s")
}
