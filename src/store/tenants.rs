//! Workspaces as commands name them.

use crate::domain::WorkspaceId;
use sqlx::PgConnection;

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
