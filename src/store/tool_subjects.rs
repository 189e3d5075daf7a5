//! What a credential can be for, by the name a person knows it by.

use crate::domain::{ToolId, UserId, WorkspaceId, origin_of};
use crate::store::tool_credentials::Subject;
use sqlx::PgConnection;
use uuid::Uuid;

/// A tool, or a connection to a server.
#[derive(Debug, Clone)]
pub struct Found {
    pub subject: Subject,
    /// The server's address, where it has one.
    pub url: Option<String>,
}

/// The connection to the server of this name, else the tool of this name; None where there is
/// neither, or no place to send a credential to.
pub async fn find(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    name: &str,
) -> sqlx::Result<Option<Found>> {
    let server = sqlx::query!(
        "SELECT c.id, s.url FROM gristmill.mcp_server_connections c
         JOIN gristmill.mcp_servers s ON s.id = c.server_id
         WHERE c.workspace_id = $1 AND (s.name = $2 OR c.external_id = $2)",
        workspace.0,
        name
    )
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(server) = server {
        return Ok(Some(Found { subject: Subject::Connection(server.id), url: server.url }));
    }
    let tool = sqlx::query!(
        "SELECT id, endpoint FROM gristmill.tools
         WHERE workspace_id = $1 AND (name = $2 OR external_id = $2) AND connection_id IS NULL
         ORDER BY name = $2 DESC LIMIT 1",
        workspace.0,
        name
    )
    .fetch_optional(conn)
    .await?;
    Ok(tool.and_then(|tool| {
        origin_of(tool.endpoint.as_deref()?)?;
        Some(Found { subject: Subject::Tool(ToolId(tool.id)), url: tool.endpoint })
    }))
}

/// The tenant's connection to the server of this name.
pub async fn connection(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    name: &str,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT c.id FROM gristmill.mcp_server_connections c JOIN gristmill.mcp_servers s ON s.id = c.server_id
         WHERE c.workspace_id = $1 AND (s.name = $2 OR c.external_id = $2) ORDER BY s.name = $2 DESC LIMIT 1",
        workspace.0,
        name
    )
    .fetch_optional(conn)
    .await
}

/// A user by the id the chat layer knows, or ours.
pub async fn user(conn: &mut PgConnection, workspace: WorkspaceId, id: &str) -> sqlx::Result<Option<UserId>> {
    let found = sqlx::query_scalar!(
        "SELECT id FROM gristmill.users WHERE workspace_id = $1 AND (external_id = $2 OR id::text = lower($2))
         ORDER BY external_id IS NOT DISTINCT FROM $2 DESC LIMIT 1",
        workspace.0,
        id
    );
    Ok(found.fetch_optional(conn).await?.map(UserId))
}
