//! Keeps the leases: renews what is in hand, takes back what others let lapse. It also shows
//! people that the worker is there, which no lease depends on.
//!
//! It has its own thread, event loop and connection, so neither CPU work in the jobs nor an
//! exhausted pool delays it. While the database cannot be reached it tells nobody to stop:
//! the fence decides later, by epoch. A round that gets no answer is given up so early that a
//! fresh connection still comes before the lease lapses.

use crate::queue::desk::{self, Backoff, Card};
use crate::runtime::hands::Hands;
use crate::store::line::{Line, in_time};
use sqlx::postgres::PgConnectOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The shortest wait for an answer: below it a busy machine looks like a dead one.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

/// Between two signs of life.
const SHOW_EVERY: Duration = Duration::from_secs(30);

/// What the keeper needs to know.
#[derive(Debug, Clone)]
pub struct Duty {
    pub database: PgConnectOptions,
    pub role: String,
    pub lease: Duration,
    pub backoff: Backoff,
    pub card: Card,
}

impl Duty {
    /// A third of the lease between rounds, a fifth for a dead connection, a fifth to connect
    /// anew: a renewal still comes in time.
    fn patience(&self) -> Duration {
        (self.lease / 5).max(LEAST_PATIENCE)
    }
}

/// The keeper's thread; it ends when `end` fires, and looks at once when `cancelled` is rung.
pub fn start(
    duty: Duty,
    hands: Vec<Arc<Hands>>,
    cancelled: Arc<Notify>,
    end: CancellationToken,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("lease-keeper".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = end.cancelled() => {}
                () = keep(&duty, &hands, &cancelled) => {}
            }
        });
    })
}

async fn keep(duty: &Duty, hands: &[Arc<Hands>], cancelled: &Notify) {
    let mut line = Line::new(duty.database.clone(), &duty.role, duty.patience());
    let mut shown: Option<Instant> = None;
    loop {
        let pause = match round(duty, hands, &mut line).await {
            Ok(()) => duty.lease / 3,
            Err(error) => {
                tracing::warn!(%error, "renewing leases failed; connecting anew");
                duty.lease / 12
            }
        };
        if shown.is_none_or(|at| at.elapsed() >= SHOW_EVERY) && show(duty, &mut line).await.is_ok() {
            shown = Some(Instant::now());
        }
        tokio::time::timeout(pause, cancelled.notified()).await.ok();
    }
}

async fn show(duty: &Duty, line: &mut Line) -> sqlx::Result<()> {
    let mut connection = line.take().await?;
    in_time(duty.patience(), desk::report(&mut connection, &duty.card)).await?;
    line.give_back(connection);
    Ok(())
}

async fn round(duty: &Duty, hands: &[Arc<Hands>], line: &mut Line) -> sqlx::Result<()> {
    let mut connection = line.take().await?;
    let held: Vec<_> = hands.iter().flat_map(|hands| hands.leases_to_keep()).collect();
    if !held.is_empty() {
        let ours = in_time(duty.patience(), desk::renew(&mut connection, &held, duty.lease)).await?;
        for lease in held {
            match ours.iter().find(|kept| kept.job == lease.job) {
                Some(kept) if !kept.cancel_requested => {}
                // Lost or cancelled; a job that has just ended is no longer in hand.
                _ => hands.iter().for_each(|hands| hands.stop(lease)),
            }
        }
    }
    let rescued = in_time(duty.patience(), desk::rescue(&mut connection, duty.backoff)).await?;
    if rescued > 0 {
        tracing::warn!(jobs = rescued, "took back jobs whose lease had lapsed");
    }
    line.give_back(connection);
    Ok(())
}
