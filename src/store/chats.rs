//! The chat layer's own rows, where a command stands in for it: an agent, its tools, what is said.

use crate::domain::{ConversationId, MessageId, ToolCallId, WorkspaceId};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// The workspace's agent of this external id, made when it is new.
pub async fn ensure_agent(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    (external_id, name): (&str, &str),
) -> sqlx::Result<Uuid> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.agents (workspace_id, external_id, name) VALUES ($1, $2, $3)
         ON CONFLICT (workspace_id, external_id) DO UPDATE SET name = agents.name RETURNING id",
        workspace.0,
        external_id,
        name
    )
    .fetch_one(conn)
    .await
}

/// Lets an agent call a tool, named or by its id; false: there is no such tool.
pub async fn give_tool(conn: &mut PgConnection, agent: Uuid, tool: &str) -> sqlx::Result<bool> {
    let given = sqlx::query!(
        "INSERT INTO gristmill.agent_tools (workspace_id, agent_id, tool_id)
         SELECT t.workspace_id, a.id, t.id FROM gristmill.agents a JOIN gristmill.tools t USING (workspace_id)
         WHERE a.id = $1 AND (t.name = $2 OR t.id::text = lower($2))
         ON CONFLICT (agent_id, tool_id) DO UPDATE SET tool_id = excluded.tool_id",
        agent,
        tool
    )
    .execute(conn)
    .await?;
    Ok(given.rows_affected() > 0)
}

/// Begins a conversation with an agent.
pub async fn begin(conn: &mut PgConnection, agent: Uuid, title: &str) -> sqlx::Result<ConversationId> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.conversations (workspace_id, title, agent_id)
         SELECT workspace_id, $2, id FROM gristmill.agents WHERE id = $1 RETURNING id",
        agent,
        title
    )
    .fetch_one(conn)
    .await
    .map(ConversationId)
}

/// Appends a message of this role.
pub async fn say(
    conn: &mut PgConnection,
    conversation: ConversationId,
    role: &str,
    text: &str,
) -> sqlx::Result<MessageId> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.messages (workspace_id, conversation_id, role, content_text)
         SELECT workspace_id, id, $2::text::gristmill.message_role, $3 FROM gristmill.conversations WHERE id = $1
         RETURNING id",
        conversation.0,
        role,
        text
    )
    .fetch_one(conn)
    .await
    .map(MessageId)
}

/// Asks for a call that an assistant's message makes.
pub async fn call(
    conn: &mut PgConnection,
    message: MessageId,
    tool_call_id: &str,
    (tool, arguments): (&str, &Value),
) -> sqlx::Result<ToolCallId> {
    sqlx::query_scalar!(
        r#"SELECT call_id AS "id!" FROM gristmill.call_tool($1, $2, $3, $4)"#,
        message.0,
        tool_call_id,
        tool,
        arguments
    )
    .fetch_one(conn)
    .await
    .map(ToolCallId)
}

/// A message as a reader sees it.
#[derive(Debug, Clone)]
pub struct Said {
    pub serial_number: i64,
    pub role: String,
    pub tool_call_id: Option<String>,
    pub text: String,
}

/// A conversation, in order.
pub async fn said(db: &PgPool, conversation: ConversationId) -> sqlx::Result<Vec<Said>> {
    sqlx::query_as!(
        Said,
        r#"SELECT serial_number, role::text AS "role!", tool_call_id, content_text AS text
           FROM gristmill.messages WHERE conversation_id = $1 ORDER BY serial_number"#,
        conversation.0
    )
    .fetch_all(db)
    .await
}
