//! `gristmill tool review`: what servers say of their tools, and a person's word on it.

use crate::cli::house::House;
use crate::cli::operate::Tenant;
use crate::store::tool_definitions::{self, Waiting};
use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;
use std::process::ExitCode;

/// Definitions of tools that are new or have changed; calls of them wait.
#[derive(Debug, Subcommand)]
pub enum Reviews {
    /// Shows what waits for a word: what it was, what it is now, and how many calls wait.
    List {
        #[command(flatten)]
        tenant: Tenant,
        /// Also what has its word.
        #[arg(long)]
        all: bool,
    },
    /// Takes a tool as its server describes it now. Its calls go on.
    Approve(Word),
    /// Refuses a tool as its server describes it now. Its calls are denied.
    Refuse(Word),
}

/// Of which tools.
#[derive(Debug, clap::Args)]
pub struct Word {
    /// Tools by name, definitions by id (or its beginning); `server__*` means all that wait of one server.
    #[arg(required = true)]
    which: Vec<String>,
    #[command(flatten)]
    tenant: Tenant,
}

impl Reviews {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { tenant, all } => list(house, &tenant, all).await,
            Self::Approve(word) => word.say(house, true).await,
            Self::Refuse(word) => word.say(house, false).await,
        }
    }
}

async fn list(house: &House, tenant: &Tenant, all: bool) -> anyhow::Result<ExitCode> {
    let workspace = tenant.find(house).await?;
    let db = crate::store::connect(&house.settings.database).await?;
    let mut tx = crate::store::tenant(&db, workspace).await?;
    let waiting = tool_definitions::waiting(&mut tx, all).await?;
    tx.commit().await?;
    if waiting.is_empty() {
        println!("nothing waits");
    }
    for one in &waiting {
        println!("{}  {}  {}  {} calls wait", one.tool, one.id, one.review, one.calls);
        for line in differences(one) {
            println!("    {line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Field by field what was approved and what is said now; of a new tool all of it.
fn differences(one: &Waiting) -> Vec<String> {
    let mut lines = Vec::new();
    for field in ["name", "title", "description", "inputSchema", "annotations"] {
        let now = one.definition.get(field).filter(|value| !value.is_null());
        let was = one.before.as_ref().and_then(|before| before.get(field)).filter(|value| !value.is_null());
        if now == was {
            continue;
        }
        if let Some(was) = was {
            lines.push(format!("- {field}: {}", shown(was)));
        }
        if let Some(now) = now {
            lines.push(format!("+ {field}: {}", shown(now)));
        }
    }
    lines
}

/// In one line; a server's text must not draw on the terminal, and was cleaned when it came.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('\n', " ⏎ "),
        other => other.to_string(),
    }
}

impl Word {
    async fn say(&self, house: &House, approved: bool) -> anyhow::Result<ExitCode> {
        let workspace = self.tenant.find(house).await?;
        let db = crate::store::connect(&house.settings.database).await?;
        let mut tx = crate::store::tenant(&db, workspace).await?;
        let all = tool_definitions::waiting(&mut tx, true).await?;
        for which in &self.which {
            let meant: Vec<_> = all.iter().filter(|one| means(which, one)).collect();
            anyhow::ensure!(!meant.is_empty(), "no tool with a definition is meant by {which:?}");
            for one in meant {
                let woken = tool_definitions::review(&mut tx, one.id, approved)
                    .await
                    .with_context(|| one.tool.clone())?;
                let word = if approved { "approved" } else { "refused" };
                println!("{} {word}, {woken} calls go on", one.tool);
            }
        }
        tx.commit().await?;
        Ok(ExitCode::SUCCESS)
    }
}

fn means(which: &str, one: &Waiting) -> bool {
    match which.strip_suffix('*') {
        Some(prefix) => one.tool.starts_with(prefix) && one.review == "PENDING",
        None => {
            one.tool == which || (which.len() >= 8 && one.id.to_string().starts_with(&which.to_lowercase()))
        }
    }
}
