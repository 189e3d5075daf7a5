//! Attempts at claimed jobs: each runs in its own task, and its verdict becomes the row's next state.
//!
//! A panic, a timeout or a lost lease ends the attempt, not the worker. On `Fatal`, or after
//! the last attempt, the reason is written on the subject in the transaction that buries the job.

use crate::context::Context;
use crate::job::{JobError, Turn, Why};
use crate::queue::desk::{Claimed, Outcome};
use crate::queue::{Fence, Lease};
use crate::runtime::hands::{Hands, Held};
use crate::runtime::registry::Registry;
use futures::FutureExt;
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// So long after its time limit a job that still has not ended is left to others.
const OVERTIME: Duration = Duration::from_mins(1);
/// So often an end is tried whose subject cannot be told; then the job ends without.
const TRIES_TO_TELL: i32 = 3;

/// What every attempt needs; shared by all.
pub struct Bench {
    pub ctx: Arc<Context>,
    pub registry: Registry,
    pub hands: Arc<Hands>,
    pub ends: mpsc::UnboundedSender<(Lease, Outcome)>,
}

/// How an attempt ended, seen from outside the job.
enum End {
    Completed,
    Acknowledge(Outcome),
    /// The subject ends with this reason and the job is done.
    Conclude(Why),
    Bury(Why),
    Park(String),
    /// Somebody asked for its end.
    CallOff,
    /// Nothing may be written; the row is somebody else's.
    Lost,
}

/// Works on jobs that were claimed together, until the attempt at each is over. Each has a task
/// of its own: none waits for another.
pub async fn work_off(bench: Arc<Bench>, batch: Vec<Held>) {
    let attempts = TaskTracker::new();
    for held in batch {
        attempts.spawn(attempt(bench.clone(), held));
    }
    attempts.close();
    attempts.wait().await;
}

async fn attempt(bench: Arc<Bench>, held: Held) {
    let Held { job, stop } = held;
    let span = tracing::info_span!("job", kind = %job.kind, id = %job.lease.job, attempt = job.attempt);
    let attempted = async {
        // A panic ends the attempt. What it left half done is the job's own, and is dropped here.
        let end = AssertUnwindSafe(work(&bench, &job, stop)).catch_unwind().await;
        let end = end.unwrap_or_else(|panic| again(&job, "panic", words(panic.as_ref())));
        // The subject is told there, which is the job's own code too.
        if let Err(panic) = AssertUnwindSafe(settle(&bench, &job, end)).catch_unwind().await {
            let reason = format!("panic while it was given up: {}", words(panic.as_ref()));
            bench.ends.send((job.lease, Outcome::Retry { reason })).ok();
        }
    };
    attempted.instrument(span).await;
}

/// What a panic had to say.
fn words(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

async fn work(bench: &Bench, job: &Claimed, stop: CancellationToken) -> End {
    if bench.hands.closing.is_cancelled() {
        return End::Acknowledge(Outcome::HandedBack {
            reason: "INTERRUPTED: the worker stopped before it began".into(),
        });
    }
    let Some(kind) = bench.registry.get(&job.kind) else {
        return End::Bury(why("unknown_kind", &format!("no worker knows the kind {}", job.kind)));
    };
    if job.cancel_requested || stop.is_cancelled() {
        return End::CallOff;
    }
    if job.attempt > job.max_attempts {
        // It used its attempts and its last worker died: claimed once more to be buried.
        let reason = job.reason.as_deref().unwrap_or("worker_crash: its workers died");
        return End::Bury(why("worker_crash", reason));
    }
    let turn = Turn { lease: job.lease, attempt: job.attempt, stop: stop.clone() };
    let run = (kind.run)(bench.ctx.clone(), turn, &job.payload);
    let began = Instant::now();
    bench.hands.ends_by(job.lease, began + kind.timeout + OVERTIME);
    let verdict = tokio::select! {
        // A job that has ended has ended, whatever it was told meanwhile.
        biased;
        verdict = tokio::time::timeout(kind.timeout, run) => verdict,
        () = stop.cancelled() => {
            return if bench.hands.closing.is_cancelled() {
                End::Acknowledge(Outcome::HandedBack { reason: "INTERRUPTED: the worker stopped".into() })
            } else {
                // Lost or cancelled: with a lost lease nothing will be written.
                End::CallOff
            };
        }
    };
    match verdict {
        Ok(Ok(done)) => {
            tracing::info!(ms = began.elapsed().as_millis() as u64, "done");
            if done.acknowledge { End::Acknowledge(Outcome::Done) } else { End::Completed }
        }
        Ok(Err(error)) => judge(job, error),
        Err(_) => again(job, "timeout", &format!("no end after {:?}", kind.timeout)),
    }
}

/// The verdict of each failure: the one place where "is it tried again?" is answered.
fn judge(job: &Claimed, error: JobError) -> End {
    match error {
        JobError::Refused { code, reason } => End::Conclude(why(code, &format!("{reason:#}"))),
        JobError::Fatal { code, reason } => End::Bury(why(code, &format!("{reason:#}"))),
        JobError::Transient(reason) => again(job, "gave_up", &format!("{reason:#}")),
        JobError::Wait { delay, reason } => {
            // A wait is never so short that it becomes a loop.
            End::Acknowledge(Outcome::Wait { delay: delay.max(Duration::from_millis(100)), reason })
        }
        JobError::Park { why: word, reason } => End::Park(why("", &format!("{word}: {reason}")).reason),
        JobError::Lost => End::Lost,
    }
}

fn again(job: &Claimed, code: &str, reason: &str) -> End {
    if job.attempt >= job.max_attempts {
        End::Bury(why(code, &format!("{reason} (attempt {} of {})", job.attempt, job.max_attempts)))
    } else {
        End::Acknowledge(Outcome::Retry { reason: format!("{code}: {reason}") })
    }
}

fn why(code: &str, reason: &str) -> Why {
    // Postgres holds no NUL, and a reason is read by a person.
    let reason: String = reason.chars().filter(|c| *c != '\0').take(2000).collect();
    Why { code: code.to_owned(), reason }
}

async fn settle(bench: &Bench, job: &Claimed, end: End) {
    match end {
        End::Completed => bench.hands.release([job.lease]),
        End::Lost => {
            tracing::warn!("the lease was lost; nothing was written");
            bench.hands.release([job.lease]);
        }
        End::Acknowledge(outcome) => {
            match &outcome {
                Outcome::Retry { reason } => tracing::warn!(reason, "failed; will be tried again"),
                Outcome::Wait { delay, reason } => tracing::info!(?delay, reason, "waits"),
                Outcome::HandedBack { reason } => tracing::info!(reason, "handed back"),
                Outcome::Done => {}
            }
            // The receiver lives until every sender is gone.
            bench.ends.send((job.lease, outcome)).ok();
        }
        End::Park(reason) => {
            tracing::info!(reason, "parked");
            match park(bench, job.lease, &reason).await {
                Ok(()) | Err(Fence::Lost) => bench.hands.release([job.lease]),
                Err(Fence::Database(_)) => {
                    // Not written: it asks again.
                    bench.ends.send((job.lease, Outcome::HandedBack { reason })).ok();
                }
            }
        }
        End::Conclude(why) => {
            tracing::info!(code = why.code, reason = why.reason, "refused");
            let written = give_up(bench, job, &why, Last::Done).await;
            settle_given_up(bench, job, &why, written);
        }
        End::Bury(why) => {
            tracing::error!(
                code = why.code,
                reason = why.reason,
                "dead: the reason stands on its row and its subject"
            );
            let written = give_up(bench, job, &why, Last::Dead).await;
            settle_given_up(bench, job, &why, written);
        }
        End::CallOff => {
            let why = why("cancelled", "cancelled on request");
            let written = give_up(bench, job, &why, Last::Cancelled).await;
            settle_given_up(bench, job, &why, written);
        }
    }
}

fn settle_given_up(bench: &Bench, job: &Claimed, why: &Why, written: Result<(), Fence>) {
    match written {
        Ok(()) => bench.hands.release([job.lease]),
        Err(Fence::Lost) => {
            tracing::warn!("the lease was lost; nothing was written");
            bench.hands.release([job.lease]);
        }
        Err(Fence::Database(error)) => {
            // Not written: as if the attempt had failed, so that the end is tried again.
            let reason = format!("{}: {} (could not be written: {error})", why.code, why.reason);
            bench.ends.send((job.lease, Outcome::Retry { reason })).ok();
        }
    }
}

async fn park(bench: &Bench, lease: Lease, reason: &str) -> Result<(), Fence> {
    let mut tx = crate::store::begin(&bench.ctx.db).await?;
    lease.park(&mut tx, reason).await?;
    tx.commit().await?;
    Ok(())
}

/// The state a job that gave up ends in.
#[derive(Debug, Clone, Copy)]
enum Last {
    Done,
    Dead,
    Cancelled,
}

/// Tells the subject why and ends the job, in one transaction.
async fn give_up(bench: &Bench, job: &Claimed, why: &Why, last: Last) -> Result<(), Fence> {
    let mut tx = crate::store::begin(&bench.ctx.db).await?;
    job.lease.enter(&mut tx).await?;
    if job.attempt > job.max_attempts + TRIES_TO_TELL {
        tracing::error!("its subject could not be told; the reason stands on the job alone");
    } else if let Some(kind) = bench.registry.get(&job.kind) {
        (kind.gave_up)(&mut tx, &job.payload, why).await?;
    }
    let reason = format!("{}: {}", why.code, why.reason);
    match last {
        Last::Done => job.lease.complete(&mut tx).await?,
        Last::Dead => job.lease.bury(&mut tx, &reason).await?,
        Last::Cancelled => job.lease.call_off(&mut tx, &reason).await?,
    }
    tx.commit().await?;
    if let Last::Cancelled = last {
        tracing::info!("cancelled on request");
    }
    Ok(())
}
