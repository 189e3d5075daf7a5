//! Looking at jobs, for people and commands; the queue itself moves them.

use crate::domain::{JobId, WorkspaceId};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use std::time::Duration;
use uuid::Uuid;

/// A job as a person sees it.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: Uuid,
    pub kind: String,
    pub state: String,
    pub attempts: i16,
    pub max_attempts: i16,
    pub created_at: DateTime<Utc>,
    pub reason: Option<String>,
}

/// The newest jobs, of one state or all.
pub async fn newest(db: &PgPool, state: Option<&str>, limit: i64) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT id, kind, state::text AS "state!", attempts, max_attempts, created_at, reason
           FROM gristmill.jobs WHERE ($1::text IS NULL OR state::text = $1) ORDER BY id DESC LIMIT $2"#,
        state,
        limit
    )
    .fetch_all(db)
    .await
}

/// Waits until these jobs are over.
pub async fn until_over(db: &PgPool, ids: &[JobId]) -> sqlx::Result<Vec<Row>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    loop {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT id, kind, state::text AS "state!", attempts, max_attempts, created_at, reason
               FROM gristmill.jobs WHERE id = ANY ($1) ORDER BY id"#,
            &ids
        )
        .fetch_all(db)
        .await?;
        if rows.iter().all(|row| matches!(row.state.as_str(), "DONE" | "DEAD" | "CANCELLED")) {
            return Ok(rows);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Queues a job of any kind, as other languages do.
pub async fn enqueue_raw(
    db: &PgPool,
    workspace: WorkspaceId,
    kind: &str,
    payload: &serde_json::Value,
    key: Option<&str>,
) -> sqlx::Result<(Uuid, bool)> {
    let row = sqlx::query!(
        r#"SELECT job_id AS "job_id!", is_new AS "is_new!" FROM gristmill.enqueue($1, $2, key => $3, workspace => $4)"#,
        kind,
        payload,
        key,
        workspace.0
    )
    .fetch_one(db)
    .await?;
    Ok((row.job_id, row.is_new))
}

/// How long the tenant's last job of a kind was at work, from its last claim to its end.
pub async fn seconds_of_last(db: &PgPool, workspace: WorkspaceId, kind: &str) -> sqlx::Result<f64> {
    sqlx::query_scalar!(
        r#"SELECT extract(epoch FROM finished_at - started_at)::float8 AS "seconds!" FROM gristmill.jobs
           WHERE workspace_id = $1 AND kind = $2 AND state = 'DONE' ORDER BY id DESC LIMIT 1"#,
        workspace.0,
        kind
    )
    .fetch_one(db)
    .await
}
