//! Which part of the house makes a call, and what its failure means for the ledger.

use super::ledger::Started;
use super::progress::Said;
use super::{knowledgebase, read_result};
use crate::context::Context;
use crate::domain::ToolOutput;
use crate::job::Turn;
use tokio::sync::mpsc;

/// What a tool is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The built-in reader of long results.
    ReadResult,
    /// Retrieval over the tool's resources.
    KnowledgeBase,
    /// A kind that this version has no hand for.
    Unknown(String),
}

impl Target {
    /// By the tool's type and its custom kind.
    pub fn of(kind: &str) -> Self {
        match kind {
            "knowledgebase" => Self::KnowledgeBase,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

/// How far a call that failed came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The other side surely never saw it.
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
}

impl Failure {
    /// It failed before anything was sent.
    pub fn before(error: anyhow::Error, transient: bool) -> Self {
        Self { reached: Reached::No, transient, needs_auth: false, text: format!("{error:#}"), partial: None }
    }

    /// No answer came in time.
    pub fn silent(text: String) -> Self {
        Self { reached: Reached::Perhaps, transient: false, needs_auth: false, text, partial: None }
    }
}

/// Makes the call. Everything before the first byte to the other side was committed.
pub async fn dispatch(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    _said: mpsc::Sender<Said>,
) -> Result<ToolOutput, Failure> {
    match &started.cleared.target {
        Target::ReadResult => read_result::run(ctx, turn, started).await,
        Target::KnowledgeBase => knowledgebase::run(ctx, turn, started).await,
        Target::Unknown(kind) => Err(Failure::before(
            anyhow::anyhow!("this version makes no calls of tools of kind {kind}"),
            false,
        )),
    }
}
