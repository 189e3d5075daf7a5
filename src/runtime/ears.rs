//! What MCP servers say unasked: that their tools changed. Until a sync has looked, the connection
//! says so, and calls of its tools wait.
//!
//! A session is in one process, so each worker listens to its own. Accepted: a server that says it
//! to no open session is found out by the schedule.

use crate::context::Context;
use crate::mcp::SessionKey;
use crate::store::mcp_servers;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at what was said.
const LOOK: Duration = Duration::from_millis(250);
/// Between two attempts to write it down.
const PAUSE: Duration = Duration::from_secs(2);

/// Starts listening; it ends when `end` fires.
pub fn start(ctx: &Arc<Context>, end: CancellationToken) {
    let ctx = Arc::clone(ctx);
    tokio::spawn(end.run_until_cancelled_owned(async move {
        loop {
            for key in ctx.mcp.changed() {
                // It is said once: it must not get lost because the database was away.
                while let Err(error) = tell(&ctx, &key).await {
                    tracing::warn!(%error, connection = %key.server, "a change of tools was not noted yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }));
}

async fn tell(ctx: &Context, key: &SessionKey) -> sqlx::Result<()> {
    let mut tx = crate::store::tenant(&ctx.db, key.workspace).await?;
    match mcp_servers::changed(&mut tx, key.server).await {
        Ok(()) => tx.commit().await,
        // The connection is gone, and nobody calls over it any more.
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == "22023") => Ok(()),
        Err(error) => Err(error),
    }
}
