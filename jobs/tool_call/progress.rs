//! What a call says of itself while it is at work: events, at most one a second.

use super::dispatch::Failure;
use super::ledger::Started;
use super::view;
use crate::context::Context;
use crate::domain::ToolOutput;
use crate::job::{JobError, Turn};
use crate::store::events::{Event, announce};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two progress events of one call; the newest word wins.
const EVERY: Duration = Duration::from_secs(1);
/// Words that wait to be told.
const WAITING: usize = 64;
/// A call may take this much longer than its limit: the part that makes it knows the limit too, and
/// says more of what happened.
const OVERTIME: Duration = Duration::from_secs(5);

/// A word of a tool at work.
#[derive(Debug, Clone)]
pub enum Said {
    Progress { done: f64, total: Option<f64>, message: Option<String> },
    Log { level: String, text: String },
}

/// Makes the call within its time, and tells what it says meanwhile.
pub async fn told(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    make: impl AsyncFnOnce(&Context, &Turn, &Started, mpsc::Sender<Said>) -> Result<ToolOutput, Failure>,
) -> Result<ToolOutput, Failure> {
    let (said, mut heard) = mpsc::channel(WAITING);
    let total = started.cleared.total;
    let call = tokio::time::timeout(total + OVERTIME, make(ctx, turn, started, said));
    tokio::pin!(call);
    let mut last: Option<Instant> = None;
    let mut latest: Option<Said> = None;
    let mut open = true;
    loop {
        let due = last.map_or(Duration::ZERO, |last| EVERY.saturating_sub(last.elapsed()));
        tokio::select! {
            biased;
            ended = &mut call => {
                return ended.unwrap_or_else(|_| Err(Failure::silent(format!("no end after {} s", total.as_secs()))));
            }
            word = heard.recv(), if open => match word {
                Some(word) => latest = Some(word),
                None => open = false,
            },
            () = tokio::time::sleep(due), if latest.is_some() => {
                if let Some(word) = latest.take() && let Err(error) = tell(ctx, turn, started, word).await {
                    // Nothing of the call depends on it.
                    tracing::debug!(%error, "progress was not told");
                }
                last = Some(Instant::now());
            }
        }
    }
}

async fn tell(ctx: &Context, turn: &Turn, started: &Started, word: Said) -> Result<(), JobError> {
    let short = |text: String| view::clean(&text).chars().take(500).collect::<String>();
    let body = match word {
        Said::Progress { done, total, message } => {
            json!({ "attempt": started.attempt, "done": done, "total": total, "message": message.map(short) })
        }
        Said::Log { level, text } => {
            json!({ "attempt": started.attempt, "level": short(level), "log": short(text) })
        }
    };
    let mut tx = turn.begin(ctx).await?;
    announce(&mut tx, turn.workspace(), &Event::ToolProgress { id: started.call.id, body }).await?;
    tx.commit().await?;
    Ok(())
}
