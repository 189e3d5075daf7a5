//! Jobs that end their worker: counted, buried, and no harm to the others.

use crate::child::{Act, Child, Deed};
use crate::world::{World, address};
use sqlx::PgPool;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_aborts_its_process_is_buried_and_those_behind_it_are_done(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let killer = world.order(&Deed::new("killer", Act::Abort)).await?;
    world.change("UPDATE gristmill.jobs SET max_attempts = 3").await?;
    let good = world.order(&Deed::new("good", Act::Mark)).await?;
    let folder = tempfile::tempdir()?;
    let began = Instant::now();
    let mut starts = 0;
    // As a supervisor does: what dies is started again.
    let last = 'starts: loop {
        starts += 1;
        let mut child = Child::start(&address(&world.admin), folder.path(), &[])?;
        while child.is_alive() {
            anyhow::ensure!(began.elapsed() < PATIENCE, "after {starts} starts\n{}", child.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let left = "SELECT count(*) FROM gristmill.jobs WHERE finished_at IS NULL";
            if world.count(left).await? == 0 {
                break 'starts child;
            }
        }
    };
    let (state, attempts, reason) = world.job(killer).await?;
    assert_eq!((state.as_str(), attempts), ("DEAD", 3), "{}", last.said());
    assert!(reason.unwrap_or_default().starts_with("worker_crash"));
    assert_eq!(world.marks("start:killer").await?, 3, "as often as it may, never more");
    assert_eq!(world.marks("gave_up:killer:worker_crash").await?, 1);
    assert_eq!(world.job(good).await?.0, "DONE");
    assert_eq!(world.marks("effect:good").await?, 1);
    assert_eq!(starts, 4, "each start of the killer cost one process, and the last one lives");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn panics_errors_and_nonsense_free_their_places(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    for n in 0..8 {
        world.order(&Deed::new(format!("panics {n}"), Act::Panic)).await?;
        world.order(&Deed::new(format!("fails {n}"), Act::Fail { reason: "no luck".into() })).await?;
        // As an older worker may have queued it.
        sqlx::query("INSERT INTO gristmill.jobs (workspace_id, kind, payload) VALUES ($1, 'deed', '{}')")
            .bind(world.workspace.0)
            .execute(&world.admin)
            .await?;
    }
    world.change("UPDATE gristmill.jobs SET max_attempts = 2").await?;
    let good = world.order(&Deed::new("good", Act::Mark)).await?;
    let folder = tempfile::tempdir()?;
    // One place: whoever does not free it stops all.
    let settings = [("GRISTMILL__QUEUE__CONCURRENCY", "1")];
    let mut child = Child::start(&address(&world.admin), folder.path(), &settings)?;
    let over = "SELECT count(*) = 0 FROM gristmill.jobs WHERE finished_at IS NULL";
    let waited = world.within(PATIENCE, "all is over", over).await;
    anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", child.said());
    assert_eq!(world.job(good).await?.0, "DONE");
    let reasons = world
        .words(
            "SELECT format('%s %s %s', split_part(reason, ':', 1), attempts, count(*)) FROM gristmill.jobs
             WHERE state = 'DEAD' GROUP BY split_part(reason, ':', 1), attempts ORDER BY 1",
        )
        .await?;
    assert_eq!(reasons, ["bad_payload 1 8", "gave_up 2 8", "panic 2 8"]);
    assert!(child.is_alive(), "{}", child.said());
    Ok(())
}
