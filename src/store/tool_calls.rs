//! Tool calls: the ledger of what models asked for, from request to outcome.
//!
//! What any language may ask for (calls, approvals, ends) are SQL functions of
//! `migrations/0021_tool_calls.sql`; here is what the worker does with a call. Every change of a
//! state is told by a trigger. Who writes a call holds its job first, then the call, then the
//! conversation.

use crate::domain::{ConversationId, MessageId, ToolCallId, ToolCallState, ToolId, UserId};
use crate::store::{decoded, exactly_one};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use std::time::Duration;
use uuid::Uuid;

/// A call as its rows have it.
#[derive(Debug, Clone)]
pub struct Call {
    pub id: ToolCallId,
    pub conversation: ConversationId,
    pub message: MessageId,
    /// The model's own id of it.
    pub tool_call_id: String,
    pub ord: i32,
    pub tool: Option<ToolId>,
    /// As the model named it.
    pub tool_name: String,
    pub user: Option<UserId>,
    pub agent: Option<Uuid>,
    pub arguments: Value,
    pub state: ToolCallState,
    /// A person ordered one more start of it.
    pub ordered: bool,
    pub ordered_by: Option<Uuid>,
    /// Why it was called off while its server works on it.
    pub called_off: Option<String>,
    /// Whether its end was written, so that nobody can say anything about it any more.
    pub has_result: bool,
}

/// A call of the tenant, held until the transaction ends.
pub async fn hold(conn: &mut PgConnection, id: ToolCallId) -> sqlx::Result<Option<Call>> {
    let row = sqlx::query!(
        r#"SELECT c.conversation_id, c.message_id, c.tool_call_id, c.ord, c.tool_id, c.tool_name, c.user_id, c.agent_id,
                  c.arguments, c.state::text AS "state!", c.ordered, c.ordered_by, c.called_off,
                  EXISTS (SELECT FROM gristmill.tool_results r WHERE r.call_id = c.id) AS "has_result!"
           FROM gristmill.tool_calls c WHERE c.id = $1 FOR NO KEY UPDATE"#,
        id.0
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Call {
        id,
        conversation: ConversationId(row.conversation_id),
        message: MessageId(row.message_id),
        tool_call_id: row.tool_call_id,
        ord: row.ord,
        tool: row.tool_id.map(ToolId),
        tool_name: row.tool_name,
        user: row.user_id.map(UserId),
        agent: row.agent_id,
        arguments: row.arguments,
        state: decoded(row.state.parse())?,
        ordered: row.ordered,
        ordered_by: row.ordered_by,
        called_off: row.called_off,
        has_result: row.has_result,
    }))
}

/// Moves a call that goes on: back to REQUESTED, which has neither reason nor deadline.
pub async fn request_again(conn: &mut PgConnection, id: ToolCallId) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.tool_calls SET state = 'REQUESTED', reason = NULL, expires_at = NULL WHERE id = $1",
        id.0
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Writes that a call waits for somebody, and until when: one that waits already waits no longer for
/// having looked again. UNKNOWN is an end that waits too.
pub async fn park(
    conn: &mut PgConnection,
    id: ToolCallId,
    state: ToolCallState,
    (reason, patience): (&str, Duration),
) -> sqlx::Result<()> {
    let patience = PgInterval { months: 0, days: 0, microseconds: patience.as_micros() as i64 };
    let done = sqlx::query!(
        "UPDATE gristmill.tool_calls SET state = $2::text::gristmill.tool_call_state, reason = $3,
                expires_at = CASE WHEN state::text = $2 THEN coalesce(expires_at, now() + $4) ELSE now() + $4 END,
                finished_at = CASE WHEN $2 = 'UNKNOWN' THEN clock_timestamp() END
         WHERE id = $1",
        id.0,
        state.as_str(),
        reason,
        patience
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Writes that a call at work waits for a credential, without which its server does not say how far
/// it is, and until when.
pub async fn wait_at_work(
    conn: &mut PgConnection,
    id: ToolCallId,
    (reason, patience): (&str, Duration),
) -> sqlx::Result<()> {
    let patience = PgInterval { months: 0, days: 0, microseconds: patience.as_micros() as i64 };
    let done = sqlx::query!(
        "UPDATE gristmill.tool_calls SET reason = $2, expires_at = coalesce(expires_at, now() + $3)
         WHERE id = $1 AND state = 'STARTED'",
        id.0,
        reason,
        patience
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// A call at work waits for nobody any more.
pub async fn goes_on(conn: &mut PgConnection, id: ToolCallId) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE gristmill.tool_calls SET reason = NULL, expires_at = NULL
         WHERE id = $1 AND state = 'STARTED' AND expires_at IS NOT NULL",
        id.0
    )
    .execute(conn)
    .await
    .map(drop)
}

/// STARTED: from here on it may have reached the other side. Uses up a person's order.
pub async fn start(conn: &mut PgConnection, id: ToolCallId, definition: Option<Uuid>) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.tool_calls SET state = 'STARTED', definition_id = $2, ordered = false, expires_at = NULL WHERE id = $1",
        id.0,
        definition
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// The tool gave an answer: OK, or ERROR with its reason.
pub async fn finish(conn: &mut PgConnection, id: ToolCallId, error: Option<&str>) -> sqlx::Result<()> {
    let state = if error.is_some() { ToolCallState::Error } else { ToolCallState::Ok };
    let done = sqlx::query!(
        "UPDATE gristmill.tool_calls SET state = $2::text::gristmill.tool_call_state, reason = $3,
                finished_at = clock_timestamp(), expires_at = NULL, ordered = false
         WHERE id = $1",
        id.0,
        state.as_str(),
        error
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Ends a call without its tool's word, with the result and the message that tell the model why.
pub async fn end(
    conn: &mut PgConnection,
    id: ToolCallId,
    state: ToolCallState,
    why: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT gristmill.end_tool_call(gristmill.hold_tool_call($1), $2::text::gristmill.tool_call_state, $3)",
        id.0,
        state.as_str(),
        why
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Appends the messages whose turn it is; answers how many.
pub async fn write_messages(conn: &mut PgConnection, of: MessageId) -> sqlx::Result<i32> {
    sqlx::query_scalar!(r#"SELECT gristmill.write_tool_messages($1) AS "n!""#, of.0).fetch_one(conn).await
}

/// Whether as many calls of the message are at work as may be. Held until the transaction ends,
/// so that two that begin at once do not both find the last place.
pub async fn are_siblings_busy(conn: &mut PgConnection, call: &Call, most: i64) -> sqlx::Result<bool> {
    sqlx::query!("SELECT FROM gristmill.conversations WHERE id = $1 FOR NO KEY UPDATE", call.conversation.0)
        .fetch_optional(&mut *conn)
        .await?;
    let busy = sqlx::query_scalar!(
        r#"SELECT count(*) AS "n!" FROM gristmill.tool_calls WHERE message_id = $1 AND state = 'STARTED' AND id <> $2"#,
        call.message.0,
        call.id.0
    )
    .fetch_one(conn)
    .await?;
    Ok(busy >= most)
}

/// Whether a person approved exactly these arguments, and the approval still holds.
pub async fn is_approved(conn: &mut PgConnection, id: ToolCallId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM gristmill.tool_calls c JOIN gristmill.tool_approvals a ON a.call_id = c.id
               WHERE c.id = $1 AND a.decision = 'APPROVED' AND a.expires_at > now()
                 AND a.arguments_sha256 = gristmill.arguments_digest(c.arguments)) AS "approved!""#,
        id.0
    )
    .fetch_one(conn)
    .await
}
