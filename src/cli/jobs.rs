//! `gristmill jobs`: what runs, what waits and why, what died, and the orders to try again or stop.
//!
//! An id may be shortened to what is unique of it. An attachment's id stands for the jobs that
//! worked on it.

mod ids;
mod orders;
mod tree;

use crate::cli::house::House;
use crate::cli::table;
use crate::domain::WorkspaceId;
use crate::store::{jobs, tenants};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use comfy_table::{Cell, Color, Table};
use ids::one;
use orders::{Cancel, Dead, Retry};
use serde::Serialize;
use sqlx::PgPool;
use std::process::ExitCode;

/// Arguments of `jobs`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Jobs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The newest jobs, and how many there are in each state; what `jobs` alone does.
    List(List),
    /// Counts by state, lane and kind, with the age of the oldest.
    Stats(Stats),
    /// One job with its times, worker and payload, and the tree it belongs to.
    Show(Show),
    /// Says why a job is where it is: what it waits for, who has it, how it ended.
    Explain(Explain),
    /// The dead by kind and cause; with --retry all of them are tried again.
    Dead(Dead),
    /// Tries dead or cancelled jobs again; a failed attachment is revived with its job.
    Retry(Retry),
    /// Asks jobs to stop; one that nobody works on ends at once or at its next claim.
    Cancel(Cancel),
}

#[derive(Debug, Args)]
struct List {
    /// Only jobs in this state: scheduled, waiting, running, parked, done, dead, cancelled.
    #[arg(long)]
    state: Option<String>,
    /// Only jobs of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Only jobs of this workspace, by its id or the name the chat layer gave it.
    #[arg(long)]
    workspace: Option<String>,
    /// How many.
    #[arg(long, default_value_t = 20)]
    limit: i64,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Stats {
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Show {
    /// A job's id, or enough of its beginning; or an attachment's id.
    id: String,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Explain {
    /// A job's id, or enough of its beginning; or an attachment's id.
    id: String,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl Jobs {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let db = crate::store::connect(&house.settings.database).await?;
        match self.what.unwrap_or(What::List(self.list)) {
            What::List(list) => list.run(&db, house).await,
            What::Stats(stats) => {
                let counts = jobs::counts(&db).await?;
                print(stats.json, &counts, || stats_table(&counts).to_string())
            }
            What::Show(show) => tree::show(&db, &show.id, show.json).await,
            What::Explain(explain) => explain.run(&db).await,
            What::Dead(dead) => dead.run(&db).await,
            What::Retry(retry) => retry.run(&db, house).await,
            What::Cancel(cancel) => cancel.run(&db).await,
        }
    }
}

/// The answer as JSON or as people read it.
fn print<T: Serialize>(json: bool, answer: &T, words: impl FnOnce() -> String) -> anyhow::Result<ExitCode> {
    println!("{}", if json { serde_json::to_string_pretty(answer)? } else { words() });
    Ok(ExitCode::SUCCESS)
}

async fn workspace_of(house: &House, name: Option<&str>) -> anyhow::Result<Option<WorkspaceId>> {
    let Some(name) = name else { return Ok(None) };
    let owner = house.owner().await?;
    let found = tenants::find_workspace(&owner, name).await?;
    Ok(Some(found.with_context(|| format!("there is no workspace {name:?}"))?))
}

impl List {
    async fn run(self, db: &PgPool, house: &House) -> anyhow::Result<ExitCode> {
        let filter = jobs::Filter {
            state: self.state.map(|state| state.to_uppercase()),
            kind: self.kind,
            workspace: workspace_of(house, self.workspace.as_deref()).await?,
            since: None,
        };
        let rows = jobs::newest(db, &filter, self.limit).await?;
        let counts = jobs::counts(db).await?;
        print(self.json, &rows, || format!("{}\n{}", summary(&counts), table(&rows)))
    }
}

/// One line: how many are in each state, and since when the oldest of what is not over.
fn summary(counts: &[jobs::Count]) -> String {
    let mut states: Vec<(&str, i64, f64)> = Vec::new();
    for count in counts {
        match states.last_mut() {
            Some((state, jobs, oldest)) if *state == count.state => {
                *jobs += count.jobs;
                *oldest = oldest.max(count.oldest_seconds);
            }
            _ => states.push((&count.state, count.jobs, count.oldest_seconds)),
        }
    }
    let words: Vec<_> = states
        .iter()
        .map(|(state, jobs, oldest)| match *state {
            "WAITING" | "RUNNING" | "PARKED" => format!("{jobs} {state} (oldest {})", table::span(*oldest)),
            _ => format!("{jobs} {state}"),
        })
        .collect();
    if words.is_empty() { "no jobs".to_owned() } else { words.join("  ") }
}

/// Jobs as a table: id, kind, state, attempts, when, why.
pub fn table(rows: &[jobs::Row]) -> Table {
    let mut table = table::table(["job", "kind", "state", "attempts", "created", "reason"]);
    for row in rows {
        table.add_row([
            Cell::new(row.id),
            Cell::new(&row.kind),
            Cell::new(&row.state).fg(color(&row.state)),
            Cell::new(format!("{}/{}", row.attempts, row.max_attempts)),
            Cell::new(row.created_at.format("%F %T")),
            Cell::new(row.reason.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

fn color(state: &str) -> Color {
    match state {
        "DONE" => Color::Green,
        "DEAD" => Color::Red,
        "PARKED" | "CANCELLED" => Color::Yellow,
        _ => Color::Reset,
    }
}

fn stats_table(counts: &[jobs::Count]) -> Table {
    let mut table = table::table(["state", "lane", "kind", "jobs", "oldest"]);
    for count in counts {
        table.add_row([
            Cell::new(&count.state).fg(color(&count.state)),
            Cell::new(if count.lane == 0 { "interactive" } else { "bulk" }),
            Cell::new(&count.kind),
            Cell::new(count.jobs),
            Cell::new(table::span(count.oldest_seconds)),
        ]);
    }
    table
}

impl Explain {
    async fn run(self, db: &PgPool) -> anyhow::Result<ExitCode> {
        let job = one(db, &self.id).await?;
        let reasons = jobs::explain(db, job).await?;
        print(self.json, &reasons, || {
            let lines: Vec<_> = reasons.iter().map(|r| format!("{:<16} {}", r.code, r.says)).collect();
            format!("{job}\n{}", lines.join("\n"))
        })
    }
}
