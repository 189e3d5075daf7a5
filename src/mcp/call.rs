//! One request over a session: deadlines that progress extends, a stop that reaches the server,
//! and an error that says whether the request left.

use super::Heard;
use super::error::{Deadline, Ending, McpError};
use super::start::{FoundFault, fault};
use super::wire::{Signs, Wire, head};
use crate::domain::ToolOutput;
use rmcp::model::{ClientRequest, RequestId, RequestMetaObject, ServerResult};
use rmcp::service::{Peer, PeerRequestOptions, RequestHandle, RoleClient, ServiceError};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A cancellation may take so long to leave; a server that does not even read it is given up.
const CANCEL: Duration = Duration::from_secs(2);
/// How long the end of a connection may take to be explained.
const EXPLAIN: Duration = Duration::from_secs(4);
/// rmcp's words to whoever waited when a session was lost to another's 404; the server may well
/// have seen the request.
const SESSION_LOST: &str = "streamable HTTP session was re-initialized before the response arrived";

/// How long a request may take, who hears of it meanwhile, and what stops it.
pub(super) struct Terms<'a> {
    pub idle: Duration,
    /// The end of the whole call, of which this may be one request of several.
    pub until: Instant,
    pub total: Duration,
    pub heard: mpsc::Sender<Heard>,
    pub stop: &'a CancellationToken,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub peer: Peer<RoleClient>,
    pub wire: Arc<Wire>,
}

impl Line {
    /// Sends a request and waits for its answer.
    pub async fn ask(
        &self,
        request: ClientRequest,
        meta: RequestMetaObject,
        terms: &Terms<'_>,
    ) -> Result<ServerResult, McpError> {
        if terms.stop.is_cancelled() {
            return Err(McpError::Stopped { sent: false });
        }
        let (place, signs) = self.wire.listen(terms.heard.clone());
        let mut asked = Asked { place, id: None, handle: None, wire: Arc::clone(&self.wire) };
        let options = PeerRequestOptions::no_options().with_meta(meta);
        let Ok(handle) = self.peer.send_cancellable_request(request, options).await else {
            let ending = self.wire.ending(EXPLAIN).await;
            return Err(McpError::Ended { ending, sent: false });
        };
        self.wire.name(place, &handle.id, &handle.progress_token);
        (asked.id, asked.handle) = (Some(handle.id.clone()), Some(handle));
        let outcome = asked.wait(&signs, terms).await;
        asked.settle(outcome).await
    }
}

/// A request that is not answered yet. Dropped, it is cancelled at the server.
struct Asked {
    place: u64,
    id: Option<RequestId>,
    handle: Option<RequestHandle<RoleClient>>,
    wire: Arc<Wire>,
}

/// How waiting ended.
enum Outcome {
    Answered(Box<Result<ServerResult, ServiceError>>),
    /// The loop of this session is gone.
    Over,
    TooLate(Deadline, Duration),
    TooMuch,
    Stopped,
}

impl Asked {
    async fn wait(&mut self, signs: &Signs, terms: &Terms<'_>) -> Outcome {
        let Some(handle) = self.handle.as_mut() else { return Outcome::Over };
        let mut idle = Instant::now() + terms.idle;
        loop {
            tokio::select! {
                biased;
                () = signs.too_much.cancelled() => return Outcome::TooMuch,
                answer = &mut handle.rx => return answer.map_or(Outcome::Over, |answer| Outcome::Answered(Box::new(answer))),
                () = terms.stop.cancelled() => return Outcome::Stopped,
                () = signs.progress.notified() => idle = Instant::now() + terms.idle,
                () = tokio::time::sleep_until(terms.until) => return Outcome::TooLate(Deadline::Total, terms.total),
                () = tokio::time::sleep_until(idle) => return Outcome::TooLate(Deadline::Idle, terms.idle),
            }
        }
    }

    /// What the caller is told; the server is told of every answer nobody waits for.
    async fn settle(mut self, outcome: Outcome) -> Result<ServerResult, McpError> {
        let sent = self.id.as_ref().is_some_and(|id| self.wire.has_left(id));
        let error = match outcome {
            Outcome::Answered(answer) => {
                self.handle = None;
                match *answer {
                    Ok(result) => return Ok(result),
                    Err(error) => self.failed(error, sent).await,
                }
            }
            Outcome::Over => {
                self.handle = None;
                self.over(sent).await
            }
            Outcome::TooLate(which, after) => McpError::Timeout { which, after, sent },
            Outcome::Stopped => McpError::Stopped { sent },
            Outcome::TooMuch => self.too_large(self.wire.limit(), ""),
        };
        if let Some(handle) = self.handle.take() {
            cancel(handle, &self.wire).await;
        }
        Err(error)
    }

    async fn failed(&self, error: ServiceError, sent: bool) -> McpError {
        match error {
            ServiceError::McpError(error) if error.message == SESSION_LOST => {
                McpError::Ended { ending: Ending::Closed, sent }
            }
            ServiceError::McpError(error) => {
                McpError::Answered { code: error.code.0, message: head(&error.message, 4096).to_owned() }
            }
            ServiceError::TransportSend(error) => match fault(error.error.as_ref()) {
                Some(FoundFault::Ours(super::http::Fault::Oversize { limit })) => self.too_large(*limit, ""),
                Some(fault) => fault.as_call(sent),
                None => self.over(sent).await,
            },
            ServiceError::TransportClosed => self.over(sent).await,
            _ => McpError::Unexpected,
        }
    }

    /// The session ended under the call.
    async fn over(&self, sent: bool) -> McpError {
        // The stream of one answer may end while the session goes on.
        let patience = if self.wire.ended.is_cancelled() { EXPLAIN } else { Duration::from_secs(1) };
        match self.wire.ending(patience).await {
            Ending::Oversize { limit, head } => self.too_large(limit, &head),
            ending => McpError::Ended { ending, sent },
        }
    }

    /// With what was heard before, and the beginning of what was too large.
    fn too_large(&self, limit: usize, beginning: &str) -> McpError {
        let mut content: Vec<Value> = self.wire.done(self.place);
        if !beginning.is_empty() {
            content.push(json!({ "type": "text", "text": beginning }));
        }
        McpError::Oversize { limit, before: Box::new(ToolOutput { content, ..ToolOutput::default() }) }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.wire.done(self.place);
        if let Some(handle) = self.handle.take() {
            let wire = Arc::clone(&self.wire);
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { cancel(handle, &wire).await });
            }
        }
    }
}

/// Tells the server that nobody waits any more.
async fn cancel(handle: RequestHandle<RoleClient>, wire: &Wire) {
    let told = handle.cancel(Some("nobody waits for it any more".into()));
    if tokio::time::timeout(CANCEL, told).await.is_err() {
        wire.end(Ending::Deaf);
    }
}
