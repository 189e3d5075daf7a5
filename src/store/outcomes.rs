//! The ends of an attachment as one step each: its row, its generations and its event.

use crate::domain::{AttachmentId, AttachmentStatus, IndexStatus, WorkspaceId};
use crate::store::events::{Event, announce};
use crate::store::{attachments, generations};
use serde_json::json;
use sqlx::PgConnection;

/// Why an attachment ended.
#[derive(Debug, Clone, Copy)]
pub struct Reason<'a> {
    /// Machine-readable.
    pub code: &'a str,
    /// A sentence that says what to do.
    pub text: &'a str,
}

/// FAILED: for good, unless somebody retries it. One that has ended otherwise stays as it is.
pub async fn fail(conn: &mut PgConnection, id: AttachmentId, reason: Reason<'_>) -> sqlx::Result<()> {
    end(conn, id, AttachmentStatus::Failed, reason).await
}

/// QUARANTINED: nothing of it is searchable, and its bytes are not read again.
pub async fn quarantine(conn: &mut PgConnection, id: AttachmentId, reason: Reason<'_>) -> sqlx::Result<()> {
    end(conn, id, AttachmentStatus::Quarantined, reason).await
}

async fn end(
    conn: &mut PgConnection,
    id: AttachmentId,
    to: AttachmentStatus,
    reason: Reason<'_>,
) -> sqlx::Result<()> {
    let Some(attachment) = attachments::find(&mut *conn, id).await? else { return Ok(()) };
    let detail = json!({ "code": reason.code, "reason": reason.text });
    generations::end_of_attachment(conn, id, IndexStatus::Failed, &detail).await?;
    if attachments::end(conn, id, to, reason.code, reason.text).await? {
        tell(conn, attachment.workspace, id, to, detail).await?;
    }
    Ok(())
}

/// READY once the last index of the attachment has ended.
pub async fn ready_when_indexed(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: AttachmentId,
) -> sqlx::Result<()> {
    // Of two last indexes that end at once, the second sees the first.
    if attachments::lock(conn, id).await? && attachments::ready_when_indexed(conn, id).await? {
        tell(conn, workspace, id, AttachmentStatus::Ready, json!({})).await?;
    }
    Ok(())
}

/// Tells the chat layer of an attachment's status.
pub async fn tell(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: AttachmentId,
    status: AttachmentStatus,
    body: serde_json::Value,
) -> sqlx::Result<()> {
    announce(conn, workspace, &Event::Attachment { id, status: status.as_str(), body }).await
}
