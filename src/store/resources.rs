//! Resources: an attachment as a knowledge base or a conversation knows it.

use crate::domain::{AttachmentId, GenerationId, ResourceId, ToolId, WorkspaceId};
use crate::store::attachments::Attachment;
use crate::store::exactly_one;
use sqlx::{PgConnection, PgExecutor};

/// Adds a resource for an attachment.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    of: AttachmentId,
    name: &str,
    tool: Option<ToolId>,
) -> sqlx::Result<ResourceId> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.resources (workspace_id, attachment_id, conversation_id, message_id, tool_id, name, s3_uri, mime)
         SELECT $1, a.id, a.conversation_id, a.message_id, $4, $3, format('s3://%s/%s', a.bucket, a.key), a.mime
         FROM gristmill.attachments a WHERE a.id = $2 RETURNING id",
        workspace.0,
        of.0,
        name,
        tool.map(|tool| tool.0)
    )
    .fetch_one(conn)
    .await
    .map(ResourceId)
}

/// The resources of an attachment; one is made for its conversation when there is none.
pub async fn ensure(conn: &mut PgConnection, of: &Attachment) -> sqlx::Result<Vec<ResourceId>> {
    let found = of_attachment(&mut *conn, of.id).await?;
    if !found.is_empty() {
        return Ok(found);
    }
    let name = of.name.as_deref().or_else(|| of.key.rsplit('/').next()).unwrap_or("attachment");
    Ok(vec![insert(conn, of.workspace, of.id, name, None).await?])
}

/// The resources of an attachment.
pub async fn of_attachment(db: impl PgExecutor<'_>, of: AttachmentId) -> sqlx::Result<Vec<ResourceId>> {
    let rows =
        sqlx::query_scalar!("SELECT id FROM gristmill.resources WHERE attachment_id = $1 ORDER BY id", of.0)
            .fetch_all(db)
            .await?;
    Ok(rows.into_iter().map(ResourceId).collect())
}

/// Shows retrieval this generation and no other, by one update.
pub async fn flip(conn: &mut PgConnection, resource: ResourceId, to: GenerationId) -> sqlx::Result<()> {
    let done =
        sqlx::query!("UPDATE gristmill.resources SET live_generation = $2 WHERE id = $1", resource.0, to.0)
            .execute(conn)
            .await?;
    exactly_one(&done)
}
