//! `tool_call`: runs one call that a model made, at most once where twice would be once too often.
//!
//! After `gristmill.call_tool` of the chat layer; what comes out is a result row, the `tool` message
//! and events. The order of steps is the guarantee: [`ledger::take_up`] judges what a dead worker
//! left, [`clear`] asks the rows whether the call may be made, [`ledger::start`] writes that it is
//! about to be, and only then [`dispatch`] sends it; [`outcome`] writes what became of it. A job that
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
mod view;

use crate::context::Context;
use crate::domain::ToolCallId;
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::queue::limits::Limit;
use crate::queue::{Lane, Payload};
use crate::store::Tx;
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
        let call = match ledger::take_up(ctx, turn, self.call).await? {
            Step::On(call) => call,
            Step::Over(done) => return Ok(done),
        };
        let cleared = match clear::clear(ctx, turn, &call).await? {
            Step::On(cleared) => cleared,
            Step::Over(done) => return Ok(done),
        };
        if let Some(tool) = &cleared.tool {
            let limit = Limit { key_ref: format!("tool:{}", tool.id), model: "calls".into() };
            turn.take(ctx, &limit, 0).await?;
        }
        let started = match ledger::start(ctx, turn, call, cleared).await? {
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
