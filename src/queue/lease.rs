//! The lease of one job and its fence: no transaction of a worker that lost the lease commits.

use crate::domain::{JobId, WorkspaceId};
use sqlx::PgConnection;

/// The right to work on a job: it holds while the row's epoch is this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    pub job: JobId,
    pub epoch: i32,
    pub workspace: WorkspaceId,
}

/// Why a fenced statement did not go through.
#[derive(Debug, thiserror::Error)]
pub enum Fence {
    /// Somebody else has the job now: whatever this worker still does must not be written.
    #[error("the lease was lost")]
    Lost,
    #[error(transparent)]
    Database(sqlx::Error),
}

/// The SQLSTATE that `gristmill.enter`, `complete` and `bury` raise for a lease that moved on.
const LEASE_LOST: &str = "GM001";

impl From<sqlx::Error> for Fence {
    fn from(error: sqlx::Error) -> Self {
        let lost = error.as_database_error().is_some_and(|e| e.code().as_deref() == Some(LEASE_LOST));
        if lost { Self::Lost } else { Self::Database(error) }
    }
}

impl Lease {
    /// Sets the tenant and holds the job's row until the transaction ends, or fails if the
    /// epoch has moved on. Must be the first statement of every effect transaction.
    pub async fn enter(&self, tx: &mut PgConnection) -> Result<(), Fence> {
        sqlx::query!("SELECT gristmill.enter($1, $2, $3)", self.job.0, self.epoch, self.workspace.0)
            .execute(tx)
            .await?;
        Ok(())
    }

    /// Ends the job in the transaction of its effect: both commit or neither.
    pub async fn complete(&self, tx: &mut PgConnection) -> Result<(), Fence> {
        sqlx::query!("SELECT gristmill.complete($1, $2)", self.job.0, self.epoch).execute(tx).await?;
        Ok(())
    }

    /// Lays the job among the dead in the transaction that tells its subject why.
    pub async fn bury(&self, tx: &mut PgConnection, why: &str) -> Result<(), Fence> {
        sqlx::query!("SELECT gristmill.bury($1, $2, $3)", self.job.0, self.epoch, why).execute(tx).await?;
        Ok(())
    }

    /// Ends the job as cancelled in the transaction that tells its subject.
    pub async fn call_off(&self, tx: &mut PgConnection, why: &str) -> Result<(), Fence> {
        sqlx::query!("SELECT gristmill.bury($1, $2, $3, 'CANCELLED')", self.job.0, self.epoch, why)
            .execute(tx)
            .await?;
        Ok(())
    }
}
