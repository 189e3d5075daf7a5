//! Which part of the house makes a call, and what its failure means for the ledger.

use super::ledger::Started;
use super::progress::Said;
use super::ready::{Ready, Search, Shown};
use super::{knowledgebase, read_result, server};
use crate::api::{self, ApiError};
use crate::context::Context;
use crate::domain::{Saved, ToolOutput};
use crate::ground::{GroundError, Question};
use crate::job::Turn;
use crate::sql::{Database, SqlError};
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::sync::mpsc;

/// How far a call that failed came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The other side surely never saw it, or put it off unread.
    No,
    /// The other side saw it and said no, so it knows what it did.
    Answered,
    /// Nobody knows: no answer came.
    Perhaps,
}

/// A call that gave no output.
#[derive(Debug)]
pub struct Failure {
    pub reached: Reached,
    /// Another try may do better.
    pub transient: bool,
    /// A credential is missing or was refused.
    pub needs_auth: bool,
    /// What the model reads, if it comes to that.
    pub text: String,
    /// What came before it failed.
    pub partial: Option<ToolOutput>,
    /// When the other side asked to come back.
    pub retry_after: Option<Duration>,
    /// The other side works on it, and is to be asked again after so long.
    pub goes_on: Option<Duration>,
}

impl Failure {
    /// It failed before anything was sent.
    pub fn before(error: &anyhow::Error, transient: bool) -> Self {
        Self { transient, ..Self::new(Reached::No, format!("{error:#}")) }
    }

    /// No answer came in time.
    pub fn silent(text: String) -> Self {
        Self::new(Reached::Perhaps, text)
    }

    fn new(reached: Reached, text: String) -> Self {
        Self {
            reached,
            transient: false,
            needs_auth: false,
            text,
            partial: None,
            retry_after: None,
            goes_on: None,
        }
    }
}

/// Makes the call. Everything before the first byte to the other side was committed.
pub async fn dispatch(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    said: mpsc::Sender<Said>,
) -> Result<ToolOutput, Failure> {
    let nothing = Map::new();
    let arguments = started.call.arguments.as_object().unwrap_or(&nothing);
    match &started.ready {
        Ready::ReadResult => read_result::run(ctx, turn, started).await,
        Ready::KnowledgeBase => knowledgebase::run(ctx, turn, started).await,
        Ready::Mcp(connected) => server::run(ctx, turn, started, (connected, said)).await,
        Ready::Api(tool, shown) => {
            let key = started.call.id.to_string();
            let saved = shown.as_ref().map(saved);
            let call = api::Call { tool, arguments, saved, idempotency_key: Some(&key) };
            ctx.api.call(&call).await.map_err(|error| of_api(&error))
        }
        Ready::Database(shown) => database(ctx, turn, started, (arguments, shown.as_ref())).await,
        Ready::WebSearch(search) => web_search(ctx, search, arguments).await,
    }
}

fn saved(shown: &Shown) -> Saved<'_> {
    Saved { credential: &shown.credential, origin: &shown.origin }
}

fn of_api(error: &ApiError) -> Failure {
    // A 503 is no proof that nothing happened.
    let put_off = matches!(error, ApiError::Busy { code: 429, .. });
    let reached = if error.was_sent() && !put_off { Reached::Perhaps } else { Reached::No };
    Failure {
        transient: error.is_transient(),
        needs_auth: matches!(error, ApiError::Origin { .. } | ApiError::Credential(_)),
        retry_after: error.retry_after(),
        ..Failure::new(reached, error.to_string())
    }
}

/// `{"sql": …}` asks; without it the tables are listed, so that a model can write its query.
async fn database(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    (arguments, shown): (&Map<String, Value>, Option<&Shown>),
) -> Result<ToolOutput, Failure> {
    let tool = started.cleared.tool.as_ref();
    let endpoint = tool.and_then(|tool| tool.endpoint.as_deref()).unwrap_or_default();
    let database = Database { endpoint, saved: shown.map(saved), workspace: turn.workspace() };
    let asked = match arguments.get("sql").map(Value::as_str) {
        Some(Some(sql)) => ctx.sql.query(&database, sql).await,
        Some(None) => return Ok(ToolOutput::error("`sql` is one SELECT statement as a text")),
        None => ctx.sql.schema(&database).await,
    };
    asked.map_err(|error: SqlError| {
        let reached = if error.was_sent() { Reached::Perhaps } else { Reached::No };
        Failure {
            transient: error.is_transient(),
            needs_auth: matches!(error, SqlError::Origin { .. } | SqlError::Credential),
            ..Failure::new(reached, error.to_string())
        }
    })
}

async fn web_search(
    ctx: &Context,
    search: &Search,
    arguments: &Map<String, Value>,
) -> Result<ToolOutput, Failure> {
    let Some(query) = arguments.get("query").and_then(Value::as_str) else {
        return Ok(ToolOutput::error("a search takes a `query` in words"));
    };
    let Search { provider, model, place, key } = search;
    let question = Question { provider: *provider, model, query, place: place.as_ref(), key };
    ctx.ground.search(&question).await.map_err(|error: GroundError| {
        let denied = matches!(error, GroundError::Denied { .. } | GroundError::Key);
        let reached = match &error {
            error if !error.was_sent() => Reached::No,
            GroundError::Denied { .. } | GroundError::Rejected { .. } => Reached::Answered,
            _ => Reached::Perhaps,
        };
        Failure {
            transient: error.is_transient(),
            needs_auth: denied,
            retry_after: error.retry_after(),
            ..Failure::new(reached, error.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_429_proves_that_nothing_happened() {
        let reached = |code| of_api(&ApiError::Busy { code, retry_after: Duration::ZERO }).reached;
        assert_eq!((reached(429), reached(503)), (Reached::No, Reached::Perhaps));
    }
}
