//! Index generations: one index of one resource, from its plan to its last chunk.

use crate::domain::{AttachmentId, GenerationId, IndexStatus, ResourceId, WorkspaceId};
use crate::store::{decoded, exactly_one};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// A generation as the embed job needs it.
#[derive(Debug, Clone)]
pub struct Generation {
    pub id: GenerationId,
    pub resource: ResourceId,
    pub attachment: Option<AttachmentId>,
    pub extraction: Option<Uuid>,
    pub status: IndexStatus,
    pub space: Option<i32>,
    pub chunk_size: Option<i32>,
    pub chunk_overlap: Option<i32>,
    pub plan: Option<Vec<u8>>,
    /// Sizes the knowledge base asks for.
    pub wanted_size: Option<i32>,
    pub wanted_overlap: Option<i32>,
}

/// The generation, if the tenant has it.
pub async fn find(db: impl PgExecutor<'_>, id: GenerationId) -> sqlx::Result<Option<Generation>> {
    let row = sqlx::query!(
        r#"SELECT g.id, g.resource_id, r.attachment_id, g.extraction_id, g.status::text AS "status!", g.space_id,
                  g.chunk_size, g.chunk_overlap, g.plan,
                  (t.custom_config ->> 'chunkSize')::int AS wanted_size,
                  (t.custom_config ->> 'overlap')::int AS wanted_overlap
           FROM gristmill.generations g
           JOIN gristmill.resources r ON r.id = g.resource_id
           LEFT JOIN gristmill.tools t ON t.id = r.tool_id
           WHERE g.id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Generation {
            id: GenerationId(row.id),
            resource: ResourceId(row.resource_id),
            attachment: row.attachment_id.map(AttachmentId),
            extraction: row.extraction_id,
            status: decoded(row.status.parse())?,
            space: row.space_id,
            chunk_size: row.chunk_size,
            chunk_overlap: row.chunk_overlap,
            plan: row.plan,
            wanted_size: row.wanted_size,
            wanted_overlap: row.wanted_overlap,
        })
    })
    .transpose()
}

/// Opens a generation for a resource that has none live or under way.
pub async fn open(conn: &mut PgConnection, workspace: WorkspaceId, resource: ResourceId) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO gristmill.generations (workspace_id, resource_id, status)
         SELECT $1, r.id, 'EXTRACTING' FROM gristmill.resources r
         WHERE r.id = $2 AND r.live_generation IS NULL AND NOT EXISTS (
             SELECT FROM gristmill.generations g WHERE g.resource_id = r.id AND g.finished_at IS NULL)",
        workspace.0,
        resource.0
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The generations of an attachment that wait for its text.
pub async fn await_text(
    db: impl PgExecutor<'_>,
    attachment: AttachmentId,
) -> sqlx::Result<Vec<GenerationId>> {
    let rows = sqlx::query_scalar!(
        "SELECT g.id FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
         WHERE r.attachment_id = $1 AND g.finished_at IS NULL AND g.extraction_id IS NULL",
        attachment.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(GenerationId).collect())
}

/// Gives a generation its text.
pub async fn set_text(conn: &mut PgConnection, id: GenerationId, extraction: Uuid) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.generations SET extraction_id = $2 WHERE id = $1 AND finished_at IS NULL",
        id.0,
        extraction
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// What an embed job settled on before its first chunk.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    pub space: i32,
    pub chunk_size: i32,
    pub chunk_overlap: i32,
    pub encoded: &'a [u8],
    pub total: i32,
}

/// Fixes where each chunk begins and ends; from here a restart goes on, not back.
pub async fn set_plan(conn: &mut PgConnection, id: GenerationId, plan: &Plan<'_>) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.generations SET space_id = $2, chunk_size = $3, chunk_overlap = $4, plan = $5, total = $6,
             status = 'EMBEDDING'
         WHERE id = $1 AND finished_at IS NULL",
        id.0,
        plan.space,
        plan.chunk_size,
        plan.chunk_overlap,
        plan.encoded,
        plan.total
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Tells the stage of an unfinished generation.
pub async fn set_stage(conn: &mut PgConnection, id: GenerationId, status: IndexStatus) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.generations SET status = $2::text::gristmill.index_status WHERE id = $1 AND finished_at IS NULL",
        id.0,
        status.as_str()
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Counts chunks as done; answers how many there are.
pub async fn add_done(conn: &mut PgConnection, id: GenerationId, more: i32) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        "UPDATE gristmill.generations SET done = done + $2 WHERE id = $1 AND finished_at IS NULL RETURNING done",
        id.0,
        more
    )
    .fetch_one(conn)
    .await
}

/// Ends a generation.
pub async fn finish(
    conn: &mut PgConnection,
    id: GenerationId,
    status: IndexStatus,
    detail: &Value,
) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.generations SET status = $2::text::gristmill.index_status, detail = $3, finished_at = now()
         WHERE id = $1 AND finished_at IS NULL",
        id.0,
        status.as_str(),
        detail
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Ends every unfinished generation of an attachment, because the attachment itself has ended.
pub async fn end_of_attachment(
    conn: &mut PgConnection,
    attachment: AttachmentId,
    status: IndexStatus,
    detail: &Value,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE gristmill.generations g SET status = $2::text::gristmill.index_status, detail = $3, finished_at = now()
         FROM gristmill.resources r
         WHERE r.id = g.resource_id AND r.attachment_id = $1 AND g.finished_at IS NULL",
        attachment.0,
        status.as_str(),
        detail
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Generations of a resource that retrieval no longer sees and nobody builds.
pub async fn superseded(db: impl PgExecutor<'_>, resource: ResourceId) -> sqlx::Result<Vec<GenerationId>> {
    let rows = sqlx::query_scalar!(
        "SELECT g.id FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
         WHERE r.id = $1 AND g.id IS DISTINCT FROM r.live_generation AND g.finished_at IS NOT NULL",
        resource.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(GenerationId).collect())
}

/// Removes a generation whose chunks are gone.
pub async fn delete(conn: &mut PgConnection, id: GenerationId) -> sqlx::Result<u64> {
    let done = sqlx::query!("DELETE FROM gristmill.generations WHERE id = $1", id.0).execute(conn).await?;
    Ok(done.rows_affected())
}

/// Every generation of an attachment's resources.
pub async fn of_attachment(
    db: impl PgExecutor<'_>,
    attachment: AttachmentId,
) -> sqlx::Result<Vec<GenerationId>> {
    let rows = sqlx::query_scalar!(
        "SELECT g.id FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
         WHERE r.attachment_id = $1",
        attachment.0
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(GenerationId).collect())
}
