//! The MCP client: tools of servers nobody here wrote, called over sessions that are pooled.
//!
//! A session belongs to one workspace, server and credential, and is never shared beyond; calls
//! run side by side over it. Everything a server sends is bounded (a line or event, all that one
//! call receives, what nobody asked for), everything it may take has a deadline, and an error
//! says whether the server may have seen the call. Before this: `tool_call` and `tool_sync`
//! decide what is called with which credential. After it: they keep what came back.
//!
//! rmcp speaks the protocol; transports, processes and deadlines are ours (see the files).
//!
//! Accepted race: a session that dies between being chosen and being written to fails its call
//! as not sent, and the caller tries again.

mod answer;
mod call;
mod child;
mod ear;
mod error;
mod events;
mod http;
mod mark;
mod pool;
mod session;
mod slot;
mod sse;
mod start;
mod stdio;
mod wire;

pub use child::resolve;
pub use error::{Deadline, Ending, McpError};
pub use pool::Clients;

use crate::domain::ToolOutput;
use crate::domain::WorkspaceId;
use ::http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Duration;
use url::Url;
use uuid::Uuid;

/// What a session belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    pub workspace: WorkspaceId,
    /// The connection.
    pub server: Uuid,
    /// The credential's row and its version; a new version is a new session.
    pub credential: Option<(Uuid, i32)>,
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub enum Server {
    Stdio(Program),
    StreamableHttp(Endpoint),
    /// The first HTTP transport: a stream of events and an address to post to.
    Sse(Endpoint),
}

/// A server that is a program of the operator's choice.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its absolute path ([`resolve`] finds it).
    pub command: PathBuf,
    pub arguments: Vec<String>,
    /// All of its environment beside PATH, HOME, TMPDIR and LANG, and stronger than these.
    pub env: Vec<(String, SecretString)>,
}

/// A server behind a URL.
#[derive(Clone)]
pub struct Endpoint {
    pub url: Url,
    /// Sent with every request, to this origin alone.
    pub headers: HeaderMap,
}

impl std::fmt::Debug for Endpoint {
    /// Without headers and query, which carry credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.headers.keys().map(::http::HeaderName::as_str).collect();
        f.debug_struct("Endpoint")
            .field("origin", &self.url.origin().ascii_serialization())
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Server {
    /// Whether a session with the one serves for the other.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stdio(a), Self::Stdio(b)) => {
                let same = |((name, a), (other, b)): (&(String, SecretString), &(String, SecretString))| {
                    name == other && a.expose_secret() == b.expose_secret()
                };
                a.command == b.command
                    && a.arguments == b.arguments
                    && a.env.len() == b.env.len()
                    && a.env.iter().zip(&b.env).all(same)
            }
            (Self::StreamableHttp(a), Self::StreamableHttp(b)) | (Self::Sse(a), Self::Sse(b)) => {
                a.url == b.url && a.headers == b.headers
            }
            _ => false,
        }
    }
}

/// One call of a tool.
#[derive(Debug, Clone)]
pub struct Call {
    pub tool: String,
    pub arguments: Map<String, Value>,
    /// Sent as `gristmill/callId` in the request's `_meta`.
    pub call_id: Uuid,
    /// Sent as `gristmill/idempotencyKey` there.
    pub idempotency_key: Option<String>,
    /// So long without an answer or progress.
    pub idle: Duration,
    /// So long in all.
    pub total: Duration,
}

/// What a server said before it answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Progress {
        progress: f64,
        total: Option<f64>,
        message: Option<String>,
    },
    /// Of the session: with several calls in flight, each hears it.
    Log {
        level: String,
        logger: Option<String>,
        data: Value,
    },
    /// The server has other tools than before.
    ListChanged,
}

/// What a call came to.
#[derive(Debug, Clone)]
pub enum Answer {
    Done(ToolOutput),
    /// The server works on, and is to be asked again: by whoever has the id.
    Task(Task),
}

/// Work that goes on at a server; its id outlives the session and this process.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub id: String,
    /// Not to be asked earlier.
    pub poll_after: Duration,
    /// How long the server keeps it, from its beginning.
    pub kept_for: Option<Duration>,
    /// What the server says of it.
    pub message: Option<String>,
}

/// What a server offers.
#[derive(Debug, Clone)]
pub struct Listing {
    pub protocol_version: String,
    /// Name and version, as it says.
    pub server: Option<(String, String)>,
    pub instructions: Option<String>,
    pub tools: Vec<Definition>,
    /// It has more than are listed here.
    pub truncated: bool,
}

/// One tool, as its server describes it: somebody else's text.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    pub name: String,
    pub title: Option<String>,
    pub description: Option<String>,
    pub input_schema: Map<String, Value>,
    pub output_schema: Option<Map<String, Value>>,
    /// Hints such as `readOnlyHint`; never a reason to trust it.
    pub annotations: Option<Value>,
}
