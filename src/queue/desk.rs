//! The counter where workers take jobs and hand them back: claim, acknowledge, renew, rescue.
//!
//! Only `runtime` calls this. Each call is one statement, so nothing here needs a transaction.

use crate::domain::{JobId, WorkspaceId};
use crate::queue::{Lane, Lease, interval};
use sqlx::{PgConnection, PgExecutor};
use std::time::Duration;
use uuid::Uuid;

/// A job in a worker's hands.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub lease: Lease,
    pub kind: String,
    pub payload: serde_json::Value,
    /// Counted when it was claimed: 1 is the first.
    pub attempt: i32,
    pub max_attempts: i32,
    /// What the last attempt, or its rescue, left to say.
    pub reason: Option<String>,
    /// Somebody asked for its end: it is only to be told so.
    pub cancel_requested: bool,
}

/// Where a lane's round over the workspaces stands: whose turn it is and how many are left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    pub workspace: Uuid,
    pub turns_left: i32,
}

/// Which jobs a worker asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Unique to this start of this process.
    pub worker: String,
    pub lane: Lane,
    pub kinds: Vec<String>,
    pub lease: Duration,
    pub workspace_cap: i32,
}

/// How a job left a worker's hands, when not inside its own transaction.
#[derive(Debug, Clone)]
pub enum Outcome {
    Done,
    /// To be tried again after the stored back-off.
    Retry {
        reason: String,
    },
    /// To be tried again after `delay`; costs no attempt.
    Wait {
        delay: Duration,
        reason: String,
    },
    /// Never begun, or stopped by us: back at once, costs no attempt.
    HandedBack {
        reason: String,
    },
}

/// The back-off written with a retry.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub base: Duration,
    pub ceiling: Duration,
}

/// Takes up to `want` jobs, going on with the round over the workspaces at `place`.
pub async fn claim(
    db: impl PgExecutor<'_>,
    ask: &Ask,
    want: i32,
    place: &mut Place,
) -> sqlx::Result<Vec<Claimed>> {
    let rows = sqlx::query!(
        r#"SELECT id, workspace_id, kind, payload, attempts, max_attempts, epoch, reason, cancel,
                  place AS "place!", turns_left AS "turns_left!"
           FROM gristmill.claim($1, $2, $3, $4, $5, $6, $7, $8)"#,
        ask.worker,
        ask.lane as i32,
        &ask.kinds,
        want,
        interval(ask.lease),
        ask.workspace_cap,
        place.workspace,
        place.turns_left,
    )
    .fetch_all(db)
    .await?;
    if let Some(row) = rows.first() {
        *place = Place { workspace: row.place, turns_left: row.turns_left };
    }
    // The row without an id only says where the round stands.
    let claimed = rows.into_iter().filter_map(|row| {
        Some(Claimed {
            lease: Lease {
                job: JobId(row.id?),
                epoch: row.epoch?,
                workspace: WorkspaceId(row.workspace_id?),
            },
            kind: row.kind?,
            payload: row.payload?,
            attempt: row.attempts?,
            max_attempts: row.max_attempts?,
            reason: row.reason,
            cancel_requested: row.cancel?,
        })
    });
    Ok(claimed.collect())
}

/// What this worker claimed without hearing of it: the reply to a claim was lost. Only the
/// claim loop may ask, between two claims, with all it has in hand.
pub async fn unheard(
    db: impl PgExecutor<'_>,
    ask: &Ask,
    want: i32,
    in_hand: &[Lease],
) -> sqlx::Result<Vec<Claimed>> {
    let held: Vec<Uuid> = in_hand.iter().map(|lease| lease.job.0).collect();
    let rows = sqlx::query!(
        "SELECT id, workspace_id, kind, payload, attempts, max_attempts, epoch, reason, cancel_requested
         FROM gristmill.jobs
         WHERE state = 'RUNNING' AND worker = $1 AND lane = $2::int AND lease_until > clock_timestamp()
           AND NOT id = ANY($3) LIMIT $4",
        ask.worker,
        ask.lane as i32,
        &held,
        i64::from(want),
    )
    .fetch_all(db)
    .await?;
    let claimed = rows.into_iter().map(|row| Claimed {
        lease: Lease { job: JobId(row.id), epoch: row.epoch, workspace: WorkspaceId(row.workspace_id) },
        kind: row.kind,
        payload: row.payload,
        attempt: row.attempts.into(),
        max_attempts: row.max_attempts.into(),
        reason: row.reason,
        cancel_requested: row.cancel_requested,
    });
    Ok(claimed.collect())
}

/// What became of a batch of ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// How many were still ours.
    pub held: i64,
    /// Those of ours that an open transaction holds right now: to be written again.
    pub busy: Vec<Uuid>,
}

/// The SQLSTATE of a row that somebody's open transaction holds.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Ends jobs that left nothing to write, those whose lease is still ours: the quick way. False
/// where some row is held by somebody's open transaction; then nothing was written.
pub async fn finish(db: impl PgExecutor<'_>, leases: impl Iterator<Item = Lease>) -> sqlx::Result<bool> {
    let (ids, epochs): (Vec<Uuid>, Vec<i32>) = leases.map(|lease| (lease.job.0, lease.epoch)).unzip();
    let finished = sqlx::query_scalar!("SELECT gristmill.finish($1, $2)", &ids, &epochs).fetch_one(db).await;
    match finished {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a batch of outcomes; those whose lease moved on change nothing.
pub async fn acknowledge(
    db: impl PgExecutor<'_>,
    batch: &[(Lease, Outcome)],
    backoff: Backoff,
) -> sqlx::Result<Written> {
    let mut columns = Columns::default();
    for (lease, outcome) in batch {
        columns.push(*lease, outcome);
    }
    sqlx::query_as!(
        Written,
        r#"SELECT held AS "held!", busy AS "busy!" FROM gristmill.acknowledge($1, $2, $3, $4, $5, $6, $7, $8)"#,
        &columns.ids,
        &columns.epochs,
        &columns.states as &[&str],
        &columns.delays as &[Option<i64>],
        &columns.refunds,
        &columns.reasons as &[Option<&str>],
        interval(backoff.base),
        interval(backoff.ceiling),
    )
    .fetch_one(db)
    .await
}

#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    epochs: Vec<i32>,
    states: Vec<&'static str>,
    delays: Vec<Option<i64>>,
    refunds: Vec<bool>,
    reasons: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, lease: Lease, outcome: &'a Outcome) {
        let (state, delay, refund, reason) = match outcome {
            Outcome::Done => ("DONE", None, false, None),
            Outcome::Retry { reason } => ("SCHEDULED", None, false, Some(reason.as_str())),
            Outcome::Wait { delay, reason } => {
                ("SCHEDULED", Some(delay.as_millis() as i64), true, Some(reason.as_str()))
            }
            Outcome::HandedBack { reason } => ("SCHEDULED", Some(0), true, Some(reason.as_str())),
        };
        self.ids.push(lease.job.0);
        self.epochs.push(lease.epoch);
        self.states.push(state);
        self.delays.push(delay);
        self.refunds.push(refund);
        self.reasons.push(reason);
    }
}

/// A lease that is still ours after a renewal.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    pub job: JobId,
    pub cancel_requested: bool,
}

/// Lengthens these leases and names the ones that are still ours; the others are lost.
pub async fn renew(conn: &mut PgConnection, held: &[Lease], lease: Duration) -> sqlx::Result<Vec<Kept>> {
    let (ids, epochs): (Vec<Uuid>, Vec<i32>) = held.iter().map(|l| (l.job.0, l.epoch)).unzip();
    let rows = sqlx::query!(
        r#"SELECT job_id AS "job_id!", cancel AS "cancel!" FROM gristmill.renew($1, $2, $3)"#,
        &ids,
        &epochs,
        interval(lease),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| Kept { job: JobId(row.job_id), cancel_requested: row.cancel }).collect())
}

/// Takes back jobs whose lease ran out, whoever held it.
pub async fn rescue(conn: &mut PgConnection, backoff: Backoff) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT gristmill.rescue($1, $2) AS "rescued!""#,
        interval(backoff.base),
        interval(backoff.ceiling)
    )
    .fetch_one(conn)
    .await
}

/// What a worker shows of itself.
#[derive(Debug, Clone)]
pub struct Card {
    pub name: String,
    pub host: String,
    pub kinds: Vec<String>,
    pub places: i32,
}

/// Shows that a worker is there.
pub async fn report(conn: &mut PgConnection, card: &Card) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT gristmill.report_worker($1, $2, $3, $4, $5, $6)",
        card.name,
        card.host,
        std::process::id() as i32,
        env!("CARGO_PKG_VERSION"),
        &card.kinds,
        card.places,
    )
    .execute(conn)
    .await?;
    Ok(())
}
