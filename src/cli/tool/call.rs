//! `gristmill tool call`: one call by hand, watched to its end.

use super::refused;
use crate::cli::house::House;
use crate::cli::operate::Tenant;
use crate::domain::ToolCallId;
use crate::runtime::{Worker, every_kind};
use crate::store::tool_reports::{self, CallRow, EventRow};
use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use sqlx::PgPool;
use std::process::ExitCode;
use std::time::Duration;

/// Between two looks at a call.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `tool call`.
#[derive(Debug, Args)]
pub struct Call {
    /// The tool: its name or id.
    tool: String,
    /// Its arguments, a JSON object.
    #[arg(default_value = "{}")]
    arguments: String,
    #[command(flatten)]
    tenant: Tenant,
    /// Says yes where the call waits for a person's yes.
    #[arg(long)]
    yes: bool,
    /// Queue and return; a worker that runs elsewhere does the work.
    #[arg(long)]
    no_wait: bool,
    /// The call as one JSON document.
    #[arg(long)]
    json: bool,
}

impl Call {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let arguments: Value = serde_json::from_str(&self.arguments).context("the arguments are no JSON")?;
        let workspace = self.tenant.find(house).await?;
        let owner = house.owner().await?;
        every_kind().publish(&owner).await?;
        let mut tx = crate::store::begin(&owner).await?;
        let asked = tool_reports::call_by_hand(&mut tx, workspace, (&self.tool, &arguments)).await;
        let call = asked.map_err(refused)?;
        tx.commit().await?;
        if self.no_wait {
            println!("{call}");
            return Ok(ExitCode::SUCCESS);
        }
        let ctx = house.context().await?;
        let worker = Worker::start(&ctx, every_kind)?;
        let watched = self.watch(&owner, call).await;
        worker.stop().await;
        let row = watched?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&row)?);
        } else {
            tell(&row);
        }
        Ok(if row.state == "OK" { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }

    /// Shows what happens until the call is finished, or waits for somebody.
    async fn watch(&self, owner: &PgPool, call: ToolCallId) -> anyhow::Result<CallRow> {
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}")?);
        bar.enable_steady_tick(LOOK);
        let mut approved = false;
        loop {
            let mut rows = tool_reports::get(owner, &[call.0]).await?;
            let row = rows.pop().context("the call is gone")?;
            let events = tool_reports::events(owner, call.0).await?;
            bar.set_message(message(&row, &events));
            let waits = matches!(row.state.as_str(), "NEEDS_APPROVAL" | "NEEDS_AUTH" | "BUDGET");
            if row.state == "NEEDS_APPROVAL" && self.yes && !approved {
                let digest = hex::decode(&row.arguments_sha256)?;
                tool_reports::approve(owner, call.0, None, Some(&digest)).await.map_err(refused)?;
                approved = true;
            } else if row.finished_at.is_some() || waits {
                bar.finish_and_clear();
                return Ok(row);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What is going on, in a few words: the newest progress, else the state.
fn message(row: &CallRow, events: &[EventRow]) -> String {
    let newest = events.iter().rev().find(|event| event.kind == "progress");
    let Some(progress) = newest else { return format!("{} {}", row.tool, row.state.to_lowercase()) };
    let number = |name: &str| progress.body.get(name).and_then(Value::as_f64);
    let words = progress.body.get("message").or_else(|| progress.body.get("log")).and_then(Value::as_str);
    let share = match (number("done"), number("total")) {
        (Some(done), Some(total)) => format!("{done}/{total} "),
        (Some(done), None) => format!("{done} "),
        _ => String::new(),
    };
    format!("{} {share}{}", row.tool, safe(words.unwrap_or_default()))
}

/// What a tool says must not steer the terminal.
pub fn safe(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

fn tell(row: &CallRow) {
    if let Some(view) = &row.view {
        println!("{}", safe(view));
    }
    let reason = row.reason.as_deref().map(|reason| format!(": {}", safe(reason))).unwrap_or_default();
    match row.state.as_str() {
        "OK" => {}
        "NEEDS_APPROVAL" => {
            println!("{} waits for a yes{reason}\n  {}", row.id, row.arguments);
            println!("gristmill tool approve {} --digest {}", row.id, row.arguments_sha256);
        }
        "UNKNOWN" => {
            println!("{} may or may not have been done{reason}", row.id);
            println!("gristmill tool resolve {} again|ok|error|leave", row.id);
        }
        state => eprintln!("{} {state}{reason}", row.id),
    }
}
