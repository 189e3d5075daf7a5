//! Shared limits over all workers, and jobs that rest until somebody wakes them.

mod turns;

use crate::world::World;
use gristmill::context::Context;
use gristmill::domain::JobId;
use gristmill::job::{Done, Job, JobError, Parked, Turn};
use gristmill::queue::desk::{self, Ask, Place};
use gristmill::queue::limits::{self, Limit};
use gristmill::queue::{Fence, Lane, Payload, cancel, enqueue};
use gristmill::runtime::{Registry, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::sync::Arc;
use std::time::Duration;

/// A job that calls a provider: marks the start of each call.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Call {
    number: i32,
    deed: Deed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum Deed {
    Call,
    /// The provider answers its first call with a Retry-After of two seconds.
    ToldToWait,
    /// It needs no provider.
    Plain,
    /// It waits for a person, until the mark is there.
    AskForApproval,
}

impl Payload for Call {
    const KIND: &'static str = "call";

    fn key(&self) -> Option<String> {
        Some(self.number.to_string())
    }
}

impl Job for Call {
    const TIMEOUT: Duration = Duration::from_secs(10);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        match self.deed {
            Deed::Plain => {}
            Deed::Call => turn.take(ctx, &provider(), 1).await?,
            Deed::ToldToWait => {
                turn.take(ctx, &provider(), 1).await?;
                if !called(ctx, self.number).await? {
                    call(ctx, self.number).await?;
                    let told = turn.told_to_wait(ctx, &provider(), (Duration::from_secs(2), 1), "429").await;
                    return Err(told);
                }
            }
            Deed::AskForApproval => {
                if !called(ctx, self.number).await? {
                    call(ctx, self.number).await?;
                    return Err(JobError::Park {
                        why: Parked::NeedsApproval,
                        reason: "may it delete the file?".into(),
                    });
                }
            }
        }
        call(ctx, self.number).await?;
        let tx = turn.begin(ctx).await?;
        turn.finish(tx).await
    }
}

fn provider() -> Limit {
    Limit { key_ref: "platform:openai".into(), model: "gpt-x".into() }
}

fn registry() -> Registry {
    Registry::default().with::<Call>()
}

async fn call(ctx: &Context, number: i32) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO calls (number) VALUES ($1)").bind(number).execute(&ctx.db).await?;
    Ok(())
}

async fn called(ctx: &Context, number: i32) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM calls WHERE number = $1)")
        .bind(number)
        .fetch_one(&ctx.db)
        .await
}

/// A call as the database saw it.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
struct Mark {
    number: i32,
    second: f64,
}

/// A world whose provider marks its calls, and whose workers hold four jobs at once.
async fn world(db: PgPool) -> anyhow::Result<World> {
    sqlx::raw_sql(
        "CREATE TABLE calls (id bigserial, number int, at timestamptz DEFAULT clock_timestamp());
         GRANT ALL ON calls, calls_id_seq TO gristmill_worker",
    )
    .execute(&db)
    .await?;
    let world = World::new(db).await?;
    registry().publish(&world.ctx.db).await?;
    Ok(world)
}

impl World {
    async fn asked(&self, numbers: impl IntoIterator<Item = i32>, deed: Deed) -> anyhow::Result<Vec<JobId>> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, self.workspace).await?;
        let mut jobs = Vec::new();
        for number in numbers {
            jobs.push(enqueue(&mut tx, self.workspace, &Call { number, deed }).await?.job());
        }
        tx.commit().await?;
        Ok(jobs)
    }

    /// Workers with pools of their own, as in as many processes.
    async fn workers(&self, count: usize) -> anyhow::Result<Vec<Worker>> {
        let mut workers = Vec::new();
        for _ in 0..count {
            let options = (*self.admin.connect_options()).clone();
            let db = gristmill::store::pool(options, &self.ctx.settings.database.role, 6).await?;
            let embedder = gristmill::embed::Embedder::hashing(64);
            let ctx = Context::with(self.ctx.settings.clone(), crate::world::program(), db, embedder)?;
            workers.push(Worker::start(&Arc::new(ctx), registry)?);
        }
        Ok(workers)
    }

    async fn marks(&self) -> anyhow::Result<Vec<Mark>> {
        let marks = "SELECT number, extract(epoch FROM at)::float8 AS second FROM calls ORDER BY at";
        Ok(sqlx::query_as(marks).fetch_all(&self.admin).await?)
    }
}

async fn stop(workers: Vec<Worker>) {
    for worker in workers {
        worker.stop().await;
    }
}

/// The most that any stretch of time holds beyond its share of the rate.
fn most_at_once(seconds: &[f64], rate: f64) -> f64 {
    let mut most = 0.0_f64;
    for (first, from) in seconds.iter().enumerate() {
        for (last, to) in seconds.iter().enumerate().skip(first) {
            most = most.max((last - first + 1) as f64 - (to - from) * rate);
        }
    }
    most
}

/// Three workers, 200 jobs, 600 requests a minute: the calls of the first three seconds.
async fn rush(world: &World) -> anyhow::Result<Vec<f64>> {
    limits::set(&world.ctx.db, &provider(), Some(600), None).await?;
    world.asked(0..200, Deed::Call).await?;
    let workers = world.workers(3).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop(workers).await;
    Ok(world.marks().await?.iter().map(|mark| mark.second).collect())
}

/// A sixth of the limit may start at once; one more is what the marks are late by.
const BURST: f64 = 101.0;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn workers_at_one_limit_together_call_no_more_than_it_allows(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let seconds = rush(&world).await?;
    let most = most_at_once(&seconds, 10.0);
    assert!(most <= BURST, "{most} beyond the rate");
    assert!(seconds.len() > 60, "only {} calls: the rate is used", seconds.len());
    assert_eq!(
        world.count("SELECT count(*) FROM gristmill.jobs WHERE attempts > 0 AND state <> 'DONE'").await?,
        0,
        "waiting costs no attempt"
    );
    Ok(())
}

/// The test above sees what it looks for.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_limit_the_same_workers_call_far_more(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    sqlx::raw_sql(
        "CREATE OR REPLACE FUNCTION gristmill.take_turn(
             job uuid, key_ref text, model text, tokens bigint DEFAULT 0, lane int DEFAULT NULL,
             as_of timestamptz DEFAULT NULL, OUT wait interval, OUT reason text
         ) LANGUAGE sql AS $$ SELECT interval '0', NULL::text $$",
    )
    .execute(&world.admin)
    .await?;
    let most = most_at_once(&rush(&world).await?, 10.0);
    assert!(most > BURST, "{most} beyond the rate");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn turns_come_in_the_order_in_which_they_were_asked_for(db: PgPool) -> anyhow::Result<()> {
    let mut world = world(db).await?;
    world.restart(|settings| settings.queue.concurrency = 1)?;
    limits::set(&world.ctx.db, &provider(), Some(120), None).await?;
    world.asked(0..15, Deed::Call).await?;
    world.work(registry).await?;
    let order: Vec<i32> = world.marks().await?.iter().map(|mark| mark.number).collect();
    assert_eq!(order, (0..15).collect::<Vec<_>>());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_waits_for_its_turn_holds_no_place_and_spends_no_attempt(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut world = world(db).await?;
    world.restart(|settings| settings.queue.concurrency = 1)?;
    limits::set(&world.ctx.db, &provider(), Some(1), None).await?;
    let calling = world.asked(0..2, Deed::Call).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    world.until("one waits", "SELECT count(*) = 1 FROM gristmill.jobs WHERE reason LIKE 'rate limit of platform:openai gpt-x: turn in %'").await?;
    let plain = world.asked([2], Deed::Plain).await?[0];
    world
        .until(
            "the other is done",
            "SELECT count(*) = 1 FROM gristmill.jobs WHERE state = 'DONE' AND payload->>'number' = '2'",
        )
        .await?;
    worker.stop().await;

    assert_eq!(world.job(plain).await?.0, "DONE");
    assert_eq!(world.job(calling[0]).await?.0, "DONE");
    let (state, attempts, _) = world.job(calling[1]).await?;
    assert_eq!((state.as_str(), attempts), ("SCHEDULED", 0));
    let away: f64 = sqlx::query_scalar(
        "SELECT extract(epoch FROM run_at - now())::float8 FROM gristmill.jobs WHERE state = 'SCHEDULED'",
    )
    .fetch_one(&world.admin)
    .await?;
    assert!((40.0..61.0).contains(&away), "a minute after the first, not {away} s");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_retry_after_is_kept_by_every_worker_and_nobody_rushes_when_it_is_over(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let told = world.asked([0], Deed::ToldToWait).await?[0];
    // No limit is known; but for the row a refusal would not be heard of.
    let workers = world.workers(3).await?;
    world
        .until("the provider refuses", "SELECT count(*) = 1 FROM gristmill.limits WHERE paused_until > now()")
        .await?;
    world.asked(1..21, Deed::Call).await?;
    world.until("all are done", "SELECT bool_and(state = 'DONE') FROM gristmill.jobs").await?;
    stop(workers).await;

    let over: f64 =
        sqlx::query_scalar("SELECT extract(epoch FROM paused_until)::float8 FROM gristmill.limits")
            .fetch_one(&world.admin)
            .await?;
    let marks = world.marks().await?;
    assert_eq!(marks.len(), 22);
    assert!(over - marks[0].second > 1.9, "the refused call was the first");
    assert!(marks[1..].iter().all(|mark| mark.second >= over), "none before the pause was over");
    let seconds: Vec<f64> = marks[1..].iter().map(|mark| mark.second).collect();
    let most = most_at_once(&seconds, 10.0);
    assert!(most < 8.0, "{most} at once after the pause");
    assert_eq!(world.job(told).await?, ("DONE".into(), 1, None), "a refusal costs no attempt");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_parked_job_rests_with_its_key_until_it_is_woken(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.asked([7], Deed::AskForApproval).await?[0];
    sqlx::query("UPDATE gristmill.jobs SET max_attempts = 1").execute(&world.admin).await?;
    world.work(registry).await?;
    let (state, attempts, reason) = world.job(id).await?;
    assert_eq!((state.as_str(), attempts), ("PARKED", 0));
    assert_eq!(reason.as_deref(), Some("NEEDS_APPROVAL: may it delete the file?"));
    world.work(registry).await?;
    assert_eq!(world.marks().await?.len(), 1, "a worker does not wake it");
    assert_eq!(world.asked([7], Deed::AskForApproval).await?, [id], "its key is taken");

    assert!(limits::unpark(&world.ctx.db, id).await?);
    world.work(registry).await?;
    assert_eq!(world.job(id).await?, ("DONE".into(), 1, None));
    assert!(!limits::unpark(&world.ctx.db, id).await?, "what is over is not woken");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_yes_that_comes_before_the_job_is_parked_is_not_missed(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.asked([7], Deed::AskForApproval).await?[0];
    let ask = Ask {
        worker: "w".into(),
        lane: Lane::Bulk,
        kinds: vec!["call".into()],
        lease: Duration::from_secs(30),
        workspace_cap: 64,
    };
    let at_work = desk::claim(&world.ctx.db, &ask, 1, &mut Place::default()).await?.remove(0).lease;
    assert!(limits::unpark(&world.ctx.db, id).await?);
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    at_work.park(&mut tx, "NEEDS_APPROVAL: ?").await?;
    tx.commit().await?;
    assert_eq!(world.job(id).await?, ("WAITING".into(), 0, None));

    let again = desk::claim(&world.ctx.db, &ask, 1, &mut Place::default()).await?.remove(0).lease;
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    assert!(matches!(at_work.park(&mut tx, "late").await, Err(Fence::Lost)), "a stale worker parks nothing");
    drop(tx);
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    again.park(&mut tx, "NEEDS_APPROVAL: ?").await?;
    tx.commit().await?;
    assert_eq!(world.job(id).await?.0, "PARKED", "an old yes does not count for a new question");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_parked_job_can_be_cancelled_and_one_that_was_cancelled_is_not_parked(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let parked = world.asked([7], Deed::AskForApproval).await?[0];
    world.work(registry).await?;
    cancel(&world.ctx.db, parked).await?;
    world.work(registry).await?;
    assert_eq!(world.job(parked).await?.0, "CANCELLED");

    let parking = world.asked([8], Deed::AskForApproval).await?[0];
    let ask = Ask {
        worker: "w".into(),
        lane: Lane::Bulk,
        kinds: vec!["call".into()],
        lease: Duration::from_secs(30),
        workspace_cap: 64,
    };
    let at_work = desk::claim(&world.ctx.db, &ask, 1, &mut Place::default()).await?.remove(0).lease;
    cancel(&world.ctx.db, parking).await?;
    let mut tx = gristmill::store::begin(&world.ctx.db).await?;
    at_work.park(&mut tx, "NEEDS_APPROVAL: ?").await?;
    tx.commit().await?;
    world.work(registry).await?;
    assert_eq!(world.job(parking).await?.0, "CANCELLED", "it does not rest for ever");
    Ok(())
}
