//! `gristmill tool`: the tools of a workspace, their calls, and a person's word on them.

mod call;
mod log;

pub use call::safe;

use crate::api;
use crate::cli::house::House;
use crate::cli::operate::Tenant;
use crate::cli::table::table;
use crate::cli::tool_credential::Credentials;
use crate::cli::tool_login::Login;
use crate::cli::tool_review::Reviews;
use crate::cli::tool_server::{Servers, Sync};
use crate::ground::Ground;
use crate::sql::Sql;
use crate::store::tool_reports::{self, NewTool};
use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use std::process::ExitCode;
use uuid::Uuid;

/// What to do with tools.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Adds a tool to a workspace.
    Add(Add),
    /// The tools of a workspace.
    List(List),
    /// Calls a tool and watches it until it is finished or waits for somebody.
    Call(call::Call),
    /// Says yes to a call that waits for it.
    Approve(Approve),
    /// Says no to a call that has not started.
    Deny(Deny),
    /// Says what became of a call whose outcome is unknown, or orders another start.
    Resolve(Resolve),
    /// Ends a call.
    Cancel(Cancel),
    /// Calls, newest first; or all that happened to one.
    Log(log::Log),
    /// The complete result of a call.
    Results(log::Results),
    /// What proves to tools' servers who calls.
    #[command(subcommand)]
    Credential(Credentials),
    /// Lets a user consent, in a browser, to calls of a server's tools in their name.
    Login(Login),
    #[command(subcommand)]
    Server(Servers),
    Sync(Sync),
    #[command(subcommand)]
    Review(Reviews),
}

impl Tool {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::Add(add) => add.run(house).await,
            Self::List(list) => list.run(house).await,
            Self::Call(call) => call.run(house).await,
            Self::Approve(approve) => approve.run(house).await,
            Self::Deny(deny) => deny.run(house).await,
            Self::Resolve(resolve) => resolve.run(house).await,
            Self::Cancel(cancel) => cancel.run(house).await,
            Self::Log(log) => log.run(house).await,
            Self::Results(results) => results.run(house).await,
            Self::Credential(credentials) => credentials.run(house).await,
            Self::Login(login) => login.run(house).await,
            Self::Server(servers) => servers.run(house).await,
            Self::Sync(sync) => sync.run(house).await,
            Self::Review(reviews) => reviews.run(house).await,
        }
    }
}

/// The call that an id, or the beginning of one, means.
async fn one(db: &PgPool, id: &str) -> anyhow::Result<Uuid> {
    anyhow::ensure!(id.len() >= 4, "{id:?} is too short: give four characters of the id at least");
    match tool_reports::beginning(db, id).await?.as_slice() {
        [call] => Ok(*call),
        [] => anyhow::bail!("there is no tool call {id}; see `gristmill tool log`"),
        several => {
            let all: Vec<_> = several.iter().map(Uuid::to_string).collect();
            anyhow::bail!("{id} could be {}", all.join(", "))
        }
    }
}

/// What a function of the database refused, in its own words and hint.
fn refused(error: sqlx::Error) -> anyhow::Error {
    use sqlx::postgres::PgDatabaseError;
    let said = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
    match said {
        Some(said) => match said.hint() {
            Some(hint) => anyhow::anyhow!("{} ({hint})", said.message()),
            None => anyhow::anyhow!("{}", said.message()),
        },
        None => error.into(),
    }
}

/// What a tool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Retrieval over documents.
    Knowledgebase,
    /// One request to an HTTP API.
    Api,
    /// Read-only SQL.
    Database,
    /// Grounded search at a model's provider.
    WebSearch,
    /// A tool of an MCP server of the catalogue.
    Mcp,
}

impl Kind {
    fn mcp_type(self) -> Option<&'static str> {
        match self {
            Self::Knowledgebase => Some("knowledgebase"),
            Self::Api => Some("API"),
            Self::Database => Some("database"),
            Self::WebSearch => Some("web_search"),
            Self::Mcp => None,
        }
    }

    /// What a call may do outside, where nobody says.
    fn effect(self) -> Effect {
        match self {
            Self::Api | Self::Mcp => Effect::Effectful,
            Self::Knowledgebase | Self::Database | Self::WebSearch => Effect::Read,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Effect {
    /// A call changes nothing outside.
    Read,
    /// Twice is as good as once.
    Idempotent,
    /// Twice is once too often.
    Effectful,
}

impl Effect {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Idempotent => "idempotent",
            Self::Effectful => "effectful",
        }
    }
}

/// How a tool's server is told who calls; the credential itself is stored apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Authentication {
    None,
    Header,
    Bearer,
    Basic,
    Query,
    Oauth,
    ClientCredentials,
}

impl Authentication {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Header => "header",
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::Query => "query",
            Self::Oauth => "oauth",
            Self::ClientCredentials => "client_credentials",
        }
    }
}

/// Arguments of `tool add`.
#[derive(Debug, Args)]
pub struct Add {
    /// How models name it; a tool of an MCP server is named `server__tool`.
    name: String,
    #[command(flatten)]
    tenant: Tenant,
    /// What it is made of.
    #[arg(long, value_enum)]
    kind: Kind,
    /// What models read of it.
    #[arg(long, default_value = "")]
    description: String,
    /// Where it is: a URL, or a database's address.
    #[arg(long)]
    endpoint: Option<String>,
    /// The server of the catalogue whose tool it is.
    #[arg(long, value_name = "NAME", required_if_eq("kind", "mcp"))]
    server: Option<String>,
    /// A JSON object of the kind's own settings (chunkSize, retrieveTopN, request, openapi, …).
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// JSON Schema of its arguments.
    #[arg(long, value_name = "JSON")]
    schema: Option<String>,
    /// What a call does outside; by the kind, where nothing is said.
    #[arg(long, value_enum)]
    effect: Option<Effect>,
    /// How its server is told who calls.
    #[arg(long, value_enum, default_value_t = Authentication::None)]
    authentication: Authentication,
}

impl Add {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let mut settings: Value = serde_json::from_str(&self.settings).context("--settings")?;
        let own: Option<Value> =
            self.schema.as_deref().map(serde_json::from_str).transpose().context("--schema")?;
        let fields = settings.as_object_mut().context("--settings is no JSON object")?;
        let custom = self.kind.mcp_type().map(|kind| {
            fields.insert("McpType".into(), kind.into());
            Value::Object(fields.clone())
        });
        let (schema, effect) = derived(self.kind, &settings, self.endpoint.as_deref(), own)?;
        let workspace = self.tenant.find(house).await?;
        let db = house.owner().await?;
        let tool = NewTool {
            name: &self.name,
            description: &self.description,
            custom: custom.as_ref(),
            server: self.server.as_deref(),
            endpoint: self.endpoint.as_deref(),
            authentication: self.authentication.as_str(),
            input_schema: schema.as_ref(),
            effect: self.effect.unwrap_or(effect).as_str(),
        };
        let added =
            tool_reports::add(&mut *db.acquire().await?, workspace, &tool).await.map_err(|error| {
                let taken =
                    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
                if taken {
                    anyhow::anyhow!("the workspace has a tool named {} already", self.name)
                } else {
                    refused(error)
                }
            })?;
        let server = self.server.as_deref().unwrap_or_default();
        let id = added.with_context(|| format!("the catalogue has no server named {server:?}"))?;
        println!("{id}");
        Ok(ExitCode::SUCCESS)
    }
}

/// The schema that models are shown, and what a call does outside where nobody says.
fn derived(
    kind: Kind,
    settings: &Value,
    endpoint: Option<&str>,
    own: Option<Value>,
) -> anyhow::Result<(Option<Value>, Effect)> {
    Ok(match kind {
        Kind::Api => {
            let given = own.unwrap_or_else(|| json!({ "type": "object" }));
            let tool = api::Tool::read(settings, endpoint, &given)?;
            let effect = match tool.method() {
                Method::GET | Method::HEAD => Effect::Read,
                Method::PUT | Method::DELETE => Effect::Idempotent,
                _ => Effect::Effectful,
            };
            (Some(tool.input_schema().clone()), effect)
        }
        Kind::Database => (own.or_else(|| Some(Sql::input_schema())), kind.effect()),
        Kind::WebSearch => (own.or_else(|| Some(Ground::input_schema())), kind.effect()),
        Kind::Knowledgebase | Kind::Mcp => (own, kind.effect()),
    })
}

/// Arguments of `tool list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    tenant: Tenant,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl List {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let workspace = self.tenant.find(house).await?;
        let rows = tool_reports::tools(&house.owner().await?, workspace).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines =
            table(["tool", "kind", "effect", "on", "auth", "review", "agents", "calls", "failed", "where"]);
        for row in rows {
            lines.add_row([
                row.name,
                row.kind,
                row.effect,
                if row.enabled { "on" } else { "off" }.to_owned(),
                row.authentication,
                row.review.unwrap_or_else(|| "-".to_owned()),
                row.agents.to_string(),
                row.calls.to_string(),
                row.failed.to_string(),
                row.endpoint.unwrap_or_default(),
            ]);
        }
        println!("{lines}");
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `tool approve`.
#[derive(Debug, Args)]
pub struct Approve {
    /// The call: its id, or the beginning of it.
    call: String,
    /// Who says so: the id of a user of the workspace.
    #[arg(long, value_name = "USER")]
    by: Option<Uuid>,
    /// The digest of the arguments that were looked at, as `tool log` shows it; others are refused.
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
}

impl Approve {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let digest = self.digest.map(hex::decode).transpose().context("--digest is no hex")?;
        let db = house.owner().await?;
        let call = one(&db, &self.call).await?;
        tool_reports::approve(&db, call, self.by, digest.as_deref()).await.map_err(refused)?;
        println!("{call} is approved");
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `tool deny`.
#[derive(Debug, Args)]
pub struct Deny {
    /// The call: its id, or the beginning of it.
    call: String,
    /// Who says so: the id of a user of the workspace.
    #[arg(long, value_name = "USER")]
    by: Option<Uuid>,
    /// Why, which the model reads.
    #[arg(long)]
    reason: Option<String>,
}

impl Deny {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let db = house.owner().await?;
        let call = one(&db, &self.call).await?;
        tool_reports::deny(&db, call, self.by, self.reason.as_deref()).await.map_err(refused)?;
        println!("{call} is denied");
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verdict {
    /// Start it once more, although it may have been done.
    Again,
    /// It was done.
    Ok,
    /// It was not done.
    Error,
    /// Nobody knows; the model is told so.
    Leave,
}

/// Arguments of `tool resolve`.
#[derive(Debug, Args)]
pub struct Resolve {
    /// The call: its id, or the beginning of it.
    call: String,
    /// What became of it.
    #[arg(value_enum)]
    verdict: Verdict,
    /// Who says so: the id of a user of the workspace.
    #[arg(long, value_name = "USER")]
    by: Option<Uuid>,
    /// What was found, which the model reads.
    #[arg(long)]
    note: Option<String>,
}

impl Resolve {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let verdict = match self.verdict {
            Verdict::Again => "again",
            Verdict::Ok => "ok",
            Verdict::Error => "error",
            Verdict::Leave => "leave",
        };
        let db = house.owner().await?;
        let call = one(&db, &self.call).await?;
        tool_reports::resolve(&db, call, verdict, (self.by, self.note.as_deref())).await.map_err(refused)?;
        println!("{call}: {verdict}");
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `tool cancel`.
#[derive(Debug, Args)]
pub struct Cancel {
    /// The call: its id, or the beginning of it.
    call: String,
    /// Why, which the model reads.
    #[arg(long)]
    reason: Option<String>,
}

impl Cancel {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let db = house.owner().await?;
        let call = one(&db, &self.call).await?;
        let state = tool_reports::cancel(&db, call, self.reason.as_deref()).await.map_err(refused)?;
        match state.as_str() {
            "CANCELLED" => println!("{call} is cancelled"),
            "STARTED" => println!("{call} is at work and was told to stop"),
            other => println!("{call} is {other} already"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_s_schema_and_effect_follow_from_what_it_is() {
        for (method, effect) in [
            ("GET", Effect::Read),
            ("HEAD", Effect::Read),
            ("PUT", Effect::Idempotent),
            ("DELETE", Effect::Idempotent),
            ("POST", Effect::Effectful),
            ("PATCH", Effect::Effectful),
        ] {
            let settings = json!({ "request": { "method": method, "path": "/{{id}}" } });
            let (schema, told) = derived(Kind::Api, &settings, Some("https://a.example"), None).unwrap();
            assert_eq!(told, effect, "{method}");
            assert_eq!(schema.unwrap()["required"], json!(["id"]));
        }
        assert!(derived(Kind::Api, &json!({}), Some("https://a.example"), None).is_err());
        let schema = |kind, own| derived(kind, &json!({}), None, own).unwrap().0;
        assert_eq!(schema(Kind::Database, None), Some(Sql::input_schema()));
        assert_eq!(schema(Kind::WebSearch, None), Some(Ground::input_schema()));
        assert_eq!(schema(Kind::Database, Some(json!({}))), Some(json!({})));
    }
}
