//! `gristmill mcp-conformance URL`: the client that the protocol's own conformance suites drive.
//!
//! Not a command for people. A suite starts it once a scenario, with the server's address; the
//! scenario's name and what is to be called stand in the environment. It lists the tools and calls
//! them, with the arguments that the scenario names or with ones made up from their schemas. Where
//! the server wants to know who calls, it is told ([`auth`]), so often and no oftener.

mod auth;

use crate::config::Config;
use crate::domain::{ToolOutput, WorkspaceId};
use crate::guard::Guard;
use crate::mcp::{Call, Clients, Definition, Endpoint, McpError, Server, SessionKey};
use anyhow::Context as _;
use clap::Args;
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
    #[serde(flatten)]
    known: auth::Known,
}

/// A server that is never content is left after so many grants.
const GRANTS: i32 = 3;

#[derive(Debug, Deserialize)]
struct ScriptCall {
    name: String,
    #[serde(default)]
    arguments: Map<String, Value>,
}

/// One scenario at work.
struct Play {
    clients: Clients,
    workspace: WorkspaceId,
    id: Uuid,
    url: Url,
    wallet: tokio::sync::Mutex<auth::Wallet>,
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
            workspace: WorkspaceId(Uuid::now_v7()),
            id: Uuid::now_v7(),
            url: self.url,
            wallet: tokio::sync::Mutex::new(auth::Wallet::new(&guard, script.known)?),
        };
        let ended = play.act(&script.calls).await;
        play.clients.close().await;
        ended.map(|()| ExitCode::SUCCESS)
    }
}

impl Play {
    async fn act(&self, calls: &[ScriptCall]) -> anyhow::Result<()> {
        let listing = loop {
            let (key, server) = self.session().await?;
            match self.clients.list(&key, &server).await {
                Err(error) if self.obeys(&error).await? => {}
                listed => break listed.context("listing the tools")?,
            }
        };
        println!("protocol {}, {} tools", listing.protocol_version, listing.tools.len());
        for call in calls {
            self.call(&call.name, call.arguments.clone()).await?;
        }
        if calls.is_empty() {
            for tool in &listing.tools {
                self.call(&tool.name, arguments(tool, &listing.tools)).await?;
            }
        }
        Ok(())
    }

    /// A session with what was granted so far.
    async fn session(&self) -> anyhow::Result<(SessionKey, Server)> {
        let (headers, credential) = self.wallet.lock().await.shown()?;
        let key = SessionKey { workspace: self.workspace, server: self.id, credential };
        Ok((key, Server::StreamableHttp(Endpoint { url: self.url.clone(), headers })))
    }

    /// Whether the server asked for a grant, and has it now.
    async fn obeys(&self, error: &McpError) -> anyhow::Result<bool> {
        let McpError::NeedsAuth { challenge, .. } = error else { return Ok(false) };
        let mut wallet = self.wallet.lock().await;
        if wallet.version == GRANTS {
            return Ok(false);
        }
        wallet.obey(&self.url, challenge.as_deref()).await?;
        Ok(true)
    }

    /// Calls a tool and says what came of it: a failure may be what the scenario waits for.
    async fn call(&self, tool: &str, arguments: Map<String, Value>) -> anyhow::Result<()> {
        let call = Call {
            tool: tool.to_owned(),
            arguments,
            call_id: Uuid::now_v7(),
            idempotency_key: None,
            idle: Duration::from_secs(10),
            total: Duration::from_secs(25),
        };
        let ended: Result<ToolOutput, McpError> = loop {
            let (heard, _) = mpsc::channel(1);
            let never = CancellationToken::new();
            let (key, server) = self.session().await?;
            match self.clients.call(&key, &server, &call, heard, &never).await {
                Err(error) if self.obeys(&error).await? => {}
                ended => break ended,
            }
        };
        match ended {
            Ok(output) => println!("{tool}: {}", json!(output)),
            Err(error) => println!("{tool}: {error}"),
        }
        Ok(())
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
