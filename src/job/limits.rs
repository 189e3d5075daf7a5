//! Turns at shared limits, as jobs take them.

use crate::context::Context;
use crate::job::{JobError, Turn};
use crate::queue::limits::{self, Limit};
use std::time::Duration;

/// A wait so short that a claim would take longer is slept through, place and all.
const SHORT: Duration = Duration::from_millis(200);
/// Looks within one attempt: people who go first can push a bulk job's turn on each time.
const LOOKS: u32 = 5;

impl Turn {
    /// Takes a turn at `limit`, to be called right before each call to the provider. When it is
    /// not yet this job's turn, the `Wait` it answers with brings the job back when it is: no
    /// attempt is spent and no place held.
    ///
    /// An attempt begins anew after such a wait: a job that makes several calls stores what each
    /// one brought before it asks for the next turn.
    pub async fn take(&self, ctx: &Context, limit: &Limit, tokens: u64) -> Result<(), JobError> {
        for look in 1.. {
            match limits::take_turn(&ctx.db, self.job(), limit, tokens).await? {
                None => break,
                Some(turned) if turned.wait <= SHORT && look < LOOKS => tokio::time::sleep(turned.wait).await,
                Some(turned) => return Err(JobError::Wait { delay: turned.wait, reason: turned.reason }),
            }
        }
        Ok(())
    }

    /// Gives back what the estimate had too much, or pays what it had too little.
    pub async fn settle(&self, ctx: &Context, limit: &Limit, tokens: u64) -> Result<(), JobError> {
        limits::settle_turn(&ctx.db, self.job(), limit, tokens).await?;
        Ok(())
    }

    /// The provider said when to come back: nobody calls it before that, and this job has the
    /// next turn it can get. To be returned from the job.
    pub async fn told_to_wait(
        &self,
        ctx: &Context,
        limit: &Limit,
        (wait, tokens): (Duration, u64),
        why: &str,
    ) -> JobError {
        let asked = async {
            limits::pause(&ctx.db, limit, wait, why).await?;
            limits::take_turn(&ctx.db, self.job(), limit, tokens).await
        };
        match asked.await {
            Ok(Some(turned)) => JobError::Wait { delay: turned.wait, reason: turned.reason },
            Ok(None) => JobError::Wait { delay: wait, reason: why.to_owned() },
            Err(error) => error.into(),
        }
    }
}
