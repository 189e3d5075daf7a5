//! Work by the clock: one leader, one job a tick, and the operator's word above the worker's.

use crate::world::{World, address, settings};
use chrono::{DateTime, Datelike, Utc};
use gristmill::runtime::leader::{CronFault, defaults, ticks};
use gristmill::runtime::{Worker, every_kind};
use gristmill::store::schedules::{self, Published};
use serde_json::json;
use sqlx::PgPool;
use std::process::{Command, Stdio};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The first of January, so many years ago.
fn new_year(years_ago: i32) -> DateTime<Utc> {
    at(&format!("{}-01-01T00:00:00Z", Utc::now().year() - years_ago))
}

fn latest(cron: &str, zone: &str, now: &str) -> String {
    ticks(cron, zone, at(now)).unwrap().latest.unwrap().format("%FT%RZ").to_string()
}

#[test]
fn a_tick_is_the_latest_time_of_the_pattern_by_the_clocks_of_the_zone() {
    assert_eq!(latest("*/5 * * * *", "UTC", "2026-11-22T09:14:59Z"), "2026-11-22T09:10Z");
    assert_eq!(latest("*/5 * * * *", "UTC", "2026-11-22T09:15:00Z"), "2026-11-22T09:15Z", "to the second");
    assert_eq!(latest("0 9 * * 1-5", "Europe/Berlin", "2026-11-22T12:00:00Z"), "2026-11-20T08:00Z");
    assert_eq!(latest("0 9 * * *", "Europe/Berlin", "2026-07-01T12:00:00Z"), "2026-07-01T07:00Z");
    let around = ticks("0 0 1 1 *", "UTC", at("2026-11-22T09:14:59Z")).unwrap();
    assert_eq!(around.next, Some(at("2027-01-01T00:00:00Z")));
}

#[test]
fn when_clocks_change_a_fixed_time_ticks_once_and_a_step_never_pauses() {
    // Spring in New York: from 02:00 to 03:00 at 07:00Z. Half past two is not there that day.
    let spring: Vec<String> = ["2026-03-08T06:59:00Z", "2026-03-08T08:00:00Z", "2026-03-09T06:29:00Z"]
        .map(|now| latest("30 2 * * *", "America/New_York", now))
        .into();
    assert_eq!(spring, ["2026-03-07T07:30Z", "2026-03-08T07:00Z", "2026-03-08T07:00Z"]);
    // Autumn: from 02:00 back to 01:00 at 06:00Z. Half past one is there twice, and meant once.
    let autumn: Vec<String> = ["2026-11-01T05:31:00Z", "2026-11-01T06:31:00Z", "2026-11-01T12:00:00Z"]
        .map(|now| latest("30 1 * * *", "America/New_York", now))
        .into();
    assert_eq!(autumn, ["2026-11-01T05:30Z", "2026-11-01T05:30Z", "2026-11-01T05:30Z"]);
    for now in ["2026-11-01T05:35:30Z", "2026-11-01T06:35:30Z", "2026-03-08T07:05:30Z"] {
        let tick = ticks("*/5 * * * *", "America/New_York", at(now)).unwrap().latest.unwrap();
        assert!((at(now) - tick).num_minutes() < 5, "{now}: {tick}");
    }
}

#[test]
fn a_pattern_or_a_zone_that_cannot_be_meant_is_named() {
    let now = at("2026-11-22T09:14:59Z");
    assert!(
        matches!(ticks("every day", "UTC", now), Err(CronFault::Pattern { cron, .. }) if cron == "every day")
    );
    assert_eq!(ticks("* * * * *", "Mars/Olympus", now), Err(CronFault::TimeZone("Mars/Olympus".into())));
    let never = ticks("0 0 30 2 *", "UTC", now).unwrap();
    assert_eq!((never.latest, never.next), (None, None), "the 30th of February");
}

#[test]
fn every_schedule_of_the_worker_has_a_pattern_and_a_kind_that_it_knows() {
    let known = every_kind().kinds();
    let mut settings = settings();
    assert!(!defaults(&settings).iter().any(|s| s.enabled && s.kind == "rescan"), "without clamd");
    settings.scan.clamd = "127.0.0.1:3310".into();
    for schedule in defaults(&settings) {
        assert!(known.iter().any(|kind| kind == schedule.kind), "{}", schedule.kind);
        assert!(ticks(schedule.cron, "UTC", Utc::now()).unwrap().next.is_some(), "{}", schedule.name);
        assert!(schedule.enabled, "{}", schedule.name);
    }
}

/// Leads, and looks often.
async fn leading(db: PgPool) -> anyhow::Result<World> {
    let mut settings = settings();
    settings.schedules.lead = true;
    World::with(db, settings).await
}

/// A schedule whose last tick but one was missed, and the one before it too.
const MISSED: &str = "INSERT INTO gristmill.schedules (name, kind, cron, last_tick)
    VALUES ('yearly', 'usage_rollup', '0 0 1 1 *', now() - interval '3 years')";

const ENQUEUED: &str = "SELECT count(*) = 1 FROM gristmill.jobs WHERE unique_key LIKE 'cron:yearly:%'";

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn after_an_outage_the_latest_missed_tick_is_enqueued_once_and_no_other(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = leading(db).await?;
    world.change(MISSED).await?;
    world
        .change(
            "INSERT INTO gristmill.schedules (name, kind, cron, last_tick, enabled, catch_up) VALUES
             ('off', 'usage_rollup', '0 0 1 1 *', now() - interval '3 years', false, true),
             ('no-catch-up', 'usage_rollup', '0 0 1 1 *', now() - interval '3 years', true, false)",
        )
        .await?;
    let worker = Worker::start(&world.ctx, every_kind)?;
    let over =
        "SELECT count(*) = 1 FROM gristmill.jobs WHERE unique_key LIKE 'cron:yearly:%' AND state = 'DONE'";
    world.until("the missed tick is done", over).await?;
    // Some more looks, over a job that is over.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    worker.stop().await;
    let year = Utc::now().format("%Y");
    assert_eq!(
        world.words("SELECT unique_key FROM gristmill.jobs WHERE kind = 'usage_rollup'").await?,
        [format!("cron:yearly:{year}-01-01T00:00:00Z")]
    );
    let house = "SELECT count(*) FROM gristmill.jobs WHERE unique_key LIKE 'cron:yearly:%'
                 AND workspace_id = '00000000-0000-0000-0000-000000000001'";
    assert_eq!(world.count(house).await?, 1, "in the house's own workspace");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn many_leaders_at_once_make_one_job_of_a_tick(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.change(MISSED).await?;
    let tick = new_year(0);
    let race = (0..8).map(|_| async {
        let mut connection = world.ctx.db.acquire().await?;
        schedules::tick(&mut connection, "yearly", tick).await
    });
    let answers = futures::future::try_join_all(race).await?;
    let made = answers.iter().flatten().filter(|(_, is_new)| *is_new).count();
    assert_eq!(made, 1, "{answers:?}");
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_row_that_was_set_back_makes_no_second_job_of_a_tick_but_without_its_key_it_would(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.change(MISSED).await?;
    let mut connection = world.ctx.db.acquire().await?;
    let first = schedules::tick(&mut connection, "yearly", new_year(0)).await?.unwrap();
    // As after a restore: the row is older than the queue, and the job is over.
    let set_back = async || -> anyhow::Result<()> {
        world.change("UPDATE gristmill.jobs SET state = 'DONE', finished_at = now()").await?;
        world.change("UPDATE gristmill.schedules SET last_tick = now() - interval '3 years'").await?;
        Ok(())
    };
    set_back().await?;
    assert_eq!(schedules::tick(&mut connection, "yearly", new_year(0)).await?, Some((first.0, false)));
    set_back().await?;
    world.change("DELETE FROM gristmill.job_keys").await?;
    assert!(schedules::tick(&mut connection, "yearly", new_year(0)).await?.unwrap().1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tick_of_the_future_is_not_enqueued_whatever_the_leaders_clock_says(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.change(MISSED).await?;
    let mut connection = world.ctx.db.acquire().await?;
    let tomorrow = Utc::now() + chrono::TimeDelta::days(1);
    assert_eq!(schedules::tick(&mut connection, "yearly", tomorrow).await?, None);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tick_whose_predecessor_is_not_over_is_passed_by(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.change(MISSED).await?;
    let mut connection = world.ctx.db.acquire().await?;
    let first = schedules::tick(&mut connection, "yearly", new_year(1)).await?.unwrap();
    let second = schedules::tick(&mut connection, "yearly", new_year(0)).await?.unwrap();
    assert_eq!((first.1, second), (true, (first.0, false)));
    world.change("UPDATE gristmill.jobs SET state = 'DONE', finished_at = now()").await?;
    world
        .change("UPDATE gristmill.schedules SET last_tick = date_trunc('year', now()) - interval '1 day'")
        .await?;
    let third = schedules::tick(&mut connection, "yearly", new_year(0)).await?.unwrap();
    assert!(third.1, "{third:?}");
    Ok(())
}

/// The process of the session that leads.
const LEADER: &str = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32 | objid::bigint) = hashtextextended('gristmill.leader', 0)";

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn one_of_two_workers_leads_and_the_other_follows_when_its_connection_goes(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = leading(db).await?;
    let workers = [Worker::start(&world.ctx, every_kind)?, Worker::start(&world.ctx, every_kind)?];
    world.until("one leads", "SELECT count(*) = 1 FROM gristmill.schedules WHERE name = 'tidy'").await?;
    let leader = async || -> anyhow::Result<Vec<i32>> {
        Ok(sqlx::query_scalar(LEADER).fetch_all(&world.admin).await?)
    };
    let mut before = leader().await?;
    while before.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        before = leader().await?;
    }
    assert_eq!(before.len(), 1);
    sqlx::query("SELECT pg_terminate_backend($1)").bind(before[0]).execute(&world.admin).await?;
    let mut after = leader().await?;
    while after.is_empty() || after == before {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        after = leader().await?;
    }
    assert_eq!(after.len(), 1);
    // Who leads now enqueues.
    world.change(MISSED).await?;
    world.until("the tick was enqueued", ENQUEUED).await?;
    for worker in workers {
        worker.stop().await;
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_leader_that_falls_silent_loses_its_place(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut silent = world.ctx.db.acquire().await?.detach();
    schedules::end_when_silent(&mut silent, 300).await?;
    assert!(schedules::lead(&mut silent).await?);
    let mut next = world.ctx.db.acquire().await?;
    assert!(!schedules::lead(&mut next).await?, "there is one already");
    let began = std::time::Instant::now();
    while !schedules::lead(&mut next).await? {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "nobody can lead");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(schedules::all(&mut silent).await.is_err(), "its session was ended");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_broken_schedule_says_so_and_holds_up_no_other(db: PgPool) -> anyhow::Result<()> {
    let world = leading(db).await?;
    world
        .change(
            "INSERT INTO gristmill.schedules (name, kind, cron, last_tick)
             VALUES ('broken', 'usage_rollup', 'whenever', now() - interval '1 day')",
        )
        .await?;
    world.change(MISSED).await?;
    let worker = Worker::start(&world.ctx, every_kind)?;
    world.until("the good one was enqueued", ENQUEUED).await?;
    world
        .until(
            "the broken one says so",
            "SELECT problem LIKE '%whenever%' FROM gristmill.schedules WHERE name = 'broken'",
        )
        .await?;
    worker.stop().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_renews_its_own_schedules_and_leaves_what_an_operator_changed(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut connection = world.ctx.db.acquire().await?;
    let mut one = Published {
        name: "one",
        kind: "tidy",
        payload: json!({}),
        cron: "0 1 * * *",
        enabled: true,
        note: "a note",
    };
    let stored = "SELECT cron || ' ' || origin FROM gristmill.schedules";
    schedules::publish(&mut connection, &one).await?;
    one.cron = "0 2 * * *";
    schedules::publish(&mut connection, &one).await?;
    assert_eq!(world.words(stored).await?, ["0 2 * * * worker"]);
    world.change("UPDATE gristmill.schedules SET cron = '0 7 * * *'").await?;
    one.cron = "0 3 * * *";
    schedules::publish(&mut connection, &one).await?;
    assert_eq!(world.words(stored).await?, ["0 7 * * * operator"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_was_missed_while_a_schedule_was_off_is_not_made_up_for(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.change(MISSED).await?;
    assert!(schedules::enable(&world.admin, "yearly", false).await?);
    world.change("UPDATE gristmill.schedules SET last_tick = now() - interval '3 years'").await?;
    assert!(schedules::enable(&world.admin, "yearly", true).await?);
    let recent = "SELECT count(*) FROM gristmill.schedules WHERE last_tick > now() - interval '1 minute'";
    assert_eq!(world.count(recent).await?, 1);
    assert!(!schedules::enable(&world.admin, "nobody", true).await?);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_operator_lists_switches_and_runs_schedules_from_the_command_line(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.change(MISSED).await?;
    let data = tempfile::tempdir()?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gristmill"));
        command.arg("schedules").args(arguments).env("DATABASE_URL", address(&world.admin));
        command.env("GRISTMILL__EMBEDDED__DATA_DIR", data.path());
        command.stdin(Stdio::null()).output().map(|output| {
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&said).trim_end().to_owned())
        })
    };
    let (code, listed) = run(&["list"])?;
    assert_eq!(code, Some(0), "{listed}");
    assert!(listed.contains("yearly") && listed.contains("usage_rollup"), "{listed}");
    assert_eq!(run(&["disable", "yearly"])?, (Some(0), "yearly is off".into()));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.schedules WHERE enabled").await?, 0);
    assert_eq!(run(&["enable", "yearly"])?, (Some(0), "yearly is on".into()));
    let (code, job) = run(&["run", "yearly"])?;
    assert_eq!(code, Some(0), "{job}");
    assert_eq!(world.words("SELECT id::text FROM gristmill.jobs").await?, [job]);
    let (code, complaint) = run(&["run", "nobody"])?;
    assert!(code == Some(1) && complaint.contains("there is no schedule"), "{complaint}");
    Ok(())
}
