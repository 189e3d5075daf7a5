//! `gristmill bench queue`: our queue beside a bare SKIP LOCKED loop and other queues, in one run
//! on one Postgres.
//!
//! Rounds go over all systems in turn and medians are taken, so that a neighbour's load hits all;
//! every task of every system has a fresh database, which is dropped at the end.

mod bare;
mod bloat;
mod figures;
pub mod ground;
pub mod ours;
mod peers;
mod report;
pub mod task;

use crate::cli::house::House;
use crate::store::bench;
use anyhow::Context as _;
use figures::Figures;
use ground::Server;
use ours::Ending;
use peers::{Absent, Peer};
use report::{Report, Standing};
use secrecy::ExposeSecret;
use std::path::PathBuf;
use std::process::ExitCode;
use task::{Size, Task};

/// Arguments of `bench queue`.
#[derive(Debug, clap::Args)]
pub struct Queue {
    /// Jobs of a drain; with --bloat, of all its waves [default: 20000, with --bloat 1000000].
    #[arg(long)]
    jobs: Option<usize>,
    /// Rounds; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Places of our worker while it drains (queue.concurrency).
    #[arg(long, default_value_t = 1000)]
    concurrency: usize,
    /// Jobs enqueued one by one, by eight callers.
    #[arg(long, default_value_t = 4000)]
    singles: usize,
    /// Seconds of 200 jobs each, for latency.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Measure other queues too; their drivers lie in this folder of Gristmill's source.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "benches/peers")]
    peers: Option<PathBuf>,
    /// Only these tasks.
    #[arg(long, value_delimiter = ',', default_values = ["drain", "latency", "idle", "enqueue"])]
    tasks: Vec<String>,
    /// Only systems whose name holds one of these words.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// How large the table grows while a million jobs pass through it, and what pruning leaves.
    #[arg(long, conflicts_with_all = ["peers", "tasks", "rounds"])]
    bloat: bool,
    /// The figures as JSON.
    #[arg(long)]
    json: bool,
}

/// A queue that is measured.
#[derive(Debug, Clone)]
enum System {
    Bare,
    Ours(Ending),
    Peer(Peer),
}

/// While latency is measured.
const RATE: u64 = 200;
/// While nothing else goes on.
const IDLE: Task = Task::Latency { rate: 3, seconds: 10 };
const PRODUCERS: usize = 8;
/// The slowest peer needs most of it.
const LIMIT_SECONDS: u64 = 60;

impl Queue {
    pub(super) async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let url = house.settings.database.url.as_ref().context("set DATABASE_URL")?.expose_secret();
        let mut server = Server::new(url)?;
        let told = tokio::select! {
            told = self.told(house, &mut server) => Some(told),
            _ = tokio::signal::ctrl_c() => None,
        };
        server.clear().await?;
        println!("{}", told.context("interrupted")??);
        Ok(ExitCode::SUCCESS)
    }

    async fn told(&self, house: &House, server: &mut Server) -> anyhow::Result<String> {
        if self.bloat {
            let about = bench::server(&mut server.connect().await?).await?;
            let ground = server.lay().await?;
            let stages = bloat::measure(&ground, &house.settings, &self.size()).await?;
            return Ok(if self.json {
                serde_json::to_string_pretty(&serde_json::json!({ "server": about, "stages": stages }))?
            } else {
                bloat::tell(&stages, &about)
            });
        }
        let report = self.measure(house, server).await?;
        Ok(if self.json { serde_json::to_string_pretty(&report.json())? } else { report.to_string() })
    }

    fn size(&self) -> Size {
        Size {
            jobs: self.jobs.unwrap_or(if self.bloat { 1_000_000 } else { 20_000 }),
            singles: self.singles,
            producers: PRODUCERS,
            concurrency: self.concurrency,
            limit_seconds: if self.bloat { 600 } else { LIMIT_SECONDS },
        }
    }

    async fn measure(&self, house: &House, server: &mut Server) -> anyhow::Result<Report> {
        let about = bench::server(&mut server.connect().await?).await?;
        let mut absent = Vec::new();
        let mut systems =
            vec![System::Bare, System::Ours(Ending::Batched), System::Ours(Ending::OwnTransaction)];
        let mut installed = None;
        if let Some(folder) = &self.peers {
            let (peers, missing, place) = peers::prepare(folder).await?;
            systems.extend(peers.into_iter().map(System::Peer));
            (absent, installed) = (missing, Some(place));
        }
        let named =
            |name: &str| self.systems.is_empty() || self.systems.iter().any(|part| name.contains(part));
        systems.retain(|system| named(system.name()));
        let mut standings: Vec<Standing> =
            systems.iter().map(|system| Standing::new(system.name(), system.settings(self))).collect();
        for round in 1..=self.rounds {
            for task in self.tasks()? {
                for (system, standing) in systems.iter().zip(&mut standings) {
                    if !system.takes(task) || absent.iter().any(|absent| absent.name == system.name()) {
                        continue;
                    }
                    eprintln!("round {round} of {}: {}, {}", self.rounds, task.name(), system.name());
                    match self.once(house, server, (system, task)).await {
                        Ok(figures) => standing.add(task, figures),
                        // A peer that fails is named and left out; our own failure is one.
                        Err(error) => match system {
                            System::Peer(peer) => {
                                absent.push(Absent { name: peer.name, reason: format!("{error:#}") });
                            }
                            System::Bare | System::Ours(_) => return Err(error),
                        },
                    }
                }
            }
        }
        drop(installed);
        Ok(Report { server: about, rounds: self.rounds, jobs: self.size().jobs, standings, absent })
    }

    fn tasks(&self) -> anyhow::Result<Vec<Task>> {
        let task = |name: &String| match name.as_str() {
            "drain" => Ok(Task::Drain),
            "latency" => Ok(Task::Latency { rate: RATE, seconds: self.seconds }),
            "idle" => Ok(IDLE),
            "enqueue" => Ok(Task::Enqueue),
            other => anyhow::bail!("no task is named {other}: there are drain, latency, idle, enqueue"),
        };
        self.tasks.iter().map(task).collect()
    }

    async fn once(
        &self,
        house: &House,
        server: &mut Server,
        (system, task): (&System, Task),
    ) -> anyhow::Result<Figures> {
        let size = self.size();
        let ground = server.lay().await?;
        let figures = match system {
            System::Bare => bare::measure(&ground, task, &size).await,
            System::Ours(ending) => ours::measure(&ground, (&house.settings, *ending), task, &size).await,
            System::Peer(peer) => peer.measure(&ground, task, &size).await,
        };
        server.clear().await?;
        figures
    }
}

impl System {
    fn name(&self) -> &'static str {
        match self {
            Self::Bare => report::BARE,
            Self::Ours(Ending::Batched) => report::OURS,
            Self::Ours(Ending::OwnTransaction) => "gristmill, own transaction",
            Self::Peer(peer) => peer.name,
        }
    }

    fn settings(&self, asked: &Queue) -> String {
        match self {
            Self::Bare => "2 loops, claim 200 + acknowledge 200, lean table; latency: one LISTEN loop".into(),
            Self::Ours(Ending::Batched) => format!("the whole worker, {} places", asked.concurrency),
            Self::Ours(Ending::OwnTransaction) => "each job ends in its own fenced transaction".into(),
            Self::Peer(peer) => peer.settings.into(),
        }
    }

    /// How a job ends matters to a drain alone, and untuned peers to no latency.
    fn takes(&self, task: Task) -> bool {
        match self {
            Self::Ours(Ending::OwnTransaction) => task == Task::Drain,
            Self::Peer(peer) if matches!(peer.name, "apalis-postgres tuned" | "pg-boss tuned") => {
                // They differ from their namesakes in draining alone.
                task == Task::Drain
            }
            Self::Bare | Self::Ours(Ending::Batched) | Self::Peer(_) => true,
        }
    }
}
