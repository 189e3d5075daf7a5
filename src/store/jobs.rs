//! Looking at jobs and dealing with them, for people and commands; the queue itself moves them.
//!
//! The ways of dealing with a job are SQL functions (`migrations/0016_operate.sql`), so that other
//! languages have the same ones.

use crate::domain::{AttachmentId, JobId, WorkspaceId};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgPool;
use std::time::Duration;
use uuid::Uuid;

/// A job as a person sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub id: Uuid,
    pub workspace: Uuid,
    pub kind: String,
    /// 0: a person waits for it; 1: bulk work.
    pub lane: i16,
    pub priority: i16,
    pub state: String,
    pub attempts: i16,
    pub max_attempts: i16,
    pub payload: Value,
    pub key: Option<String>,
    pub worker: Option<String>,
    pub cancel_requested: bool,
    pub reason: Option<String>,
    pub parent: Option<Uuid>,
    pub root: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub run_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub lease_until: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl Row {
    /// Whether it was brought to an end.
    pub fn is_over(&self) -> bool {
        self.finished_at.is_some()
    }
}

/// These jobs, in the order of their ids.
pub async fn get(db: &PgPool, ids: &[Uuid]) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT id, workspace_id AS workspace, kind, lane, priority, state::text AS "state!", attempts,
                  max_attempts, payload, unique_key AS key, worker, cancel_requested, reason,
                  parent_id AS parent, root_id AS root, created_at, run_at, started_at, lease_until, finished_at
           FROM gristmill.jobs WHERE id = ANY ($1) ORDER BY id"#,
        ids
    )
    .fetch_all(db)
    .await
}

/// Which jobs are meant; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// SCHEDULED, WAITING, RUNNING, PARKED, DONE, DEAD, CANCELLED.
    pub state: Option<String>,
    pub kind: Option<String>,
    pub workspace: Option<WorkspaceId>,
    /// Ended within this time, as Postgres writes an interval.
    pub since: Option<String>,
}

/// The newest jobs of a filter, newest first.
pub async fn newest(db: &PgPool, of: &Filter, limit: i64) -> sqlx::Result<Vec<Row>> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM gristmill.jobs
         WHERE ($1::text IS NULL OR state::text = $1) AND ($2::text IS NULL OR kind = $2)
           AND ($3::uuid IS NULL OR workspace_id = $3)
           AND ($4::text IS NULL OR finished_at > now() - $4::text::interval)
         ORDER BY id DESC LIMIT $5",
        of.state,
        of.kind,
        of.workspace.map(|id| id.0),
        of.since,
        limit
    )
    .fetch_all(db)
    .await?;
    let mut rows = get(db, &ids).await?;
    rows.reverse();
    Ok(rows)
}

/// How many jobs are in one state.
#[derive(Debug, Clone, Serialize)]
pub struct Count {
    pub state: String,
    pub lane: i16,
    pub kind: String,
    pub jobs: i64,
    /// Since the oldest of them was due, began, or ended.
    pub oldest_seconds: f64,
}

/// Jobs by state, lane and kind: what waits first.
pub async fn counts(db: &PgPool) -> sqlx::Result<Vec<Count>> {
    sqlx::query_as!(
        Count,
        r#"SELECT state::text AS "state!", lane, kind, count(*) AS "jobs!",
                  greatest(0, extract(epoch FROM now() - min(CASE state
                      WHEN 'RUNNING' THEN started_at
                      WHEN 'WAITING' THEN run_at
                      WHEN 'SCHEDULED' THEN run_at
                      ELSE coalesce(finished_at, created_at) END)))::float8 AS "oldest_seconds!"
           FROM gristmill.jobs GROUP BY state, lane, kind ORDER BY state, lane, kind"#
    )
    .fetch_all(db)
    .await
}

/// Dead letters that died of the same thing.
#[derive(Debug, Clone, Serialize)]
pub struct Dead {
    pub kind: String,
    pub code: String,
    pub jobs: i64,
    pub oldest: DateTime<Utc>,
    pub newest: DateTime<Utc>,
    pub newest_job: Uuid,
    pub newest_reason: String,
}

/// The dead by kind and code, the most frequent first.
pub async fn dead(db: &PgPool, kind: Option<&str>) -> sqlx::Result<Vec<Dead>> {
    sqlx::query_as!(
        Dead,
        r#"SELECT kind, split_part(coalesce(reason, '-'), ':', 1) AS "code!", count(*) AS "jobs!",
                  min(finished_at) AS "oldest!", max(finished_at) AS "newest!",
                  (array_agg(id ORDER BY finished_at DESC, id DESC))[1] AS "newest_job!",
                  (array_agg(coalesce(reason, '-') ORDER BY finished_at DESC, id DESC))[1] AS "newest_reason!"
           FROM gristmill.jobs WHERE state = 'DEAD' AND finished_at IS NOT NULL AND ($1::text IS NULL OR kind = $1)
           GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"#,
        kind
    )
    .fetch_all(db)
    .await
}

/// The dead of a filter, oldest first.
pub async fn dead_ids(db: &PgPool, of: &Filter) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM gristmill.jobs
         WHERE state = 'DEAD' AND finished_at IS NOT NULL AND ($1::text IS NULL OR kind = $1)
           AND ($2::uuid IS NULL OR workspace_id = $2)
           AND ($3::text IS NULL OR finished_at > now() - $3::text::interval)
         ORDER BY finished_at",
        of.kind,
        of.workspace.map(|id| id.0),
        of.since
    )
    .fetch_all(db)
    .await
}

/// Jobs whose ids lie between two, the bounds included; at most ten.
pub async fn between(db: &PgPool, first: Uuid, last: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM gristmill.jobs WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT 10",
        first,
        last
    )
    .fetch_all(db)
    .await
}

/// The first jobs of the trees that worked on an attachment, oldest first.
///
/// Jobs hold ids only and no index of them: this reads the table once.
pub async fn roots_of(db: &PgPool, attachment: AttachmentId) -> sqlx::Result<Vec<Uuid>> {
    let roots = sqlx::query_scalar!(
        r#"SELECT DISTINCT coalesce(root_id, id) AS "root!" FROM gristmill.jobs
           WHERE payload ->> 'attachment' = $1 ORDER BY 1"#,
        attachment.to_string()
    );
    roots.fetch_all(db).await
}

/// A whole tree: the first job and all that came of it, in the order they were queued.
pub async fn tree(db: &PgPool, root: Uuid) -> sqlx::Result<Vec<Row>> {
    let ids = sqlx::query_scalar!("SELECT id FROM gristmill.jobs WHERE id = $1 OR root_id = $1", root)
        .fetch_all(db)
        .await?;
    get(db, &ids).await
}

/// What came of an order to try again.
#[derive(Debug, Clone, Serialize)]
pub struct Retried {
    /// The job that was meant, or the attachment.
    pub of: Uuid,
    /// The job that now does the work.
    pub job: Option<Uuid>,
    /// retried, restarted, alive, settled, refused, unknown.
    pub outcome: String,
    pub says: String,
}

/// Tries a dead or cancelled job again; its subject is revived with it.
pub async fn retry(db: &PgPool, job: Uuid) -> sqlx::Result<Retried> {
    let row = sqlx::query!(
        r#"SELECT job_id, outcome AS "outcome!", says AS "says!" FROM gristmill.retry($1)"#,
        job
    )
    .fetch_one(db)
    .await?;
    Ok(Retried { of: job, job: row.job_id, outcome: row.outcome, says: row.says })
}

/// Begins a failed attachment anew.
pub async fn retry_attachment(db: &PgPool, attachment: AttachmentId) -> sqlx::Result<Retried> {
    let row = sqlx::query!(
        r#"SELECT job_id, outcome AS "outcome!", says AS "says!" FROM gristmill.retry_attachment($1)"#,
        attachment.0
    )
    .fetch_one(db)
    .await?;
    Ok(Retried { of: attachment.0, job: row.job_id, outcome: row.outcome, says: row.says })
}

/// One reason why a job is where it is.
#[derive(Debug, Clone, Serialize)]
pub struct Reason {
    pub code: String,
    pub says: String,
    pub facts: Value,
}

/// Why a job is where it is, the weightiest reason first; nothing if there is no such job.
pub async fn explain(db: &PgPool, job: Uuid) -> sqlx::Result<Vec<Reason>> {
    let reasons = sqlx::query_as!(
        Reason,
        r#"SELECT code AS "code!", says AS "says!", facts AS "facts!" FROM gristmill.explain($1)"#,
        job
    );
    reasons.fetch_all(db).await
}

/// Waits until these jobs are over.
pub async fn until_over(db: &PgPool, ids: &[JobId]) -> sqlx::Result<Vec<Row>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    loop {
        let rows = get(db, &ids).await?;
        if rows.iter().all(Row::is_over) {
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
    payload: &Value,
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
