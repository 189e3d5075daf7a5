//! `jobs show`: one job in full, and the tree of jobs it came of and that came of it.

use super::ids::{find, listed};
use crate::cli::table::span;
use crate::store::jobs::{self, Row};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use std::fmt::Write;
use std::process::ExitCode;

/// What `show` answers: the jobs that were meant, and whole trees around them.
#[derive(Debug, Serialize)]
struct Shown {
    /// None when an attachment was meant.
    job: Option<Row>,
    trees: Vec<Vec<Row>>,
}

/// Prints one job and its tree, or every tree that worked on an attachment.
pub async fn show(db: &PgPool, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let (job, roots) = match find(db, id).await?.as_slice() {
        [one] => {
            let row = jobs::get(db, &[*one]).await?.pop().with_context(|| format!("there is no job {id}"))?;
            let root = row.root.unwrap_or(row.id);
            (Some(row), vec![root])
        }
        [] => {
            let attachment = id.parse().ok().with_context(|| format!("there is no job {id}"))?;
            (None, jobs::roots_of(db, attachment).await?)
        }
        several => anyhow::bail!("{id} could be {}", listed(several)),
    };
    anyhow::ensure!(!roots.is_empty(), "there is no job {id}, nor one that worked on an attachment {id}");
    let mut trees = Vec::new();
    for root in roots {
        trees.push(jobs::tree(db, root).await?);
    }
    let shown = Shown { job, trees };
    super::print(json, &shown, || {
        let now = Utc::now();
        let head = shown.job.iter().map(|job| facts(job, now));
        head.chain(shown.trees.iter().map(|tree| drawn(tree, now))).collect::<Vec<_>>().join("\n")
    })
}

/// All that is known of one job, a line each.
fn facts(job: &Row, now: DateTime<Utc>) -> String {
    let time = |at: DateTime<Utc>| {
        let seconds = (now - at).as_seconds_f64();
        let when =
            if seconds < 0.0 { format!("in {}", span(seconds)) } else { format!("{} ago", span(seconds)) };
        format!("{} ({when})", at.format("%F %T%.3f"))
    };
    let mut lines = vec![
        ("job", job.id.to_string()),
        ("kind", format!("{}, {}", job.kind, if job.lane == 0 { "interactive lane" } else { "bulk lane" })),
        ("workspace", job.workspace.to_string()),
        ("state", job.state.clone() + if job.cancel_requested { ", a cancel was asked for" } else { "" }),
        ("attempts", format!("{} of {}", job.attempts, job.max_attempts)),
        ("priority", job.priority.to_string()),
        ("created", time(job.created_at)),
        ("due", time(job.run_at)),
    ];
    lines.extend(job.started_at.map(|at| ("begun", time(at))));
    lines.extend(job.worker.clone().map(|worker| ("worker", worker)));
    lines.extend(job.lease_until.map(|at| ("lease until", time(at))));
    lines.extend(job.finished_at.map(|at| ("ended", time(at))));
    lines.extend(job.reason.clone().map(|reason| ("reason", reason)));
    lines.extend(job.key.clone().map(|key| ("key", key)));
    lines.push(("payload", job.payload.to_string()));
    lines.iter().fold(String::new(), |mut all, (name, value)| {
        // A String takes any text.
        writeln!(all, "{name:<12} {value}").ok();
        all
    })
}

/// The tree as lines: what came of a job stands below it.
fn drawn(tree: &[Row], now: DateTime<Utc>) -> String {
    let mut lines = Vec::new();
    // Whoever came before the first may have been removed: then there are several firsts.
    for first in tree.iter().filter(|job| !tree.iter().any(|other| Some(other.id) == job.parent)) {
        draw(tree, first, ("", ""), now, &mut lines);
    }
    lines.join("\n")
}

fn draw(
    tree: &[Row],
    job: &Row,
    (before, branch): (&str, &str),
    now: DateTime<Utc>,
    lines: &mut Vec<String>,
) {
    lines.push(format!("{before}{branch}{}", line(job, now)));
    let below = match branch {
        "├─ " => format!("{before}│  "),
        "└─ " => format!("{before}   "),
        _ => before.to_owned(),
    };
    let children: Vec<_> = tree.iter().filter(|other| other.parent == Some(job.id)).collect();
    for (n, child) in children.iter().enumerate() {
        let branch = if n + 1 == children.len() { "└─ " } else { "├─ " };
        draw(tree, child, (&below, branch), now, lines);
    }
}

fn line(job: &Row, now: DateTime<Utc>) -> String {
    let seconds = |from: DateTime<Utc>, to: DateTime<Utc>| span((to - from).as_seconds_f64());
    let time = match (job.started_at, job.finished_at) {
        (Some(begun), Some(ended)) => seconds(begun, ended),
        (Some(begun), None) if job.state == "RUNNING" => format!("for {}", seconds(begun, now)),
        (_, None) if job.run_at > now => format!("in {}", seconds(now, job.run_at)),
        (_, None) => format!("due for {}", seconds(job.run_at, now)),
        (None, Some(_)) => "never begun".to_owned(),
    };
    let tries = if job.attempts > 1 {
        format!(", attempt {} of {}", job.attempts, job.max_attempts)
    } else {
        String::new()
    };
    let reason = job.reason.as_ref().map(|reason| format!("  {reason}")).unwrap_or_default();
    format!("{}  {}  {} ({time}{tries}){reason}", job.id, job.kind, job.state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    fn job(id: u128, parent: Option<u128>, kind: &str, state: &str) -> Row {
        let at = |second: i64| DateTime::from_timestamp(1_000_000 + second, 0).unwrap();
        let over = matches!(state, "DONE" | "DEAD" | "CANCELLED");
        Row {
            id: Uuid::from_u128(id),
            workspace: Uuid::nil(),
            kind: kind.into(),
            lane: 1,
            priority: 0,
            state: state.into(),
            attempts: if state == "DEAD" { 3 } else { 1 },
            max_attempts: 3,
            payload: json!({}),
            key: None,
            worker: None,
            cancel_requested: false,
            reason: (state == "DEAD").then(|| "gave_up: the model is away".into()),
            parent: parent.map(Uuid::from_u128),
            root: parent.map(|_| Uuid::from_u128(1)),
            created_at: at(0),
            run_at: at(0),
            started_at: over.then(|| at(1)),
            lease_until: None,
            finished_at: over.then(|| at(4)),
        }
    }

    #[test]
    fn a_tree_is_drawn_with_what_came_of_each_job_below_it() {
        let tree = [
            job(1, None, "extract", "DONE"),
            job(2, Some(1), "embed", "DEAD"),
            job(4, Some(2), "fetch", "DONE"),
            job(3, Some(1), "embed", "DONE"),
            job(5, Some(4), "scan", "WAITING"),
        ];
        let id = |n: u128| Uuid::from_u128(n);
        let expected = format!(
            "{}  extract  DONE (3 s)\n\
             ├─ {}  embed  DEAD (3 s, attempt 3 of 3)  gave_up: the model is away\n\
             │  └─ {}  fetch  DONE (3 s)\n\
             │     └─ {}  scan  WAITING (due for 10 s)\n\
             └─ {}  embed  DONE (3 s)",
            id(1),
            id(2),
            id(4),
            id(5),
            id(3)
        );
        assert_eq!(drawn(&tree, DateTime::from_timestamp(1_000_010, 0).unwrap()), expected);
    }

    #[test]
    fn what_is_left_of_a_tree_whose_first_jobs_were_removed_is_drawn_all_the_same() {
        let tree = [job(2, Some(1), "scan", "DONE"), job(3, Some(1), "scan", "DONE")];
        assert_eq!(drawn(&tree, Utc::now()).lines().count(), 2);
    }
}
