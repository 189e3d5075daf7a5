//! `gristmill verify`: the promises on the stored rows, asked of the database.

use crate::cli::house::House;
use crate::cli::table;
use crate::store::invariants::{self, INVARIANTS, Patience, Violation};
use clap::Args;
use comfy_table::{Cell, Color};
use serde_json::json;
use std::process::ExitCode;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// How long an unfinished attachment or index may stand without a job, in seconds.
    #[arg(long, default_value_t = 3600.0, value_name = "SECONDS")]
    stuck: f64,
    /// Violations named of each promise.
    #[arg(long, default_value_t = 20)]
    most: usize,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let patience =
            Patience { lease_seconds: house.settings.queue.lease_seconds, stuck_seconds: self.stuck };
        // Row-level security hides other tenants from the worker's role, and so their faults.
        let owner = house.owner().await?;
        let found = invariants::check(&owner, patience, self.most).await?;
        if self.json {
            let answer = json!({ "checks": INVARIANTS, "violations": found });
            println!("{}", serde_json::to_string_pretty(&answer)?);
        } else {
            print(&found);
        }
        Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn print(found: &[Violation]) {
    let mut table = table::table(["promise", "kept", "check"]);
    for invariant in INVARIANTS {
        let broken = found.iter().filter(|violation| violation.invariant == invariant.name).count();
        let kept = match broken {
            0 => Cell::new("yes").fg(Color::Green),
            n => Cell::new(format!("no: {n}")).fg(Color::Red),
        };
        table.add_row([Cell::new(invariant.promise), kept, Cell::new(invariant.name)]);
    }
    println!("{table}");
    for violation in found {
        println!("{}  {}  {}", violation.invariant, violation.id, violation.detail);
    }
}
