//! `gristmill mcp-conformance URL`: the client that the protocol's own conformance suites drive.
//!
//! Not a command for people. A suite starts it once a scenario, with the server's address; the
//! scenario's name and what is to be called stand in the environment. It lists the tools and calls
//! them, with the arguments that the scenario names or with ones made up from their schemas.

use crate::config::Config;
use crate::domain::{ToolOutput, WorkspaceId};
use crate::guard::Guard;
use crate::mcp::{Call, Clients, Definition, Endpoint, McpError, Server, SessionKey};
use anyhow::Context as _;
use clap::Args;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

/// Runs one scenario of the MCP conformance suites.
#[derive(Debug, Args)]
pub struct Conformance {
    /// The scenario's server.
    url: Url,
}

/// What a scenario tells its client.
#[derive(Debug, Default, Deserialize)]
struct Script {
    #[serde(default, rename = "toolCalls")]
    calls: Vec<ScriptCall>,
}

#[derive(Debug, Deserialize)]
struct ScriptCall {
    name: String,
    #[serde(default)]
    arguments: Map<String, Value>,
}

/// One scenario at work.
struct Play {
    clients: Clients,
    key: SessionKey,
    server: Server,
}

impl Conformance {
    pub(super) async fn run(self, settings: &Config) -> anyhow::Result<ExitCode> {
        #[expect(clippy::disallowed_methods, reason = "it is how the suites talk to their clients")]
        let script = std::env::var("MCP_CONFORMANCE_CONTEXT").ok();
        let script: Script = script.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default();
        // The suites' servers are on this machine.
        let guard = Guard::new(&["127.0.0.0/8".parse()?, "::1/128".parse()?]);
        let play = Play {
            clients: Clients::new(&settings.mcp, &guard)?,
            key: SessionKey {
                workspace: WorkspaceId(Uuid::now_v7()),
                server: Uuid::now_v7(),
                credential: None,
            },
            server: Server::StreamableHttp(Endpoint { url: self.url, headers: HeaderMap::new() }),
        };
        let ended = play.act(&script).await;
        play.clients.close().await;
        ended.map(|()| ExitCode::SUCCESS)
    }
}

impl Play {
    async fn act(&self, script: &Script) -> anyhow::Result<()> {
        let listing = self.clients.list(&self.key, &self.server).await.context("listing the tools")?;
        println!("protocol {}, {} tools", listing.protocol_version, listing.tools.len());
        for call in &script.calls {
            self.call(&call.name, call.arguments.clone()).await;
        }
        if script.calls.is_empty() {
            for tool in &listing.tools {
                self.call(&tool.name, arguments(tool, &listing.tools)).await;
            }
        }
        Ok(())
    }

    /// Calls a tool and says what came of it: a failure may be what the scenario waits for.
    async fn call(&self, tool: &str, arguments: Map<String, Value>) {
        let call = Call {
            tool: tool.to_owned(),
            arguments,
            call_id: Uuid::now_v7(),
            idempotency_key: None,
            idle: Duration::from_secs(10),
            total: Duration::from_secs(25),
        };
        let (heard, _) = mpsc::channel(1);
        let never = CancellationToken::new();
        let ended: Result<ToolOutput, McpError> =
            self.clients.call(&self.key, &self.server, &call, heard, &never).await;
        match ended {
            Ok(output) => println!("{tool}: {}", json!(output)),
            Err(error) => println!("{tool}: {error}"),
        }
    }
}

/// Arguments that fit a tool's schema as far as the scenarios go. One that is called `schema`
/// is given the first other tool's own, to be compared with what was sent.
fn arguments(tool: &Definition, all: &[Definition]) -> Map<String, Value> {
    let properties = tool.input_schema.get("properties").and_then(Value::as_object);
    let mut made_up = Map::new();
    for (name, schema) in properties.into_iter().flatten() {
        let value = match schema.get("type").and_then(Value::as_str) {
            Some("integer") => json!(3),
            Some("number") => json!(4),
            Some("boolean") => json!(true),
            Some("array") => json!([]),
            Some("object") if name == "schema" => {
                let other = all.iter().find(|other| other.name != tool.name);
                json!(other.map(|other| &other.input_schema))
            }
            Some("object") => json!({}),
            _ => json!("text"),
        };
        made_up.insert(name.clone(), value);
    }
    made_up
}
