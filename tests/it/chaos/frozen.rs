//! A worker process that freezes with a job in hand, and the control that shows what the fence
//! is for: without it the same freeze doubles the effect.

use crate::kit::guards::{SAME_EPOCH, take_out};
use crate::kit::process::Process;
use crate::kit::worker::{self, EFFECTS, Strike};
use crate::world::{World, address};
use gristmill::queue::enqueue;
use sqlx::{Executor, PgPool};
use std::path::Path;
use std::time::Duration;

/// So long until whoever thawed would have written.
const AFTER: Duration = Duration::from_secs(3);

fn start(world: &World, folder: &Path, name: &str) -> anyhow::Result<Process> {
    let settings = [
        ("GRISTMILL__DATABASE__MAX_CONNECTIONS", "6".to_owned()),
        ("GRISTMILL__EMBEDDED__DATA_DIR", folder.join(name).display().to_string()),
        ("GRISTMILL__SCHEDULES__LEAD", "false".into()),
        ("GRISTMILL__QUEUE__LEASE_SECONDS", "1".into()),
        ("GRISTMILL__QUEUE__POLL_MS", "20".into()),
        ("GRISTMILL__QUEUE__BACKOFF_SECONDS", "0.05".into()),
    ];
    worker::start(&address(&world.admin), &folder.join(format!("{name}.log")), &settings)
}

/// One worker freezes at work, another takes the job over, the first thaws. How often the
/// effect is there.
async fn freeze(world: &World) -> anyhow::Result<i64> {
    world.admin.execute(EFFECTS).await?;
    worker::registry().publish(&world.ctx.db).await?;
    let folder = tempfile::tempdir()?;
    let frozen = start(world, folder.path(), "frozen")?;
    let mut tx = world.admin.begin().await?;
    enqueue(&mut tx, world.workspace, &Strike { n: 1, ms: 800 }).await?;
    tx.commit().await?;
    world.until("it is at work", "SELECT bool_and(state = 'RUNNING') FROM gristmill.jobs").await?;
    frozen.signal(libc::SIGSTOP);
    let _other = start(world, folder.path(), "other")?;
    world.until("the other is done", "SELECT count(*) = 1 FROM public.effects").await?;
    frozen.signal(libc::SIGCONT);
    tokio::time::sleep(AFTER).await;
    world.count("SELECT count(*) FROM public.effects").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_that_freezes_and_thaws_writes_nothing(db: PgPool) -> anyhow::Result<()> {
    assert_eq!(freeze(&World::new(db).await?).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_fence_it_doubles_the_effect(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    take_out(&world.admin, ("enter", SAME_EPOCH, "")).await?;
    take_out(&world.admin, ("complete", SAME_EPOCH, "")).await?;
    // Nor is it told at its next renewal, which would stop it in time more often than not.
    take_out(&world.admin, ("renew", "AND j.epoch = a.epoch AND j.state = 'RUNNING'", "")).await?;
    assert_eq!(freeze(&world).await?, 2);
    Ok(())
}
