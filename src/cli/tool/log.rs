//! `gristmill tool log` and `results`: what calls there were, and what they gave.

use super::call::safe;
use super::one;
use crate::cli::house::House;
use crate::cli::table::{span, table};
use crate::context::Context;
use crate::objects::Pin;
use crate::store::tenants;
use crate::store::tool_reports::{self, CallRow, Complete, Filter};
use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use std::process::ExitCode;
use uuid::Uuid;

/// Arguments of `tool log`.
#[derive(Debug, Args)]
pub struct Log {
    /// One call: its id, or the beginning of it.
    call: Option<String>,
    /// Only calls of this workspace.
    #[arg(long, value_name = "WORKSPACE")]
    workspace: Option<String>,
    /// Only calls in this state, such as `needs_approval` or `unknown`.
    #[arg(long)]
    state: Option<String>,
    /// Only calls of this tool.
    #[arg(long)]
    tool: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 30)]
    limit: i64,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl Log {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let db = house.owner().await?;
        if let Some(id) = &self.call {
            return detail(&db, one(&db, id).await?, self.json).await;
        }
        let workspace = match &self.workspace {
            None => None,
            Some(name) => Some(
                tenants::find_workspace(&db, name)
                    .await?
                    .with_context(|| format!("there is no workspace {name:?}"))?,
            ),
        };
        let filter = Filter { workspace, state: self.state, tool: self.tool };
        let rows = tool_reports::newest(&db, &filter, self.limit).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines = table(["call", "tool", "state", "starts", "took", "when", "arguments", "reason"]);
        for row in rows {
            lines.add_row([
                row.id.to_string(),
                row.tool.clone(),
                row.state.clone(),
                row.attempts.to_string(),
                took(&row),
                row.created_at.format("%F %T").to_string(),
                short(&row.arguments.to_string()),
                short(row.reason.as_deref().unwrap_or_default()),
            ]);
        }
        println!("{lines}");
        Ok(ExitCode::SUCCESS)
    }
}

fn took(row: &CallRow) -> String {
    row.finished_at.map_or("-".to_owned(), |end| span((end - row.created_at).as_seconds_f64()))
}

fn short(text: &str) -> String {
    let line: String = safe(text).replace(['\n', '\t'], " ");
    if line.chars().count() <= 80 {
        line
    } else {
        format!("{}…", line.chars().take(79).collect::<String>())
    }
}

async fn detail(db: &PgPool, call: Uuid, as_json: bool) -> anyhow::Result<ExitCode> {
    let row = tool_reports::get(db, &[call]).await?.pop().context("the call is gone")?;
    let attempts = tool_reports::attempts(db, call).await?;
    let events = tool_reports::events(db, call).await?;
    if as_json {
        let all = json!({ "call": row, "attempts": attempts, "events": events });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let reason = row.reason.as_deref().map(|reason| format!(": {}", safe(reason))).unwrap_or_default();
    println!("{} {} of {}\n{}{reason}", row.id, safe(&row.tool), row.workspace, row.state);
    println!("arguments {}\ndigest    {}", row.arguments, row.arguments_sha256);
    for attempt in attempts {
        let outcome = attempt.outcome.as_deref().unwrap_or("no outcome yet");
        let remarks = [(attempt.ordered, ", ordered"), (attempt.unsent, ", never sent")];
        let remarks: String = remarks.iter().filter(|(is, _)| *is).map(|(_, words)| *words).collect();
        println!(
            "start     {} {}{remarks}: {outcome}",
            attempt.started_at.format("%F %T%.3f"),
            attempt.effect
        );
    }
    for event in events {
        let fields = ["reason", "message", "done", "total", "log", "serial_number"];
        let said: Vec<_> = fields.iter().filter_map(|field| Some((field, event.body.get(field)?))).collect();
        let said: Vec<_> =
            said.iter().map(|(field, value)| format!("{field} {}", short(&value.to_string()))).collect();
        println!("event     {} {} {}", event.at.format("%F %T%.3f"), event.kind, said.join(" "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `tool results`.
#[derive(Debug, Args)]
pub struct Results {
    /// The call, or the handle of its result: the id, or the beginning of it.
    call: String,
    /// The complete result as JSON, not only its text.
    #[arg(long)]
    json: bool,
}

impl Results {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let db = house.owner().await?;
        let call = one(&db, &self.call).await?;
        let stored = tool_reports::result(&db, call).await?;
        let stored =
            stored.with_context(|| format!("{call} has no result yet; see `gristmill tool log {call}`"))?;
        let whole = match stored.result {
            Some(result) => result,
            None => fetch(&*house.context().await?, &stored).await?,
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&whole)?);
            return Ok(ExitCode::SUCCESS);
        }
        let blocks = whole.get("content").and_then(Value::as_array).cloned().unwrap_or_default();
        for block in blocks {
            match block.get("text").and_then(Value::as_str) {
                Some(text) => println!("{}", safe(text)),
                None => println!("{}", short(&block.to_string())),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A result that lies in the bucket.
async fn fetch(ctx: &Context, stored: &Complete) -> anyhow::Result<Value> {
    let (Some(bucket), Some(key)) = (stored.bucket.clone(), stored.key.clone()) else {
        anyhow::bail!("the result lies nowhere");
    };
    let room = ctx.spool.room()?;
    let file = room.path().join("result");
    ctx.objects.download(&Pin { bucket, key, etag: None, version_id: None }, &file).await?;
    let bytes = tokio::fs::read(&file).await?;
    anyhow::ensure!(
        Sha256::digest(&bytes)[..] == stored.sha256[..],
        "the object is not the one that was stored"
    );
    Ok(serde_json::from_slice(&bytes)?)
}
