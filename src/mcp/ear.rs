//! What a server may say to us unasked, and what it gets for an answer.
//!
//! Sampling, elicitation and roots are not advertised: whoever asks for them all the same is
//! told that there is no such method (and, where that cannot be said, that nobody wants to
//! answer). No model is called and no person is asked from here.
//! Progress and log messages are heard in the transport, in the order they came in: rmcp hands
//! each to a task of its own, and the last would often come after the result.

#![expect(deprecated, reason = "what newer servers no longer send, older ones still do")]

use super::Heard;
use super::wire::Wire;
use rmcp::ClientHandler;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientJsonRpcMessage, CreateMessageRequestParams, CreateMessageResult,
    ElicitRequestParams, ElicitResult, ErrorCode, ErrorData, ExtensionCapabilities, Implementation,
    JsonRpcMessage, ListRootsResult, ProtocolVersion, ServerJsonRpcMessage, ServerNotification,
    TASKS_EXTENSION_ID,
};
use rmcp::service::{RequestContext, RoleClient};
use rmcp::transport::Transport;
use std::sync::Arc;

/// The client's side of a session.
#[derive(Debug, Clone)]
pub(super) struct Ear;

fn no_such_method(method: &'static str) -> ErrorData {
    ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method, None)
}

impl ClientHandler for Ear {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::default();
        capabilities.extensions =
            Some(ExtensionCapabilities::from([(TASKS_EXTENSION_ID.to_owned(), serde_json::Map::new())]));
        let me = Implementation::new("gristmill", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(capabilities, me).with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn create_message(
        &self,
        _: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        Err(no_such_method("sampling/createMessage"))
    }

    async fn create_elicitation(
        &self,
        _: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Err(no_such_method("elicitation/create"))
    }

    async fn list_roots(&self, _: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        Err(no_such_method("roots/list"))
    }
}

/// A transport whose progress and log messages are heard on the way.
pub(super) struct Tap<T> {
    pub inner: T,
    pub wire: Arc<Wire>,
}

impl<T> Tap<T> {
    /// Hears a message; what rmcp has no further use for is kept from it.
    fn hear(&self, message: ServerJsonRpcMessage) -> Option<ServerJsonRpcMessage> {
        let JsonRpcMessage::Notification(mut notification) = message else { return Some(message) };
        match notification.notification {
            ServerNotification::ProgressNotification(said) => {
                let said = said.params;
                let heard =
                    Heard::Progress { progress: said.progress, total: said.total, message: said.message };
                self.wire.progress(&said.progress_token, heard);
                None
            }
            ServerNotification::LoggingMessageNotification(said) => {
                let said = said.params;
                let level = serde_json::to_value(said.level).ok();
                let level = level.as_ref().and_then(|level| level.as_str()).unwrap_or("info").to_owned();
                self.wire.tell_all(&Heard::Log { level, logger: said.logger, data: said.data });
                None
            }
            other => {
                if matches!(other, ServerNotification::ToolListChangedNotification(_)) {
                    self.wire.tell_all(&Heard::ListChanged);
                }
                notification.notification = other;
                Some(JsonRpcMessage::Notification(notification))
            }
        }
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Tap<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.inner.send(message)
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            // Of a server that ended by itself, what it said before is read to its end.
            let message = tokio::select! {
                biased;
                () = self.wire.cut.cancelled() => return None,
                message = self.inner.receive() => message?,
            };
            if let Some(message) = self.hear(message) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}
