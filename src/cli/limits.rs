//! `gristmill limits`: what providers allow, as all workers keep it.

use crate::cli::house::House;
use crate::queue::limits::{self, Limit};
use clap::{Args, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `limits`.
#[derive(Debug, Subcommand)]
pub enum Limits {
    /// Shows each limit, who waits at it, and until when it is paused.
    List,
    /// Makes or changes a limit; a side that is not given is unlimited.
    Set {
        #[command(flatten)]
        name: Name,
        /// Requests a minute.
        #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
        requests: Option<i32>,
        /// Tokens a minute.
        #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
        tokens: Option<i64>,
    },
    /// Nobody calls the provider for so long.
    Pause {
        #[command(flatten)]
        name: Name,
        /// From one second to an hour; the longest of several pauses counts.
        #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
        /// What those who wait are told.
        #[arg(long, default_value = "paused by hand")]
        why: String,
    },
    /// Forgets a limit and its pause.
    Clear {
        #[command(flatten)]
        name: Name,
    },
}

/// Which limit.
#[derive(Debug, Args)]
pub struct Name {
    /// Whose key, never the key itself: for example platform:openai.
    key: String,
    /// The model, as the provider names it.
    model: String,
}

impl Name {
    fn limit(self) -> Limit {
        Limit { key_ref: self.key, model: self.model }
    }
}

impl Limits {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let db = crate::store::connect(&house.settings.database).await?;
        match self {
            Self::List => println!("{}", table(&limits::all(&db).await?)),
            Self::Set { name, requests, tokens } => limits::set(&db, &name.limit(), requests, tokens).await?,
            Self::Pause { name, seconds, why } => {
                let until = limits::pause(&db, &name.limit(), Duration::from_secs(seconds), &why).await?;
                println!("paused until {}", until.format("%F %T UTC"));
            }
            Self::Clear { name } => {
                if !limits::clear(&db, &name.limit()).await? {
                    println!("there is no such limit");
                    return Ok(ExitCode::from(2));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(rows: &[limits::Row]) -> comfy_table::Table {
    let header = ["key", "model", "requests/min", "tokens/min", "waiting", "paused until", "why"];
    let mut table = crate::cli::table::table(header);
    for row in rows {
        table.add_row([
            row.key_ref.clone(),
            row.model.clone(),
            row.requests_per_minute.map_or("-".into(), |n| n.to_string()),
            row.tokens_per_minute.map_or("-".into(), |n| n.to_string()),
            row.waiting.to_string(),
            row.paused_until.map_or("-".into(), |at| at.format("%F %T").to_string()),
            row.paused_why.clone().unwrap_or_default(),
        ]);
    }
    table
}
