//! Complete results of tool calls: in their row or in the bucket, and the view a model reads.

use crate::domain::{ConversationId, ToolCallId, WorkspaceId};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// Where the complete result lies.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    Row(Value),
    Object { bucket: String, key: String },
}

/// A result to be stored.
#[derive(Debug, Clone)]
pub struct Result {
    /// The handle, which the view names.
    pub id: Uuid,
    pub place: Place,
    pub sha256: [u8; 32],
    pub size: usize,
    /// What the model reads.
    pub view: String,
    /// The `tool` message's content.
    pub blocks: Value,
    pub truncated: bool,
    /// The first words of a failure.
    pub error: Option<String>,
}

/// Stores the result of a call. One that lies in the bucket becomes a resource of the conversation.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    of: ToolCallId,
    result: &Result,
) -> sqlx::Result<()> {
    let (inline, object) = match &result.place {
        Place::Row(value) => (Some(value), None),
        Place::Object { bucket, key } => (None, Some((bucket.as_str(), key.as_str()))),
    };
    let resource = match object {
        Some(object) => Some(add_resource(&mut *conn, of, result.id, object).await?),
        None => None,
    };
    sqlx::query!(
        "INSERT INTO gristmill.tool_results
             (id, workspace_id, call_id, result, bucket, key, sha256, size, view, error, is_error, blocks, truncated, resource_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text, $10::text IS NOT NULL, $11, $12, $13)",
        result.id,
        workspace.0,
        of.0,
        inline,
        object.map(|(bucket, _)| bucket),
        object.map(|(_, key)| key),
        &result.sha256[..],
        result.size as i64,
        result.view,
        result.error,
        result.blocks,
        result.truncated,
        resource
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn add_resource(
    conn: &mut PgConnection,
    of: ToolCallId,
    result: Uuid,
    (bucket, key): (&str, &str),
) -> sqlx::Result<Uuid> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.resources (workspace_id, conversation_id, message_id, name, s3_uri, mime, metadata)
         SELECT c.workspace_id, c.conversation_id, c.message_id, 'result of ' || c.tool_name,
                format('s3://%s/%s', $3::text, $4::text), 'application/json',
                jsonb_build_object('tool_call', c.id, 'tool_result', $2::uuid)
         FROM gristmill.tool_calls c WHERE c.id = $1 RETURNING id",
        of.0,
        result,
        bucket,
        key
    )
    .fetch_one(conn)
    .await
}

/// A stored result, complete or on the way there.
#[derive(Debug, Clone)]
pub struct Stored {
    pub tool_name: String,
    pub place: Place,
    pub sha256: Vec<u8>,
}

/// The result of this handle, if it belongs to the conversation.
pub async fn find(conn: &mut PgConnection, of: ConversationId, handle: Uuid) -> sqlx::Result<Option<Stored>> {
    let row = sqlx::query!(
        "SELECT c.tool_name, r.result, r.bucket, r.key, r.sha256 FROM gristmill.tool_results r
         JOIN gristmill.tool_calls c ON c.id = r.call_id
         WHERE r.id = $1 AND c.conversation_id = $2",
        handle,
        of.0
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Stored {
        tool_name: row.tool_name,
        place: match (row.result, row.bucket, row.key) {
            (None, Some(bucket), Some(key)) => Place::Object { bucket, key },
            (result, ..) => Place::Row(result.unwrap_or_default()),
        },
        sha256: row.sha256,
    }))
}
