//! `tool_call`: runs one call that a model made, at most once where twice would be once too often.
//!
//! After `gristmill.call_tool` of the chat layer; what comes out is a result row, the `tool` message
//! and events. The order of steps is the guarantee: `ledger::take_up` judges what a dead worker
//! left, `clear` asks the rows whether the call may be made, `ready` opens what it is made with,
//! `ledger::start` writes that it is about to be, and only then `dispatch` sends it; `outcome` writes what became of it. A job that
//! waits (for a person, a credential, money, its turn, its siblings) holds no place, and a result
//! that is there before its elders waits as a row.
//!
//! Accepted race: between the start and the outcome nobody knows whether the other side acted. A
//! worker that dies there leaves an effectful call UNKNOWN, also when nothing had been sent yet.

mod clear;
mod dispatch;
mod knowledgebase;
mod ledger;
mod outcome;
mod progress;
mod read_result;
mod ready;
mod server;
mod view;

use crate::context::Context;
use crate::domain::ToolCallId;
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::queue::limits::Limit;
use crate::queue::{Lane, Payload};
use crate::store::Tx;
use crate::store::tool_calls::Call;
use ledger::{Started, Taken};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub use read_result::READ_RESULT;

/// Runs one call; everything else about it is read from its rows.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    pub call: ToolCallId,
}

impl Payload for ToolCall {
    const KIND: &'static str = "tool_call";
    const LANE: Lane = Lane::Interactive;

    fn key(&self) -> Option<String> {
        Some(self.call.to_string())
    }
}

/// Whether the job goes on to its next step.
enum Step<T> {
    On(T),
    /// Its rows say all there is to say: it is finished, or parked.
    Over(Done),
}

impl Job for ToolCall {
    /// Longer than any call may take (`tools.total_seconds`), so that the call's own limit is told.
    const TIMEOUT: Duration = Duration::from_mins(65);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let taken = match ledger::take_up(ctx, turn, self.call).await? {
            Step::On(taken) => taken,
            Step::Over(done) => return Ok(done),
        };
        let started = match taken {
            Taken::New(call) => begin(ctx, turn, call).await?,
            Taken::Open(call, open) => ledger::go_on(ctx, turn, call, open).await?,
        };
        let started = match started {
            Step::On(started) => started,
            Step::Over(done) => return Ok(done),
        };
        let given = progress::told(ctx, turn, &started, dispatch::dispatch).await;
        outcome::settle(ctx, turn, &started, given).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        ledger::give_up(tx, self.call, why).await
    }
}

/// From a call that was asked for to one that is about to be made.
async fn begin(ctx: &Context, turn: &Turn, call: Call) -> Result<Step<Started>, JobError> {
    let cleared = match clear::clear(ctx, turn, &call).await? {
        Step::On(cleared) => cleared,
        Step::Over(done) => return Ok(Step::Over(done)),
    };
    let ready = match ready::prepare(ctx, turn, &call, &cleared).await {
        Ok(ready) => ready,
        Err(error) => return clear::unready(ctx, turn, &call, error).await.map(Step::Over),
    };
    if let Some(tool) = &cleared.tool {
        let limit = Limit { key_ref: format!("tool:{}", tool.id), model: "calls".into() };
        turn.take(ctx, &limit, 0).await?;
    }
    ledger::start(ctx, turn, (call, cleared, ready)).await
}
