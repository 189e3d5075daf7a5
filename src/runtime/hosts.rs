//! Tells which runtimes this host has, so that people see why a server starts here and not there.

use crate::catalogue::runtimes;
use crate::context::Context;
use crate::store::runtime_statuses::{self, Status};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After the start, which has more urgent things to do.
const FIRST: Duration = Duration::from_secs(5);
/// Runtimes change when somebody installs one.
const AGAIN: Duration = Duration::from_hours(6);

/// This host's name.
pub fn name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Starts telling; it ends when `end` fires.
pub fn start(ctx: &Arc<Context>, end: CancellationToken) {
    let ctx = Arc::clone(ctx);
    tokio::spawn(end.run_until_cancelled_owned(async move {
        tokio::time::sleep(FIRST).await;
        loop {
            for status in here(&ctx.settings.mcp.path).await {
                if let Err(error) = runtime_statuses::report(&ctx.db, &status).await {
                    tracing::warn!(%error, "the runtimes of this host were not noted");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }));
}

/// What this host has.
pub async fn here(path: &str) -> Vec<Status> {
    let host = match name() {
        unnamed if unnamed.is_empty() => "localhost".to_owned(),
        name => name,
    };
    let found = runtimes::look(path).await.into_iter();
    let status = |runtime: runtimes::Runtime| Status {
        host: host.clone(),
        runtime: runtime.name.to_owned(),
        version: runtime.version,
        path: runtime.path.map(|path| path.display().to_string()),
    };
    found.map(status).collect()
}
