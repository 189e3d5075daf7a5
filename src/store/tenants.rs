//! Workspaces and knowledge bases as commands name them.

use crate::domain::{ToolId, WorkspaceId};
use sqlx::{PgConnection, PgPool};

/// The workspace of this name in the chat layer, made when it is new.
pub async fn ensure_workspace(conn: &mut PgConnection, external_id: &str) -> sqlx::Result<WorkspaceId> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.workspaces (external_id, name) VALUES ($1, $1)
         ON CONFLICT (external_id) DO UPDATE SET name = workspaces.name RETURNING id",
        external_id
    )
    .fetch_one(conn)
    .await
    .map(WorkspaceId)
}

/// The tenant's knowledge base of this name, made when it is new.
pub async fn ensure_knowledge_base(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    name: &str,
) -> sqlx::Result<ToolId> {
    sqlx::query_scalar!(
        r#"INSERT INTO gristmill.tools (workspace_id, name, type, effect, custom_config)
           VALUES ($1, $2, 'custom', 'read', '{"McpType": "knowledgebase"}')
           ON CONFLICT (workspace_id, name) DO UPDATE SET name = tools.name RETURNING id"#,
        workspace.0,
        name
    )
    .fetch_one(conn)
    .await
    .map(ToolId)
}

/// The tenant's knowledge base of this name.
pub async fn find_knowledge_base(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<ToolId>> {
    let id = sqlx::query_scalar!(
        "SELECT id FROM gristmill.tools WHERE name = $1 AND mcp_type = 'knowledgebase'",
        name
    )
    .fetch_optional(conn)
    .await?;
    Ok(id.map(ToolId))
}

/// Removes the workspaces of this prefix but one, with all they hold; for the demo's own runs.
pub async fn delete_older(db: &PgPool, prefix: &str, but: WorkspaceId) -> sqlx::Result<Vec<WorkspaceId>> {
    let rows = sqlx::query_scalar!(
        "DELETE FROM gristmill.workspaces WHERE starts_with(external_id, $1) AND id <> $2 RETURNING id",
        prefix,
        but.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(WorkspaceId).collect())
}

/// Removes a workspace with all its rows.
pub async fn delete(db: &PgPool, workspace: WorkspaceId) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM gristmill.workspaces WHERE id = $1", workspace.0).execute(db).await?;
    Ok(())
}

/// The workspace of this id, or of this name in the chat layer; as the owner, who sees them all.
pub async fn find_workspace(db: &PgPool, name_or_id: &str) -> sqlx::Result<Option<WorkspaceId>> {
    let found = sqlx::query_scalar!(
        "SELECT id FROM gristmill.workspaces WHERE external_id = $1 OR id::text = lower($1)
         ORDER BY external_id IS NOT DISTINCT FROM $1 DESC LIMIT 1",
        name_or_id
    );
    Ok(found.fetch_optional(db).await?.map(WorkspaceId))
}
