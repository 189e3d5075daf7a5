//! One session with one server, and what can be asked over it.

use super::answer::{self, Reading};
use super::call::{Line, Terms};
use super::child::{GRACE, Keeper};
use super::ear::Ear;
use super::error::{Ending, McpError};
use super::slot::Seat;
use super::start::Started;
use super::{Answer, Call, Heard, Listing, Task};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelTaskParams, CancelTaskRequest, ClientRequest,
    GetTaskParams, GetTaskRequest, ListToolsRequest, PaginatedRequestParams, ReadResourceRequest,
    ReadResourceRequestParams, RequestMetaObject, ServerResult, SubscriptionFilter,
};
use rmcp::service::{Peer, RoleClient, RunningService};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Tools that one server may list, and the pages it may take for them.
const TOOLS: usize = 2000;
const PAGES: usize = 200;
/// How often a server may ask for the same request once more.
const ROUNDS: usize = 10;
/// How long a polite end may take before the impolite one.
const GOODBYE: Duration = Duration::from_secs(3);

/// A session that was opened.
#[derive(Debug)]
pub(super) struct Session {
    /// Ends with the session what listens beside it.
    _listening: tokio_util::sync::DropGuard,
    line: Line,
    service: Mutex<Option<RunningService<RoleClient, Ear>>>,
    keeper: Option<Arc<Keeper>>,
    /// Given back when the last call over it is over.
    _seat: Option<Seat>,
    pub opened: Instant,
}

/// A request's deadlines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub idle: Duration,
    pub total: Duration,
}

impl Session {
    pub fn new(started: Started, seat: Option<Seat>) -> Self {
        let peer = started.service.peer().clone();
        let over = CancellationToken::new();
        tokio::spawn(over.clone().run_until_cancelled_owned(listen(peer.clone())));
        Self {
            _listening: over.drop_guard(),
            line: Line { peer, wire: started.wire },
            service: Mutex::new(Some(started.service)),
            keeper: started.keeper,
            _seat: seat,
            opened: Instant::now(),
        }
    }

    /// Whether requests can still be sent over it.
    pub fn is_open(&self) -> bool {
        !self.line.wire.ended.is_cancelled() && !self.line.peer.is_transport_closed()
    }

    /// When it ended, if it did by itself.
    pub fn died(&self) -> Option<Instant> {
        self.line.wire.ended_at().or_else(|| self.line.peer.is_transport_closed().then(Instant::now))
    }

    pub fn is_child(&self) -> bool {
        self.keeper.is_some()
    }

    pub fn take_changed(&self) -> bool {
        self.line.wire.take_changed()
    }

    /// Calls a tool: its result, or the task that the server made of it.
    pub async fn call(
        &self,
        call: &Call,
        heard: mpsc::Sender<Heard>,
        stop: &CancellationToken,
    ) -> Result<Answer, McpError> {
        let terms =
            Terms { idle: call.idle, until: Instant::now() + call.total, total: call.total, heard, stop };
        let meta = self.meta(call);
        let mut params = CallToolRequestParams::new(call.tool.clone()).with_arguments(call.arguments.clone());
        for round in 0..ROUNDS {
            let request = ClientRequest::CallToolRequest(CallToolRequest::new(params.clone()));
            let answer = self.line.ask(request, meta.clone(), &terms).await;
            let answer = if round == 0 { answer? } else { answer.map_err(|e| e.of_accepted(None))? };
            match answer::read(answer)? {
                Reading::Answer(answer) => return Ok(answer),
                Reading::Again { state, responses } => {
                    (params.request_state, params.input_responses) = (state, responses);
                }
            }
        }
        Err(McpError::WantsInput)
    }

    /// What goes with a call beside its arguments.
    #[expect(deprecated, reason = "for as long as servers have log messages")]
    fn meta(&self, call: &Call) -> RequestMetaObject {
        let mut meta = RequestMetaObject::default();
        meta.0.0.insert("gristmill/callId".into(), call.call_id.to_string().into());
        if let Some(key) = &call.idempotency_key {
            meta.0.0.insert("gristmill/idempotencyKey".into(), key.as_str().into());
        }
        // Servers of 2026 log only for who asks; older ones have no word for it in a request.
        if self.line.peer.peer_info().is_some_and(|info| !info.protocol_version.has_initialize()) {
            meta.set_log_level(rmcp::model::LoggingLevel::Info);
        }
        meta
    }

    /// Asks once how a task stands.
    pub async fn poll(
        &self,
        id: &str,
        patience: Patience,
        stop: &CancellationToken,
    ) -> Result<Answer, McpError> {
        let request = ClientRequest::GetTaskRequest(GetTaskRequest::new(GetTaskParams::new(id)));
        match self.quietly(request, patience, stop).await? {
            ServerResult::GetTaskResult(result) => answer::state(result.task),
            _ => Err(McpError::Unexpected),
        }
    }

    /// Asks the server to give a task up; it may go on all the same.
    pub async fn cancel_task(&self, id: &str, patience: Patience) -> Result<(), McpError> {
        let request = ClientRequest::CancelTaskRequest(CancelTaskRequest::new(CancelTaskParams::new(id)));
        self.quietly(request, patience, &CancellationToken::new()).await.map(drop)
    }

    /// All tools, page by page.
    pub async fn list(&self, patience: Patience) -> Result<Listing, McpError> {
        let stop = CancellationToken::new();
        let (mut tools, mut cursor, mut more) = (Vec::new(), None, true);
        for _ in 0..PAGES {
            let page = PaginatedRequestParams::default().with_cursor(cursor.clone());
            let request = ClientRequest::ListToolsRequest(ListToolsRequest::with_param(page));
            let ServerResult::ListToolsResult(page) = self.quietly(request, patience, &stop).await? else {
                return Err(McpError::Unexpected);
            };
            tools.extend(page.tools.into_iter().map(answer::definition));
            // A cursor that comes again would turn in a circle.
            more = page.next_cursor.is_some() && page.next_cursor != cursor;
            cursor = page.next_cursor;
            if !more || tools.len() > TOOLS {
                break;
            }
        }
        let truncated = more || tools.len() > TOOLS;
        tools.truncate(TOOLS);
        let peer = self.line.peer.peer_info();
        let peer = peer.as_deref();
        Ok(Listing {
            protocol_version: peer.map(|p| p.protocol_version.to_string()).unwrap_or_default(),
            server: peer.and_then(|p| p.server_info.clone()).map(|server| (server.name, server.version)),
            instructions: peer.and_then(|p| p.instructions.clone()),
            tools,
            truncated,
        })
    }

    /// A resource that a result linked to: its contents, as MCP has them.
    pub async fn read_resource(&self, uri: &str, patience: Patience) -> Result<Vec<Value>, McpError> {
        let request = ReadResourceRequest::new(ReadResourceRequestParams::new(uri));
        let request = ClientRequest::ReadResourceRequest(request);
        match self.quietly(request, patience, &CancellationToken::new()).await? {
            ServerResult::ReadResourceResult(read) => {
                Ok(read.contents.into_iter().map(answer::value).collect())
            }
            ServerResult::InputRequiredResult(_) => Err(McpError::WantsInput),
            _ => Err(McpError::Unexpected),
        }
    }

    /// A request that nobody listens to while it runs.
    async fn quietly(
        &self,
        request: ClientRequest,
        patience: Patience,
        stop: &CancellationToken,
    ) -> Result<ServerResult, McpError> {
        let (heard, _) = mpsc::channel(1);
        let Patience { idle, total } = patience;
        let terms = Terms { idle, until: Instant::now() + total, total, heard, stop };
        self.line.ask(request, RequestMetaObject::default(), &terms).await
    }

    /// Ends the session, and the server with it if it is a child. Returns when nothing is left.
    pub async fn close(&self) {
        self.close_within(GRACE).await;
    }

    /// The same, and a child that does not go in so long is killed.
    pub async fn close_within(&self, grace: Duration) {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.line.wire.end(Ending::Ours);
        if let Some(keeper) = &self.keeper {
            keeper.end_within(grace);
        }
        if let Some(mut service) = service {
            service.close_with_timeout(grace.min(GOODBYE)).await.ok();
        }
        if let Some(keeper) = &self.keeper {
            keeper.gone().cancelled().await;
        }
    }
}

/// Servers of 2026 tell of changed tools only to whoever asked them to. What they tell is heard
/// in the transport; here the request for it is kept open.
async fn listen(peer: Peer<RoleClient>) {
    let tells = peer.peer_info().is_some_and(|info| {
        let tools = info.capabilities.tools.as_ref();
        !info.protocol_version.has_initialize() && tools.is_some_and(|tools| tools.list_changed == Some(true))
    });
    if !tells {
        return;
    }
    let filter = SubscriptionFilter::builder().tools_list_changed().build();
    if let Ok(mut subscription) = peer.listen(filter).await {
        while let Ok(Some(_)) = subscription.next().await {}
    }
}

impl Task {
    /// A task as it is known before it was ever looked at.
    pub fn known(id: impl Into<String>) -> Self {
        Self { id: id.into(), poll_after: Duration::ZERO, kept_for: None, message: None }
    }
}
