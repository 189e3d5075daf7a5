//! The queue: nothing lost, nothing doubled, nothing starved.

mod terms;
mod turns;

use crate::world::{World, settings};
use gristmill::context::Context;
use gristmill::domain::{JobId, WorkspaceId};
use gristmill::job::{Done, Job, JobError, Turn, Why};
use gristmill::queue::desk::{self, Ask, Backoff, Claimed, Outcome, Place};
use gristmill::queue::{Enqueued, Fence, Lane, Payload, Terms, cancel, enqueue, enqueue_as};
use gristmill::runtime::{Registry, Worker};
use gristmill::store::Tx;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::time::Duration;
use uuid::Uuid;

/// A job that does what its fields say, and marks each start in the tenant's metadata.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct Act {
    name: String,
    #[serde(default)]
    deed: Deed,
    key: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
enum Deed {
    #[default]
    Succeed,
    Fail,
    Refuse,
    Panic,
    Hang,
    WaitOnce,
    BlockThread,
}

impl Payload for Act {
    const KIND: &'static str = "act";

    fn key(&self) -> Option<String> {
        self.key.clone()
    }
}

impl Job for Act {
    const TIMEOUT: Duration = Duration::from_millis(3500);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let mut started = turn.begin(ctx).await?;
        mark(&mut started, turn.workspace(), &format!("start:{}", self.name)).await?;
        started.commit().await?;
        match self.deed {
            Deed::Succeed => {}
            Deed::Fail => return Err(JobError::transient(anyhow::anyhow!("the world was in the way"))),
            Deed::Refuse => return Err(JobError::fatal("refused", anyhow::anyhow!("never"))),
            Deed::Panic => panic!("kaboom"),
            Deed::Hang => tokio::time::sleep(Duration::from_mins(10)).await,
            Deed::BlockThread => std::thread::sleep(Duration::from_millis(2500)),
            Deed::WaitOnce => {
                if turn.attempt == 1
                    && marks(ctx, turn.workspace(), &format!("start:{}", self.name)).await? == 1
                {
                    return Err(JobError::Wait { delay: Duration::from_millis(150), reason: "busy".into() });
                }
            }
        }
        let mut tx = turn.begin(ctx).await?;
        mark(&mut tx, turn.workspace(), &format!("effect:{}", self.name)).await?;
        turn.finish(tx).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        let workspace: Uuid =
            sqlx::query_scalar("SELECT gristmill.current_workspace()").fetch_one(&mut **tx).await?;
        mark(tx, WorkspaceId(workspace), &format!("gave_up:{}:{}", self.name, why.code)).await
    }
}

async fn mark(tx: &mut Tx, workspace: WorkspaceId, text: &str) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body) VALUES ($1, 'test.mark', $2, $1, '{}')")
        .bind(workspace.0)
        .bind(text)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn marks(ctx: &Context, workspace: WorkspaceId, text: &str) -> sqlx::Result<i64> {
    let mut tx = gristmill::store::tenant(&ctx.db, workspace).await?;
    sqlx::query_scalar("SELECT count(*) FROM gristmill.events WHERE subject = $1")
        .bind(text)
        .fetch_one(&mut *tx)
        .await
}

fn act(name: &str, deed: Deed) -> Act {
    Act { name: name.into(), deed, key: None }
}

fn registry() -> Registry {
    Registry::default().with::<Act>()
}

/// A world that knows the kind.
async fn world(db: PgPool) -> anyhow::Result<World> {
    let world = World::new(db).await?;
    registry().publish(&world.ctx.db).await?;
    Ok(world)
}

impl World {
    async fn ask(&self, job: &Act) -> anyhow::Result<JobId> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, self.workspace).await?;
        let queued = enqueue(&mut tx, self.workspace, job).await?;
        tx.commit().await?;
        Ok(queued.job())
    }

    async fn marked(&self, text: &str) -> anyhow::Result<i64> {
        Ok(marks(&self.ctx, self.workspace, text).await?)
    }

    async fn limit(&self, id: JobId, attempts: i16) -> anyhow::Result<()> {
        sqlx::query("UPDATE gristmill.jobs SET max_attempts = $2 WHERE id = $1")
            .bind(id.0)
            .bind(attempts)
            .execute(&self.admin)
            .await?;
        Ok(())
    }

    async fn claim(&self, want: i32) -> anyhow::Result<Vec<Claimed>> {
        let ask = Ask {
            worker: Uuid::now_v7().to_string(),
            lane: Lane::Bulk,
            kinds: vec!["act".into()],
            lease: Duration::from_secs(30),
            workspace_cap: 64,
        };
        Ok(desk::claim(&self.ctx.db, &ask, want, &mut Place::default()).await?)
    }

    /// As if the worker that holds the jobs had died a lease ago.
    async fn lapse(&self) -> anyhow::Result<i64> {
        sqlx::query("UPDATE gristmill.jobs SET lease_until = now() - interval '1 s' WHERE state = 'RUNNING'")
            .execute(&self.admin)
            .await?;
        let mut conn = self.ctx.db.acquire().await?;
        Ok(desk::rescue(&mut conn, BACKOFF).await?)
    }
}

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(1), ceiling: Duration::from_secs(1) };

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_exists_exactly_when_the_transaction_that_asked_for_it_committed(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    assert!(matches!(enqueue(&mut tx, world.workspace, &act("a", Deed::Succeed)).await?, Enqueued::New(_)));
    tx.rollback().await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 0);

    world.ask(&act("b", Deed::Succeed)).await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_taken_key_answers_with_its_job_and_leaves_the_transaction_usable(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let keyed = Act { key: Some("one".into()), ..act("a", Deed::Succeed) };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let first = enqueue(&mut tx, world.workspace, &keyed).await?;
    assert_eq!(enqueue(&mut tx, world.workspace, &keyed).await?, Enqueued::Duplicate(first.job()));
    mark(&mut tx, world.workspace, "still usable").await?;
    tx.commit().await?;
    assert_eq!(world.marked("still usable").await?, 1);

    world.work(registry).await?;
    let again = world.ask(&keyed).await?;
    assert_ne!(again, first.job(), "the key is free again once its job is over");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn many_askers_of_one_key_at_once_make_one_job(db: PgPool) -> anyhow::Result<()> {
    let world = std::sync::Arc::new(world(db).await?);
    let keyed = Act { key: Some("one".into()), ..act("a", Deed::Succeed) };
    let mut askers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (world, keyed) = (world.clone(), keyed.clone());
        askers.spawn(async move { world.ask(&keyed).await });
    }
    let answers =
        askers.join_all().await.into_iter().collect::<anyhow::Result<std::collections::HashSet<_>>>()?;
    assert_eq!(answers.len(), 1);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_effect_and_the_end_of_its_job_commit_together(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("a", Deed::Succeed)).await?;
    world.work(registry).await?;
    assert_eq!(world.job(id).await?, ("DONE".into(), 1, None));
    assert_eq!(world.marked("effect:a").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_failing_job_is_tried_again_and_then_rests_among_the_dead_with_its_reason(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let failing = world.ask(&act("fails", Deed::Fail)).await?;
    let panicking = world.ask(&act("panics", Deed::Panic)).await?;
    let refusing = world.ask(&act("refuses", Deed::Refuse)).await?;
    world.limit(failing, 3).await?;
    world.limit(panicking, 2).await?;
    world.work(registry).await?;

    let (state, attempts, reason) = world.job(failing).await?;
    assert_eq!((state.as_str(), attempts), ("DEAD", 3));
    assert!(reason.unwrap_or_default().contains("the world was in the way"));
    assert_eq!(world.marked("start:fails").await?, 3);
    assert_eq!(world.marked("gave_up:fails:gave_up").await?, 1);

    let (state, attempts, reason) = world.job(panicking).await?;
    assert_eq!((state.as_str(), attempts), ("DEAD", 2));
    assert!(reason.unwrap_or_default().starts_with("panic"));

    let (state, attempts, _) = world.job(refusing).await?;
    assert_eq!((state.as_str(), attempts), ("DEAD", 1), "a fatal verdict is not tried again");
    assert_eq!(world.marked("gave_up:refuses:refused").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_past_its_time_and_one_of_an_unknown_payload_do_not_stop_the_others(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let hanging = world.ask(&act("hangs", Deed::Hang)).await?;
    world.limit(hanging, 1).await?;
    // As an older worker may have queued it.
    sqlx::query(
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload) VALUES ($1, 'act', '{\"nonsense\": true}')",
    )
    .bind(world.workspace.0)
    .execute(&world.admin)
    .await?;
    let good = world.ask(&act("good", Deed::Succeed)).await?;
    world.work(registry).await?;

    let (state, _, reason) = world.job(hanging).await?;
    assert_eq!(state, "DEAD");
    assert!(reason.unwrap_or_default().starts_with("timeout"));
    assert_eq!(world.job(good).await?.0, "DONE");
    assert_eq!(
        world
            .count("SELECT count(*) FROM gristmill.jobs WHERE state = 'DEAD' AND reason LIKE 'bad_payload%'")
            .await?,
        1
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_wait_costs_no_attempt(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("waits", Deed::WaitOnce)).await?;
    world.limit(id, 1).await?;
    world.work(registry).await?;
    assert_eq!(world.job(id).await?, ("DONE".into(), 1, None));
    assert_eq!(world.marked("start:waits").await?, 2);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_stale_worker_changes_nothing(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("a", Deed::Succeed)).await?;
    let stale = world.claim(1).await?.remove(0);
    assert_eq!(world.lapse().await?, 1);

    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    assert!(matches!(stale.lease.enter(&mut tx).await, Err(Fence::Lost)), "rescued: nobody holds it yet");
    drop(tx);

    tokio::time::sleep(Duration::from_millis(10)).await;
    let fresh = world.claim(1).await?.remove(0);
    assert!(fresh.lease.epoch > stale.lease.epoch);
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    assert!(matches!(stale.lease.enter(&mut tx).await, Err(Fence::Lost)), "somebody else holds it now");
    drop(tx);
    let late = [(stale.lease, Outcome::Done), (stale.lease, Outcome::Retry { reason: "late".into() })];
    assert_eq!(desk::acknowledge(&world.ctx.db, &late, BACKOFF).await?.held, 0);
    assert_eq!(world.job(id).await?.0, "RUNNING");

    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    fresh.lease.enter(&mut tx).await?;
    fresh.lease.complete(&mut tx).await?;
    tx.commit().await?;
    assert_eq!(world.job(id).await?.0, "DONE");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_effect_transaction_under_way_is_neither_rescued_nor_delays_renewal(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    world.ask(&act("a", Deed::Succeed)).await?;
    let job = world.claim(1).await?.remove(0);
    sqlx::query("UPDATE gristmill.jobs SET lease_until = now() - interval '1 s'")
        .execute(&world.admin)
        .await?;
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    job.lease.enter(&mut tx).await?;

    let mut conn = world.ctx.db.acquire().await?;
    assert_eq!(desk::rescue(&mut conn, BACKOFF).await?, 0);
    let kept = desk::renew(&mut conn, &[job.lease], Duration::from_secs(5)).await?;
    assert_eq!(kept.len(), 1, "still ours, although its row was skipped");
    job.lease.complete(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_frozen_inside_its_effect_transaction_does_not_hold_the_job_for_ever(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("a", Deed::Succeed)).await?;
    let ask = Ask {
        worker: "frozen".into(),
        lane: Lane::Bulk,
        kinds: vec!["act".into()],
        lease: Duration::from_secs(1),
        workspace_cap: 64,
    };
    let frozen = desk::claim(&world.ctx.db, &ask, 1, &mut Place::default()).await?.remove(0);
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    frozen.lease.enter(&mut tx).await?;
    mark(&mut tx, world.workspace, "effect:frozen").await?;

    // Nothing is said on its connection any more.
    world.work(registry).await?;
    assert!(tx.commit().await.is_err());
    assert_eq!(world.job(id).await?, ("DONE".into(), 2, None));
    assert_eq!((world.marked("effect:frozen").await?, world.marked("effect:a").await?), (0, 1));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_kills_its_workers_starts_as_often_as_it_may_and_is_then_buried(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("killer", Deed::Succeed)).await?;
    world.limit(id, 3).await?;
    for attempt in 1..=3 {
        world.until("it is due", "SELECT bool_and(run_at <= now()) FROM gristmill.jobs").await?;
        let claimed = world.claim(1).await?;
        assert_eq!(claimed[0].attempt, attempt);
        world.lapse().await?;
    }
    world.work(registry).await?;
    let (state, attempts, reason) = world.job(id).await?;
    assert_eq!((state.as_str(), attempts), ("DEAD", 3));
    assert!(reason.unwrap_or_default().starts_with("worker_crash"));
    assert_eq!(world.marked("start:killer").await?, 0, "the burial does not run it");
    assert_eq!(world.marked("gave_up:killer:worker_crash").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn work_that_blocks_its_thread_for_longer_than_a_lease_is_not_doubled(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("blocks", Deed::BlockThread)).await?;
    world.work(registry).await?;
    assert_eq!(world.job(id).await?, ("DONE".into(), 1, None));
    assert_eq!(world.marked("start:blocks").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_stop_hands_running_jobs_back_without_costing_an_attempt(db: PgPool) -> anyhow::Result<()> {
    let mut quick = settings();
    quick.queue.grace_seconds = 0.2;
    let world = World::with(db, quick).await?;
    registry().publish(&world.ctx.db).await?;
    let id = world.ask(&act("hangs", Deed::Hang)).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    world.until("it runs", "SELECT bool_and(state = 'RUNNING') FROM gristmill.jobs").await?;
    worker.stop().await;
    let (state, attempts, _) = world.job(id).await?;
    assert_eq!((state.as_str(), attempts), ("SCHEDULED", 0));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_running_job_learns_that_it_was_cancelled(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("hangs", Deed::Hang)).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    world.until("it runs", "SELECT bool_and(state = 'RUNNING') FROM gristmill.jobs").await?;
    assert_eq!(cancel(&world.ctx.db, id).await?.as_deref(), Some("RUNNING"));
    world.until("it is cancelled", "SELECT bool_and(state = 'CANCELLED') FROM gristmill.jobs").await?;
    worker.stop().await;
    assert_eq!(world.marked("gave_up:hangs:cancelled").await?, 1, "its subject was told");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tenant_with_many_jobs_does_not_starve_one_with_few(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let mut conn = world.admin.acquire().await?;
    let small = gristmill::store::tenants::ensure_workspace(&mut conn, "small").await?;
    for (workspace, jobs) in [(world.workspace, 200), (small, 2)] {
        sqlx::query("SELECT gristmill.enqueue('act', '{\"name\": \"n\"}', workspace => $1) FROM generate_series(1, $2)")
            .bind(workspace.0)
            .bind(jobs)
            .execute(&world.admin)
            .await?;
    }
    let claimed = world.claim(8).await?;
    assert_eq!(claimed.len(), 8, "places left over go to whoever has work");
    assert_eq!(claimed.iter().filter(|job| job.lease.workspace == small).count(), 2);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_cap_of_a_workspace_holds_over_claims(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    for n in 0..5 {
        world.ask(&act(&n.to_string(), Deed::Succeed)).await?;
    }
    let ask = Ask {
        worker: "w".into(),
        lane: Lane::Bulk,
        kinds: vec!["act".into()],
        lease: Duration::from_secs(30),
        workspace_cap: 2,
    };
    assert_eq!(desk::claim(&world.ctx.db, &ask, 4, &mut Place::default()).await?.len(), 2);
    assert_eq!(desk::claim(&world.ctx.db, &ask, 4, &mut Place::default()).await?.len(), 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_scheduled_job_waits_for_its_time_and_priority_goes_first(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let later = Terms { delay: Duration::from_hours(1), ..Terms::default() };
    enqueue_as(&mut tx, world.workspace, &act("later", Deed::Succeed), &later).await?;
    enqueue(&mut tx, world.workspace, &act("usual", Deed::Succeed)).await?;
    let urgent = Terms { priority: 5, ..Terms::default() };
    enqueue_as(&mut tx, world.workspace, &act("urgent", Deed::Succeed), &urgent).await?;
    tx.commit().await?;
    let order: Vec<_> = [world.claim(1).await?, world.claim(9).await?].concat();
    let names: Vec<_> = order.iter().map(|job| job.payload["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["urgent", "usual"]);
    Ok(())
}
