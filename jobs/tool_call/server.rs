//! A call of an MCP server's tool, and work that such a server goes on with by itself.
//!
//! A server may make a task of a call. Its name is stored before it is waited for, so whoever takes
//! the job up asks the server for it again; between two looks the job holds no place.

use super::dispatch::{Failure, Reached};
use super::ledger::Started;
use super::progress::Said;
use crate::context::Context;
use crate::domain::ToolOutput;
use crate::job::{JobError, Turn};
use crate::jobs::authenticate::give_up;
use crate::jobs::connect::{Connected, Wanted, connect};
use crate::mcp::{Answer, Call, Heard, McpError, Task};
use crate::store::{jobs, mcp_servers, tool_attempts};
use std::time::Duration;
use tokio::sync::mpsc;

/// A shorter pause between two looks at a task is slept through.
const SHORT: Duration = Duration::from_secs(2);
const HTTP_UNAUTHORIZED: u16 = 401;

/// Makes the call, or asks for the work it became.
pub async fn run(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (connected, said): (&Connected, mpsc::Sender<Said>),
) -> Result<ToolOutput, Failure> {
    let answer = match &started.task {
        Some(id) => poll(ctx, connected, id).await?,
        None => ask(ctx, turn, started, (connected, said)).await?,
    };
    match answer {
        Answer::Done(output) => Ok(output),
        Answer::Task(task) => wait_for(ctx, turn, started, (connected, task)).await,
    }
}

async fn ask(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (connected, said): (&Connected, mpsc::Sender<Said>),
) -> Result<Answer, Failure> {
    let refused = match send(ctx, turn, started, (connected, said.clone())).await {
        Err(McpError::NeedsAuth { status: HTTP_UNAUTHORIZED, .. }) if connected.version().is_some() => {
            connected.version()
        }
        other => return other.map_err(failure),
    };
    // It was turned away at the door: once more, with a token renewed.
    let wanted = Wanted {
        workspace: turn.workspace(),
        connection: connected.row.id,
        user: started.call.user,
        refused,
    };
    let again = connect(ctx, &wanted).await.map_err(|error| Failure {
        needs_auth: matches!(error, JobError::Park { .. }),
        ..Failure::before(&anyhow::anyhow!("{error}"), matches!(error, JobError::Transient(_)))
    })?;
    let sent = send(ctx, turn, started, (&again, said)).await;
    if let (Err(McpError::NeedsAuth { status: HTTP_UNAUTHORIZED, .. }), Some(credential)) =
        (&sent, again.key.credential)
    {
        let given_up = give_up(ctx, turn.workspace(), credential).await;
        given_up.map_err(|error| Failure::before(&error.into(), true))?;
    }
    sent.map_err(failure)
}

/// Sends the call, in a task of its own: whoever drops this one leaves that one to tell the server
/// that nobody waits any more.
async fn send(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (connected, said): (&Connected, mpsc::Sender<Said>),
) -> Result<Answer, McpError> {
    let Connected { key, server, .. } = connected.clone();
    let tool = started.cleared.tool.as_ref().map(|tool| tool.remote_name.clone());
    let call = Call {
        tool: tool.unwrap_or_else(|| started.call.tool_name.clone()),
        arguments: started.call.arguments.as_object().cloned().unwrap_or_default(),
        call_id: started.attempt,
        idempotency_key: Some(started.call.id.to_string()),
        idle: started.cleared.idle,
        total: started.cleared.total,
    };
    let (heard, mut words) = mpsc::channel(64);
    let (clients, stop) = (ctx.mcp.clone(), turn.stop.clone());
    let sent = tokio::spawn(async move { clients.start(&key, &server, &call, heard, &stop).await });
    let mut changed = false;
    while let Some(word) = words.recv().await {
        match word {
            Heard::Progress { progress, total, message } => {
                // What is not told in time is old.
                said.try_send(Said::Progress { done: progress, total, message }).ok();
            }
            Heard::Log { level, data, .. } => {
                let text = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
                said.try_send(Said::Log { level, text }).ok();
            }
            Heard::ListChanged => changed = true,
        }
    }
    if changed && let Err(error) = tell_change(ctx, turn, connected).await {
        tracing::warn!(%error, "a changed list of tools was not noted; the schedule will come by");
    }
    sent.await.unwrap_or(Err(McpError::Unexpected))
}

async fn tell_change(ctx: &Context, turn: &Turn, connected: &Connected) -> sqlx::Result<()> {
    let mut tx = crate::store::tenant(&ctx.db, turn.workspace()).await?;
    mcp_servers::changed(&mut tx, connected.row.id).await?;
    tx.commit().await
}

/// Asks the server to give up its work on a call that was called off between two looks. One that
/// does not hear goes on in vain.
pub async fn call_off(ctx: &Context, connected: &Connected, task: &str) {
    if let Err(error) = ctx.mcp.cancel_task(&connected.key, &connected.server, task).await {
        tracing::info!(%error, "the server was not told that nobody waits for its work");
    }
}

async fn poll(ctx: &Context, connected: &Connected, id: &str) -> Result<Answer, Failure> {
    let polled = ctx.mcp.poll_task(&connected.key, &connected.server, id).await;
    polled.map_err(|error| {
        // The work does not end because nobody could ask for it.
        let goes_on = error.is_transient().then_some(SHORT);
        let failed = failure(error);
        let reached = if failed.reached == Reached::Answered { Reached::Answered } else { Reached::Perhaps };
        Failure { reached, goes_on, ..failed }
    })
}

/// Waits for a task: a little here, longer as a row.
async fn wait_for(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (connected, mut task): (&Connected, Task),
) -> Result<ToolOutput, Failure> {
    if started.task.is_none() {
        keep(ctx, turn, started, &task).await.map_err(|error| Failure {
            reached: Reached::Perhaps,
            ..Failure::before(&anyhow::anyhow!("the server's task was not written down: {error}"), true)
        })?;
    }
    let watch = watch_for_cancel(ctx, turn, connected, &task);
    let began = tokio::time::Instant::now();
    let ended = loop {
        if started.age + began.elapsed() > started.cleared.total {
            ctx.mcp.cancel_task(&connected.key, &connected.server, &task.id).await.ok();
            let text = format!("the server's work took longer than {} s", started.cleared.total.as_secs());
            break Err(Failure::silent(text));
        }
        if task.poll_after > SHORT {
            let text = task.message.clone().unwrap_or_else(|| "its server works on it".to_owned());
            break Err(Failure { goes_on: Some(task.poll_after), ..Failure::silent(text) });
        }
        tokio::time::sleep(task.poll_after.max(Duration::from_millis(100))).await;
        match poll(ctx, connected, &task.id).await {
            Ok(Answer::Done(output)) => break Ok(output),
            Ok(Answer::Task(next)) => task = next,
            Err(failure) => break Err(failure),
        }
    };
    watch.abort();
    ended
}

async fn keep(ctx: &Context, turn: &Turn, started: &Started, task: &Task) -> Result<(), JobError> {
    let mut tx = turn.begin(ctx).await?;
    tool_attempts::set_task(&mut tx, started.attempt, &task.id).await?;
    tx.commit().await?;
    Ok(())
}

/// Asks the server to give its work up when the job is called off; a job that is only handed on
/// leaves it alone.
fn watch_for_cancel(
    ctx: &Context,
    turn: &Turn,
    connected: &Connected,
    task: &Task,
) -> tokio::task::JoinHandle<()> {
    let Connected { key, server, .. } = connected.clone();
    let (clients, db, stop) = (ctx.mcp.clone(), ctx.db.clone(), turn.stop.clone());
    let (job, id) = (turn.job(), task.id.clone());
    tokio::spawn(async move {
        stop.cancelled().await;
        let rows = jobs::get(&db, &[job.0]).await.unwrap_or_default();
        if rows.first().is_some_and(|row| row.cancel_requested) {
            clients.cancel_task(&key, &server, &id).await.ok();
        }
    })
}

fn failure(error: McpError) -> Failure {
    let needs_auth = matches!(error, McpError::NeedsAuth { .. });
    let reached = match &error {
        error if !error.was_sent() => Reached::No,
        McpError::Answered { .. }
        | McpError::Oversize { .. }
        | McpError::WantsInput
        | McpError::Task { .. }
        | McpError::Redirected { .. } => Reached::Answered,
        _ => Reached::Perhaps,
    };
    let retry_after = match &error {
        McpError::Status { retry_after, .. } => *retry_after,
        McpError::BackingOff { wait, .. } => Some(*wait),
        _ => None,
    };
    let (transient, text) = (error.is_transient(), error.to_string());
    let partial = match error {
        McpError::Oversize { before, .. } => Some(*before),
        _ => None,
    };
    Failure { reached, transient, needs_auth, text, partial, retry_after, goes_on: None }
}
