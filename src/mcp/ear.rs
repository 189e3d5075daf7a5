//! What a server may say to us unasked, and what it gets for an answer.
//!
//! Sampling, elicitation and roots are not advertised: whoever asks for them all the same is
//! told that there is no such method. No model is called and no person is asked from here.

#![expect(deprecated, reason = "what newer servers no longer send, older ones still do")]

use super::Heard;
use super::wire::Wire;
use rmcp::ClientHandler;
use rmcp::model::{
    ClientCapabilities, ClientConfig, CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams,
    ElicitResult, ErrorCode, ErrorData, ExtensionCapabilities, Implementation, ListRootsResult,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProtocolVersion, TASKS_EXTENSION_ID,
};
use rmcp::service::{NotificationContext, RequestContext, RoleClient};
use std::sync::Arc;

/// The client's side of a session.
#[derive(Debug, Clone)]
pub(super) struct Ear(pub Arc<Wire>);

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

    async fn on_progress(&self, said: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let heard = Heard::Progress { progress: said.progress, total: said.total, message: said.message };
        self.0.progress(&said.progress_token, heard);
    }

    async fn on_logging_message(
        &self,
        said: LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        let level = serde_json::to_value(said.level).ok();
        let level = level.as_ref().and_then(|level| level.as_str()).unwrap_or("info").to_owned();
        self.0.tell_all(&Heard::Log { level, logger: said.logger, data: said.data });
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.0.tell_all(&Heard::ListChanged);
    }
}
