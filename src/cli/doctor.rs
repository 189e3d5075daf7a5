//! `gristmill doctor`: every part the worker needs, looked at one by one.
//!
//! A part that is missing stops no other from being looked at. Each look uses the program's own
//! way to the part, so what passes here works there.

mod database;
mod parts;
mod servers;

use crate::cli::house::House;
use crate::cli::table;
use crate::config::Config;
use clap::Args;
use comfy_table::{Cell, Color};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Longer than any part that works takes to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Standing {
    Ok,
    /// The worker runs, with less than it could have.
    Warning,
    /// The worker does not run, or not rightly.
    Failed,
}

/// What was found of one part.
#[derive(Debug, Serialize)]
struct Finding {
    part: &'static str,
    standing: Standing,
    says: String,
    /// What to do about it; empty when nothing is.
    todo: String,
}

/// What was found, part by part.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, part: &'static str, says: impl Into<String>) {
        self.push(part, Standing::Ok, says, "");
    }

    fn warning(&mut self, part: &'static str, says: impl Into<String>, todo: impl Into<String>) {
        self.push(part, Standing::Warning, says, todo);
    }

    fn failed(&mut self, part: &'static str, says: impl Into<String>, todo: impl Into<String>) {
        self.push(part, Standing::Failed, says, todo);
    }

    fn push(
        &mut self,
        part: &'static str,
        standing: Standing,
        says: impl Into<String>,
        todo: impl Into<String>,
    ) {
        self.0.push(Finding { part, standing, says: says.into(), todo: todo.into() });
    }
}

/// What `looking` found, or that it took too long.
async fn within<T, E: std::fmt::Display>(looking: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => found.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}

impl Doctor {
    pub async fn run(self, settings: &Config) -> anyhow::Result<ExitCode> {
        let (house, faults) = House::open_what_can(settings.clone()).await;
        let fault =
            |part| faults.iter().find(|(name, _)| *name == part).map(|(_, fault)| format!("{fault:#}"));
        let mut findings = Findings::default();
        let model = parts::model(&house.settings, &mut findings).await;
        let modelled = std::mem::take(&mut findings.0);
        database::look(&house, fault("database").or(fault("schema")), model.as_ref(), &mut findings).await;
        parts::objects(&house, fault("objects"), &mut findings).await;
        parts::scanner(&house.settings, &mut findings).await;
        parts::extraction(&house.settings, &mut findings).await;
        parts::ocr(&house.settings, &mut findings);
        findings.0.extend(modelled);
        servers::runtimes(&house, &mut findings).await;
        parts::spool(&house.settings, &mut findings);
        house.close().await?;
        self.print(&findings.0)?;
        let failed = findings.0.iter().any(|finding| finding.standing == Standing::Failed);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn print(&self, findings: &[Finding]) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(findings)?);
            return Ok(());
        }
        let mut table = table::table(["part", "", "found", "to do"]);
        for finding in findings {
            let standing = match finding.standing {
                Standing::Ok => Cell::new("ok").fg(Color::Green),
                Standing::Warning => Cell::new("warning").fg(Color::Yellow),
                Standing::Failed => Cell::new("failed").fg(Color::Red),
            };
            table.add_row([
                Cell::new(finding.part),
                standing,
                Cell::new(&finding.says),
                Cell::new(&finding.todo),
            ]);
        }
        println!("{table}");
        Ok(())
    }
}
