//! Why a call or a listing failed, and what that says about the server having seen it.

use crate::domain::ToolOutput;
use crate::guard::Refusal;
use std::time::Duration;

/// Why a session is over.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Ending {
    #[error("the server ended with {status}{}", said(tail))]
    Exited { status: String, tail: String },
    #[error("the server closed the connection")]
    Closed,
    #[error("the server sent a message of more than {limit} bytes")]
    Oversize { limit: usize, head: String },
    #[error("the server sent more than {limit} bytes that nobody had asked for")]
    Flood { limit: usize },
    #[error("the server says what is not MCP: {head:?}")]
    Junk { head: String },
    #[error("the server reads nothing any more")]
    Deaf,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the session was closed here")]
    Ours,
}

fn said(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("; it said last: {tail}") }
}

/// Which of the two deadlines passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Nothing was heard of the call for so long.
    Idle,
    /// The call as a whole took so long.
    Total,
}

impl std::fmt::Display for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle => "without a word",
            Self::Total => "in all",
        })
    }
}

/// Why the server has no answer for us.
///
/// What a server says of itself (messages, standard error) is somebody else's text.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    #[error("the server's address is refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the server's program cannot be started: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("{limit} servers run already, and none of them is idle")]
    Full { limit: usize },
    #[error("the server failed to start {failures} times and is left alone for {wait:?}: {last}")]
    BackingOff { failures: u32, wait: Duration, last: String },
    #[error("the server did not initialise within {after:?}{}", said(tail))]
    StartTimeout { after: Duration, tail: String },
    #[error("the server did not start: {0}")]
    Start(Ending),
    #[error("the server declined to start a session with error {code}: {message}")]
    Declined { code: i32, message: String },
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// It wants a credential, another one, or more rights; `challenge` is its WWW-Authenticate.
    #[error("the server asks for authorisation (HTTP {status})")]
    NeedsAuth { status: u16, challenge: Option<String> },
    #[error("the server redirects (HTTP {status}), which is not followed")]
    Redirected { status: u16, sent: bool },
    #[error("the server answered with HTTP {status}")]
    Status { status: u16, retry_after: Option<Duration>, sent: bool },
    #[error("{ending}")]
    Ended { ending: Ending, sent: bool },
    #[error("no answer after {after:?} {which}")]
    Timeout { which: Deadline, after: Duration, sent: bool },
    #[error("the call was stopped")]
    Stopped { sent: bool },
    /// The server's own error: its final word on this request.
    #[error("the server answered with error {code}: {message}")]
    Answered { code: i32, message: String },
    /// With what came before it.
    #[error("the answer is larger than {limit} bytes")]
    Oversize { limit: usize, before: Box<ToolOutput> },
    #[error("the server wants input from a person, which it does not get")]
    WantsInput,
    #[error("the server's answer is not one to this request")]
    Unexpected,
    #[error("the task ended as {status}{}", message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Task { status: &'static str, message: Option<String> },
    /// The server had accepted the call, and then the sight of it was lost. Whoever has the
    /// task's id may go on asking for it.
    #[error("the outcome is not known: {source}")]
    Lost { task: Option<String>, source: Box<McpError> },
    #[error("no session is opened any more: this process stops")]
    Closing,
}

impl McpError {
    /// Whether the server may have seen the request. `false` says that it surely did not: it was
    /// never reached, or refused the request unread (401, 403, 404 of a lost session, 413, 429).
    pub fn was_sent(&self) -> bool {
        match self {
            Self::Refused(_)
            | Self::Spawn(_)
            | Self::Full { .. }
            | Self::BackingOff { .. }
            | Self::StartTimeout { .. }
            | Self::Start(_)
            | Self::Declined { .. }
            | Self::Unreachable(_)
            | Self::NeedsAuth { .. }
            | Self::Closing => false,
            Self::Status { sent, .. }
            | Self::Redirected { sent, .. }
            | Self::Ended { sent, .. }
            | Self::Timeout { sent, .. }
            | Self::Stopped { sent } => *sent,
            Self::Answered { .. }
            | Self::Oversize { .. }
            | Self::WantsInput
            | Self::Unexpected
            | Self::Task { .. }
            | Self::Lost { .. } => true,
        }
    }

    /// Whether the same request may well succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Full { .. }
            | Self::BackingOff { .. }
            | Self::StartTimeout { .. }
            | Self::Unreachable(_)
            | Self::Timeout { .. }
            | Self::Closing => true,
            Self::Start(ending) | Self::Ended { ending, .. } => {
                matches!(
                    ending,
                    Ending::Exited { .. } | Ending::Closed | Ending::Deaf | Ending::Broken(_) | Ending::Ours
                )
            }
            Self::Lost { source, .. } => source.is_transient(),
            Self::Status { status, .. } => *status == 408 || *status == 429 || *status >= 500,
            Self::Refused(_)
            | Self::Spawn(_)
            | Self::Declined { .. }
            | Self::NeedsAuth { .. }
            | Self::Redirected { .. }
            | Self::Stopped { .. }
            | Self::Answered { .. }
            | Self::Oversize { .. }
            | Self::WantsInput
            | Self::Unexpected
            | Self::Task { .. } => false,
        }
    }

    /// The same failure of a later request for a call that the server had accepted.
    pub(super) fn of_accepted(self, task: Option<&str>) -> Self {
        // What is final of the task is final of the call.
        if matches!(self, Self::Task { .. } | Self::WantsInput | Self::Oversize { .. } | Self::Lost { .. }) {
            return self;
        }
        Self::Lost { task: task.map(str::to_owned), source: Box::new(self) }
    }

    /// When the server asked to be left alone for so long.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::BackingOff { wait, .. } => Some(*wait),
            Self::Lost { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}
