//! What became of a call that was started: its answer, another try, a question to a person.

use super::dispatch::{Failure, Reached};
use super::ledger::{self, Started};
use super::{clear, view};
use crate::context::Context;
use crate::domain::{Effect, ToolCallState, ToolOutput};
use crate::job::{Done, JobError, Parked, Turn};
use crate::store::tool_attempts::{self, Outcome};
use crate::store::tool_calls;
use crate::store::tool_results::{self, Place};
use anyhow::anyhow;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::time::Duration;
use uuid::Uuid;

/// Attempts of a call's job, as `gristmill.call_tool` queues it.
const TRIES: i32 = 4;
/// An answer that cannot be written is kept for as long as these pauses take, or the call becomes
/// UNKNOWN although its outcome was known.
const PAUSES_MS: [u64; 6] = [100, 300, 1_000, 2_000, 4_000, 8_000];
/// Of a failure, what stands in its row.
const REASON_CHARS: usize = 500;

/// How long a parked call waits for somebody.
pub fn patience(ctx: &Context) -> Duration {
    Duration::from_hours(ctx.settings.tools.approval_hours.into())
}

/// Writes what came of it.
pub async fn settle(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    given: Result<ToolOutput, Failure>,
) -> Result<Done, JobError> {
    match given {
        Ok(output) => answer(ctx, turn, started, (output, false)).await,
        Err(failure) => fail(ctx, turn, started, failure).await,
    }
}

/// Whether the job has no other try after this one.
pub fn is_last_try(turn: &Turn) -> bool {
    turn.attempt >= TRIES
}

async fn fail(ctx: &Context, turn: &Turn, started: &Started, failure: Failure) -> Result<Done, JobError> {
    match failure.goes_on {
        Some(delay) if !failure.transient => {
            let reason = "its server works on it".to_owned();
            return Err(JobError::Wait { delay, reason });
        }
        // The work goes on all the same; whoever takes the job up next asks again.
        Some(_) if !is_last_try(turn) => {
            return Err(JobError::transient(anyhow!("{}", short(&failure.text))));
        }
        _ => {}
    }
    tracing::info!(call = %started.call.id, reached = ?failure.reached, transient = failure.transient, "the call failed");
    let effectful = started.cleared.effect == Effect::Effectful;
    if failure.needs_auth && started.task.is_some() && !effectful {
        return ledger::wait_at_work(ctx, turn, &started.call, &short(&failure.text)).await;
    }
    if failure.needs_auth && failure.reached != Reached::Perhaps {
        return ask_for_credential(ctx, turn, started, &failure.text).await;
    }
    if failure.reached == Reached::Perhaps && effectful {
        let mut tx = turn.begin(ctx).await?;
        let Some(call) = tool_calls::hold(&mut tx, started.call.id).await? else {
            return Ok(turn.nothing_to_write());
        };
        let why = short(&failure.text);
        return ledger::unknown(ctx, turn, tx, (&call, Some(started.attempt), &why)).await;
    }
    let unsent = failure.reached == Reached::No;
    if failure.transient && (unsent || !effectful) && !is_last_try(turn) {
        return try_again(ctx, turn, started, &failure).await;
    }
    let mut output = failure.partial.unwrap_or_default();
    output.content.extend(ToolOutput::text(failure.text).content);
    if unsent && was_done_before(ctx, turn, started).await? {
        let note = "This start was not sent, but an earlier start of it may have been done.";
        output.content.extend(ToolOutput::text(note).content);
    }
    output.is_error = true;
    answer(ctx, turn, started, (output, unsent)).await
}

async fn was_done_before(ctx: &Context, turn: &Turn, started: &Started) -> Result<bool, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let may = tool_attempts::may_be_done(&mut tx, started.call.id, Some(started.attempt)).await?;
    tx.commit().await?;
    Ok(may)
}

async fn ask_for_credential(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    why: &str,
) -> Result<Done, JobError> {
    let reason = format!("credential: {}", short(why));
    let mut tx = turn.begin(ctx).await?;
    // Refused at the door, so nothing was done.
    let outcome = Outcome { state: ToolCallState::Error, failure: Some(&reason), unsent: true };
    tool_attempts::finish(&mut tx, started.attempt, outcome).await?;
    clear::park(ctx, turn, tx, (&started.call, ToolCallState::NeedsAuth, Parked::NeedsAuth, &reason)).await
}

async fn try_again(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    failure: &Failure,
) -> Result<Done, JobError> {
    let unsent = failure.reached == Reached::No;
    let state =
        if failure.reached == Reached::Perhaps { ToolCallState::Unknown } else { ToolCallState::Error };
    let mut tx = turn.begin(ctx).await?;
    let outcome = Outcome { state, failure: Some(&short(&failure.text)), unsent };
    tool_attempts::finish(&mut tx, started.attempt, outcome).await?;
    tool_calls::request_again(&mut tx, started.call.id).await?;
    let tries = tool_attempts::count(&mut tx, started.call.id).await?;
    tx.commit().await?;
    if let Some(delay) = failure.retry_after.filter(|_| tries < i64::from(TRIES)) {
        return Err(JobError::Wait { delay, reason: short(&failure.text) });
    }
    Err(JobError::transient(anyhow!("{}", short(&failure.text))))
}

/// Stores the answer and writes the messages whose turn it is, in the transaction that ends the job.
async fn answer(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (output, unsent): (ToolOutput, bool),
) -> Result<Done, JobError> {
    let output = view::cleaned(output);
    let error = output.is_error.then(|| short(&view::text_of(&output)));
    let result = make(ctx, turn, started, output, error.clone()).await;
    for pause in PAUSES_MS {
        match write(ctx, turn, started, (&result, unsent)).await {
            Err(JobError::Transient(reason)) => {
                tracing::warn!(%reason, "the answer could not be written yet");
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            other => return other,
        }
    }
    write(ctx, turn, started, (&result, unsent)).await
}

async fn write(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (result, unsent): (&tool_results::Result, bool),
) -> Result<Done, JobError> {
    let call = &started.call;
    let error = result.error.as_deref();
    let state = if error.is_some() { ToolCallState::Error } else { ToolCallState::Ok };
    let mut tx = turn.begin(ctx).await?;
    tool_attempts::finish(&mut tx, started.attempt, Outcome { state, failure: error, unsent }).await?;
    tool_calls::finish(&mut tx, call.id, error).await?;
    tool_results::insert(&mut tx, turn.workspace(), call.id, result).await?;
    tool_calls::write_messages(&mut tx, call.message).await?;
    turn.finish(tx).await
}

/// The stored form: a small one in its row, a large one in the bucket, where the bucket answers.
async fn make(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    output: ToolOutput,
    error: Option<String>,
) -> tool_results::Result {
    let settings = &ctx.settings.tools;
    let id = Uuid::now_v7();
    let inline = serde_json::to_vec(&output).map_or(0, |bytes| bytes.len()) <= settings.inline_bytes;
    let seen = view::View::of(&output, &started.call.tool_name, id, settings.view_chars, inline);
    let value: Value = serde_json::to_value(&output).unwrap_or_default();
    let bytes = value.to_string().into_bytes();
    let sha256: [u8; 32] = Sha256::digest(&bytes).into();
    let size = bytes.len();
    let key = ctx.objects.tenant_key(turn.workspace(), &format!("tool-results/{id}.json"));
    let place = if inline { Place::Row(value) } else { store(ctx, value, bytes, key).await };
    tool_results::Result {
        id,
        place,
        sha256,
        size,
        view: seen.text,
        blocks: seen.blocks,
        truncated: seen.truncated,
        error,
    }
}

/// Puts a large result into the bucket; one that cannot be put there stays in its row.
async fn store(ctx: &Context, value: Value, bytes: Vec<u8>, key: String) -> Place {
    let bucket = ctx.settings.objects.bucket.clone();
    let put = async {
        let room = ctx.spool.room()?;
        let file = room.path().join("result");
        tokio::fs::write(&file, &bytes).await?;
        ctx.objects.upload(&bucket, &key, &file, Some("application/json")).await?;
        Ok::<(), anyhow::Error>(())
    };
    match put.await {
        Ok(()) => Place::Object { bucket, key },
        Err(error) => {
            tracing::warn!(%error, size = bytes.len(), "the bucket took no result; it stays in its row");
            Place::Row(value)
        }
    }
}

fn short(text: &str) -> String {
    let line: String = view::clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().take(REASON_CHARS).collect();
    if cut.is_empty() { "no reason was given".to_owned() } else { cut }
}
