//! `tool_definitions`: what servers say of their tools, pinned by hash, and people's word on it.

use crate::domain::{ToolId, WorkspaceId};
use crate::store::exactly_one;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// A definition as a sync brings it.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// `server__tool`.
    pub name: String,
    /// The server's own name of it.
    pub remote_name: String,
    pub sha256: [u8; 32],
    pub definition: Value,
    /// Needs nobody's look.
    pub approved: bool,
}

/// What a definition was to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// As it was.
    None,
    /// The tool is new here, or came back.
    Added,
    /// The tool says other things than before.
    Changed,
    /// The name is taken by a tool that is not this connection's.
    Taken,
}

/// What a sync learned about one tool.
#[derive(Debug, Clone)]
pub struct Learned {
    pub tool: ToolId,
    pub news: News,
    pub review: String,
    pub definition: Option<Uuid>,
}

/// Makes the definition the one that the server gives now. The connection's row is held by the caller.
pub async fn pin(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    connection: Uuid,
    pinned: &Pinned,
) -> sqlx::Result<Learned> {
    let tool = sqlx::query!(
        r#"INSERT INTO gristmill.tools (workspace_id, connection_id, name, type, transport_type, remote_name)
           SELECT $1, $2, $3, 'MCP', s.transport, $4
           FROM gristmill.mcp_server_connections c JOIN gristmill.mcp_servers s ON s.id = c.server_id WHERE c.id = $2
           ON CONFLICT (workspace_id, name) DO UPDATE SET name = tools.name
           RETURNING id, connection_id, definition_id, vanished_at IS NOT NULL AS "vanished!", remote_name"#,
        workspace.0,
        connection,
        pinned.name,
        pinned.remote_name
    )
    .fetch_one(&mut *conn)
    .await?;
    let id = ToolId(tool.id);
    if tool.connection_id != Some(connection) {
        return Ok(Learned { tool: id, news: News::Taken, review: String::new(), definition: None });
    }
    let review = if pinned.approved { "APPROVED" } else { "PENDING" };
    sqlx::query!(
        "INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition, review, reviewed_at)
         VALUES ($1, $2, $3, $4, $5::text::gristmill.review_state, CASE WHEN $5 = 'APPROVED' THEN clock_timestamp() END)
         ON CONFLICT (tool_id, sha256) DO NOTHING",
        workspace.0,
        tool.id,
        &pinned.sha256,
        pinned.definition,
        review
    )
    .execute(&mut *conn)
    .await?;
    let now = sqlx::query!(
        r#"SELECT id, review::text AS "review!" FROM gristmill.tool_definitions WHERE tool_id = $1 AND sha256 = $2"#,
        tool.id,
        &pinned.sha256
    )
    .fetch_one(&mut *conn)
    .await?;
    if tool.definition_id != Some(now.id)
        || tool.vanished
        || tool.remote_name.as_ref() != Some(&pinned.remote_name)
    {
        // What somebody switched off stays off; what had only vanished comes back.
        let done = sqlx::query!(
            "UPDATE gristmill.tools SET definition_id = $2, remote_name = $3,
                 enabled = enabled OR vanished_at IS NOT NULL, vanished_at = NULL WHERE id = $1",
            tool.id,
            now.id,
            pinned.remote_name
        )
        .execute(&mut *conn)
        .await?;
        exactly_one(&done)?;
    }
    sqlx::query!("SELECT gristmill.apply_definition($1)", now.id).fetch_one(&mut *conn).await?;
    if now.review == "APPROVED" && (tool.vanished || tool.definition_id != Some(now.id)) {
        // Back to what was approved: who waited for a person's word on the other one goes on.
        sqlx::query!(
            "SELECT gristmill.wake_calls($1, ARRAY[$2::uuid], 'NEEDS_APPROVAL')",
            workspace.0,
            tool.id
        )
        .fetch_one(conn)
        .await?;
    }
    let news = match tool.definition_id {
        Some(was) if was != now.id => News::Changed,
        Some(_) if !tool.vanished => News::None,
        _ => News::Added,
    };
    Ok(Learned { tool: id, news, review: now.review, definition: Some(now.id) })
}

/// Switches off the connection's tools that its server no longer has; answers which.
pub async fn vanish(
    conn: &mut PgConnection,
    connection: Uuid,
    still_there: &[Uuid],
) -> sqlx::Result<Vec<(ToolId, String)>> {
    let rows = sqlx::query!(
        "UPDATE gristmill.tools SET enabled = false, vanished_at = clock_timestamp()
         WHERE connection_id = $1 AND enabled AND id <> ALL ($2) RETURNING id, name",
        connection,
        still_there
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (ToolId(row.id), row.name)).collect())
}

/// A definition before a person's eyes.
#[derive(Debug, Clone)]
pub struct Waiting {
    pub id: Uuid,
    pub tool: String,
    pub review: String,
    pub definition: Value,
    /// What was approved before, if anything was.
    pub before: Option<Value>,
    /// Calls that wait for the word.
    pub calls: i64,
    pub created_at: chrono::DateTime<chrono::Utc>,
}

/// What the tenant's servers say now of their tools, and nobody has approved; `all`: whatever the review.
pub async fn waiting(conn: &mut PgConnection, all: bool) -> sqlx::Result<Vec<Waiting>> {
    sqlx::query_as!(
        Waiting,
        r#"SELECT d.id, t.name AS tool, d.review::text AS "review!", d.definition, d.created_at,
                  (SELECT b.definition FROM gristmill.tool_definitions b
                   WHERE b.tool_id = t.id AND b.review = 'APPROVED' AND b.id <> d.id
                   ORDER BY b.reviewed_at DESC LIMIT 1) AS before,
                  (SELECT count(*) FROM gristmill.tool_calls c
                   WHERE c.tool_id = t.id AND c.finished_at IS NULL AND c.state = 'NEEDS_APPROVAL') AS "calls!"
           FROM gristmill.tools t JOIN gristmill.tool_definitions d ON d.id = t.definition_id
           WHERE $1 OR d.review = 'PENDING' ORDER BY t.name"#,
        all
    )
    .fetch_all(conn)
    .await
}

/// A person's word; answers how many calls it woke.
pub async fn review(conn: &mut PgConnection, definition: Uuid, approved: bool) -> sqlx::Result<i64> {
    let word = if approved { "APPROVED" } else { "REFUSED" };
    let woken = sqlx::query_scalar!(
        r#"SELECT gristmill.review_definition($1, $2::text::gristmill.review_state) AS "woken!""#,
        definition,
        word
    );
    woken.fetch_one(conn).await
}
