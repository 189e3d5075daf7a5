//! May this call be made? Asked of the rows, each time, whatever anybody said before.

use super::{Step, outcome};
use crate::config::Ask;
use crate::context::Context;
use crate::domain::{Effect, ToolCallState};
use crate::job::{Done, JobError, Parked, Turn};
use crate::store::tool_access::{self, Access, Review, Tool};
use crate::store::tool_calls::{self, Call};
use crate::store::tool_policies::{self, Decision, Policy};
use crate::store::{Tx, tool_attempts};
use serde_json::Value;
use std::time::Duration;
use uuid::Uuid;

/// Before a call whose tool changed while it was made ready is looked at anew.
const CHANGE_PAUSE: Duration = Duration::from_millis(100);

/// A call that may be made, and how.
pub struct Cleared {
    /// `None` for a built-in one.
    pub tool: Option<Tool>,
    pub effect: Effect,
    /// The definition that was looked at.
    pub definition: Option<Uuid>,
    /// Calls of the message at work at once.
    pub parallel: i64,
    pub idle: Duration,
    pub total: Duration,
}

/// What the rows say.
enum Verdict {
    Go(Box<Cleared>),
    No(No),
}

/// Why not, or not yet.
enum No {
    /// It must not be made.
    Deny(String),
    /// It cannot be made as it is; the model may do better.
    Fail(String),
    Park(ToolCallState, Parked, String),
}

fn deny(why: impl Into<String>) -> Verdict {
    Verdict::No(No::Deny(why.into()))
}

fn fail(why: String) -> Verdict {
    Verdict::No(No::Fail(why))
}

fn wait(state: ToolCallState, parked: Parked, reason: String) -> Verdict {
    Verdict::No(No::Park(state, parked, reason))
}

/// Goes on with a call that may be made; ends or parks one that may not.
pub async fn clear(ctx: &Context, turn: &Turn, call: &Call) -> Result<Step<Cleared>, JobError> {
    let mut tx = turn.begin(ctx).await?;
    match judge(ctx, &mut tx, call).await? {
        Verdict::Go(cleared) => {
            if call.state != ToolCallState::Requested {
                tool_calls::request_again(&mut tx, call.id).await?;
            }
            tx.commit().await?;
            Ok(Step::On(*cleared))
        }
        Verdict::No(no) => stop(ctx, turn, tx, (call, no)).await.map(Step::Over),
    }
}

/// Looks once more, in the transaction that writes the start: what was taken away meanwhile stops the
/// call, and what it was made ready with must be what is there.
pub async fn still(
    ctx: &Context,
    turn: &Turn,
    mut tx: Tx,
    (call, cleared): (&Call, &Cleared),
) -> Result<Step<Tx>, JobError> {
    match judge(ctx, &mut tx, call).await? {
        Verdict::Go(now) => {
            let same = (&now.tool, now.effect, now.definition)
                == (&cleared.tool, cleared.effect, cleared.definition);
            if same {
                return Ok(Step::On(tx));
            }
            let reason = "its tool changed while it was made ready".to_owned();
            Err(JobError::Wait { delay: CHANGE_PAUSE, reason })
        }
        Verdict::No(no) => stop(ctx, turn, tx, (call, no)).await.map(Step::Over),
    }
}

/// Ends or parks a call that may not be made.
async fn stop(ctx: &Context, turn: &Turn, mut tx: Tx, (call, no): (&Call, No)) -> Result<Done, JobError> {
    let (state, why) = match no {
        No::Park(state, parked, reason) => {
            return park(ctx, turn, tx, (call, state, parked, &reason)).await;
        }
        No::Deny(why) => (ToolCallState::Denied, why),
        No::Fail(why) => (ToolCallState::Error, why),
    };
    tracing::info!(call = %call.id, %state, why, "not made");
    if state == ToolCallState::Error && call.state != ToolCallState::Requested {
        tool_calls::request_again(&mut tx, call.id).await?;
    }
    tool_calls::end(&mut tx, call.id, state, &why).await?;
    turn.finish(tx).await
}

/// A call that goes on where it was, at the other side: it was cleared when it started. `None`: its
/// tool is gone.
pub async fn again(ctx: &Context, turn: &Turn, call: &Call) -> Result<Option<Cleared>, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let access = tool_access::of_call(&mut tx, call.id).await?;
    tx.commit().await?;
    let Some(tool) = access.tool.clone() else { return Ok(None) };
    Ok(Some(cleared(ctx, &access, (tool, Effect::Effectful, None))))
}

/// A call that could not be made ready: it waits for a credential, is tried again, or is answered.
pub async fn unready(ctx: &Context, turn: &Turn, call: &Call, error: JobError) -> Result<Done, JobError> {
    let why = match error {
        JobError::Park { why: Parked::NeedsAuth, reason } => {
            let tx = turn.begin(ctx).await?;
            let reason = format!("credential: {reason}");
            return park(ctx, turn, tx, (call, ToolCallState::NeedsAuth, Parked::NeedsAuth, &reason)).await;
        }
        JobError::Refused { reason, .. } | JobError::Fatal { reason, .. } => reason,
        JobError::Transient(reason) if outcome::is_last_try(turn) => reason,
        other => return Err(other),
    };
    let mut tx = turn.begin(ctx).await?;
    tool_calls::end(&mut tx, call.id, ToolCallState::Error, &format!("{why:#}")).await?;
    turn.finish(tx).await
}

/// Parks the call and its job together. A call that looked again and still waits for the same says
/// nothing new.
pub async fn park(
    ctx: &Context,
    turn: &Turn,
    mut tx: Tx,
    (call, state, parked, reason): (&Call, ToolCallState, Parked, &str),
) -> Result<Done, JobError> {
    let waits =
        matches!(call.state, ToolCallState::NeedsApproval | ToolCallState::NeedsAuth | ToolCallState::Budget);
    if waits && call.state != state {
        tool_calls::request_again(&mut tx, call.id).await?;
    }
    tool_calls::park(&mut tx, call.id, state, (reason, outcome::patience(ctx))).await?;
    turn.park(tx, parked, reason).await
}

async fn judge(ctx: &Context, tx: &mut Tx, call: &Call) -> Result<Verdict, JobError> {
    let access = tool_access::of_call(tx, call.id).await?;
    if let Some(why) = refusal_of_asker(&access) {
        return Ok(deny(why));
    }
    if call.tool.is_none() && call.tool_name == super::READ_RESULT {
        return Ok(Verdict::Go(Box::new(built_in(ctx, &access))));
    }
    let Some(tool) = access.tool.clone() else {
        let names = tool_access::names(tx, call.id).await?;
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Ok(fail(format!("there is no such tool here; there is: {there}")));
    };
    if let Some(why) = refusal_of_tool(&access, call) {
        return Ok(deny(why));
    }
    if let Some(fault) = misfit(&tool, &call.arguments) {
        return Ok(fail(fault));
    }
    let definition = match access.review {
        Review::Ours => None,
        Review::Approved(id) => Some(id),
        Review::Refused => {
            return Ok(deny("its definition was looked at and refused"));
        }
        Review::Pending => {
            return Ok(needs_review("its definition is new or has changed and waits for a person's look"));
        }
        Review::Changed => {
            return Ok(needs_review("its server says that its tools changed, and a sync is to look first"));
        }
        Review::Unpinned => {
            return Ok(needs_review("no definition of it is kept: `gristmill tool sync` brings it"));
        }
    };
    let policies = tool_policies::of_tool(tx, tool.id).await?;
    let policy = policies.iter().find(|policy| fits(policy, &call.arguments));
    let effect = policy.and_then(|policy| policy.effect).unwrap_or(tool.effect);
    match decision(ctx, policy, effect) {
        Decision::Deny => {
            let note = policy.and_then(|policy| policy.note.as_deref()).unwrap_or("no reason was given");
            return Ok(deny(format!("a policy of the workspace forbids such a call: {note}")));
        }
        Decision::Ask if !call.ordered && !tool_calls::is_approved(tx, call.id).await? => {
            let reason = format!("approval: a person must approve this call of an {effect} tool");
            return Ok(wait(ToolCallState::NeedsApproval, Parked::NeedsApproval, reason));
        }
        Decision::Ask | Decision::Allow => {}
    }
    if !access.has_credential {
        let reason =
            format!("credential: {} needs one ({}), and none is stored", tool.name, tool.authentication);
        return Ok(wait(ToolCallState::NeedsAuth, Parked::NeedsAuth, reason));
    }
    if let Some(whose) = &access.spent_budget {
        let reason = format!("budget: the {whose}'s budget is used up");
        return Ok(wait(ToolCallState::Budget, Parked::Budget, reason));
    }
    Ok(Verdict::Go(Box::new(cleared(ctx, &access, (tool, effect, definition)))))
}

fn cleared(
    ctx: &Context,
    access: &Access,
    (tool, effect, definition): (Tool, Effect, Option<Uuid>),
) -> Cleared {
    Cleared {
        effect,
        definition,
        parallel: parallel(ctx, access),
        idle: seconds(tool.idle_seconds, ctx.settings.tools.idle_seconds),
        total: seconds(tool.total_seconds, ctx.settings.tools.total_seconds),
        tool: Some(tool),
    }
}

fn needs_review(why: &str) -> Verdict {
    wait(ToolCallState::NeedsApproval, Parked::NeedsApproval, format!("definition: {why}"))
}

fn built_in(ctx: &Context, access: &Access) -> Cleared {
    let settings = &ctx.settings.tools;
    Cleared {
        tool: None,
        effect: Effect::Read,
        definition: None,
        parallel: parallel(ctx, access),
        idle: seconds(None, settings.idle_seconds),
        total: seconds(None, settings.total_seconds),
    }
}

fn parallel(ctx: &Context, access: &Access) -> i64 {
    access.parallel_calls.map_or(i64::from(ctx.settings.tools.parallel_calls), i64::from)
}

fn seconds(own: Option<i32>, otherwise: u32) -> Duration {
    Duration::from_secs(own.map_or(u64::from(otherwise), |own| own.unsigned_abs().into()))
}

/// Why this conversation and this user make no calls at all.
fn refusal_of_asker(access: &Access) -> Option<&'static str> {
    if access.conversation_deleted {
        return Some("the conversation was deleted");
    }
    if access.is_viewer {
        return Some("whoever reads along in a shared conversation runs no tools in it");
    }
    match access.user_status.as_deref() {
        None | Some("Active") => None,
        Some(_) => Some("the user is not active"),
    }
}

/// Why this tool is not for them.
fn refusal_of_tool(access: &Access, call: &Call) -> Option<&'static str> {
    if !access.tool_enabled {
        return Some("the tool is switched off");
    }
    if !access.connection_enabled {
        return Some("the connection to the tool's server is switched off");
    }
    match (call.agent, call.user) {
        (Some(_), _) if !access.agent_has_tool => Some("the agent does not have this tool"),
        (None, Some(_)) if !access.user_has_tool => {
            Some("there is no agent, and the user does not have this tool")
        }
        (None, None) => Some("neither an agent nor a user asks for it"),
        _ if access.asks_for_user && !access.user_has_tool => Some("the user does not have this tool"),
        _ if !access.role_allows => Some("the user's role does not allow it"),
        _ => None,
    }
}

/// Why the arguments are not what the tool takes. A schema that cannot be read is the server's to judge by.
fn misfit(tool: &Tool, arguments: &Value) -> Option<String> {
    if !arguments.is_object() {
        return Some("the arguments are no JSON object".into());
    }
    let validator = jsonschema::validator_for(&tool.input_schema).ok()?;
    let faults: Vec<_> = validator
        .iter_errors(arguments)
        .take(5)
        .map(|fault| {
            let at = fault.instance_path().to_string();
            let text: String = fault.to_string().chars().take(300).collect();
            if at.is_empty() { text } else { format!("{at}: {text}") }
        })
        .collect();
    (!faults.is_empty()).then(|| format!("the arguments do not fit the tool's schema: {}", faults.join("; ")))
}

/// Whether a policy is about these arguments. One whose schema cannot be read allows nothing, and
/// forbids or asks all it may have meant. One that allows speaks of arguments that are there: a call
/// that leaves out what the policy bounds is not what it allows.
fn fits(policy: &Policy, arguments: &Value) -> bool {
    match &policy.arguments {
        None => true,
        Some(schema) if policy.decision == Decision::Allow && lacks(schema, arguments) => false,
        Some(schema) => match jsonschema::validator_for(schema) {
            Ok(validator) => validator.is_valid(arguments),
            Err(_) => policy.decision != Decision::Allow,
        },
    }
}

/// Whether an argument that the schema names is left out.
fn lacks(schema: &Value, arguments: &Value) -> bool {
    let named = schema.get("properties").and_then(Value::as_object);
    named.is_some_and(|named| named.keys().any(|name| arguments.get(name).is_none()))
}

fn decision(ctx: &Context, policy: Option<&Policy>, effect: Effect) -> Decision {
    match (policy, ctx.settings.tools.ask) {
        (Some(policy), _) => policy.decision,
        (None, Ask::Always) => Decision::Ask,
        (None, Ask::Effectful) if effect == Effect::Effectful => Decision::Ask,
        (None, _) => Decision::Allow,
    }
}

/// The effect of the call as it is judged now; what is not there any more may have had any.
pub async fn effect_now(
    tx: &mut Tx,
    call: &Call,
    started_as: Option<&tool_attempts::Open>,
) -> sqlx::Result<Effect> {
    let Some(started_as) = started_as else { return Ok(Effect::Effectful) };
    if call.tool.is_none() {
        let built_in = call.tool_name == super::READ_RESULT;
        return Ok(if built_in { Effect::Read } else { Effect::Effectful });
    }
    let Some(tool) = tool_access::of_call(tx, call.id).await?.tool else { return Ok(Effect::Effectful) };
    let policies = tool_policies::of_tool(tx, tool.id).await?;
    let policy = policies.iter().find(|policy| fits(policy, &call.arguments));
    Ok(policy.and_then(|policy| policy.effect).unwrap_or(tool.effect).max(started_as.effect))
}
