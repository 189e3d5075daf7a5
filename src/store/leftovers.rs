//! Objects that outlived their rows: what `forget` has yet to remove from the bucket.

use crate::domain::{AttachmentId, WorkspaceId};
use crate::store::decoded;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};

/// Where an object lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub bucket: String,
    pub key: String,
}

/// What is left of a forgotten attachment.
#[derive(Debug, Clone)]
pub struct Leftovers {
    pub objects: Vec<Place>,
    /// What the event will say was removed.
    pub removed: Value,
}

/// Notes what is left, in the transaction that removes the rows.
pub async fn note(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    of: AttachmentId,
    left: &Leftovers,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO gristmill.leftovers (workspace_id, attachment_id, objects, removed) VALUES ($1, $2, $3, $4)",
        workspace.0,
        of.0,
        decoded(serde_json::to_value(&left.objects))?,
        left.removed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What is left of this attachment, if anything is.
pub async fn find(db: impl PgExecutor<'_>, of: AttachmentId) -> sqlx::Result<Option<Leftovers>> {
    let row = sqlx::query!("SELECT objects, removed FROM gristmill.leftovers WHERE attachment_id = $1", of.0)
        .fetch_optional(db)
        .await?;
    row.map(|row| {
        Ok(Leftovers { objects: decoded(serde_json::from_value(row.objects))?, removed: row.removed })
    })
    .transpose()
}

/// Strikes the note out: the objects are gone.
pub async fn settle(conn: &mut PgConnection, of: AttachmentId) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM gristmill.leftovers WHERE attachment_id = $1", of.0).execute(conn).await?;
    Ok(())
}
