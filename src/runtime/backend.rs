//! apalis's `Backend` over our own table: the only file that knows apalis when taking jobs out.
//!
//! apalis drives one stream of claimed jobs; claiming, acknowledging and renewing run in tasks
//! of their own, so a slow job never delays them. A stop ends the stream and apalis waits for
//! the jobs at work; what was claimed but not begun is handed back by the adapter.

use crate::queue::desk::{self, Ask, Claimed, Place};
use crate::runtime::hands::Hands;
use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::worker::context::WorkerContext;
use sqlx::PgPool;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tower::layer::util::Identity;
use uuid::Uuid;

const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(500);
/// Claimed at once at most; more would sit in the channel longer than it saves.
const LARGEST_CLAIM: usize = 250;

/// Claims jobs and gives them to apalis one by one.
#[derive(Debug)]
pub struct Leased {
    claimed: mpsc::Receiver<Claimed>,
    ask: Ask,
}

/// What the claim loop needs.
#[derive(Debug, Clone)]
pub struct Claiming {
    pub db: PgPool,
    pub ask: Ask,
    pub poll: Duration,
    pub hands: Arc<Hands>,
    /// Rung when the database says there is a new job.
    pub bell: Arc<Notify>,
}

impl Leased {
    /// The backend, and the claim loop to be spawned beside it.
    pub fn new(claiming: Claiming) -> (Self, impl Future<Output = ()> + Send) {
        let (give, claimed) = mpsc::channel(claiming.hands.places.available_permits().max(1));
        let ask = claiming.ask.clone();
        (Self { claimed, ask }, claim_jobs(claiming, give))
    }
}

async fn claim_jobs(claiming: Claiming, give: mpsc::Sender<Claimed>) {
    let Claiming { db, ask, poll, hands, bell } = claiming;
    let mut place = Place::default();
    loop {
        let first = tokio::select! {
            biased;
            () = hands.closing.cancelled() => return,
            permit = hands.places.clone().acquire_owned() => permit,
        };
        let Ok(mut permits) = first else { return };
        let more = hands.places.available_permits().min(LARGEST_CLAIM - 1) as u32;
        if let Ok(rest) = hands.places.clone().try_acquire_many_owned(more) {
            permits.merge(rest);
        }
        // Armed before the query, so a bell between query and sleep is not missed.
        let rung = bell.notified();
        let jobs = match desk::claim(&db, &ask, permits.num_permits() as i32, &mut place).await {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::warn!(%error, "claiming failed; trying again");
                drop(permits);
                tokio::time::sleep(PAUSE_AFTER_FAULT).await;
                continue;
            }
        };
        let nothing = jobs.is_empty();
        for job in jobs {
            // The place stays taken until the job's end is written (`Hands::release`).
            if let Some(place) = permits.split(1) {
                place.forget();
            }
            hands.hold(job.lease);
            if give.send(job).await.is_err() {
                return;
            }
        }
        drop(permits);
        if nothing {
            tokio::select! {
                () = hands.closing.cancelled() => return,
                () = rung => {}
                () = tokio::time::sleep(poll) => {}
            }
        }
    }
}

/// The backend reports no errors: faults of the database are waited out in its tasks.
#[derive(Debug, thiserror::Error)]
pub enum Never {}

impl Backend for Leased {
    type Task = Task<Claimed>;
    type Error = Never;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Never>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Option<Result<Task<Claimed>, Never>>> {
        self.claimed.poll_recv(cx).map(|job| {
            if job.is_none() {
                // The claim loop has ended: let apalis wait for the jobs at work, then end.
                worker.stop().ok();
            }
            job.map(|job| Ok(TaskBuilder::new(job).build()))
        })
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Never>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Leased {
    type Args = Claimed;
    type Id = Uuid;
    type Kind = Ephemeral;
    type Config = Ask;
    type Layer = Identity;

    fn config(&self) -> &Ask {
        &self.ask
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
