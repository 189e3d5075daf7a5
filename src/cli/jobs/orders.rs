//! The orders: try again what is dead, stop what is under way.

use super::ids::{find, listed, one};
use super::{print, workspace_of};
use crate::cli::house::House;
use crate::cli::table;
use crate::domain::{AttachmentId, JobId};
use crate::queue;
use crate::store::jobs;
use anyhow::Context as _;
use clap::Args;
use comfy_table::Cell;
use serde::Serialize;
use sqlx::PgPool;
use std::process::ExitCode;
use uuid::Uuid;

/// Arguments of `jobs dead`.
#[derive(Debug, Args)]
pub struct Dead {
    /// Only jobs of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Tries all that are shown again.
    #[arg(long)]
    retry: bool,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

/// Arguments of `jobs retry`.
#[derive(Debug, Args)]
pub struct Retry {
    /// Ids of jobs, or of failed attachments.
    #[arg(required_unless_present = "all_dead", conflicts_with = "all_dead")]
    ids: Vec<String>,
    /// Every dead job.
    #[arg(long)]
    all_dead: bool,
    /// With --all-dead: only jobs of this kind.
    #[arg(long, requires = "all_dead")]
    kind: Option<String>,
    /// With --all-dead: only what died within this time, like `2 hours` or `3 days`.
    #[arg(long, requires = "all_dead", value_name = "TIME")]
    since: Option<String>,
    /// With --all-dead: only jobs of this workspace.
    #[arg(long, requires = "all_dead")]
    workspace: Option<String>,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

/// Arguments of `jobs cancel`.
#[derive(Debug, Args)]
pub struct Cancel {
    /// Ids of jobs.
    #[arg(required = true)]
    ids: Vec<String>,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl Dead {
    pub async fn run(self, db: &PgPool) -> anyhow::Result<ExitCode> {
        if self.retry {
            let filter = jobs::Filter { kind: self.kind, ..jobs::Filter::default() };
            return retry_all(db, &jobs::dead_ids(db, &filter).await?, self.json).await;
        }
        let groups = jobs::dead(db, self.kind.as_deref()).await?;
        print(self.json, &groups, || {
            if groups.is_empty() {
                return "no job is dead".to_owned();
            }
            let mut table = table::table(["kind", "code", "jobs", "newest", "its reason"]);
            for group in &groups {
                table.add_row([
                    Cell::new(&group.kind),
                    Cell::new(&group.code),
                    Cell::new(group.jobs),
                    Cell::new(format!("{} {}", group.newest.format("%F %T"), group.newest_job)),
                    Cell::new(&group.newest_reason),
                ]);
            }
            table.to_string()
        })
    }
}

impl Retry {
    pub async fn run(self, db: &PgPool, house: &House) -> anyhow::Result<ExitCode> {
        if self.all_dead {
            let workspace = workspace_of(house, self.workspace.as_deref()).await?;
            let filter = jobs::Filter { state: None, kind: self.kind, workspace, since: self.since };
            return retry_all(db, &jobs::dead_ids(db, &filter).await?, self.json).await;
        }
        let mut ids = Vec::new();
        for id in &self.ids {
            ids.push(match find(db, id).await?.as_slice() {
                [job] => *job,
                // Not a job's: an attachment's, which the database knows or does not.
                [] => id.parse().with_context(|| format!("there is no job {id}"))?,
                several => anyhow::bail!("{id} could be {}", listed(several)),
            });
        }
        retry_all(db, &ids, self.json).await
    }
}

/// Each in a transaction of its own: one that cannot be retried holds up no other.
async fn retry_all(db: &PgPool, ids: &[Uuid], json: bool) -> anyhow::Result<ExitCode> {
    let mut answers = Vec::new();
    for &id in ids {
        let mut answer = jobs::retry(db, id).await?;
        if answer.outcome == "unknown" {
            answer = jobs::retry_attachment(db, AttachmentId(id)).await?;
        }
        answers.push(answer);
    }
    print(json, &answers, || {
        if answers.is_empty() {
            return "no job is dead".to_owned();
        }
        let mut table = table::table(["asked for", "outcome", "job", "because"]);
        for answer in &answers {
            let job = answer.job.map(|job| job.to_string()).unwrap_or_default();
            table.add_row([answer.of.to_string(), answer.outcome.clone(), job, answer.says.clone()]);
        }
        table.to_string()
    })?;
    let in_vain = answers.iter().any(|answer| matches!(answer.outcome.as_str(), "refused" | "unknown"));
    Ok(if in_vain { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What becomes of an order to stop.
#[derive(Debug, Serialize)]
struct Cancelled {
    job: Uuid,
    /// What it was found in.
    state: Option<String>,
}

impl Cancelled {
    fn says(&self) -> &'static str {
        match self.state.as_deref() {
            None => "there is no such job",
            Some("DONE" | "DEAD" | "CANCELLED") => "it was over before",
            Some("RUNNING") => "its worker is told at the next renewal of its lease",
            Some(_) => "the next claim tells its subject, and ends it",
        }
    }
}

impl Cancel {
    pub async fn run(self, db: &PgPool) -> anyhow::Result<ExitCode> {
        let mut ended = Vec::new();
        for id in &self.ids {
            let job = one(db, id).await?;
            ended.push(Cancelled { job, state: queue::cancel(db, JobId(job)).await? });
        }
        print(self.json, &ended, || {
            let mut table = table::table(["job", "was", "what happens"]);
            for one in &ended {
                table.add_row([&one.job.to_string(), one.state.as_deref().unwrap_or("-"), one.says()]);
            }
            table.to_string()
        })
    }
}
