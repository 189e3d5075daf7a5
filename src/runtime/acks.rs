//! Writes the ends of jobs that did not end inside their own transaction: batched, fenced,
//! and tried until the database answers.
//!
//! Accepted race: a process that dies with ends unwritten leaves them to the lease, and the
//! job runs again; its effects are fenced or idempotent. The same holds for an end that the
//! database refuses.

use crate::queue::Lease;
use crate::queue::desk::{self, Backoff, Outcome};
use crate::runtime::hands::Hands;
use crate::store::line::{Line, in_time};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Larger ones keep the claims waiting for places: measured, 300 drain a backlog faster than 1,000.
const LARGEST_BATCH: usize = 300;
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(300);
/// As much of a reason as a person reads.
const LONGEST_REASON: usize = 2000;
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 366);

/// The writer of one lane's ends.
pub struct Acks {
    pub line: Line,
    pub patience: Duration,
    pub backoff: Backoff,
    pub hands: Arc<Hands>,
    /// Whether some row of the last batch was held by somebody's open transaction: the quick way
    /// would run into it again.
    pub held_up: bool,
}

impl Acks {
    /// Runs until every sender is gone, or until `last_call` when no end is left to write.
    pub async fn write_ends(
        mut self,
        mut ends: mpsc::UnboundedReceiver<(Lease, Outcome)>,
        last_call: CancellationToken,
    ) {
        // What is left in it from the last round waits for somebody's open transaction.
        let mut batch = Vec::new();
        loop {
            let more = tokio::select! {
                biased;
                taken = ends.recv_many(&mut batch, LARGEST_BATCH) => taken > 0,
                () = last_call.cancelled() => false,
                () = tokio::time::sleep(PAUSE_AFTER_FAULT), if !batch.is_empty() => true,
            };
            if !more {
                return;
            }
            for (_, outcome) in &mut batch {
                make_storable(outcome);
            }
            let busy = self.write_each(&batch).await;
            let written = batch.extract_if(.., |(lease, _)| !busy.contains(&lease.job.0));
            self.hands.release(written.map(|(lease, _)| lease));
        }
    }

    /// Writes a batch; answers with the jobs whose rows are held by somebody.
    async fn write_each(&mut self, batch: &[(Lease, Outcome)]) -> Vec<Uuid> {
        match self.write(batch).await {
            Ok(busy) => busy,
            Err(error) => {
                // One end that cannot be stored must not keep the others from it.
                tracing::warn!(%error, jobs = batch.len(), "the database refused a batch of ends");
                let mut busy = Vec::new();
                for end in batch {
                    match self.write(std::slice::from_ref(end)).await {
                        Ok(held) => busy.extend(held),
                        Err(error) => {
                            tracing::error!(%error, job = %end.0.job, "its end was refused; its lease will lapse");
                        }
                    }
                }
                busy
            }
        }
    }

    /// Tries until the database answers; its error when the data is what it refuses.
    async fn write(&mut self, batch: &[(Lease, Outcome)]) -> sqlx::Result<Vec<Uuid>> {
        loop {
            match self.attempt(batch).await {
                Ok(busy) => return Ok(busy),
                Err(error) if is_refused(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, jobs = batch.len(), "acknowledging failed; trying again");
                    tokio::time::sleep(PAUSE_AFTER_FAULT).await;
                }
            }
        }
    }

    async fn attempt(&mut self, batch: &[(Lease, Outcome)]) -> sqlx::Result<Vec<Uuid>> {
        let mut connection = self.line.take().await?;
        let all_done = batch.iter().all(|(_, outcome)| matches!(outcome, Outcome::Done));
        let quick = all_done
            && !self.held_up
            && in_time(self.patience, desk::finish(&mut connection, batch.iter().map(|(lease, _)| *lease)))
                .await?;
        let busy = if quick {
            Vec::new()
        } else {
            in_time(self.patience, desk::acknowledge(&mut connection, batch, self.backoff)).await?.busy
        };
        self.line.give_back(connection);
        self.held_up = !busy.is_empty();
        Ok(busy)
    }
}

/// Values that no retry makes acceptable: data exceptions and broken constraints.
fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// Postgres holds no NUL and no interval without end; both come from outside, in the words and
/// the headers of other services.
fn make_storable(outcome: &mut Outcome) {
    let reason = match outcome {
        Outcome::Done => return,
        Outcome::Wait { delay, reason } => {
            *delay = (*delay).min(LONGEST_WAIT);
            reason
        }
        Outcome::Retry { reason } | Outcome::HandedBack { reason } => reason,
    };
    if reason.contains('\0') || reason.len() > LONGEST_REASON {
        *reason = reason.chars().filter(|c| *c != '\0').take(LONGEST_REASON).collect();
    }
}
