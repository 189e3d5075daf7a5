//! What a scanner said of some bytes; cached by their sha256 and the signatures' version.

use crate::domain::WorkspaceId;
use sqlx::{PgConnection, PgExecutor};

/// A verdict as it is stored.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub sha256: String,
    /// CLEAN, INFECTED, UNSCANNABLE or REFUSED.
    pub outcome: String,
    pub engine: String,
    pub signature_version: String,
    pub signature: Option<String>,
    pub detail: Option<String>,
    pub limits_hit: Vec<String>,
    pub detected_mime: String,
    pub size: i64,
}

/// The verdict of this engine at this version, if these bytes were seen before.
pub async fn find(
    db: impl PgExecutor<'_>,
    sha256: &str,
    engine: &str,
    signature_version: &str,
) -> sqlx::Result<Option<Verdict>> {
    sqlx::query_as!(
        Verdict,
        r#"SELECT sha256, outcome::text AS "outcome!", engine, signature_version, signature, detail, limits_hit,
                  detected_mime, size
           FROM gristmill.verdicts WHERE sha256 = $1 AND engine = $2 AND signature_version = $3"#,
        sha256,
        engine,
        signature_version
    )
    .fetch_optional(db)
    .await
}

/// Whether the newest verdict of these bytes is CLEAN: only then may they be parsed.
pub async fn is_clean(db: impl PgExecutor<'_>, sha256: &str) -> sqlx::Result<bool> {
    let outcome = sqlx::query_scalar!(
        r#"SELECT outcome::text AS "outcome!" FROM gristmill.verdicts WHERE sha256 = $1 ORDER BY created_at DESC LIMIT 1"#,
        sha256
    )
    .fetch_optional(db)
    .await?;
    Ok(outcome.as_deref() == Some("CLEAN"))
}

/// Stores a verdict; the same engine at the same version says the same again.
pub async fn record(conn: &mut PgConnection, workspace: WorkspaceId, verdict: &Verdict) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO gristmill.verdicts (workspace_id, sha256, outcome, engine, signature_version, signature, detail,
                                         limits_hit, detected_mime, size)
         VALUES ($1, $2, $3::text::gristmill.verdict_outcome, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (workspace_id, sha256, engine, signature_version) DO NOTHING",
        workspace.0,
        verdict.sha256,
        verdict.outcome,
        verdict.engine,
        verdict.signature_version,
        verdict.signature,
        verdict.detail,
        &verdict.limits_hit,
        verdict.detected_mime,
        verdict.size,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets what was said of these bytes.
pub async fn delete(conn: &mut PgConnection, sha256: &str) -> sqlx::Result<u64> {
    let done = sqlx::query!("DELETE FROM gristmill.verdicts WHERE sha256 = $1", sha256).execute(conn).await?;
    Ok(done.rows_affected())
}
