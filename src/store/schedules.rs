//! Schedules: what is enqueued when. Rows are the operator's; a worker publishes its own at start.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// A schedule as the leader and people see it.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub name: String,
    pub kind: String,
    pub cron: String,
    pub time_zone: String,
    pub enabled: bool,
    /// Whether the latest tick of an outage is made up for.
    pub catch_up: bool,
    /// `worker`: as published; `operator`: somebody's own, or changed by somebody.
    pub origin: String,
    pub note: Option<String>,
    pub last_tick: DateTime<Utc>,
    pub problem: Option<String>,
    /// The database's clock, which alone decides what is due.
    pub now: DateTime<Utc>,
}

/// A schedule that a worker brings.
#[derive(Debug, Clone)]
pub struct Published {
    pub name: &'static str,
    pub kind: &'static str,
    pub payload: Value,
    pub cron: &'static str,
    pub enabled: bool,
    pub note: &'static str,
}

/// Adds a worker's schedule, or renews it while nobody has changed it.
pub async fn publish(conn: &mut PgConnection, schedule: &Published) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT gristmill.publish_schedule($1, $2, $3, $4, $5, $6)",
        schedule.name,
        schedule.kind,
        schedule.payload,
        schedule.cron,
        schedule.enabled,
        schedule.note
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Every schedule by its name.
pub async fn all(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Schedule>> {
    sqlx::query_as!(
        Schedule,
        r#"SELECT name, kind, cron, time_zone, enabled, catch_up, origin, note, last_tick, problem,
                  clock_timestamp() AS "now!"
           FROM gristmill.schedules ORDER BY name"#
    )
    .fetch_all(db)
    .await
}

/// Makes this session the leader of the database, unless another one is. The session keeps the
/// lock until it ends, whichever way.
pub async fn lead(conn: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock(hashtextextended('gristmill.leader', 0)) AS "leads!""#)
        .fetch_one(conn)
        .await
}

/// Lets the server end this session when it falls silent for so long: a leader whose machine
/// vanished must not hold the lock until a network timeout.
pub async fn end_when_silent(conn: &mut PgConnection, milliseconds: u64) -> sqlx::Result<()> {
    let patience = milliseconds.to_string();
    sqlx::query_scalar!("SELECT set_config('idle_session_timeout', $1, false)", patience)
        .fetch_one(conn)
        .await?;
    Ok(())
}

/// Enqueues one tick; answers the job and whether it is new, or nothing when the tick is dealt with.
pub async fn tick(
    conn: &mut PgConnection,
    name: &str,
    at: DateTime<Utc>,
) -> sqlx::Result<Option<(Uuid, bool)>> {
    let row =
        sqlx::query!("SELECT job_id, is_new FROM gristmill.tick($1, $2)", name, at).fetch_one(conn).await?;
    Ok(row.job_id.zip(row.is_new))
}

/// Writes what is wrong with a schedule, once.
pub async fn set_problem(conn: &mut PgConnection, name: &str, problem: &str) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE gristmill.schedules SET problem = $2 WHERE name = $1 AND problem IS DISTINCT FROM $2",
        name,
        problem
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Enqueues a schedule's job now; nothing when there is no such schedule.
pub async fn run(db: impl PgExecutor<'_>, name: &str) -> sqlx::Result<Option<(Uuid, bool)>> {
    let row =
        sqlx::query!("SELECT job_id, is_new FROM gristmill.run_schedule($1)", name).fetch_one(db).await?;
    Ok(row.job_id.zip(row.is_new))
}

/// Switches a schedule on or off, as the owner of the database; says whether there is one.
pub async fn enable(db: impl PgExecutor<'_>, name: &str, enabled: bool) -> sqlx::Result<bool> {
    let done = sqlx::query!("UPDATE gristmill.schedules SET enabled = $2 WHERE name = $1", name, enabled)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}
