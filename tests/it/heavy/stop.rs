//! A worker process that is told to end: what runs finishes or goes back, and nothing waits
//! for ever.

use crate::child::{Act, Child, Deed};
use crate::relay::Relay;
use crate::world::{World, address};
use gristmill::domain::JobId;
use sqlx::PgPool;
use std::time::{Duration, Instant};

/// For what takes as long as the machine is busy.
const PATIENCE: Duration = Duration::from_mins(1);
/// What a stop may take beyond the grace.
const BEYOND: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(1);
const RUNNING: &str = "SELECT count(*) > 0 FROM gristmill.events WHERE subject LIKE 'start:%'";

/// Starts a worker and waits until the deed is at work.
async fn at_work(
    world: &World,
    url: &str,
    deed: Deed,
    settings: &[(&str, &str)],
) -> anyhow::Result<(Child, JobId, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let job = world.order(&deed).await?;
    let child = Child::start(url, folder.path(), settings)?;
    let waited = world.within(PATIENCE, "it runs", RUNNING).await;
    anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", child.said());
    Ok((child, job, folder))
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_stop_lets_a_job_finish_within_the_grace_and_takes_no_other(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let deed = Deed::new("short", Act::Sleep { ms: 1500 });
    let settings = [("GRISTMILL__QUEUE__GRACE_SECONDS", "20")];
    let (mut child, job, _folder) = at_work(&world, &address(&world.admin), deed, &settings).await?;
    child.signal(libc::SIGTERM);
    // Heard before the next job is there.
    while !child.said().contains("stopping") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let late = world.order(&Deed::new("late", Act::Mark)).await?;
    let told = Instant::now();
    assert_eq!(child.ended(PATIENCE).await?.code(), Some(0), "{}", child.said());
    assert!(told.elapsed() < Duration::from_secs(20), "it did not wait for the whole grace");
    assert_eq!(world.job(job).await?, ("DONE".into(), 1, None));
    assert_eq!(world.job(late).await?, ("WAITING".into(), 0, None), "nothing was claimed any more");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_stop_hands_back_at_once_what_does_not_finish(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let deed = Deed::new("long", Act::Sleep { ms: 60_000 });
    let (mut child, job, _folder) = at_work(&world, &address(&world.admin), deed, &[]).await?;
    child.signal(libc::SIGTERM);
    assert_eq!(child.ended(GRACE + BEYOND).await?.code(), Some(0), "{}", child.said());
    let (state, attempts, reason) = world.job(job).await?;
    assert_eq!((state.as_str(), attempts), ("SCHEDULED", 0), "no attempt is spent\n{}", child.said());
    assert!(reason.unwrap_or_default().starts_with("INTERRUPTED"));
    Ok(())
}

/// As many as there are places: no thread of the program is free to hear the signal.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn jobs_that_block_every_thread_do_not_keep_a_worker_from_ending(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    for n in 1..8 {
        world.order(&Deed::new(n.to_string(), Act::Block { ms: 40_000 })).await?;
    }
    let settings = [("GRISTMILL__QUEUE__CONCURRENCY", "8")];
    let deed = Deed::new("0", Act::Block { ms: 40_000 });
    let (mut child, _, _folder) = at_work(&world, &address(&world.admin), deed, &settings).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    child.signal(libc::SIGTERM);
    child.ended(GRACE + BEYOND).await?;
    let left = "SELECT count(*) FROM gristmill.jobs WHERE state = 'RUNNING' OR attempts > 0";
    assert_eq!(world.count(left).await?, 0, "{}", child.said());
    let next = "SELECT count(*) FROM gristmill.jobs WHERE run_at <= now() AND lease_until IS NULL";
    assert_eq!(world.count(next).await?, 8, "the next worker need not wait for the leases");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_second_signal_cuts_the_grace_short(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let deed = Deed::new("long", Act::Sleep { ms: 60_000 });
    let settings = [("GRISTMILL__QUEUE__GRACE_SECONDS", "60")];
    let (mut child, job, _folder) = at_work(&world, &address(&world.admin), deed, &settings).await?;
    child.signal(libc::SIGTERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(child.is_alive(), "{}", child.said());
    child.signal(libc::SIGTERM);
    assert_eq!(child.ended(BEYOND).await?.code(), Some(1), "{}", child.said());
    let (state, attempts, _) = world.job(job).await?;
    assert_eq!((state.as_str(), attempts), ("SCHEDULED", 0));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_stop_without_a_database_ends_too_and_the_lease_does_the_rest(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    for (name, stalled) in [("away", false), ("silent", true)] {
        let relay = Relay::to(&world.admin.connect_options()).await?;
        let url = relay.address(&address(&world.admin));
        world.change("DELETE FROM gristmill.events WHERE type = 'test.mark'").await?;
        let deed = Deed::new(name, Act::Sleep { ms: 2000 });
        let (mut child, job, folder) = at_work(&world, &url, deed, &[]).await?;
        if stalled {
            relay.stall(true);
        } else {
            relay.refuse(true);
        }
        child.signal(libc::SIGTERM);
        child.ended(GRACE + BEYOND).await?;
        assert!(child.said().contains("left to their leases"), "{}", child.said());
        assert_eq!(world.job(job).await?.0, "RUNNING", "nobody could write");
        drop(relay);

        let other = Child::start(&address(&world.admin), folder.path(), &[])?;
        let ended = "SELECT count(*) = 0 FROM gristmill.jobs WHERE state <> 'DONE'";
        let waited = world.within(PATIENCE, "another worker did it", ended).await;
        anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", other.said());
        assert_eq!(world.marks(&format!("effect:{name}")).await?, 1);
    }
    Ok(())
}
