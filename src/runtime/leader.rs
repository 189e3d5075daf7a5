//! The leader: of all workers of a database one enqueues the work that comes by the clock.
//!
//! Who holds a session's advisory lock leads; it goes with the connection, so a leader that is
//! cut off is replaced, and at worst there are two for a while. That is harmless: the schedule's
//! row moves on once for a tick, and the job's key names the tick. What is due is decided by the
//! database's clock. After an outage only the latest missed tick of a schedule is enqueued.
//!
//! It has a connection of its own and runs beside the jobs; a tick may be late by one look
//! (`schedules.poll_seconds`). Behind a pooler that lends a session to one transaction after the
//! other the lock means nothing, and every worker may lead: see above.

use crate::config::Config;
use crate::context::Context;
use crate::store::schedules::{self, Published, Schedule};
use chrono::{DateTime, TimeDelta, Utc};
use croner::Cron;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A look that takes longer is given up with its connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries while the database does not answer, or has an older schema.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A tick that is not to be made up for may be so old.
const LATE: TimeDelta = TimeDelta::minutes(1);

/// Why a schedule has no ticks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronFault {
    #[error("cron {cron:?}: {fault}")]
    Pattern { cron: String, fault: String },
    #[error("the time zone {0:?} is not one this program knows")]
    TimeZone(String),
}

/// The ticks around a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    /// The latest at or before it; a pattern may have none.
    pub latest: Option<DateTime<Utc>>,
    /// The first after it.
    pub next: Option<DateTime<Utc>>,
}

/// The ticks of a pattern around `now`. Times are those of the zone's clocks: what falls into the
/// hour that is left out in spring ticks when it ends, and in the hour that comes twice in autumn
/// a fixed time ticks once.
pub fn ticks(cron: &str, time_zone: &str, now: DateTime<Utc>) -> Result<Ticks, CronFault> {
    let zone = chrono_tz::Tz::from_str(time_zone).map_err(|_| CronFault::TimeZone(time_zone.to_owned()))?;
    let pattern = Cron::from_str(cron)
        .map_err(|fault| CronFault::Pattern { cron: cron.to_owned(), fault: fault.to_string() })?;
    let local = now.with_timezone(&zone);
    // An error here means that there is none within the years that are searched.
    let latest = pattern.find_previous_occurrence(&local, true).ok();
    let next = pattern.find_next_occurrence(&local, false).ok();
    Ok(Ticks { latest: latest.map(|at| at.to_utc()), next: next.map(|at| at.to_utc()) })
}

/// What this version of the worker does by the clock.
pub fn defaults(settings: &Config) -> [Published; 5] {
    let clamd = !settings.scan.clamd.trim().is_empty();
    let one =
        |name, kind, cron, note| Published { name, kind, payload: json!({}), cron, enabled: true, note };
    [
        one("tidy", "tidy", "*/5 * * * *", "removes what is over, takes up what stands still"),
        Published {
            payload: json!({ "deep": true }),
            ..one("tidy-deep", "tidy", "41 3 * * *", "also looks through the bucket")
        },
        Published {
            enabled: clamd,
            ..one("rescan", "rescan", "17 * * * *", "scans again with new signatures; needs scan.clamd")
        },
        one("usage-rollup", "usage_rollup", "23 2 * * *", "holds every budget against its ledger"),
        one("tool-sync", "tool_sync", "53 * * * *", "looks at the tools of every connected MCP server"),
    ]
}

/// Starts the candidate; it ends when `end` fires.
pub fn start(ctx: &Arc<Context>, end: CancellationToken) {
    if !ctx.settings.schedules.lead {
        return;
    }
    let mut candidate = Candidate {
        database: (*ctx.db.connect_options()).clone(),
        role: ctx.settings.database.role.clone(),
        published: defaults(&ctx.settings).to_vec(),
        poll: Duration::from_secs_f64(ctx.settings.schedules.poll_seconds),
        connection: None,
        leads: false,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = end.cancelled() => {}
            () = candidate.stand() => {}
        }
    });
}

struct Candidate {
    database: PgConnectOptions,
    role: String,
    published: Vec<Published>,
    poll: Duration,
    connection: Option<PgConnection>,
    leads: bool,
}

impl Candidate {
    async fn stand(&mut self) {
        let mut pause = self.poll;
        loop {
            let looked = tokio::time::timeout(PATIENCE, self.look()).await;
            let fault = match looked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            if let Some(fault) = fault {
                tracing::warn!(
                    fault,
                    led = self.leads,
                    "the schedules could not be looked at; connecting anew"
                );
                // The lock goes with the session.
                self.connection = None;
                self.leads = false;
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = self.poll;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&mut self) -> sqlx::Result<()> {
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if !self.leads {
            self.leads = schedules::lead(connection).await?;
            if !self.leads {
                return Ok(());
            }
            tracing::info!("leads: enqueues what comes by the clock");
        }
        for schedule in schedules::all(&mut *connection).await?.into_iter().filter(|s| s.enabled) {
            if let Err(fault) = enqueue_due(connection, &schedule).await?
                && schedules::set_problem(connection, &schedule.name, &fault).await?
            {
                tracing::error!(schedule = schedule.name, fault, "cannot be enqueued");
            }
        }
        Ok(())
    }

    async fn connect(&self) -> sqlx::Result<PgConnection> {
        let mut connection = self.database.connect().await?;
        crate::store::take_role(&mut connection, &self.role).await?;
        let silence = PATIENCE * 2 + self.poll * 2;
        schedules::end_when_silent(&mut connection, silence.as_millis() as u64).await?;
        for schedule in &self.published {
            schedules::publish(&mut connection, schedule).await?;
        }
        Ok(connection)
    }
}

/// Enqueues the latest tick if it is not dealt with; the inner error is the schedule's own.
async fn enqueue_due(connection: &mut PgConnection, schedule: &Schedule) -> sqlx::Result<Result<(), String>> {
    let around = match ticks(&schedule.cron, &schedule.time_zone, schedule.now) {
        Ok(around) => around,
        Err(fault) => return Ok(Err(fault.to_string())),
    };
    let Some(tick) = around.latest.filter(|&tick| tick > schedule.last_tick) else { return Ok(Ok(())) };
    if !schedule.catch_up && schedule.now - tick > LATE {
        return Ok(Ok(()));
    }
    match schedules::tick(connection, &schedule.name, tick).await {
        Ok(Some((job, true))) => tracing::info!(schedule = schedule.name, %tick, %job, "enqueued"),
        Ok(Some((job, false))) => {
            tracing::warn!(schedule = schedule.name, %tick, %job, "passed by: the last one is not over");
        }
        Ok(None) => {}
        // The database's word on this one schedule, as that no worker knows its kind (class 22: data,
        // 23: constraints).
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
        {
            return Ok(Err(error.message().to_owned()));
        }
        Err(error) => return Err(error),
    }
    Ok(Ok(()))
}
