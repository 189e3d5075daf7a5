//! Drives one other queue through one task, for `gristmill bench queue`.
//!
//! The order comes as one line of JSON on standard input, the figures go as one line of JSON to
//! standard output. Each order has a database of its own, empty but for what this makes in it.

mod apalis_queue;
mod figures;
mod river_queue;

use figures::Figures;
use serde::Deserialize;

/// What is to be measured, and how much of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Order {
    pub system: System,
    pub task: Task,
    pub url: String,
    pub jobs: usize,
    /// Jobs a second while latency is measured.
    pub rate: u64,
    pub seconds: u64,
    /// Callers that enqueue one by one.
    pub producers: usize,
    /// A drain is cut off after so long; its rate is then that of what it got through.
    pub limit_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum System {
    #[serde(rename = "apalis-postgres")]
    Apalis,
    #[serde(rename = "apalis-postgres tuned")]
    ApalisTuned,
    #[serde(rename = "riverqueue tuned")]
    RiverTuned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    Enqueue,
    Drain,
    Latency,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let figures: Figures = match order.system {
        System::RiverTuned => river_queue::measure(&order).await?,
        System::Apalis | System::ApalisTuned => apalis_queue::measure(&order).await?,
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
