//! apalis's `Backend` over our own table: the only file that knows apalis when taking jobs out.
//!
//! apalis drives one stream of claims, each with its jobs: its bookkeeping costs more than a small
//! job, and a claim is as much as it need know. Claiming, acknowledging and renewing run in tasks
//! of their own, so a slow job never delays them. A stop ends the stream and apalis waits for
//! the jobs at work; what was claimed but not begun is handed back by the adapter.

use crate::queue::desk::{self, Ask, Claimed, Place};
use crate::runtime::hands::{Hands, Held};
use crate::store::line::{Line, in_time};
use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::worker::context::WorkerContext;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tower::layer::util::Identity;
use uuid::Uuid;

const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(500);
/// Claimed at once at most; more would sit in the channel longer than it saves.
const LARGEST_CLAIM: usize = 500;
/// With a backlog a claim waits so long for a good part of the places to be free: it costs the
/// database about the same for one job as for many.
const LINGER: Duration = Duration::from_millis(3);
/// So long after a claim that found less than it asked for the next one looks again, unless
/// the bell rings: most often there is nothing left.
const TRICKLE: Duration = Duration::from_millis(5);

/// Claims jobs and gives them to apalis, those of one claim together.
#[derive(Debug)]
pub struct Leased {
    claimed: mpsc::Receiver<Vec<Held>>,
    ask: Ask,
}

/// What the claim loop needs.
#[derive(Debug)]
pub struct Claiming {
    pub line: Line,
    /// How long a claim may take before its connection is given up.
    pub patience: Duration,
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

async fn claim_jobs(claiming: Claiming, give: mpsc::Sender<Vec<Held>>) {
    let (poll, hands, bell) = (claiming.poll, claiming.hands.clone(), claiming.bell.clone());
    let mut counter = Counter { claiming, place: Place::default(), unheard: false };
    let good_part = (hands.places.available_permits() / 4).clamp(1, LARGEST_CLAIM / 2) as u32;
    let mut backlog = false;
    loop {
        let free = tokio::select! {
            biased;
            () = hands.closing.cancelled() => return,
            permits = free_places(&hands, if backlog { good_part } else { 1 }) => permits,
        };
        let Some(mut permits) = free else { return };
        let want = permits.num_permits();
        // Armed before the query, so a bell between query and sleep is not missed.
        let rung = bell.notified();
        let before = counter.place;
        let Some(jobs) = counter.next(want as i32).await else {
            drop(permits);
            tokio::time::sleep(PAUSE_AFTER_FAULT).await;
            continue;
        };
        let found = jobs.len();
        backlog = found == want;
        // The places stay taken until the jobs' ends are written (`Hands::release`).
        if let Some(places) = permits.split(found.min(want)) {
            places.forget();
        }
        drop(permits);
        if found > 0 && give.send(hands.hold(jobs)).await.is_err() {
            return;
        }
        if !backlog {
            tokio::select! {
                () = hands.closing.cancelled() => return,
                () = rung => {}
                // A round that found nothing and did not come round goes on where it stopped.
                () = tokio::time::sleep(if found == 0 && counter.place == before { poll } else { TRICKLE.min(poll) }) => {}
            }
        }
    }
}

/// Where this lane asks for jobs.
struct Counter {
    claiming: Claiming,
    place: Place,
    /// Whether a claim failed whose outcome nobody knows.
    unheard: bool,
}

impl Counter {
    /// Up to `want` jobs; None when the database did not answer. After such a silence the first
    /// answer is what was claimed and never heard of.
    async fn next(&mut self, want: i32) -> Option<Vec<Claimed>> {
        if self.unheard {
            let missed = self.ask(want, true).await?;
            self.unheard = missed.len() == want as usize;
            if !missed.is_empty() {
                return Some(missed);
            }
        }
        let jobs = self.ask(want, false).await;
        self.unheard = jobs.is_none();
        jobs
    }

    async fn ask(&mut self, want: i32, missed: bool) -> Option<Vec<Claimed>> {
        let Claiming { line, patience, ask, hands, .. } = &mut self.claiming;
        let asked = async {
            let mut connection = line.take().await?;
            let jobs = if missed {
                in_time(*patience, desk::unheard(&mut connection, ask, want, &hands.leases())).await?
            } else {
                in_time(*patience, desk::claim(&mut connection, ask, want, &mut self.place)).await?
            };
            line.give_back(connection);
            Ok::<_, sqlx::Error>(jobs)
        };
        asked.await.inspect_err(|error| tracing::warn!(%error, "claiming failed; trying again")).ok()
    }
}

/// The free places for one claim: `at_least` so many, or after [`LINGER`] whatever is free, but one.
async fn free_places(hands: &Hands, at_least: u32) -> Option<OwnedSemaphorePermit> {
    let enough = hands.places.clone().acquire_many_owned(at_least);
    let mut permits = match tokio::time::timeout(LINGER, enough).await {
        Ok(permits) => permits.ok()?,
        Err(_) => hands.places.clone().acquire_owned().await.ok()?,
    };
    let more = hands.places.available_permits().min(LARGEST_CLAIM - permits.num_permits());
    if let Ok(rest) = hands.places.clone().try_acquire_many_owned(more as u32) {
        permits.merge(rest);
    }
    Some(permits)
}

/// The backend reports no errors: faults of the database are waited out in its tasks.
#[derive(Debug, thiserror::Error)]
pub enum Never {}

impl Backend for Leased {
    type Task = Task<Vec<Held>>;
    type Error = Never;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Never>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Option<Result<Task<Vec<Held>>, Never>>> {
        self.claimed.poll_recv(cx).map(|jobs| {
            if jobs.is_none() {
                // The claim loop has ended: let apalis wait for the jobs at work, then end.
                worker.stop().ok();
            }
            jobs.map(|jobs| Ok(TaskBuilder::new(jobs).build()))
        })
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Never>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Leased {
    type Args = Vec<Held>;
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
