//! The queue as a store: putting jobs in, and every way a job's row moves.
//!
//! The statements themselves are SQL functions (`migrations/0007_queue.sql`), so other
//! languages use the same ones. `runtime` takes jobs out through [`desk`].

pub mod desk;
mod lease;
pub mod limits;

pub use lease::{Fence, Lease};

use crate::domain::{JobId, WorkspaceId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

/// What lies in the queue between the one who asks and the one who works.
pub trait Payload: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name stored with the row. Renaming it strands the rows already queued.
    const KIND: &'static str;

    /// Two payloads with one key are one job until it is over; `None` never collides.
    fn key(&self) -> Option<String> {
        None
    }
}

/// What became of a request to queue a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    New(JobId),
    /// A job with this key is there already and not over.
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
    #[error(transparent)]
    Database(#[from] sqlx::Error),
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
    pub delay_seconds: f64,
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
                                  run_at => now() + $6 * interval '1 s', parent => $7)"#,
        P::KIND,
        serde_json::to_value(payload)?,
        payload.key(),
        workspace.0,
        terms.priority,
        terms.delay_seconds,
        terms.parent.map(|job| job.0),
    )
    .fetch_one(conn)
    .await?;
    let id = JobId(row.job_id);
    Ok(if row.is_new { Enqueued::New(id) } else { Enqueued::Duplicate(id) })
}
