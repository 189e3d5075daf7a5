//! The contract of a job, and every "is it tried again?" decision.
//!
//! A job does its slow work first, then writes result, next job and event in one short
//! transaction that [`Turn::begin`] fences and [`Turn::finish`] completes.

mod database;
mod limits;

use crate::chunk::ChunkError;
use crate::context::Context;
use crate::domain::{JobId, WorkspaceId};
use crate::embed::EmbedError;
use crate::extract::ExtractError;
use crate::fetch::FetchError;
use crate::objects::ObjectError;
use crate::queue::{EnqueueError, Fence, Lease, Payload};
use crate::scan::ScanError;
use crate::store::Tx;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Why a job did not finish, and so what becomes of its row.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The same payload can never succeed: an unreadable file, a refused type.
    #[error("{reason:#}")]
    Fatal {
        /// Machine-readable; stands on the subject's row.
        code: &'static str,
        reason: anyhow::Error,
    },
    /// The work was done and its answer is no: infected, encrypted, too large. The subject ends
    /// with the reason; the job itself is done.
    #[error("{reason:#}")]
    Refused { code: &'static str, reason: anyhow::Error },
    /// The world was in the way: a timeout, a 503, a lost connection.
    #[error("{0:#}")]
    Transient(anyhow::Error),
    /// The other side said when to come back. Costs no attempt.
    #[error("asked to wait {delay:?}: {reason}")]
    Wait { delay: Duration, reason: String },
    /// It cannot go on before somebody acts; it rests, at no cost, until `gristmill.unpark`.
    #[error("{why}: {reason}")]
    Park { why: Parked, reason: String },
    /// Somebody else has the job now; nothing may be written.
    #[error("the lease was lost")]
    Lost,
}

/// What a parked job waits for; the first word of its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parked {
    /// A person's yes.
    NeedsApproval,
    /// A credential that the user must give or renew.
    NeedsAuth,
    /// Money: the budget is used up.
    Budget,
}

impl std::fmt::Display for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NeedsApproval => "NEEDS_APPROVAL",
            Self::NeedsAuth => "NEEDS_AUTH",
            Self::Budget => "BUDGET",
        })
    }
}

impl JobError {
    pub fn fatal(code: &'static str, reason: impl Into<anyhow::Error>) -> Self {
        Self::Fatal { code, reason: reason.into() }
    }

    pub fn refused(code: &'static str, reason: impl Into<anyhow::Error>) -> Self {
        Self::Refused { code, reason: reason.into() }
    }

    pub fn transient(reason: impl Into<anyhow::Error>) -> Self {
        Self::Transient(reason.into())
    }
}

impl From<sqlx::Error> for JobError {
    fn from(error: sqlx::Error) -> Self {
        Fence::from(error).into()
    }
}

impl From<std::io::Error> for JobError {
    fn from(error: std::io::Error) -> Self {
        Self::Transient(error.into())
    }
}

impl From<Fence> for JobError {
    fn from(error: Fence) -> Self {
        match error {
            Fence::Lost => Self::Lost,
            Fence::Database(error) if database::is_final(&error) => Self::fatal(database::REFUSED, error),
            Fence::Database(error) => Self::Transient(error.into()),
        }
    }
}

impl From<EnqueueError> for JobError {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Payload(error) => Self::fatal("bad_payload", error),
            EnqueueError::Refused { .. } => Self::fatal("bad_payload", error),
            EnqueueError::Database(error) => error.into(),
        }
    }
}

/// Proof that a job's row was brought to its end; only [`Turn`] makes one.
#[derive(Debug)]
pub struct Done {
    pub(crate) acknowledge: bool,
}

/// One attempt at one job.
#[derive(Debug, Clone)]
pub struct Turn {
    pub lease: Lease,
    /// 1 is the first.
    pub attempt: i32,
    /// Fires when the lease is lost, the job is cancelled, or the worker must stop now.
    pub stop: CancellationToken,
}

impl Turn {
    pub fn workspace(&self) -> WorkspaceId {
        self.lease.workspace
    }

    pub fn job(&self) -> JobId {
        self.lease.job
    }

    /// Opens the effect transaction: tenant set, lease held; fails when the lease has moved on.
    pub async fn begin(&self, ctx: &Context) -> Result<Tx, JobError> {
        let mut tx = crate::store::begin(&ctx.db).await?;
        self.lease.enter(&mut tx).await?;
        Ok(tx)
    }

    /// Completes the job in `tx` and commits: the effect and the job's end are one.
    ///
    /// When the reply to COMMIT is lost the outcome is unknown; the retry that follows is
    /// fenced by the row's state, so a commit that went through is not undone or repeated.
    pub async fn finish(&self, mut tx: Tx) -> Result<Done, JobError> {
        self.lease.complete(&mut tx).await?;
        tx.commit().await?;
        Ok(Done { acknowledge: false })
    }

    /// Parks the job in `tx`, which tells its subject what it waits for, and commits.
    ///
    /// An unpark in the transaction that grants the wish cannot be missed: it finds the job
    /// parked, or at work and then keeps this attempt from parking.
    pub async fn park(&self, mut tx: Tx, why: Parked, reason: &str) -> Result<Done, JobError> {
        self.lease.park(&mut tx, &format!("{why}: {reason}")).await?;
        tx.commit().await?;
        Ok(Done { acknowledge: false })
    }

    /// Ends a job that has nothing to write; its row is acknowledged in a batch.
    pub fn nothing_to_write(&self) -> Done {
        Done { acknowledge: true }
    }
}

/// A kind of work: the fields are the payload, `run` is the work.
pub trait Job: Payload {
    /// The longest one attempt may take.
    const TIMEOUT: Duration;

    fn run(&self, ctx: &Context, turn: &Turn) -> impl Future<Output = Result<Done, JobError>> + Send;

    /// Writes the reason where the user will look, in the transaction that ends the job.
    fn gave_up(&self, tx: &mut Tx, why: &Why) -> impl Future<Output = sqlx::Result<()>> + Send {
        let _ = (tx, why);
        async { Ok(()) }
    }
}

/// Why a job ended without its result.
#[derive(Debug, Clone)]
pub struct Why {
    pub code: String,
    pub reason: String,
}

impl From<ObjectError> for JobError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Changed { .. } => Self::refused("object_changed", error),
            ObjectError::TooLarge { .. } => Self::refused("too_large", error),
            // Also what is missing, denied or rejected: a few more looks, while people mend
            // rights and endpoints; then the reason is told.
            _ => Self::transient(error),
        }
    }
}

impl From<FetchError> for JobError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Busy { retry_after: Some(delay), .. } => {
                Self::Wait { delay, reason: error.to_string() }
            }
            FetchError::Refused { .. } => Self::refused("url_refused", error),
            FetchError::NotFound { .. } => Self::refused("url_not_found", error),
            FetchError::TooLarge { .. } => Self::refused("too_large", error),
            _ if error.is_transient() => Self::transient(error),
            _ => Self::refused("url_failed", error),
        }
    }
}

impl From<ScanError> for JobError {
    fn from(error: ScanError) -> Self {
        Self::transient(error)
    }
}

impl From<ExtractError> for JobError {
    fn from(error: ExtractError) -> Self {
        if error.is_final() { Self::refused(error.code(), error) } else { Self::transient(error) }
    }
}

impl From<ChunkError> for JobError {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Read(error) => error.into(),
            _ => Self::fatal("chunking_failed", error),
        }
    }
}

impl From<EmbedError> for JobError {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::SessionLost => Self::transient(error),
            // A wrong dimension or a NaN comes back with the same text and the same model.
            _ => Self::fatal("embedding_failed", error),
        }
    }
}
