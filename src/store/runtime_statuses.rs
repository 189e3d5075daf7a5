//! `runtime_statuses`: which host can start servers written for node and for python.

use sqlx::PgExecutor;

/// One runtime on one host, as a worker or `doctor` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub host: String,
    pub runtime: String,
    pub version: Option<String>,
    /// None: it is not installed.
    pub path: Option<String>,
}

/// Notes what was found on a host.
pub async fn report(db: impl PgExecutor<'_>, status: &Status) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO gristmill.runtime_statuses (host, runtime, installed, version, path)
         VALUES ($1, $2::text::gristmill.runtime, $4::text IS NOT NULL, $3, $4)
         ON CONFLICT (host, runtime) DO UPDATE SET
             installed = excluded.installed, version = excluded.version, path = excluded.path",
        status.host,
        status.runtime,
        status.version,
        status.path
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Every host's, those that were looked at within two days.
pub async fn all(db: impl PgExecutor<'_>) -> sqlx::Result<Vec<Status>> {
    sqlx::query_as!(
        Status,
        r#"SELECT host, runtime::text AS "runtime!", version, path FROM gristmill.runtime_statuses
           WHERE updated_at > now() - interval '2 days' ORDER BY host, runtime"#
    )
    .fetch_all(db)
    .await
}
