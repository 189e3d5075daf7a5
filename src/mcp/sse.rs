//! Servers of the first HTTP transport: one stream of events, and an address to post to that the
//! stream names.
//!
//! rmcp has no client for it any more. The address is somebody else's choice, so it must be of
//! the same origin as the stream: our headers go there too.

use super::error::Ending;
use super::http::{Fault, Http};
use super::stdio::{request_id, whom};
use crate::guard::Refusal;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{StatusCode, header};
use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use sse_stream::Sse;
use url::Url;

/// The transport that rmcp drives.
pub(super) struct LegacySse {
    events: BoxStream<'static, Result<Sse, sse_stream::Error>>,
    post_to: Url,
    http: Http,
}

impl LegacySse {
    /// Opens the stream and waits for the address to post to; the caller limits how long.
    pub async fn connect(http: Http, url: &Url) -> Result<Self, Fault> {
        let request = http.request(http::Method::GET, url.as_str())?;
        let response = http.send(request.header(header::ACCEPT, "text/event-stream"), None).await?;
        if !response.status().is_success() {
            return Err(Fault::Status { status: response.status().as_u16(), retry_after: None });
        }
        let mut events = http.events(response, None);
        while let Some(event) = events.next().await {
            let event = event.map_err(|_| Fault::NotMcp)?;
            if event.event.as_deref() == Some("endpoint") {
                let post_to = event.data.and_then(|path| url.join(path.trim()).ok()).ok_or(Fault::NotMcp)?;
                if post_to.origin() != url.origin() {
                    return Err(Fault::Refused(Refusal::BadRedirect));
                }
                return Ok(Self { events, post_to, http });
            }
        }
        Err(Fault::NotMcp)
    }
}

impl Transport<RoleClient> for LegacySse {
    type Error = Fault;

    fn send(
        &mut self,
        message: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), Fault>> + Send + 'static {
        let (http, url) = (self.http.clone(), self.post_to.clone());
        async move {
            let body = serde_json::to_vec(&message).map_err(|_| Fault::NotMcp)?;
            let request = http.request(http::Method::POST, url.as_str())?;
            let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
            let response = http.send(request, request_id(&message)).await?;
            match response.status() {
                status if status.is_success() => Ok(()),
                StatusCode::NOT_FOUND | StatusCode::GONE => {
                    if let Some(id) = request_id(&message) {
                        http.wire.came_back(id);
                    }
                    http.wire.end(Ending::Closed);
                    Err(Fault::Broken("the session is gone".into()))
                }
                status => Err(Fault::Status { status: status.as_u16(), retry_after: None }),
            }
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let event = match self.events.next().await {
                Some(Ok(event)) => event,
                Some(Err(e)) => {
                    self.http.wire.end(Ending::Broken(e.to_string()));
                    return None;
                }
                None => {
                    self.http.wire.end(Ending::Closed);
                    return None;
                }
            };
            let Some(data) = event.data else { continue };
            // What is no message of ours is a ping, or of a kind that came later.
            if let Ok(message) = serde_json::from_str::<ServerJsonRpcMessage>(&data) {
                self.http.wire.charge(&whom(&message), data.len());
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), Fault> {
        self.events = futures::stream::empty().boxed();
        Ok(())
    }
}
