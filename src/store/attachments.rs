//! Attachments: where the bytes lie, what became of them. Legal status edges are the
//! database's (`gristmill.attachment_edge`); every change leaves a row of history.

use crate::domain::{AttachmentId, AttachmentStatus, ConversationId, MessageId, Origin, WorkspaceId};
use crate::store::{decoded, exactly_one};
use sqlx::{PgConnection, PgExecutor};

/// An attachment as its jobs need it.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub id: AttachmentId,
    pub workspace: WorkspaceId,
    pub conversation: Option<ConversationId>,
    pub message: Option<MessageId>,
    pub origin: Origin,
    pub status: AttachmentStatus,
    pub bucket: String,
    pub key: String,
    pub size: Option<i64>,
    pub mime: Option<String>,
    pub etag: Option<String>,
    pub version_id: Option<String>,
    pub sha256: Option<String>,
    pub source_url: Option<String>,
    pub name: Option<String>,
}

/// An attachment about to be.
#[derive(Debug, Clone)]
pub struct NewAttachment<'a> {
    pub origin: Origin,
    pub bucket: &'a str,
    pub key: &'a str,
    pub name: Option<&'a str>,
    pub mime: Option<&'a str>,
    pub source_url: Option<&'a str>,
    pub sha256: Option<&'a str>,
    pub conversation: Option<ConversationId>,
}

/// What is known of the bytes once they lie in the bucket.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub size: i64,
    pub etag: String,
    pub version_id: Option<String>,
    pub sha256: Option<String>,
    pub mime: Option<String>,
    pub name: Option<String>,
}

/// The attachment, if the tenant has it.
pub async fn find(db: impl PgExecutor<'_>, id: AttachmentId) -> sqlx::Result<Option<Attachment>> {
    let row = sqlx::query!(
        r#"SELECT id, workspace_id, conversation_id, message_id, origin::text AS "origin!", status::text AS "status!",
                  bucket, key, size, mime, etag, version_id, checksum_sha256, source_url, name
           FROM gristmill.attachments WHERE id = $1"#,
        id.0
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Attachment {
            id: AttachmentId(row.id),
            workspace: WorkspaceId(row.workspace_id),
            conversation: row.conversation_id.map(ConversationId),
            message: row.message_id.map(MessageId),
            origin: decoded(row.origin.parse())?,
            status: decoded(row.status.parse())?,
            bucket: row.bucket,
            key: row.key,
            size: row.size,
            mime: row.mime,
            etag: row.etag,
            version_id: row.version_id,
            sha256: row.checksum_sha256,
            source_url: row.source_url,
            name: row.name,
        })
    })
    .transpose()
}

/// Adds an attachment as REQUESTED.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    new: &NewAttachment<'_>,
) -> sqlx::Result<AttachmentId> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.attachments
             (workspace_id, origin, bucket, key, name, mime, source_url, checksum_sha256, conversation_id)
         VALUES ($1, $2::text::gristmill.asset_origin, $3, $4, $5, $6, $7, $8, $9) RETURNING id",
        workspace.0,
        new.origin.as_str(),
        new.bucket,
        new.key,
        new.name,
        new.mime,
        new.source_url,
        new.sha256,
        new.conversation.map(|c| c.0),
    )
    .fetch_one(conn)
    .await
    .map(AttachmentId)
}

/// Moves the attachment along one edge.
pub async fn advance(conn: &mut PgConnection, id: AttachmentId, to: AttachmentStatus) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.attachments SET status = $2::text::gristmill.asset_status WHERE id = $1",
        id.0,
        to.as_str()
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Walks the attachment to STORED, whichever step it is at, and pins the bytes.
pub async fn set_stored(conn: &mut PgConnection, of: &Attachment, stored: &Stored) -> sqlx::Result<()> {
    use AttachmentStatus::{Planned, Requested, Uploading};
    let done = sqlx::query!(
        "UPDATE gristmill.attachments SET size = $2, etag = $3, version_id = $4,
             checksum_sha256 = coalesce(checksum_sha256, $5), mime = coalesce(mime, $6), name = coalesce(name, $7)
         WHERE id = $1",
        of.id.0,
        stored.size,
        stored.etag,
        stored.version_id,
        stored.sha256,
        stored.mime,
        stored.name,
    )
    .execute(&mut *conn)
    .await?;
    exactly_one(&done)?;
    let steps: &[AttachmentStatus] = match of.status {
        Requested => &[Planned, Uploading, AttachmentStatus::Stored],
        Planned => &[Uploading, AttachmentStatus::Stored],
        Uploading => &[AttachmentStatus::Stored],
        _ => &[],
    };
    for &step in steps {
        advance(conn, of.id, step).await?;
    }
    Ok(())
}

/// Writes what the scan learned of the bytes.
pub async fn set_truth(
    conn: &mut PgConnection,
    id: AttachmentId,
    sha256: &str,
    size: i64,
    mime: &str,
) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.attachments SET checksum_sha256 = $2, size = $3, mime = $4 WHERE id = $1",
        id.0,
        sha256,
        size,
        mime
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}

/// Ends the attachment in FAILED or QUARANTINED with its reason; one that is over stays as it is.
pub async fn end(
    conn: &mut PgConnection,
    id: AttachmentId,
    status: AttachmentStatus,
    code: &str,
    reason: &str,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE gristmill.attachments SET status = $2::text::gristmill.asset_status, failure_code = $3, failure = $4
         WHERE id = $1 AND gristmill.attachment_edge(status, $2::text::gristmill.asset_status)",
        id.0,
        status.as_str(),
        code,
        reason
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// READY, once every index generation of the attachment has ended; says whether it is now.
pub async fn ready_when_indexed(conn: &mut PgConnection, id: AttachmentId) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE gristmill.attachments a SET status = 'READY'
         WHERE a.id = $1 AND a.status = 'SCANNING' AND NOT EXISTS (
             SELECT FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
             WHERE r.attachment_id = a.id AND g.finished_at IS NULL)",
        id.0
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Holds the attachment's row, so that of two last steps one sees the other.
pub async fn lock(conn: &mut PgConnection, id: AttachmentId) -> sqlx::Result<bool> {
    let row = sqlx::query!("SELECT id FROM gristmill.attachments WHERE id = $1 FOR UPDATE", id.0)
        .fetch_optional(conn)
        .await?;
    Ok(row.is_some())
}

/// Removes the row and, by cascade, what hangs on it.
pub async fn delete(conn: &mut PgConnection, id: AttachmentId) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM gristmill.attachments WHERE id = $1", id.0).execute(conn).await?;
    Ok(())
}
