//! What is common to all tools: what one gave, and what one is called with.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a tool gave, in the form of MCP's `CallToolResult`, whatever kind of tool it was.
///
/// A failure of the tool is an output too, with `is_error`: the model is to read it. All of it
/// is somebody else's text and never an instruction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolOutput {
    /// Content blocks: `{"type": "text", "text": …}`, `image`, `audio`, `resource_link`, `resource`.
    pub content: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_content: Option<Value>,
    #[serde(default)]
    pub is_error: bool,
}

impl ToolOutput {
    pub fn text(text: impl Into<String>) -> Self {
        Self { content: vec![json!({ "type": "text", "text": text.into() })], ..Self::default() }
    }

    /// Says to the model what went wrong.
    pub fn error(text: impl Into<String>) -> Self {
        Self { is_error: true, ..Self::text(text) }
    }
}

/// A credential, and the origin it was saved for: the only one it is ever sent to.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    pub credential: &'a Credential,
    pub origin: &'a str,
}

/// What proves to a tool's server who calls; sealed as JSON in `tool_credentials`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Credential {
    Header {
        name: String,
        value: SecretString,
    },
    Bearer {
        token: SecretString,
    },
    Basic {
        username: String,
        password: SecretString,
    },
    Query {
        name: String,
        value: SecretString,
    },
    /// An access token and what renews it.
    Oauth {
        access_token: SecretString,
        refresh_token: Option<SecretString>,
        client_id: String,
        client_secret: Option<SecretString>,
        token_url: String,
        scope: Option<String>,
        /// What the token is for (RFC 8707), as it was said when it was asked for.
        #[serde(default)]
        resource: Option<String>,
    },
    ClientCredentials {
        client_id: String,
        client_secret: SecretString,
        token_url: String,
        scope: Option<String>,
    },
}
