//! Shared limits: requests and tokens a minute of one provider key and model, over all workers.
//!
//! The arithmetic is in the database (`migrations/0014_limits.sql`). Jobs take turns through
//! `Turn::take` before they call a provider. A turn is taken in a transaction of its own, which
//! ends before the call begins.
//!
//! Accepted race: a worker that dies between its turn and its call has used the turn.

use crate::domain::JobId;
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::postgres::types::PgInterval;
use std::time::Duration;

/// A limit by its name: whose key (never the key itself), and which model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limit {
    /// `platform:openai`, `user_key:<id>`.
    pub key_ref: String,
    pub model: String,
}

/// Not now: when to come back, and why.
#[derive(Debug, Clone)]
pub struct Turned {
    pub wait: Duration,
    pub reason: String,
}

/// How long to stay away, to the next millisecond: a wait cut short would be asked twice.
fn milliseconds(interval: &PgInterval) -> Duration {
    Duration::from_millis((interval.microseconds.max(0) as u64).div_ceil(1000))
}

/// Asks for a job's turn; `Ok(None)` means the call may start now.
pub async fn take_turn(db: &PgPool, job: JobId, limit: &Limit, tokens: u64) -> sqlx::Result<Option<Turned>> {
    // The limit's row is locked until the commit, which therefore does not wait for the disk: a
    // crash of the server may forget the last turns, and no more.
    let row = sqlx::query!(
        r#"SELECT t.wait AS "wait!", t.reason FROM set_config('synchronous_commit', 'off', true),
                  LATERAL gristmill.take_turn($1, $2, $3, $4) t"#,
        job.0,
        limit.key_ref,
        limit.model,
        tokens.min(i64::MAX as u64) as i64,
    )
    .fetch_one(db)
    .await?;
    Ok(row.reason.map(|reason| Turned { wait: milliseconds(&row.wait), reason }))
}

/// Corrects the estimate of a turn with what the provider counted.
pub async fn settle_turn(db: &PgPool, job: JobId, limit: &Limit, tokens: u64) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT s.there AS "there!" FROM set_config('synchronous_commit', 'off', true),
                  LATERAL gristmill.settle_turn($1, $2, $3, $4) AS s (there)"#,
        job.0,
        limit.key_ref,
        limit.model,
        tokens.min(i64::MAX as u64) as i64,
    )
    .fetch_one(db)
    .await
}

/// Nobody starts before `wait` is over, in any worker. Answers when that is.
pub async fn pause(db: &PgPool, limit: &Limit, wait: Duration, why: &str) -> sqlx::Result<DateTime<Utc>> {
    let wait = PgInterval { months: 0, days: 0, microseconds: wait.as_micros().min(i64::MAX as u128) as i64 };
    sqlx::query_scalar!(
        r#"SELECT gristmill.pause_limit($1, $2, $3, $4) AS "until!""#,
        limit.key_ref,
        limit.model,
        wait,
        why
    )
    .fetch_one(db)
    .await
}

/// Makes or changes a limit; `None` lifts that side of it.
pub async fn set(db: &PgPool, limit: &Limit, requests: Option<i32>, tokens: Option<i64>) -> sqlx::Result<()> {
    sqlx::query!("SELECT gristmill.set_limit($1, $2, $3, $4)", limit.key_ref, limit.model, requests, tokens)
        .execute(db)
        .await?;
    Ok(())
}

/// Forgets a limit and its pause; answers whether there was one.
pub async fn clear(db: &PgPool, limit: &Limit) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT gristmill.clear_limit($1, $2) AS "there!""#, limit.key_ref, limit.model)
        .fetch_one(db)
        .await
}

/// Removes the reservations of jobs that are over; answers how many.
pub async fn sweep(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_turns() AS "swept!""#).fetch_one(db).await
}

/// A limit as a person sees it.
#[derive(Debug, Clone)]
pub struct Row {
    pub key_ref: String,
    pub model: String,
    pub requests_per_minute: Option<i32>,
    pub tokens_per_minute: Option<i64>,
    /// Jobs with a place in the line, and before it.
    pub waiting: i64,
    pub paused_until: Option<DateTime<Utc>>,
    pub paused_why: Option<String>,
}

/// Every limit there is.
pub async fn all(db: &PgPool) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT l.key_ref, l.model, l.requests_per_minute, l.tokens_per_minute,
                  (SELECT count(*) FROM gristmill.limit_turns t
                   WHERE t.key_ref = l.key_ref AND t.model = l.model AND t.taken_at IS NULL) AS "waiting!",
                  CASE WHEN l.paused_until > now() THEN l.paused_until END AS paused_until,
                  CASE WHEN l.paused_until > now() THEN l.paused_why END AS paused_why
           FROM gristmill.limits l ORDER BY l.key_ref, l.model"#
    )
    .fetch_all(db)
    .await
}

/// Wakes a parked job; answers whether there was something to wake.
pub async fn unpark(db: &PgPool, job: JobId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT gristmill.unpark($1) AS "woken!""#, job.0).fetch_one(db).await
}
