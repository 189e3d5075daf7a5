//! `gristmill schedules`: what comes by the clock, and a hand on it.

use crate::cli::house::House;
use crate::cli::table::table;
use crate::runtime::leader;
use crate::store::schedules;
use chrono::{DateTime, Utc};
use clap::Subcommand;
use std::process::ExitCode;

/// What to do with the schedules.
#[derive(Debug, Subcommand)]
pub enum Schedules {
    /// Every schedule with its last and its next tick.
    List,
    /// Queues a schedule's job now, whether it is on or off.
    Run {
        /// The schedule's name.
        name: String,
    },
    /// Switches a schedule on; what it missed while it was off is not made up for.
    Enable {
        /// The schedule's name.
        name: String,
    },
    /// Switches a schedule off.
    Disable {
        /// The schedule's name.
        name: String,
    },
}

impl Schedules {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::List => list(house).await,
            Self::Run { name } => {
                let db = crate::store::connect(&house.settings.database).await?;
                match schedules::run(&db, &name).await? {
                    Some((job, true)) => println!("{job}"),
                    Some((job, false)) => println!("{job} (it was there already)"),
                    None => anyhow::bail!("there is no schedule {name:?}; see `gristmill schedules list`"),
                }
                Ok(ExitCode::SUCCESS)
            }
            Self::Enable { name } => switch(house, &name, true).await,
            Self::Disable { name } => switch(house, &name, false).await,
        }
    }
}

async fn switch(house: &House, name: &str, on: bool) -> anyhow::Result<ExitCode> {
    // Schedules are the operator's rows: the worker's role only reads them.
    let db = house.owner().await?;
    let there = schedules::enable(&db, name, on).await?;
    db.close().await;
    anyhow::ensure!(there, "there is no schedule {name:?}; see `gristmill schedules list`");
    println!("{name} is {}", if on { "on" } else { "off" });
    Ok(ExitCode::SUCCESS)
}

async fn list(house: &House) -> anyhow::Result<ExitCode> {
    let db = crate::store::connect(&house.settings.database).await?;
    let rows = schedules::all(&db).await?;
    if rows.is_empty() {
        println!("no schedule yet: a worker publishes them when it starts");
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = table(["schedule", "kind", "cron", "zone", "on", "by", "last tick", "next tick", "note"]);
    let time = |at: DateTime<Utc>| at.format("%F %T").to_string();
    for row in rows {
        let next = match leader::ticks(&row.cron, &row.time_zone, row.now) {
            Ok(around) if row.enabled => around.next.map_or_else(|| "never".to_owned(), time),
            Ok(_) => "-".to_owned(),
            Err(fault) => fault.to_string(),
        };
        lines.add_row([
            row.name,
            row.kind,
            row.cron,
            row.time_zone,
            if row.enabled { "on" } else { "off" }.to_owned(),
            row.origin,
            time(row.last_tick),
            next,
            row.problem.or(row.note).unwrap_or_default(),
        ]);
    }
    println!("{lines}");
    Ok(ExitCode::SUCCESS)
}
