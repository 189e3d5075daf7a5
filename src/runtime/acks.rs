//! Writes the ends of jobs that did not end inside their own transaction: batched, fenced,
//! and tried until the database answers.
//!
//! Accepted race: a process that dies with ends unwritten leaves them to the lease, and the
//! job runs again; its effects are fenced or idempotent.

use crate::queue::Lease;
use crate::queue::desk::{self, Backoff, Outcome};
use crate::runtime::hands::Hands;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const LARGEST_BATCH: usize = 500;
const GATHERING: Duration = Duration::from_millis(1);
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(300);

/// Runs until every sender is gone and the last end is written.
pub async fn write_ends(
    db: PgPool,
    backoff: Backoff,
    hands: Arc<Hands>,
    mut ends: mpsc::UnboundedReceiver<(Lease, Outcome)>,
) {
    let mut batch = Vec::new();
    while ends.recv_many(&mut batch, LARGEST_BATCH).await > 0 {
        gather(&hands, &mut ends, &mut batch).await;
        while let Err(error) = desk::acknowledge(&db, &batch, backoff).await {
            tracing::warn!(%error, jobs = batch.len(), "acknowledging failed; trying again");
            tokio::time::sleep(PAUSE_AFTER_FAULT).await;
        }
        for (lease, _) in batch.drain(..) {
            hands.release(lease);
        }
    }
}

/// While many more jobs are in hand than have ended, waits a moment for those that end together
/// with these: a batch costs the database little more than one.
async fn gather(
    hands: &Hands,
    ends: &mut mpsc::UnboundedReceiver<(Lease, Outcome)>,
    batch: &mut Vec<(Lease, Outcome)>,
) {
    if hands.count() > 4 * batch.len() {
        tokio::time::sleep(GATHERING).await;
        while batch.len() < LARGEST_BATCH
            && let Ok(end) = ends.try_recv()
        {
            batch.push(end);
        }
    }
}
