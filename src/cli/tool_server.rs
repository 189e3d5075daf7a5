//! `gristmill tool server` and `tool sync`: the catalogue, a workspace's connections, their tools.

use crate::cli::house::House;
use crate::cli::operate::Tenant;
use crate::cli::table;
use crate::jobs::ToolSync;
use crate::queue::{Enqueued, enqueue};
use crate::runtime::{Registry, Worker};
use crate::store::{jobs, mcp_servers, tool_subjects};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::process::ExitCode;

/// MCP servers of the operator's catalogue, and this workspace's connections to them.
#[derive(Debug, Subcommand)]
pub enum Servers {
    /// Lists the catalogue, and how the workspace's connections stand.
    List {
        #[command(flatten)]
        tenant: Tenant,
    },
    /// Connects the workspace to a server of the catalogue, or changes its parameters.
    Connect(Connect),
    /// Switches a connection off; its tools are not called any more.
    Disconnect {
        name: String,
        #[command(flatten)]
        tenant: Tenant,
    },
}

/// Arguments of `connect`.
#[derive(Debug, Args)]
pub struct Connect {
    name: String,
    /// What the catalogue's entry leaves to fill in, as a JSON object.
    #[arg(long, default_value = "{}", value_name = "JSON")]
    parameters: String,
    /// What becomes of new and changed tools: `trust_on_first_use`, `review_all`, `auto_for_read_only`;
    /// without it as the settings say (mcp.review).
    #[arg(long, value_name = "POLICY")]
    review: Option<String>,
    #[command(flatten)]
    tenant: Tenant,
}

/// Looks at a server's tools now, and waits for it.
#[derive(Debug, Args)]
pub struct Sync {
    /// The server by its name; without it every connection of the workspace.
    name: Option<String>,
    /// Queue and return; a worker that runs elsewhere does the work.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    tenant: Tenant,
}

impl Servers {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { tenant } => list(house, &tenant).await,
            Self::Connect(connect) => connect.run(house).await,
            Self::Disconnect { name, tenant } => disconnect(house, &name, &tenant).await,
        }
    }
}

async fn list(house: &House, tenant: &Tenant) -> anyhow::Result<ExitCode> {
    let workspace = tenant.find(house).await?;
    let db = crate::store::connect(&house.settings.database).await?;
    let mut tx = crate::store::tenant(&db, workspace).await?;
    let servers = mcp_servers::overview(&mut tx).await?;
    tx.commit().await?;
    let mut table = table::table(["server", "is", "connection", "protocol", "tools", "waiting", "failure"]);
    for server in servers {
        table.add_row([
            server.name,
            server.place,
            server.status.unwrap_or_else(|| "-".into()),
            server.protocol_version.unwrap_or_default(),
            server.tools.to_string(),
            server.waiting.to_string(),
            server.failure.unwrap_or_default(),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

impl Connect {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let given: Value = serde_json::from_str(&self.parameters).context("--parameters is no JSON")?;
        anyhow::ensure!(given.is_object(), "--parameters is no JSON object");
        let workspace = self.tenant.find(house).await?;
        let db = crate::store::connect(&house.settings.database).await?;
        let mut tx = crate::store::tenant(&db, workspace).await?;
        let terms = mcp_servers::Wish { server: &self.name, given: &given, review: self.review.as_deref() };
        let id = mcp_servers::connect(&mut tx, workspace, &terms).await?;
        let id = id.with_context(|| format!("the catalogue has no server {:?}", self.name))?;
        tx.commit().await?;
        println!("{id}");
        Ok(ExitCode::SUCCESS)
    }
}

async fn disconnect(house: &House, name: &str, tenant: &Tenant) -> anyhow::Result<ExitCode> {
    let workspace = tenant.find(house).await?;
    let db = crate::store::connect(&house.settings.database).await?;
    let mut tx = crate::store::tenant(&db, workspace).await?;
    anyhow::ensure!(mcp_servers::switch_off(&mut tx, name).await?, "there is no connection to {name:?}");
    tx.commit().await?;
    Ok(ExitCode::SUCCESS)
}

impl Sync {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let workspace = self.tenant.find(house).await?;
        let ctx = house.context().await?;
        let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
        let connections = match &self.name {
            None => mcp_servers::of_tenant(&mut tx).await?,
            Some(name) => {
                let found = tool_subjects::connection(&mut tx, workspace, name).await?;
                vec![found.with_context(|| format!("there is no connection to {name:?}"))?]
            }
        };
        let mut queued = Vec::new();
        for &connection in &connections {
            let sync = ToolSync { connection: Some(connection) };
            let (Enqueued::New(job) | Enqueued::Duplicate(job)) = enqueue(&mut tx, workspace, &sync).await?;
            queued.push(job);
        }
        tx.commit().await?;
        if self.no_wait {
            for job in queued {
                println!("{job}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let worker = Worker::start(&ctx, || Registry::default().with::<ToolSync>())?;
        jobs::until_over(&ctx.db, &queued).await?;
        worker.stop().await;
        list(house, &self.tenant).await
    }
}
