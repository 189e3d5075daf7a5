//! The worker: apalis as its shell, our queue behind it, and an orderly stop.
//!
//! After `jobs`; the command line starts it. Five parts run beside the jobs: claiming,
//! acknowledging, listening, the leader of schedules, and the lease keeper in its own thread.

mod acks;
mod adapter;
pub mod backend;
mod ears;
pub mod embedded_pg;
pub mod embedded_s3;
mod hands;
pub mod hosts;
mod keeper;
pub mod leader;
mod neighbours;
mod registry;
mod stop;

pub use neighbours::close_to_neighbours;
pub use registry::{Registry, every_kind};
pub use stop::{Stopped, block_on};

use crate::config;
use crate::context::Context;
use crate::queue::Lane;
use crate::queue::desk::{Ask, Backoff, Card};
use crate::store::line::{Line, in_time};
use acks::Acks;
use adapter::Bench;
use apalis::prelude::{Data, WorkerBuilder};
use backend::{Claiming, Leased};
use hands::{Hands, Held};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Executor, PgPool};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

const BELL: &str = "gristmill_jobs";

/// A running worker; dropping it does not stop it, [`Worker::stop`] does.
pub struct Worker {
    hands: Vec<Arc<Hands>>,
    shells: tokio::task::JoinSet<()>,
    acks: tokio::task::JoinSet<()>,
    /// Fires when no more ends will come.
    last_call: CancellationToken,
    helpers: CancellationToken,
    keepers: Vec<std::thread::JoinHandle<()>>,
    grace: Duration,
    /// For the last words of a stop.
    farewell: Line,
    backoff: Backoff,
}

impl Worker {
    /// Starts working on every kind that `registry` knows, each lane with its own places.
    pub fn start(ctx: &Arc<Context>, registries: impl Fn() -> Registry) -> anyhow::Result<Self> {
        let settings = &ctx.settings.queue;
        let mut worker = Self {
            hands: Vec::new(),
            shells: tokio::task::JoinSet::new(),
            acks: tokio::task::JoinSet::new(),
            last_call: CancellationToken::new(),
            helpers: CancellationToken::new(),
            keepers: Vec::new(),
            grace: Duration::from_secs_f64(settings.grace_seconds),
            farewell: line(ctx),
            backoff: backoff(settings),
        };
        tokio::spawn(publish(ctx.db.clone(), registries(), worker.helpers.clone()));
        let bells = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let database = (*ctx.db.connect_options()).clone();
        let news = News { registry: Arc::new(registries()), bells: bells.clone(), cancelled: Arc::default() };
        let listening = listen(database.clone(), patience(settings), news.clone());
        tokio::spawn(worker.helpers.clone().run_until_cancelled_owned(listening));
        leader::start(ctx, worker.helpers.clone());
        ears::start(ctx, worker.helpers.clone());
        hosts::start(ctx, worker.helpers.clone());
        // Unique to this start: a process that comes back under the same name is another worker.
        let name = format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple());
        for (lane, bell) in [Lane::Interactive, Lane::Bulk].into_iter().zip(bells) {
            worker.open_lane(ctx, registries(), (lane, &name), bell);
        }
        let duty = keeper::Duty {
            database,
            role: ctx.settings.database.role.clone(),
            lease: Duration::from_secs_f64(settings.lease_seconds),
            backoff: worker.backoff,
            card: card(name, &registries(), settings),
        };
        let ends = worker.helpers.clone();
        worker.keepers.push(keeper::start(duty, worker.hands.clone(), news.cancelled, ends)?);
        Ok(worker)
    }

    fn open_lane(
        &mut self,
        ctx: &Arc<Context>,
        registry: Registry,
        (lane, name): (Lane, &str),
        bell: Arc<Notify>,
    ) {
        let settings = &ctx.settings.queue;
        let hands = Arc::new(Hands::new(settings.concurrency));
        let (ends, written) = mpsc::unbounded_channel();
        let acks = Acks {
            line: line(ctx),
            patience: patience(settings),
            backoff: self.backoff,
            hands: hands.clone(),
            held_up: false,
        };
        self.acks.spawn(acks.write_ends(written, self.last_call.clone()));
        let ask = Ask {
            worker: name.to_owned(),
            lane,
            kinds: registry.kinds(),
            lease: Duration::from_secs_f64(settings.lease_seconds),
            workspace_cap: settings.workspace_cap as i32,
        };
        let (backend, claiming) = Leased::new(Claiming {
            line: line(ctx),
            patience: patience(settings),
            ask,
            poll: Duration::from_millis(settings.poll_ms),
            hands: hands.clone(),
            bell,
        });
        tokio::spawn(claiming);
        let bench = Arc::new(Bench { ctx: ctx.clone(), registry, hands: hands.clone(), ends });
        let shell = WorkerBuilder::new(format!("{name}-{lane:?}").as_str())
            .backend(backend)
            .data(bench)
            .build(handle);
        self.shells.spawn(async move {
            if let Err(error) = shell.run().await {
                tracing::error!(%error, "a worker lane ended");
            }
        });
        self.hands.push(hands);
    }
}

async fn handle(jobs: Vec<Held>, bench: Data<Arc<Bench>>) {
    adapter::work_off((*bench).clone(), jobs).await;
}

/// Tells the database what this worker can do, as soon as it answers.
async fn publish(db: PgPool, registry: Registry, end: CancellationToken) {
    while let Err(error) = registry.publish(&db).await {
        tracing::warn!(%error, "the kinds of jobs could not be published; trying again");
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn backoff(settings: &config::Queue) -> Backoff {
    Backoff {
        base: Duration::from_secs_f64(settings.backoff_seconds),
        ceiling: Duration::from_secs_f64(settings.backoff_ceiling_seconds),
    }
}

/// A connection for a loop of the queue.
fn line(ctx: &Context) -> Line {
    let options = (*ctx.db.connect_options()).clone();
    Line::new(options, &ctx.settings.database.role, patience(&ctx.settings.queue))
}

/// How long the loops of the queue wait for an answer before they connect anew.
fn patience(settings: &config::Queue) -> Duration {
    Duration::from_secs_f64((settings.lease_seconds / 3.0).clamp(0.5, 10.0))
}

/// How this worker shows that it is there.
fn card(name: String, registry: &Registry, settings: &config::Queue) -> Card {
    Card { name, host: hosts::name(), kinds: registry.kinds(), places: settings.concurrency as i32 }
}

/// What the listener passes on.
#[derive(Clone)]
struct News {
    registry: Arc<Registry>,
    /// There is a job, of the interactive lane and of the other.
    bells: [Arc<Notify>; 2],
    /// Somebody asked for a job's end: a hint to look, since anybody may notify.
    cancelled: Arc<Notify>,
}

impl News {
    fn tell(&self, payload: &str) {
        let [interactive, bulk] = &self.bells;
        interactive.notify_waiters();
        // A kind that nobody waits for is the other's, and so is what does not tell its lane.
        if !self.registry.is_interactive(payload) {
            bulk.notify_waiters();
        }
        if payload.starts_with("cancel") {
            self.cancelled.notify_one();
        }
    }
}

/// Rings the bell when the database tells of a job; reconnects by itself. The poll behind it
/// makes a lost notification a delay, not a loss.
async fn listen(database: PgConnectOptions, check: Duration, news: News) {
    loop {
        if let Err(error) = ring(&database, check, &news).await {
            tracing::warn!(%error, "listening for jobs failed; polling goes on");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn ring(database: &PgConnectOptions, check: Duration, news: &News) -> sqlx::Result<()> {
    // A pool of its own: the listener keeps its connection, and the jobs need theirs.
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(database.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    // A lost connection is an error here, and begins this function anew.
    listener.eager_reconnect(false);
    in_time(check, listener.listen(BELL)).await?;
    // What was told while nobody listened.
    news.tell("");
    loop {
        match tokio::time::timeout(check, listener.try_recv()).await {
            Ok(told) => {
                let Some(told) = told? else {
                    return Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into()));
                };
                news.tell(told.payload());
            }
            // Silence is what a dead wire sounds like too: ask for an answer.
            Err(_) => in_time(check, listener.execute("SELECT 1")).await.map(drop)?,
        }
    }
}
