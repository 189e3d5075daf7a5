//! The write-ahead ledger: what a dead worker left is judged, and a start is committed before
//! anything is sent.

use super::clear::{self, Cleared};
use super::ready::{self, Ready};
use super::{Step, outcome, server};
use crate::context::Context;
use crate::domain::{Effect, ToolCallId, ToolCallState};
use crate::job::{Done, JobError, Parked, Turn, Why};
use crate::store::Tx;
use crate::store::tool_attempts::{self, Open, Outcome, Start};
use crate::store::tool_calls::{self, Call};
use std::time::Duration;
use uuid::Uuid;

/// A call that waits for its siblings is woken when one ends; should that be missed, it looks again.
const SIBLINGS_PAUSE: Duration = Duration::from_secs(1);
/// How long an UNKNOWN call waits for a person's word where no setting is at hand.
const PATIENCE: Duration = Duration::from_hours(24);

/// A call that may have reached the other side from now on.
pub struct Started {
    pub call: Call,
    pub cleared: Cleared,
    pub ready: Ready,
    /// The call id that the other side sees.
    pub attempt: Uuid,
    /// Work that goes on at the other side since an earlier attempt of the job.
    pub task: Option<String>,
    /// Since the start.
    pub age: Duration,
}

/// A call that the job has in its hands.
pub enum Taken {
    /// It is to be made.
    New(Call),
    /// It was made, and the other side works on it.
    Open(Call, Open),
}

/// Holds the call and judges what was there before.
pub async fn take_up(ctx: &Context, turn: &Turn, id: ToolCallId) -> Result<Step<Taken>, JobError> {
    use ToolCallState::{Budget, NeedsApproval, NeedsAuth, Requested, Started, Unknown};
    let mut tx = turn.begin(ctx).await?;
    let Some(mut call) = tool_calls::hold(&mut tx, id).await? else {
        // Removed with its workspace or conversation.
        return Ok(Step::Over(turn.nothing_to_write()));
    };
    match call.state {
        Requested | NeedsApproval | NeedsAuth | Budget => {}
        Started => {
            let open = tool_attempts::open(&mut tx, id).await?;
            if let Some(open) = open.clone().filter(|open| open.task.is_some()) {
                tx.commit().await?;
                return Ok(Step::On(Taken::Open(call, open)));
            }
            let effect = clear::effect_now(&mut tx, &call, open.as_ref()).await?;
            let reason = "its worker went away before the outcome was written";
            if effect == Effect::Effectful {
                return unknown(ctx, turn, tx, (&call, open.as_ref().map(|open| open.id), reason))
                    .await
                    .map(Step::Over);
            }
            if let Some(open) = open {
                let outcome = Outcome { state: Unknown, failure: Some(reason), unsent: false };
                tool_attempts::finish(&mut tx, open.id, outcome).await?;
            }
            tool_calls::request_again(&mut tx, id).await?;
            call.state = Requested;
        }
        // Woken by hand, but nobody has said a word on it.
        Unknown if !call.has_result => {
            let reason = "a person must say what became of it: `gristmill tool resolve`";
            return turn.park(tx, Parked::NeedsApproval, reason).await.map(Step::Over);
        }
        _ => return turn.finish(tx).await.map(Step::Over),
    }
    tx.commit().await?;
    Ok(Step::On(Taken::New(call)))
}

/// Writes that the call is about to be made; nothing was sent before this commits.
pub async fn start(
    ctx: &Context,
    turn: &Turn,
    (call, cleared, ready): (Call, Cleared, Ready),
) -> Result<Step<Started>, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let Some(call) = tool_calls::hold(&mut tx, call.id).await? else {
        return Ok(Step::Over(turn.nothing_to_write()));
    };
    if call.state != ToolCallState::Requested {
        // Denied or cancelled since it was looked at.
        return turn.finish(tx).await.map(Step::Over);
    }
    if tool_calls::are_siblings_busy(&mut tx, &call, cleared.parallel).await? {
        let reason = format!("siblings: {} calls of the message are at work", cleared.parallel);
        return Err(JobError::Wait { delay: SIBLINGS_PAUSE, reason });
    }
    let mut tx = match clear::still(ctx, turn, tx, (&call, &cleared)).await? {
        Step::On(tx) => tx,
        Step::Over(done) => return Ok(Step::Over(done)),
    };
    if cleared.effect == Effect::Effectful
        && !call.ordered
        && tool_attempts::was_left_open(&mut tx, call.id).await?
    {
        let reason = "it was started when it was taken for harmless, and may have been done then";
        return unknown(ctx, turn, tx, (&call, None, reason)).await.map(Step::Over);
    }
    let start =
        Start { call: call.id, effect: cleared.effect, ordered: call.ordered, ordered_by: call.ordered_by };
    let attempt = tool_attempts::insert(&mut tx, turn.workspace(), start).await?;
    tool_calls::start(&mut tx, call.id, cleared.definition).await?;
    tx.commit().await?;
    Ok(Step::On(Started { call, cleared, ready, attempt, task: None, age: Duration::ZERO }))
}

/// Goes on with a call that the other side works on since an earlier attempt.
pub async fn go_on(ctx: &Context, turn: &Turn, call: Call, open: Open) -> Result<Step<Started>, JobError> {
    let ready = match clear::again(ctx, turn, &call).await? {
        Some(cleared) => match ready::prepare(ctx, turn, &call, &cleared).await {
            Ok(ready) => Ok((cleared, ready)),
            Err(error @ (JobError::Transient(_) | JobError::Wait { .. } | JobError::Lost))
                if call.called_off.is_none() || !outcome::is_last_try(turn) =>
            {
                return Err(error);
            }
            Err(JobError::Park { why: Parked::NeedsAuth, reason })
                if call.called_off.is_none() && open.effect != Effect::Effectful =>
            {
                return wait_at_work(ctx, turn, &call, &reason).await.map(Step::Over);
            }
            Err(error) => Err(format!("its server works on it and cannot be asked any more: {error}")),
        },
        None => Err("its server works on it, and the tool was removed".to_owned()),
    };
    if let Some(why) = &call.called_off {
        if let (Ok((_, Ready::Mcp(connected))), Some(task)) = (&ready, &open.task) {
            server::call_off(ctx, connected, task).await;
        }
        let mut tx = turn.begin(ctx).await?;
        tool_calls::end(&mut tx, call.id, ToolCallState::Cancelled, why).await?;
        return turn.finish(tx).await.map(Step::Over);
    }
    match ready {
        Ok((mut cleared, ready)) => {
            let mut tx = turn.begin(ctx).await?;
            tool_calls::goes_on(&mut tx, call.id).await?;
            tx.commit().await?;
            cleared.effect = open.effect;
            let Open { id: attempt, task, age, .. } = open;
            Ok(Step::On(Started { call, cleared, ready, attempt, task, age }))
        }
        Err(why) if open.effect != Effect::Effectful => {
            let mut tx = turn.begin(ctx).await?;
            tool_calls::end(&mut tx, call.id, ToolCallState::Error, &why).await?;
            turn.finish(tx).await.map(Step::Over)
        }
        Err(why) => {
            let tx = turn.begin(ctx).await?;
            unknown(ctx, turn, tx, (&call, Some(open.id), &why)).await.map(Step::Over)
        }
    }
}

/// Its server works on it, and can be asked again once somebody saved a credential: nothing is lost
/// meanwhile, so the call stays STARTED.
pub async fn wait_at_work(ctx: &Context, turn: &Turn, call: &Call, why: &str) -> Result<Done, JobError> {
    let reason = format!("credential: {why}");
    let mut tx = turn.begin(ctx).await?;
    tool_calls::wait_at_work(&mut tx, call.id, (&reason, outcome::patience(ctx))).await?;
    turn.park(tx, Parked::NeedsAuth, &reason).await
}

/// Nobody knows whether it was done: a person is asked, and nothing is sent meanwhile.
pub async fn unknown(
    ctx: &Context,
    turn: &Turn,
    mut tx: Tx,
    (call, attempt, why): (&Call, Option<Uuid>, &str),
) -> Result<Done, JobError> {
    mark_unknown(&mut tx, call, attempt, (why, outcome::patience(ctx))).await?;
    turn.park(tx, Parked::NeedsApproval, &format!("the outcome is unknown: {why}")).await
}

async fn mark_unknown(
    tx: &mut Tx,
    call: &Call,
    attempt: Option<Uuid>,
    (why, patience): (&str, Duration),
) -> sqlx::Result<()> {
    if let Some(attempt) = attempt {
        let outcome = Outcome { state: ToolCallState::Unknown, failure: Some(why), unsent: false };
        tool_attempts::finish(tx, attempt, outcome).await?;
    }
    tool_calls::park(tx, call.id, ToolCallState::Unknown, (why, patience)).await
}

/// Writes the job's end on its call: what it did not come to is told to the model, and what may
/// have been done is asked of a person.
pub async fn give_up(tx: &mut Tx, id: ToolCallId, why: &Why) -> sqlx::Result<()> {
    use ToolCallState::{Budget, Cancelled, Error, NeedsApproval, NeedsAuth, Requested, Started};
    let Some(call) = tool_calls::hold(tx, id).await? else { return Ok(()) };
    let called_off = why.code == "cancelled";
    match call.state {
        Started if called_off => tool_calls::end(tx, id, Cancelled, "cancelled while it was at work").await,
        Started => {
            let open = tool_attempts::open(tx, id).await?;
            if clear::effect_now(tx, &call, open.as_ref()).await? == Effect::Effectful {
                let attempt = open.map(|open| open.id);
                return mark_unknown(tx, &call, attempt, (&why.reason, PATIENCE)).await;
            }
            tool_calls::end(tx, id, Error, &why.reason).await
        }
        Requested if !called_off => tool_calls::end(tx, id, Error, &why.reason).await,
        Requested | NeedsApproval | NeedsAuth | Budget => {
            tool_calls::end(tx, id, Cancelled, &why.reason).await
        }
        _ => Ok(()),
    }
}
