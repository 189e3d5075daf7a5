//! What `gristmill bench queue` tells: absolute figures, our ratio to each system, and the goals.

use crate::cli::bench::queue::figures::{Figures, median, percentile};
use crate::cli::bench::queue::peers::Absent;
use crate::cli::bench::queue::task::Task;
use crate::cli::table::table;
use crate::store::bench;
use serde::Serialize;
use serde_json::{Value, json};

pub const BARE: &str = "bare loop";
pub const OURS: &str = "gristmill";

/// The least ratio of our drain to that of a system.
const DRAIN_GOALS: [(&str, f64); 5] = [
    (BARE, 0.85),
    ("riverqueue tuned", 1.3),
    ("graphile-worker tuned", 1.0),
    ("pg-boss", 2.0),
    ("apalis-postgres", 25.0),
];
/// The greatest ratio of our median latency to that of the bare LISTEN loop.
const P50_GOAL: f64 = 1.3;
/// The greatest 99th percentile, in milliseconds.
const P99_GOAL: f64 = 20.0;

/// One system's figures, round by round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Standing {
    name: &'static str,
    settings: String,
    drain_per_second: Vec<f64>,
    bulk_per_second: Vec<f64>,
    single_per_second: Vec<f64>,
    notified_per_second: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    idle_p50_ms: Vec<f64>,
    idle_p99_ms: Vec<f64>,
    /// Jobs that had begun when a drain took too long.
    cut_off_after: Vec<usize>,
}

impl Standing {
    pub fn new(name: &'static str, settings: String) -> Self {
        Self { name, settings, ..Self::default() }
    }

    pub fn add(&mut self, task: Task, figures: Figures) {
        self.drain_per_second.extend(figures.drain_per_second);
        self.bulk_per_second.extend(figures.bulk_per_second);
        self.single_per_second.extend(figures.single_per_second);
        self.notified_per_second.extend(figures.notified_per_second);
        self.cut_off_after.extend(figures.cut_off_after);
        let Some(latencies) = figures.latencies_ms else { return };
        let busy = matches!(task, Task::Latency { rate, .. } if rate >= 100);
        let (p50, p99) = if busy {
            (&mut self.p50_ms, &mut self.p99_ms)
        } else {
            (&mut self.idle_p50_ms, &mut self.idle_p99_ms)
        };
        p50.extend(percentile(&latencies, 0.5));
        p99.extend(percentile(&latencies, 0.99));
    }
}

/// All that was measured.
pub struct Report {
    pub server: bench::Server,
    pub rounds: usize,
    pub jobs: usize,
    pub standings: Vec<Standing>,
    pub absent: Vec<Absent>,
}

/// A goal and how we stand to it.
#[derive(Debug, Serialize)]
struct Goal {
    what: String,
    bound: String,
    measured: f64,
    met: bool,
}

impl Report {
    fn of(&self, name: &str) -> Option<&Standing> {
        self.standings.iter().find(|standing| standing.name == name)
    }

    /// Our median by a system's.
    fn ratio(&self, figure: fn(&Standing) -> &Vec<f64>, to: &Standing) -> Option<f64> {
        Some(median(figure(self.of(OURS)?))? / median(figure(to))?)
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (name, goal) in DRAIN_GOALS {
            let ratio = self.of(name).and_then(|to| self.ratio(|s| &s.drain_per_second, to));
            goals.extend(ratio.map(|measured| Goal {
                what: format!("drain, as a ratio to {name}"),
                bound: format!(">= {goal}"),
                measured,
                met: measured >= goal,
            }));
        }
        let p50 = self.of(BARE).and_then(|bare| self.ratio(|s| &s.p50_ms, bare));
        goals.extend(p50.map(|measured| Goal {
            what: "enqueue to start at 200/s, p50 as a ratio to the bare LISTEN loop".into(),
            bound: format!("<= {P50_GOAL}"),
            measured,
            met: measured <= P50_GOAL,
        }));
        let p99 = self.of(OURS).and_then(|ours| median(&ours.p99_ms));
        goals.extend(p99.map(|measured| Goal {
            what: "enqueue to start at 200/s, p99 in ms".into(),
            bound: format!("<= {P99_GOAL}"),
            measured,
            met: measured <= P99_GOAL,
        }));
        goals
    }

    /// Everything, each round's figure by itself.
    pub fn json(&self) -> Value {
        json!({
            "server": self.server,
            "optimised": !cfg!(debug_assertions),
            "rounds": self.rounds,
            "jobs": self.jobs,
            "systems": self.standings,
            "goals": self.goals(),
            "absent": self.absent,
        })
    }

    fn drains(&self) -> comfy_table::Table {
        let mut table =
            table(["drain", "settings", "jobs/s", "slowest..fastest", "ours by it", "enqueue in bulk /s"]);
        for standing in &self.standings {
            let ratio = self.ratio(|s| &s.drain_per_second, standing);
            let cut = if standing.cut_off_after.is_empty() { "" } else { " (cut off)" };
            table.add_row([
                standing.name.to_owned(),
                standing.settings.clone(),
                format!("{}{cut}", number(median(&standing.drain_per_second), 0)),
                range(&standing.drain_per_second),
                number(ratio, 2),
                number(median(&standing.bulk_per_second), 0),
            ]);
        }
        table
    }

    fn latencies(&self) -> comfy_table::Table {
        let mut table =
            table(["enqueue to start", "p50 ms", "p99 ms", "p50, ours by it", "idle p50 ms", "idle p99 ms"]);
        for standing in self.standings.iter().filter(|s| !(s.p50_ms.is_empty() && s.idle_p50_ms.is_empty())) {
            table.add_row([
                standing.name.to_owned(),
                number(median(&standing.p50_ms), 1),
                number(median(&standing.p99_ms), 1),
                number(self.ratio(|s| &s.p50_ms, standing), 2),
                number(median(&standing.idle_p50_ms), 1),
                number(median(&standing.idle_p99_ms), 1),
            ]);
        }
        table
    }

    fn enqueues(&self) -> comfy_table::Table {
        let mut table = table(["enqueue one by one, 8 callers", "jobs/s", "with NOTIFY"]);
        for standing in self.standings.iter().filter(|s| !s.single_per_second.is_empty()) {
            table.add_row([
                standing.name.to_owned(),
                number(median(&standing.single_per_second), 0),
                number(median(&standing.notified_per_second), 0),
            ]);
        }
        table
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bench::Server { version, fsync, synchronous_commit, shared_buffers } = &self.server;
        let build = if cfg!(debug_assertions) { "not optimised: ratios are too low" } else { "optimised" };
        writeln!(
            f,
            "Postgres {version}, fsync {fsync}, synchronous_commit {synchronous_commit}, shared_buffers \
             {shared_buffers}; this program: {build}; {} jobs, medians of {} rounds",
            self.jobs, self.rounds
        )?;
        writeln!(f, "\n{}\n\n{}\n\n{}", self.drains(), self.latencies(), self.enqueues())?;
        let mut goals = table(["goal", "", "measured", ""]);
        for goal in self.goals() {
            let met = if goal.met { "met" } else { "missed" };
            goals.add_row([goal.what, goal.bound, format!("{:.2}", goal.measured), met.into()]);
        }
        write!(f, "\n{goals}")?;
        for Absent { name, reason } in &self.absent {
            write!(f, "\nnot measured: {name}: {reason}")?;
        }
        Ok(())
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

fn range(rounds: &[f64]) -> String {
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rounds.iter().copied().fold(0.0, f64::max);
    if rounds.is_empty() { "-".into() } else { format!("{least:.0}..{most:.0}") }
}
