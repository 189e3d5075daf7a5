//! Starts of tool calls: each written and committed before anything is sent.

use crate::domain::{Effect, ToolCallId, ToolCallState, WorkspaceId};
use crate::store::{decoded, exactly_one};
use sqlx::PgConnection;
use std::time::Duration;
use uuid::Uuid;

/// A start whose outcome nobody wrote: its worker died, or lost its lease.
#[derive(Debug, Clone)]
pub struct Open {
    pub id: Uuid,
    pub effect: Effect,
    /// Work that goes on at the other side, by its name there.
    pub task: Option<String>,
    pub age: Duration,
}

/// A start to be written.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    pub call: ToolCallId,
    pub effect: Effect,
    /// By a person's order, where the call may have been done already.
    pub ordered: bool,
    pub ordered_by: Option<Uuid>,
}

/// Writes a start; its id is the call id that the other side sees. The same call has the same
/// idempotency key at every start.
pub async fn insert(conn: &mut PgConnection, workspace: WorkspaceId, start: Start) -> sqlx::Result<Uuid> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.tool_attempts (workspace_id, call_id, effect, idempotency_key, ordered, ordered_by)
         VALUES ($1, $2, $3::text::gristmill.tool_effect, $2::uuid::text, $4, $5) RETURNING id",
        workspace.0,
        start.call.0,
        start.effect.as_str(),
        start.ordered,
        start.ordered_by.filter(|_| start.ordered)
    )
    .fetch_one(conn)
    .await
}

/// The start of a call that has no outcome.
pub async fn open(conn: &mut PgConnection, call: ToolCallId) -> sqlx::Result<Option<Open>> {
    let row = sqlx::query!(
        r#"SELECT id, effect::text AS "effect!", task,
                  extract(epoch FROM clock_timestamp() - started_at)::float8 AS "age!" FROM gristmill.tool_attempts
           WHERE call_id = $1 AND outcome IS NULL ORDER BY started_at DESC LIMIT 1"#,
        call.0
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        let age = Duration::from_secs_f64(row.age.max(0.0));
        Ok(Open { id: row.id, effect: decoded(row.effect.parse())?, task: row.task, age })
    })
    .transpose()
}

/// How a start ended.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// OK, ERROR, UNKNOWN or CANCELLED.
    pub state: ToolCallState,
    pub failure: Option<&'a str>,
    /// The other side surely never saw it.
    pub unsent: bool,
}

/// Writes the outcome of a start, once. A person's order that was not carried out is given back.
pub async fn finish(conn: &mut PgConnection, id: Uuid, outcome: Outcome<'_>) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.tool_attempts SET outcome = $2::text::gristmill.tool_call_state, failure = $3, unsent = $4,
                finished_at = clock_timestamp()
         WHERE id = $1 AND outcome IS NULL",
        id,
        outcome.state.as_str(),
        outcome.failure,
        outcome.unsent
    )
    .execute(&mut *conn)
    .await?;
    exactly_one(&done)?;
    if outcome.unsent {
        sqlx::query!(
            "UPDATE gristmill.tool_calls c SET ordered = true, ordered_by = a.ordered_by
             FROM gristmill.tool_attempts a WHERE a.id = $1 AND a.ordered AND c.id = a.call_id",
            id
        )
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Whether a start of the call, other than `besides`, may have had an effect that nobody knows of.
pub async fn may_be_done(
    conn: &mut PgConnection,
    call: ToolCallId,
    besides: Option<Uuid>,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT gristmill.may_be_done($1, $2) AS "may!""#, call.0, besides)
        .fetch_one(conn)
        .await
}

/// Whether an earlier start of the call may have reached the other side and has no known outcome,
/// whatever the call was taken for then.
pub async fn was_left_open(conn: &mut PgConnection, call: ToolCallId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM gristmill.tool_attempts
                          WHERE call_id = $1 AND NOT unsent AND (outcome IS NULL OR outcome = 'UNKNOWN')) AS "open!""#,
        call.0
    )
    .fetch_one(conn)
    .await
}

/// Writes that the other side made a task of it.
pub async fn set_task(conn: &mut PgConnection, id: Uuid, task: &str) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.tool_attempts SET task = $2 WHERE id = $1 AND outcome IS NULL",
        id,
        task
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// How often a call was started.
pub async fn count(conn: &mut PgConnection, call: ToolCallId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "n!" FROM gristmill.tool_attempts WHERE call_id = $1"#, call.0)
        .fetch_one(conn)
        .await
}
