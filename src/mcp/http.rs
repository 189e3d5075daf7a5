//! The HTTP side of rmcp's streamable client: each URL checked, no redirect followed, every body
//! counted, and a failure told apart by whether the request can have been read.

use super::error::Ending;
use super::events::{Measured, bounded};
use super::stdio::request_id;
use super::wire::{For, Wire};
use crate::guard::{self, Guard, Refusal};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage,
};
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
const BOTH: &str = "application/json, text/event-stream";
/// Of a body that only explains a failure.
const COMPLAINT_BYTES: usize = 64 * 1024;
/// The longest pause a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the address is refused: {0}")]
    Refused(#[from] Refusal),
    #[error("not reached: {0}")]
    Unreachable(String),
    #[error("broke off: {0}")]
    Broken(String),
    #[error("it redirects (HTTP {0})")]
    Redirected(u16),
    #[error("it asks for authorisation (HTTP {status})")]
    Auth { status: u16, challenge: Option<String> },
    #[error("HTTP {status}")]
    Status { status: u16, retry_after: Option<Duration> },
    #[error("the answer is larger than {limit} bytes")]
    Oversize { limit: usize },
    #[error("the answer is not MCP")]
    NotMcp,
}

type Outcome<T> = Result<T, StreamableHttpError<Fault>>;
type Events = BoxStream<'static, Result<Sse, SseError>>;

/// What sends the requests of one session.
#[derive(Debug, Clone)]
pub(super) struct Http {
    pub client: reqwest::Client,
    pub guard: Guard,
    /// Marked sensitive where they were made; rmcp never sees them.
    pub headers: HeaderMap,
    pub wire: Arc<Wire>,
    /// One event, and one body, at most.
    pub longest: usize,
}

impl Http {
    /// A request with our headers, to an address that was looked at.
    pub fn request(&self, method: http::Method, uri: &str) -> Result<RequestBuilder, Fault> {
        let url = Url::parse(uri).map_err(|_| Refusal::NotAUrl)?;
        self.guard.check(&url)?;
        Ok(self.client.request(method, url).headers(self.headers.clone()))
    }

    /// Sends it, and turns away what is no answer to it. `id` is what leaves with it.
    pub async fn send(&self, request: RequestBuilder, id: Option<&RequestId>) -> Result<Response, Fault> {
        if let Some(id) = id {
            self.wire.leaves(id);
        }
        let answer = request.send().await;
        let unread = |fault| {
            if let Some(id) = id {
                self.wire.came_back(id);
            }
            fault
        };
        let response = match answer {
            Ok(response) => response,
            Err(e) => {
                return Err(match guard::refused(&e) {
                    Some(refusal) => unread(Fault::Refused(refusal)),
                    None if e.is_connect() || e.is_builder() => unread(Fault::Unreachable(reason(&e))),
                    None => Fault::Broken(reason(&e)),
                });
            }
        };
        let status = response.status();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let challenge = response.headers().get(header::WWW_AUTHENTICATE);
                let challenge = challenge.map(|c| String::from_utf8_lossy(c.as_bytes()).into_owned());
                Err(unread(Fault::Auth { status: status.as_u16(), challenge }))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => {
                Err(unread(status_fault(&response)))
            }
            _ if status.is_redirection() => Err(Fault::Redirected(status.as_u16())),
            _ => Ok(response),
        }
    }

    /// A body up to its end, or up to the limit.
    async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        while let Some(some) = response.chunk().await.map_err(|e| Fault::Broken(reason(&e)))? {
            if body.len() + some.len() > limit {
                return Err(Fault::Oversize { limit });
            }
            body.extend_from_slice(&some);
        }
        Ok(body)
    }

    /// The events of an answer, each bounded, and counted where it is known for whom they are.
    pub fn events(&self, response: Response, whom: Option<For>) -> Events {
        let (wire, limit) = (Arc::clone(&self.wire), self.longest);
        let chunks = response.bytes_stream().map_err(|e| Fault::Broken(reason(&e)));
        let bounded = bounded(chunks, limit, move |event| match event {
            Measured::Bytes(n) => {
                if let Some(whom) = &whom {
                    wire.charge(whom, n);
                }
            }
            Measured::TooLong => wire.end(Ending::Oversize { limit, head: String::new() }),
        });
        SseStream::from_bytes_stream(bounded).boxed()
    }

    /// The answer to a message that the server refused with a status.
    async fn refused(
        &self,
        response: Response,
        message: &ClientJsonRpcMessage,
        in_session: bool,
    ) -> Outcome<StreamableHttpPostResponse> {
        let status = response.status();
        let fault = status_fault(&response);
        let body = self.body(response, COMPLAINT_BYTES).await.unwrap_or_default();
        let error = match serde_json::from_slice::<ServerJsonRpcMessage>(&body) {
            Ok(JsonRpcMessage::Error(error)) => Some(error),
            Ok(_) | Err(_) => None,
        };
        let gone = in_session && status == StatusCode::NOT_FOUND;
        let JsonRpcMessage::Request(request) = message else {
            let expired = StreamableHttpError::SessionExpired;
            return Err(if gone { expired } else { StreamableHttpError::Client(fault) });
        };
        // rmcp posts it again in a new session: so never what was answered under its own id. Many
        // servers answer 400 where the protocol wants 404; there only what names no request counts.
        let expired = match &error {
            None => gone,
            Some(error) => {
                let says_session = error.error.message.to_ascii_lowercase().contains("session");
                let at_the_door = status == StatusCode::BAD_REQUEST && error.id.is_none() && says_session;
                in_session && at_the_door || gone && error.id.as_ref() != Some(&request.id)
            }
        };
        if expired {
            self.wire.came_back(&request.id);
            return Err(StreamableHttpError::SessionExpired);
        }
        // Whatever stands in front of a server writes such bodies too: nobody knows what was done.
        if status.is_server_error() && !matches!(request.request, ClientRequest::DiscoverRequest(_)) {
            return Err(StreamableHttpError::Client(fault));
        }
        // Who does not know `server/discover` says so in many ways, and often to nobody.
        let probe = matches!(request.request, ClientRequest::DiscoverRequest(_)) && status.is_client_error();
        let error = match error {
            Some(error) => error.error,
            None if probe => ErrorData::invalid_request(format!("HTTP {status}"), None),
            None => return Err(StreamableHttpError::Client(fault)),
        };
        let answer = ServerJsonRpcMessage::error(error, Some(request.id.clone()));
        Ok(StreamableHttpPostResponse::Json(answer, None))
    }

    async fn json(
        &self,
        response: Response,
        message: &ClientJsonRpcMessage,
        session: Option<String>,
    ) -> Outcome<StreamableHttpPostResponse> {
        let body = match self.body(response, self.longest).await {
            Ok(body) => body,
            Err(fault) => return Err(StreamableHttpError::Client(fault)),
        };
        let Some(id) = request_id(message) else { return Ok(StreamableHttpPostResponse::Accepted) };
        self.wire.charge(&For::Request(id.clone()), body.len());
        match serde_json::from_slice(&body) {
            Ok(answer) => Ok(StreamableHttpPostResponse::Json(answer, session)),
            Err(_) => Err(StreamableHttpError::Client(Fault::NotMcp)),
        }
    }
}

fn status_fault(response: &Response) -> Fault {
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|after| after.to_str().ok());
    let retry_after = retry_after.and_then(|after| after.trim().parse().ok()).map(Duration::from_secs);
    Fault::Status {
        status: response.status().as_u16(),
        retry_after: retry_after.map(|pause| pause.min(LONGEST_PAUSE)),
    }
}

/// What went wrong, without the address: it may carry a secret in its query.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::eq(cause, std::ptr::from_ref(error)) {
        return if error.is_timeout() { "timed out".into() } else { "the request failed".into() };
    }
    cause.to_string()
}

fn is(response: &Response, kind: &str) -> bool {
    let found = response.headers().get(header::CONTENT_TYPE);
    found.is_some_and(|found| found.as_bytes().to_ascii_lowercase().starts_with(kind.as_bytes()))
}

impl StreamableHttpClient for Http {
    type Error = Fault;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _: Option<String>,
        extra: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<StreamableHttpPostResponse> {
        let id = request_id(&message).cloned();
        let mut request = self.request(http::Method::POST, &uri).map_err(StreamableHttpError::Client)?;
        for (name, value) in extra {
            request = request.header(name, value);
        }
        if let Some(session) = &session_id {
            request = request.header(SESSION, session.as_ref());
        }
        let body = serde_json::to_vec(&message)?;
        request =
            request.header(header::ACCEPT, BOTH).header(header::CONTENT_TYPE, "application/json").body(body);
        let response = self.send(request, id.as_ref()).await.map_err(StreamableHttpError::Client)?;
        let status = response.status();
        if !status.is_success() {
            return self.refused(response, &message, session_id.is_some()).await;
        }
        let session = response.headers().get(SESSION).and_then(|s| s.to_str().ok()).map(str::to_owned);
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if is(&response, "text/event-stream") {
            let events = self.events(response, Some(id.map_or(For::All, For::Request)));
            return Ok(StreamableHttpPostResponse::Sse(events, session));
        }
        if is(&response, "application/json") {
            return self.json(response, &message, session).await;
        }
        match id {
            // Whatever it says to a notification, it took it.
            None => Ok(StreamableHttpPostResponse::Accepted),
            Some(_) => Err(StreamableHttpError::Client(Fault::NotMcp)),
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        _: Option<String>,
        extra: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<()> {
        let mut request = self.request(http::Method::DELETE, &uri).map_err(StreamableHttpError::Client)?;
        for (name, value) in extra {
            request = request.header(name, value);
        }
        // Whether it minds or not, the session is over for us.
        self.send(request.header(SESSION, session.as_ref()), None).await.ok();
        Ok(())
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _: Option<String>,
        extra: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<Events> {
        let mut request = self.request(http::Method::GET, &uri).map_err(StreamableHttpError::Client)?;
        for (name, value) in extra {
            request = request.header(name, value);
        }
        if let Some(session) = session_id {
            request = request.header(SESSION, session.as_ref());
        }
        if let Some(last) = last_event_id {
            request = request.header(LAST_EVENT, last);
        }
        let request = request.header(header::ACCEPT, "text/event-stream");
        let response = self.send(request, None).await.map_err(|fault| match fault {
            // This one rmcp does not try again.
            Fault::Auth { challenge, .. } => {
                StreamableHttpError::AuthRequired(AuthRequiredError::new(challenge.unwrap_or_default()))
            }
            fault => StreamableHttpError::Client(fault),
        })?;
        let status = response.status();
        if status.is_client_error() || !is(&response, "text/event-stream") && status.is_success() {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        if !status.is_success() {
            return Err(StreamableHttpError::Client(status_fault(&response)));
        }
        Ok(self.events(response, Some(For::All)))
    }
}
