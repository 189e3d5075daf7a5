//! The worker: apalis as its shell, our queue behind it, and an orderly stop.
//!
//! After `jobs`; the command line starts it. Four parts run beside the jobs: claiming,
//! acknowledging, listening, and the lease keeper in its own thread.

mod acks;
mod adapter;
pub mod backend;
pub mod embedded_pg;
pub mod embedded_s3;
mod hands;
mod keeper;
mod registry;

pub use registry::{Registry, every_kind};

use crate::config;
use crate::context::Context;
use crate::queue::Lane;
use crate::queue::desk::{Ask, Backoff, Claimed};
use adapter::Bench;
use apalis::prelude::{Data, WorkerBuilder};
use backend::{Claiming, Leased};
use hands::Hands;
use sqlx::PgPool;
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
    helpers: CancellationToken,
    keepers: Vec<std::thread::JoinHandle<()>>,
    grace: Duration,
}

impl Worker {
    /// Starts working on every kind that `registry` knows, each lane with its own places.
    pub fn start(ctx: &Arc<Context>, registries: impl Fn() -> Registry) -> anyhow::Result<Self> {
        let settings = &ctx.settings.queue;
        let mut worker = Self {
            hands: Vec::new(),
            shells: tokio::task::JoinSet::new(),
            acks: tokio::task::JoinSet::new(),
            helpers: CancellationToken::new(),
            keepers: Vec::new(),
            grace: Duration::from_secs_f64(settings.grace_seconds),
        };
        tokio::spawn(publish(ctx.db.clone(), registries(), worker.helpers.clone()));
        let bell = Arc::new(Notify::new());
        tokio::spawn(listen(ctx.db.clone(), bell.clone(), worker.helpers.clone()));
        // Unique to this start: a process that comes back under the same name is another worker.
        let name = format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple());
        for lane in [Lane::Interactive, Lane::Bulk] {
            worker.open_lane(ctx, registries(), (lane, &name), bell.clone())?;
        }
        Ok(worker)
    }

    fn open_lane(
        &mut self,
        ctx: &Arc<Context>,
        registry: Registry,
        (lane, name): (Lane, &str),
        bell: Arc<Notify>,
    ) -> anyhow::Result<()> {
        let settings = &ctx.settings.queue;
        let hands = Arc::new(Hands::new(settings.concurrency));
        let backoff = backoff(settings);
        let lease = Duration::from_secs_f64(settings.lease_seconds);
        let (ends, written) = mpsc::unbounded_channel();
        self.acks.spawn(acks::write_ends(ctx.db.clone(), backoff, hands.clone(), written));
        let duty = keeper::Duty {
            database: (*ctx.db.connect_options()).clone(),
            role: ctx.settings.database.role.clone(),
            lease,
            backoff,
        };
        self.keepers.push(keeper::start(duty, hands.clone(), self.helpers.clone())?);
        let ask = Ask {
            worker: name.to_owned(),
            lane,
            kinds: registry.kinds(),
            lease,
            workspace_cap: settings.workspace_cap as i32,
        };
        let poll = Duration::from_millis(settings.poll_ms);
        let (backend, claiming) =
            Leased::new(Claiming { db: ctx.db.clone(), ask, poll, hands: hands.clone(), bell });
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
        Ok(())
    }

    /// Stops claiming, lets jobs finish within the grace, then hands the rest back.
    pub async fn stop(mut self) {
        for hands in &self.hands {
            hands.closing.cancel();
        }
        let finished = async { while self.shells.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, finished).await.is_err() {
            for hands in &self.hands {
                hands.stop_all();
            }
            while self.shells.join_next().await.is_some() {}
        }
        // The shells held the senders: the acknowledgements end when the last is written.
        while self.acks.join_next().await.is_some() {}
        self.helpers.cancel();
        for keeper in self.keepers {
            tokio::task::spawn_blocking(move || keeper.join()).await.ok();
        }
    }
}

async fn handle(job: Claimed, bench: Data<Arc<Bench>>) {
    adapter::attempt((*bench).clone(), job).await;
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

/// Rings the bell when the database tells of a job; reconnects by itself. The poll behind it
/// makes a lost notification a delay, not a loss.
async fn listen(db: PgPool, bell: Arc<Notify>, end: CancellationToken) {
    let listening = async {
        loop {
            if let Err(error) = ring(&db, &bell).await {
                tracing::warn!(%error, "listening for jobs failed; polling goes on");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = end.cancelled() => {}
        () = listening => {}
    }
}

async fn ring(db: &PgPool, bell: &Notify) -> sqlx::Result<()> {
    let mut listener = sqlx::postgres::PgListener::connect_with(db).await?;
    listener.listen(BELL).await?;
    loop {
        listener.recv().await?;
        bell.notify_waiters();
    }
}
