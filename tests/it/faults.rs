//! The database goes away in every way it can, and the worker finds back by itself.

use crate::child::{Act, Deed, registry};
use crate::relay::Relay;
use crate::world::{World, program, settings};
use gristmill::context::Context;
use gristmill::jobs::Fetch;
use gristmill::queue::desk::{self, Backoff};
use gristmill::queue::enqueue;
use gristmill::runtime::{Worker, every_kind};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor, PgPool};
use std::sync::Arc;
use std::time::Duration;

const NOTHING_LEFT: &str =
    "SELECT count(*) = 0 FROM gristmill.jobs WHERE state IN ('WAITING', 'SCHEDULED', 'RUNNING')";
const SOME_RUN: &str = "SELECT count(*) > 0 FROM gristmill.jobs WHERE state = 'RUNNING'";
/// For what takes as long as the machine is busy.
const PATIENCE: Duration = Duration::from_mins(1);

impl World {
    /// As if the worker reached its database by this address.
    async fn behind(&mut self, options: PgConnectOptions, connections: u32) -> anyhow::Result<()> {
        let role = &self.ctx.settings.database.role;
        let db = gristmill::store::pool(options, role, connections).await?;
        let embedder = gristmill::embed::Embedder::hashing(64);
        self.ctx = Arc::new(Context::with(self.ctx.settings.clone(), program(), db, embedder)?);
        Ok(())
    }

    async fn over(&mut self, relay: &Relay) -> anyhow::Result<()> {
        self.behind(relay.options(&self.admin.connect_options()), 8).await
    }

    /// Each of these deeds is done, and left its effect exactly once.
    pub async fn check_once(&self, deeds: i64) -> anyhow::Result<()> {
        let ended = "SELECT string_agg(DISTINCT format('%s %s', state, reason), ', ')
                     FROM gristmill.jobs WHERE state <> 'DONE'";
        let others: Option<String> = sqlx::query_scalar(ended).fetch_one(&self.admin).await?;
        assert_eq!(others, None, "every job is done");
        assert_eq!(self.count("SELECT count(*) FROM gristmill.jobs").await?, deeds, "none is lost");
        let effects =
            "SELECT count(*) FROM gristmill.events WHERE type = 'test.mark' AND subject LIKE 'effect:%'";
        let distinct = "SELECT count(DISTINCT subject) FROM gristmill.events
                        WHERE type = 'test.mark' AND subject LIKE 'effect:%'";
        assert_eq!(
            (self.count(effects).await?, self.count(distinct).await?),
            (deeds, deeds),
            "none is doubled"
        );
        Ok(())
    }

    async fn most_attempts(&self) -> anyhow::Result<i64> {
        self.count("SELECT max(attempts)::bigint FROM gristmill.jobs").await
    }
}

async fn ledger(db: &PgPool) -> anyhow::Result<()> {
    db.execute("CREATE TABLE public.ledger (n int); GRANT ALL ON public.ledger TO gristmill_worker").await?;
    Ok(())
}

/// A pool as sqlx makes it.
async fn unguarded(options: PgConnectOptions) -> sqlx::Result<PgPool> {
    PgPoolOptions::new().max_connections(1).connect_with(options).await
}

/// Drops a `begin()` while its BEGIN is answered, then writes; answers what is left of it.
async fn write_after_a_cancelled_begin(relay: &Relay, pool: PgPool, admin: &PgPool) -> anyhow::Result<i64> {
    admin.execute("TRUNCATE public.ledger").await?;
    relay.stall_after(b"BEGIN");
    let begun = tokio::spawn({
        let pool = pool.clone();
        async move { pool.begin().await.map(drop) }
    });
    relay.until_stalled().await;
    begun.abort();
    assert!(begun.await.is_err_and(|error| error.is_cancelled()));
    relay.stall(false);
    pool.execute("INSERT INTO public.ledger VALUES (1)").await?;
    pool.close().await;
    Ok(sqlx::query_scalar("SELECT count(*) FROM public.ledger").fetch_one(admin).await?)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_begin_dropped_half_way_costs_no_later_write(db: PgPool) -> anyhow::Result<()> {
    ledger(&db).await?;
    let relay = Relay::to(&db.connect_options()).await?;
    let options = relay.options(&db.connect_options());
    let guarded = gristmill::store::pool(options.clone(), "gristmill_worker", 1).await?;
    assert_eq!(write_after_a_cancelled_begin(&relay, guarded, &db).await?, 1);

    // The fault is there: without the guard the write is lost, and nobody is told.
    let kept = write_after_a_cancelled_begin(&relay, unguarded(options).await?, &db).await?;
    assert_eq!(kept, 0, "sqlx has mended begin(): the guard can go");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn our_own_begin_may_be_dropped_at_any_moment(db: PgPool) -> anyhow::Result<()> {
    ledger(&db).await?;
    let relay = Relay::to(&db.connect_options()).await?;
    // No guard on the connection: `store::begin` alone.
    let pool = unguarded(relay.options(&db.connect_options())).await?;
    relay.stall_after(b"BEGIN");
    let begun = tokio::spawn({
        let pool = pool.clone();
        async move { gristmill::store::begin(&pool).await.map(drop) }
    });
    relay.until_stalled().await;
    begun.abort();
    assert!(begun.await.is_err_and(|error| error.is_cancelled()));
    relay.stall(false);
    pool.execute("INSERT INTO public.ledger VALUES (1)").await?;
    pool.close().await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM public.ledger").fetch_one(&db).await?;
    assert_eq!(kept, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_connection_left_in_a_failed_transaction_is_lent_to_nobody(db: PgPool) -> anyhow::Result<()> {
    let options = (*db.connect_options()).clone();
    let guarded = gristmill::store::pool(options.clone(), "gristmill_worker", 1).await?;
    for (pool, sound) in [(guarded, true), (unguarded(options).await?, false)] {
        let mut left = pool.acquire().await?;
        left.execute("BEGIN").await?;
        assert!(left.execute("SELECT 1 / 0").await.is_err());
        drop(left);
        let next = pool.execute("SELECT 1").await;
        assert_eq!(next.is_ok(), sound, "{next:?}");
        pool.close().await;
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn killed_backends_lose_and_double_nothing(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    // Told apart from the test's own by this name.
    let options = (*world.admin.connect_options()).clone().application_name("storm");
    world.behind(options, 6).await?;
    for n in 0..30 {
        world.order(&Deed::new(n.to_string(), Act::Sleep { ms: 150 })).await?;
    }
    world.change("UPDATE gristmill.jobs SET max_attempts = 1000").await?;
    let worker = Worker::start(&world.ctx, registry)?;
    let mut killed = 0;
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        killed += world
            .count(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'storm'",
            )
            .await?;
    }
    world.within(PATIENCE, "all was done", NOTHING_LEFT).await?;
    worker.stop().await;
    assert!(killed > 20, "{killed} backends were killed");
    world.check_once(30).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_commit_whose_reply_is_lost_is_not_done_again(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let relay = Relay::to(&world.admin.connect_options()).await?;
    world.over(&relay).await?;
    world.order(&Deed::new("a", Act::Sleep { ms: 700 })).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    let started = "SELECT count(*) = 1 FROM gristmill.events WHERE subject = 'start:a'";
    world.within(PATIENCE, "it began", started).await?;
    // The next COMMIT is the one of effect and end.
    relay.cut_after(b"COMMIT", 1);
    world.within(PATIENCE, "it was done", NOTHING_LEFT).await?;
    worker.stop().await;
    assert_eq!(relay.cuts(), 1);
    assert_eq!(world.marks("start:a").await?, 1);
    world.check_once(1).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn jobs_of_a_claim_whose_reply_is_lost_are_worked_on_all_the_same(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let relay = Relay::to(&world.admin.connect_options()).await?;
    world.over(&relay).await?;
    for n in 0..3 {
        world.order(&Deed::new(n.to_string(), Act::Mark)).await?;
    }
    // A worker's name begins with its process: only claims say it. The first of each lane.
    relay.cut_after(format!("{}-", std::process::id()).as_bytes(), 2);
    let worker = Worker::start(&world.ctx, registry)?;
    world.within(PATIENCE, "all was done", NOTHING_LEFT).await?;
    worker.stop().await;
    assert_eq!(relay.cuts(), 2);
    assert_eq!(world.most_attempts().await?, 1, "nobody waited for a lease to lapse");
    world.check_once(3).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn dead_wires_are_noticed_while_the_leases_last(db: PgPool) -> anyhow::Result<()> {
    let mut patient = settings();
    patient.queue.lease_seconds = 6.0;
    let mut world = World::with(db, patient).await?;
    let relay = Relay::to(&world.admin.connect_options()).await?;
    world.over(&relay).await?;
    for n in 0..4 {
        world.order(&Deed::new(n.to_string(), Act::Sleep { ms: 9000 })).await?;
    }
    let worker = Worker::start(&world.ctx, registry)?;
    let begun = "SELECT count(*) = 4 FROM gristmill.events WHERE subject LIKE 'start:%'";
    world.within(PATIENCE, "all four began", begun).await?;
    relay.half_open();
    for n in 4..12 {
        world.order(&Deed::new(n.to_string(), Act::Mark)).await?;
    }
    world.within(PATIENCE, "all was done", NOTHING_LEFT).await?;
    worker.stop().await;
    assert_eq!(world.most_attempts().await?, 1, "renewed over a fresh connection before they lapsed");
    world.check_once(12).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_database_that_is_away_for_a_while_is_waited_for(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let relay = Relay::to(&world.admin.connect_options()).await?;
    world.over(&relay).await?;
    for n in 0..12 {
        world.order(&Deed::new(n.to_string(), Act::Sleep { ms: 300 })).await?;
    }
    let worker = Worker::start(&world.ctx, registry)?;
    world.within(PATIENCE, "some are at work", SOME_RUN).await?;
    relay.refuse(true);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    relay.refuse(false);
    world.within(PATIENCE, "all was done", NOTHING_LEFT).await?;
    worker.stop().await;
    world.check_once(12).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn jobs_wait_for_an_exhausted_pool_and_keep_their_leases(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let options = (*world.admin.connect_options()).clone();
    world.behind(options, 2).await?;
    let all = (world.ctx.db.acquire().await?, world.ctx.db.acquire().await?);
    for n in 0..6 {
        world.order(&Deed::new(n.to_string(), Act::Mark)).await?;
    }
    let worker = Worker::start(&world.ctx, registry)?;
    world.within(PATIENCE, "some are at work", SOME_RUN).await?;
    // More than twice the lease.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(world.marks("start:0").await?, 0, "there was no connection for it");
    drop(all);
    world.within(PATIENCE, "all was done", NOTHING_LEFT).await?;
    worker.stop().await;
    assert_eq!(world.most_attempts().await?, 1);
    world.check_once(6).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_lost_listener_listens_again(db: PgPool) -> anyhow::Result<()> {
    let mut rarely = settings();
    // Only the bell can wake it within the test's patience.
    rarely.queue.poll_ms = 600_000;
    let mut world = World::with(db, rarely).await?;
    let relay = Relay::to(&world.admin.connect_options()).await?;
    world.over(&relay).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    for fault in ["none", "killed", "dead wire"] {
        let listener = "SELECT count(*) > 0 FROM pg_stat_activity
                        WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        world.within(PATIENCE, "it listens", listener).await?;
        match fault {
            "killed" => {
                let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE datname = current_database() AND query LIKE 'LISTEN%'";
                assert!(world.count(kill).await? > 0);
            }
            "dead wire" => relay.half_open(),
            _ => {}
        }
        world.order(&Deed::new(fault, Act::Mark)).await?;
        let told = "SELECT pg_notify('gristmill_jobs', 'deed') IS NOT NULL";
        world.until("it is told", told).await?;
        world.within(PATIENCE, "it was done", NOTHING_LEFT).await?;
    }
    worker.stop().await;
    world.check_once(3).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_end_that_cannot_be_stored_holds_up_no_other(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let nul = world.order(&Deed::new("nul", Act::FailWithNul)).await?;
    world.change("UPDATE gristmill.jobs SET max_attempts = 2").await?;
    let waits = world.order(&Deed::new("waits", Act::WaitForEver)).await?;
    for n in 0..5 {
        world.order(&Deed::new(n.to_string(), Act::Noop)).await?;
    }
    let worker = Worker::start(&world.ctx, registry)?;
    let ended = "SELECT count(*) = 6 FROM gristmill.jobs WHERE state IN ('DONE', 'DEAD')";
    let waited = world.until("the others have ended", ended).await;
    world.until("it is put off", "SELECT count(*) = 1 FROM gristmill.jobs WHERE state = 'SCHEDULED'").await?;
    worker.stop().await;
    waited?;
    let (state, _, reason) = world.job(nul).await?;
    assert_eq!(state, "DEAD");
    assert!(reason.unwrap_or_default().contains("zero: here"));
    assert_eq!(world.job(waits).await?.0, "SCHEDULED");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_comes_back_to_the_worker_that_lost_it_costs_no_place(db: PgPool) -> anyhow::Result<()> {
    let mut narrow = settings();
    narrow.queue.concurrency = 2;
    let world = World::with(db, narrow).await?;
    world.order(&Deed::new("lapses", Act::Sleep { ms: 1500 })).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    let backoff = Backoff { base: Duration::from_millis(1), ceiling: Duration::from_millis(1) };
    // More often than there are places.
    for claims in ["attempts = 1", "attempts = 2", "attempts = 3"] {
        let sql = format!("SELECT bool_and({claims} AND state = 'RUNNING') FROM gristmill.jobs");
        world.within(PATIENCE, "it was claimed", sql.leak()).await?;
        // As if the worker had been unable to renew, in one step, so that it does not.
        let mut tx = world.admin.begin().await?;
        tx.execute("UPDATE gristmill.jobs SET lease_until = now() - interval '1 s'").await?;
        assert_eq!(desk::rescue(&mut tx, backoff).await?, 1);
        tx.commit().await?;
    }
    for n in 0..4 {
        world.order(&Deed::new(n.to_string(), Act::Mark)).await?;
    }
    world.within(PATIENCE, "all was done", NOTHING_LEFT).await?;
    worker.stop().await;
    assert_eq!(world.most_attempts().await?, 4);
    world.check_once(5).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn twenty_requests_for_one_attachment_at_once_make_one_set_of_vectors(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = Arc::new(World::new(db).await?);
    let text = "The miller took a toll of every sack, a sixteenth part, and no more.\n\n".repeat(60);
    let attachment = world.upload("toll.txt", text.as_bytes()).await?;
    let once = async |keyed: bool| {
        let mut askers = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let world = world.clone();
            askers.spawn(async move {
                let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
                let fetch = Fetch { attachment };
                if keyed {
                    enqueue(&mut tx, world.workspace, &fetch).await?;
                } else {
                    // Without a key each request is a job of its own, as of a careless client.
                    sqlx::query("SELECT gristmill.enqueue('fetch', $1)")
                        .bind(serde_json::to_value(&fetch)?)
                        .execute(&mut *tx)
                        .await?;
                }
                tx.commit().await?;
                anyhow::Ok(())
            });
        }
        askers.join_all().await.into_iter().collect::<anyhow::Result<Vec<()>>>()
    };
    once(true).await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 1);
    once(false).await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 21);
    world.work(every_kind).await?;
    let first = world.chunks(attachment).await?;
    once(false).await?;
    world.work(every_kind).await?;

    assert_eq!(world.ended(attachment).await?, ("READY".into(), "-".into(), "INDEXED".into()));
    assert!(first.len() > 1);
    assert_eq!(world.chunks(attachment).await?, first);
    for (table, rows) in
        [("chunks", first.len() as i64), ("resources", 1), ("generations", 1), ("extractions", 1)]
    {
        let sql = format!("SELECT count(*) FROM gristmill.{table}");
        assert_eq!(world.count(sql.leak()).await?, rows, "{table}");
    }
    let others = "SELECT count(*) FROM gristmill.jobs WHERE state <> 'DONE'";
    assert_eq!(world.count(others).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_not_there_yet_is_waited_for_and_a_wrong_password_is_not() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL")?;
    let options: PgConnectOptions = url.parse()?;
    let relay = Relay::to(&options).await?;
    relay.refuse(true);
    let wire = relay.options(&options);
    let comes_back = async {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        relay.refuse(false);
    };
    let (reached, ()) = tokio::join!(gristmill::store::reach(&wire, Duration::from_secs(30)), comes_back);
    reached?;
    relay.refuse(true);
    let given_up = gristmill::store::reach(&wire, Duration::from_millis(100)).await;
    assert!(matches!(given_up, Err(sqlx::Error::Io(_))), "{given_up:?}");
    let nobody = options.database("no_such_database");
    let refused = gristmill::store::reach(&nobody, Duration::from_mins(10)).await;
    assert!(matches!(refused, Err(sqlx::Error::Database(_))), "{refused:?}");
    Ok(())
}
