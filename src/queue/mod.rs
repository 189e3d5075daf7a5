//! The queue as a store: putting jobs in, and every way a job's row moves.
//!
//! The statements themselves are SQL functions (`migrations/0007_queue.sql`, `0012_queue_terms.sql`),
//! so other languages use the same ones. `runtime` takes jobs out through [`desk`].

pub mod desk;
mod lease;

pub use lease::{Fence, Lease};

use crate::domain::{JobId, WorkspaceId};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlx::postgres::PgDatabaseError;
use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, PgPool};
use std::time::Duration;

/// What lies in the queue between the one who asks and the one who works.
///
/// Its JSON Schema is published by every worker, and what does not fit it is refused when it
/// is queued: a field that older rows lack needs a default.
pub trait Payload: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name stored with the row. Renaming it strands the rows already queued.
    const KIND: &'static str;
    const LANE: Lane = Lane::Bulk;

    /// Two payloads with one key are one job until it is over; `None` never collides.
    fn key(&self) -> Option<String> {
        None
    }
}

/// Who waits for a job. Each lane has its own places, so neither waits behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// A person does.
    Interactive = 0,
    /// Nobody does just now.
    Bulk = 1,
}

/// What became of a request to queue a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    New(JobId),
    /// The key is taken, by this job.
    Duplicate(JobId),
}

impl Enqueued {
    pub fn job(self) -> JobId {
        match self {
            Self::New(id) | Self::Duplicate(id) => id,
        }
    }
}

/// Why a job could not be queued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error("the payload is no JSON object: {0}")]
    Payload(#[from] serde_json::Error),
    /// No worker knows the kind, or the payload does not fit its schema.
    #[error("{message} ({hint})")]
    Refused { message: String, hint: String },
    #[error(transparent)]
    Database(sqlx::Error),
}

/// The SQLSTATE of what `gristmill.enqueue` refuses.
const INVALID_PARAMETER: &str = "22023";

impl From<sqlx::Error> for EnqueueError {
    fn from(error: sqlx::Error) -> Self {
        let refused = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
        match refused.filter(|refused| refused.code() == INVALID_PARAMETER) {
            Some(refused) => Self::Refused {
                message: refused.message().to_owned(),
                hint: refused.hint().unwrap_or_default().to_owned(),
            },
            None => Self::Database(error),
        }
    }
}

/// Queues `payload` in the caller's transaction, so the job exists exactly when the rows it
/// will read do. A taken key leaves the transaction usable.
pub async fn enqueue<P: Payload>(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    payload: &P,
) -> Result<Enqueued, EnqueueError> {
    enqueue_as(conn, workspace, payload, &Terms::default()).await
}

/// When and how a job is to be done, where the defaults do not fit.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    pub priority: i32,
    /// The job whose last transaction asks for this one.
    pub parent: Option<JobId>,
    pub delay: Duration,
    /// How long the key is taken beyond the job's end, from now on.
    pub unique_for: Option<Duration>,
}

/// [`enqueue`], with terms.
pub async fn enqueue_as<P: Payload>(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    payload: &P,
    terms: &Terms,
) -> Result<Enqueued, EnqueueError> {
    let row = sqlx::query!(
        r#"SELECT job_id AS "job_id!: uuid::Uuid", is_new AS "is_new!"
           FROM gristmill.enqueue($1, $2, key => $3, workspace => $4, priority => $5,
                                  run_at => now() + $6, parent => $7, unique_for => $8)"#,
        P::KIND,
        serde_json::to_value(payload)?,
        payload.key(),
        workspace.0,
        terms.priority,
        interval(terms.delay),
        terms.parent.map(|job| job.0),
        terms.unique_for.map(interval),
    )
    .fetch_one(conn)
    .await?;
    let id = JobId(row.job_id);
    Ok(if row.is_new { Enqueued::New(id) } else { Enqueued::Duplicate(id) })
}

/// Queues many jobs of one kind in one statement: all or none, answered in their order.
pub async fn enqueue_many<P: Payload>(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    payloads: &[P],
    terms: &Terms,
) -> Result<Vec<Enqueued>, EnqueueError> {
    let jobs = payloads.iter().map(|payload| wish(payload, terms)).collect::<Result<Vec<_>, _>>()?;
    let rows = sqlx::query!(
        r#"SELECT job_id AS "job_id!", is_new AS "is_new!" FROM gristmill.enqueue_many($1, $2) ORDER BY ord"#,
        Value::from(jobs),
        workspace.0,
    )
    .fetch_all(conn)
    .await?;
    let answer = |id, new| if new { Enqueued::New(JobId(id)) } else { Enqueued::Duplicate(JobId(id)) };
    Ok(rows.into_iter().map(|row| answer(row.job_id, row.is_new)).collect())
}

/// A job as `gristmill.enqueue_many` reads it.
fn wish<P: Payload>(payload: &P, terms: &Terms) -> Result<Value, serde_json::Error> {
    let seconds = |duration: Duration| format!("{} seconds", duration.as_secs_f64());
    Ok(json!({
        "kind": P::KIND,
        "payload": serde_json::to_value(payload)?,
        "key": payload.key(),
        "priority": terms.priority,
        "delay": seconds(terms.delay),
        "parent": terms.parent.map(|job| job.0),
        "unique_for": terms.unique_for.map(seconds),
    }))
}

/// What a worker can do: a kind, its lane and the JSON Schema of its payload.
#[derive(Debug, Clone)]
pub struct Notice {
    pub kind: &'static str,
    pub lane: Lane,
    pub schema: Value,
}

impl Notice {
    /// The notice of one kind of payload.
    pub fn of<P: Payload>() -> Self {
        Self { kind: P::KIND, lane: P::LANE, schema: schemars::schema_for!(P).to_value() }
    }
}

/// Publishes what this program can do. `version` is the newest migration it knows: it changes
/// nothing that a newer program said.
pub async fn publish(db: &PgPool, notices: &[Notice], version: i64) -> sqlx::Result<()> {
    for notice in notices {
        sqlx::query!(
            "SELECT gristmill.publish_kind($1, $2, $3, $4)",
            notice.kind,
            notice.lane as i32,
            notice.schema,
            version
        )
        .execute(db)
        .await?;
    }
    Ok(())
}

/// Asks for a job's end; answers with the state it was found in, None where there is no such job.
pub async fn cancel(db: &PgPool, job: JobId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("SELECT gristmill.cancel($1)::text", job.0).fetch_one(db).await
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: duration.as_micros() as i64 }
}
