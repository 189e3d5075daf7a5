//! Bytes that several attachments of a tenant share, known by their sha256: their verdict and
//! their text are stored once, so who writes them and who removes them meet here.
//!
//! `scan` and `extract` hold the lock while they write what belongs to the bytes, `forget` while
//! it decides whether the bytes are still somebody's and removes it. The lock is each
//! transaction's first after the fence, and comes before every row's.

use crate::domain::{JobId, WorkspaceId};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// Holds the tenant's bytes until the transaction ends.
pub async fn lock(conn: &mut PgConnection, workspace: WorkspaceId, sha256: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
        format!("gristmill.bytes/{workspace}/{sha256}")
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether an attachment of the tenant has these bytes; ask under the [`lock`].
pub async fn in_use(conn: &mut PgConnection, sha256: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM gristmill.attachments WHERE checksum_sha256 = $1) AS "used!""#,
        sha256
    )
    .fetch_one(conn)
    .await
}

/// Whether another job of this kind began earlier on the same bytes and is at work: what it makes
/// serves this one too. Of two, one always goes on.
pub async fn twin_extracts(db: impl PgExecutor<'_>, job: JobId, sha256: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM gristmill.jobs me
             JOIN gristmill.jobs j ON j.workspace_id = me.workspace_id AND j.kind = me.kind AND j.state = 'RUNNING'
                 AND (j.started_at, j.id) < (me.started_at, me.id)
             JOIN gristmill.attachments a ON a.id = (j.payload ->> 'attachment')::uuid
             WHERE me.id = $1 AND a.checksum_sha256 = $2) AS "works!""#,
        job.0,
        sha256
    )
    .fetch_one(db)
    .await
}

/// The same for the vectors of one extracted text.
pub async fn twin_embeds(db: impl PgExecutor<'_>, job: JobId, extraction: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (
             SELECT FROM gristmill.jobs me
             JOIN gristmill.jobs j ON j.workspace_id = me.workspace_id AND j.kind = me.kind AND j.state = 'RUNNING'
                 AND (j.started_at, j.id) < (me.started_at, me.id)
             JOIN gristmill.generations g ON g.id = (j.payload ->> 'generation')::uuid
             WHERE me.id = $1 AND g.extraction_id = $2) AS "works!""#,
        job.0,
        extraction
    )
    .fetch_one(db)
    .await
}
