//! From an address to a session that has shaken hands, within one deadline.
//!
//! The newest protocol first: `server/discover`, and `initialize` where that is unknown. A
//! server that falls over the question is started once more and asked the old way.

use super::child::{self, Keeper, Nursery, Tail, glimpse};
use super::ear::{Ear, Tap};
use super::error::{Ending, McpError};
use super::http::{Fault, Http};
use super::sse::LegacySse;
use super::stdio::Stdio;
use super::wire::Wire;
use super::{Endpoint, Server};
use crate::config::Mcp;
use crate::guard::Guard;
use http::HeaderMap;
use rmcp::model::ProtocolVersion;
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, RoleClient, RunningService, serve_client_with_lifecycle,
};
use rmcp::transport::IntoTransport;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransportConfig, StreamableHttpClientWorker, StreamableHttpError,
};
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

/// Headers that the protocol sets, whatever was configured.
const OURS: [&str; 8] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "last-event-id",
    "mcp-protocol-version",
    "mcp-session-id",
];

/// What sessions are started with.
#[derive(Debug)]
pub(super) struct Means {
    pub settings: Mcp,
    pub guard: Guard,
    pub http: reqwest::Client,
    pub nursery: Nursery,
}

/// A session that has shaken hands.
pub(super) struct Started {
    pub service: RunningService<RoleClient, Ear>,
    pub wire: Arc<Wire>,
    pub keeper: Option<Arc<Keeper>>,
}

/// Opens a session with `server`.
pub(super) async fn start(means: &Means, server: &Server) -> Result<Started, McpError> {
    let patience = Duration::from_secs_f64(means.settings.initialise_seconds);
    let deadline = tokio::time::Instant::now() + patience;
    let newest = ClientLifecycleMode::Auto {
        preferred_versions: ProtocolVersion::KNOWN_VERSIONS.iter().rev().cloned().collect(),
        legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
    };
    let mut tail = None;
    let started = tokio::time::timeout_at(deadline, async {
        match once(means, server, newest, &mut tail).await {
            Err(McpError::Start(_) | McpError::Declined { .. } | McpError::Status { .. }) => {
                once(means, server, ClientLifecycleMode::Initialize, &mut tail).await
            }
            ended => ended,
        }
    });
    let Ok(started) = started.await else {
        let tail = tail.as_ref().map(Tail::text).unwrap_or_default();
        return Err(McpError::StartTimeout { after: patience, tail });
    };
    started
}

async fn once(
    means: &Means,
    server: &Server,
    lifecycle: ClientLifecycleMode,
    tail: &mut Option<Tail>,
) -> Result<Started, McpError> {
    let wire = Wire::new(means.settings.output_bytes);
    let mut keeper = None;
    let ready = match server {
        Server::Stdio(program) => {
            let pipes = child::start(&means.nursery, program, &means.settings, &wire).await?;
            *tail = Some(pipes.keeper.tail());
            let (transport, kept) = Stdio::new(pipes, means.settings.message_bytes, &wire);
            keeper = Some(kept);
            serve(transport, lifecycle, &wire).await
        }
        Server::StreamableHttp(endpoint) => {
            let mut config = StreamableHttpClientTransportConfig::with_uri(endpoint.url.as_str());
            config.max_concurrent_requests = 256;
            config.max_sse_event_size = means.settings.message_bytes;
            let worker = StreamableHttpClientWorker::new(http(means, endpoint, &wire)?, config);
            serve(worker, lifecycle, &wire).await
        }
        Server::Sse(endpoint) => {
            let http = http(means, endpoint, &wire)?;
            let transport =
                LegacySse::connect(http, &endpoint.url).await.map_err(|fault| fault.as_start())?;
            serve(transport, lifecycle, &wire).await
        }
    };
    match ready {
        Ok(service) => Ok(Started { service, wire, keeper }),
        Err(error) => Err(failure(&error, &wire).await),
    }
}

async fn serve<T, E, A>(
    transport: T,
    lifecycle: ClientLifecycleMode,
    wire: &Arc<Wire>,
) -> Result<RunningService<RoleClient, Ear>, ClientInitializeError>
where
    T: IntoTransport<RoleClient, E, A>,
    E: StdError + Send + Sync + 'static,
{
    let transport = Tap { inner: transport.into_transport(), wire: Arc::clone(wire) };
    serve_client_with_lifecycle(Ear, transport, lifecycle).await
}

fn http(means: &Means, endpoint: &Endpoint, wire: &Arc<Wire>) -> Result<Http, McpError> {
    means.guard.check(&endpoint.url)?;
    let mut headers: HeaderMap = endpoint.headers.clone();
    for ours in OURS {
        headers.remove(ours);
    }
    headers.values_mut().for_each(|value| value.set_sensitive(true));
    Ok(Http {
        client: means.http.clone(),
        guard: means.guard.clone(),
        headers,
        wire: Arc::clone(wire),
        longest: means.settings.message_bytes,
    })
}

/// Why no session came about.
async fn failure(error: &ClientInitializeError, wire: &Wire) -> McpError {
    match error {
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => {
            Box::pin(failure(fallback, wire)).await
        }
        ClientInitializeError::TransportError { error, .. } => match fault(error.error.as_ref()) {
            Some(fault) => fault.as_start(),
            None => McpError::Start(wire.ending(Duration::from_secs(4)).await),
        },
        ClientInitializeError::JsonRpcError(error) => {
            McpError::Declined { code: error.code.0, message: error.message.to_string() }
        }
        ClientInitializeError::ConnectionClosed(_) => {
            McpError::Start(wire.ending(Duration::from_secs(4)).await)
        }
        other => McpError::Start(Ending::Junk { head: glimpse(other.to_string().as_bytes()) }),
    }
}

/// Our own fault in what rmcp made of it.
pub(super) fn fault<'a>(error: &'a (dyn StdError + 'static)) -> Option<FoundFault<'a>> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(fault) = current.downcast_ref::<Fault>() {
            return Some(FoundFault::Ours(fault));
        }
        match current.downcast_ref::<StreamableHttpError<Fault>>() {
            Some(StreamableHttpError::Client(fault)) => return Some(FoundFault::Ours(fault)),
            Some(StreamableHttpError::SessionExpired) => return Some(FoundFault::SessionLost),
            Some(_) => return Some(FoundFault::Broken),
            None => {}
        }
        cause = current.source();
    }
    None
}

/// A fault as far as it can be told.
pub(super) enum FoundFault<'a> {
    Ours(&'a Fault),
    SessionLost,
    Broken,
}

impl FoundFault<'_> {
    fn as_start(&self) -> McpError {
        match self {
            Self::Ours(fault) => fault.as_start(),
            Self::SessionLost | Self::Broken => McpError::Start(Ending::Closed),
        }
    }

    /// The fault of a call that the server may have seen, or not.
    pub fn as_call(&self, sent: bool) -> McpError {
        match self {
            Self::Ours(fault) => fault.as_call(sent),
            Self::SessionLost | Self::Broken => McpError::Ended { ending: Ending::Closed, sent },
        }
    }
}

impl Fault {
    fn as_start(&self) -> McpError {
        match self {
            Self::Broken(why) => McpError::Start(Ending::Broken(why.clone())),
            Self::Oversize { limit } => {
                McpError::Start(Ending::Oversize { limit: *limit, head: String::new() })
            }
            Self::NotMcp => McpError::Start(Ending::Junk { head: String::new() }),
            fault => fault.as_call(false),
        }
    }

    fn as_call(&self, sent: bool) -> McpError {
        match self {
            Self::Refused(refusal) => McpError::Refused(refusal.clone()),
            Self::Unreachable(why) => McpError::Unreachable(why.clone()),
            Self::Broken(why) => McpError::Ended { ending: Ending::Broken(why.clone()), sent },
            Self::Redirected(status) => McpError::Redirected { status: *status, sent },
            Self::Auth { status, challenge } => {
                McpError::NeedsAuth { status: *status, challenge: challenge.clone() }
            }
            Self::Status { status, retry_after } => {
                McpError::Status { status: *status, retry_after: *retry_after, sent }
            }
            Self::Oversize { limit } => McpError::Oversize { limit: *limit, before: Box::default() },
            Self::NotMcp => McpError::Ended { ending: Ending::Junk { head: String::new() }, sent },
        }
    }
}
