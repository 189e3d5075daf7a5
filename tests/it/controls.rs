//! Negative controls: each guard of the queue is taken out of the test's own database, and the
//! scenario that it holds against must then come out wrong. A scenario that comes out the same
//! with and without its guard proves nothing.
//!
//! A guard is taken out by changing the text of its SQL function.

use crate::kit::checks::violations;
use crate::kit::dump;
use crate::kit::guards::{Change, SAME_EPOCH, take_out};
use crate::world::World;
use gristmill::domain::{JobId, WorkspaceId};
use gristmill::queue::Lease;
use gristmill::queue::desk::{self, Backoff, Outcome};
use gristmill::runtime::every_kind;
use sqlx::{Connection, Executor, PgConnection, PgPool, Row};
use std::time::Duration;
use uuid::Uuid;

const BACKOFF: Backoff = Backoff { base: Duration::ZERO, ceiling: Duration::ZERO };
/// How long a statement that must not wait for another may take.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The scenario's answer with every guard in place, and with this one taken out.
async fn control(
    db: PgPool,
    scenario: impl AsyncFn(&World) -> anyhow::Result<i64>,
    without: &[Change<'_>],
    (right, wrong): (i64, i64),
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    assert_eq!(scenario(&world).await?, right, "with every guard in place");
    world.change("DELETE FROM gristmill.jobs").await?;
    world.change("DELETE FROM gristmill.events").await?;
    for change in without {
        take_out(&world.admin, *change).await?;
    }
    assert_eq!(scenario(&world).await?, wrong, "without {without:?}");
    Ok(())
}

/// One more job; its kind is one that every build has.
async fn ask(world: &World, key: Option<&str>) -> anyhow::Result<(Uuid, bool)> {
    let mut conn = world.admin.acquire().await?;
    ask_in(&mut conn, world.workspace, key).await
}

async fn ask_in(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    key: Option<&str>,
) -> anyhow::Result<(Uuid, bool)> {
    let sql =
        "SELECT job_id, is_new FROM gristmill.enqueue('scan', jsonb_build_object('attachment', $1::uuid),
                                                           key => $2, workspace => $1, max_attempts => 2)";
    let row = sqlx::query(sql).bind(workspace.0).bind(key).fetch_one(conn).await?;
    Ok((row.get(0), row.get(1)))
}

/// A job in somebody's hands, with the attempt it is at.
struct Taken {
    lease: Lease,
    attempt: i32,
}

async fn claim(conn: &mut PgConnection, want: i32) -> anyhow::Result<Vec<Taken>> {
    let sql = "SELECT id, epoch, workspace_id, attempts FROM gristmill.claim(
                   by_worker => 'control', of_lane => 1, of_kinds => '{scan}', want => $1, lease => interval '30 s',
                   workspace_cap => 64, after => '00000000-0000-0000-0000-000000000000', credit => 0)";
    let rows = sqlx::query(sql).bind(want).fetch_all(conn).await?;
    let taken = rows.into_iter().filter_map(|row| {
        let job = JobId(row.get::<Option<Uuid>, _>(0)?);
        let lease = Lease { job, epoch: row.get(1), workspace: WorkspaceId(row.get(2)) };
        Some(Taken { lease, attempt: row.get(3) })
    });
    Ok(taken.collect())
}

async fn connect(world: &World) -> anyhow::Result<PgConnection> {
    let mut connection = PgConnection::connect_with(&world.admin.connect_options()).await?;
    gristmill::store::take_role(&mut connection, "gristmill_worker").await?;
    Ok(connection)
}

/// The leases run out, and lapsed ones are taken back; says how many.
async fn rescue(world: &World) -> anyhow::Result<i64> {
    let lapse = "UPDATE gristmill.jobs SET lease_until = now() - interval '1 s' WHERE id IN (
                     SELECT id FROM gristmill.jobs WHERE state = 'RUNNING' FOR UPDATE SKIP LOCKED)";
    world.change(lapse).await?;
    Ok(desk::rescue(&mut connect(world).await?, BACKOFF).await?)
}

async fn effect(conn: &mut PgConnection, of: WorkspaceId) -> sqlx::Result<()> {
    let sql = "INSERT INTO gristmill.events (workspace_id, type, subject, subject_id) VALUES ($1, 'test.effect', 'job', $1)";
    sqlx::query(sql).bind(of.0).execute(conn).await.map(drop)
}

const EFFECTS: &str = "SELECT count(*) FROM gristmill.events WHERE type = 'test.effect'";

/// The whole effect transaction of a worker, with or without the end of the job in it.
async fn work(world: &World, lease: Lease, ends: bool) -> anyhow::Result<()> {
    let mut connection = connect(world).await?;
    let mut tx = connection.begin().await?;
    lease.enter(&mut tx).await?;
    effect(&mut tx, lease.workspace).await?;
    if ends {
        lease.complete(&mut tx).await?;
    }
    Ok(tx.commit().await?)
}

/// A worker loses its lease, another takes the job over, and both write; says how often the
/// effect is there.
async fn stale_writer(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let stale = claim(&mut connect(world).await?, 1).await?.remove(0);
    rescue(world).await?;
    let fresh = claim(&mut connect(world).await?, 1).await?.remove(0);
    work(world, stale.lease, true).await.ok();
    work(world, fresh.lease, true).await.ok();
    world.count(EFFECTS).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_fence_a_stale_writer_doubles_the_effect(db: PgPool) -> anyhow::Result<()> {
    control(db, stale_writer, &[("enter", SAME_EPOCH, ""), ("complete", SAME_EPOCH, "")], (1, 2)).await
}

/// A batch of a longer job: the same, but it does not end the job. How often it is there.
async fn stale_batch(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let stale = claim(&mut connect(world).await?, 1).await?.remove(0);
    rescue(world).await?;
    let fresh = claim(&mut connect(world).await?, 1).await?.remove(0);
    work(world, stale.lease, false).await.ok();
    work(world, fresh.lease, false).await.ok();
    world.count(EFFECTS).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_check_on_entering_a_stale_batch_is_written(db: PgPool) -> anyhow::Result<()> {
    control(db, stale_batch, &[("enter", SAME_EPOCH, "")], (1, 2)).await
}

/// The lease lapses while the effect transaction is open; how many jobs are taken back meanwhile.
async fn rescue_under_a_writer(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let held = claim(&mut connect(world).await?, 1).await?.remove(0);
    world.change("UPDATE gristmill.jobs SET lease_until = now() - interval '1 s'").await?;
    let mut connection = connect(world).await?;
    let mut tx = connection.begin().await?;
    held.lease.enter(&mut tx).await?;
    let rescued = desk::rescue(&mut connect(world).await?, BACKOFF).await?;
    tx.rollback().await?;
    Ok(rescued)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_its_row_lock_a_job_is_taken_from_a_writer_at_work(db: PgPool) -> anyhow::Result<()> {
    control(db, rescue_under_a_writer, &[("enter", "FOR NO KEY UPDATE", "")], (0, 1)).await
}

/// A worker freezes inside its effect transaction; how many jobs are taken back two seconds after.
async fn frozen_writer(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let held = claim(&mut connect(world).await?, 1).await?.remove(0);
    world.change("UPDATE gristmill.jobs SET lease_until = now() + interval '200 ms'").await?;
    let mut connection = connect(world).await?;
    let mut tx = connection.begin().await?;
    held.lease.enter(&mut tx).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rescued = desk::rescue(&mut connect(world).await?, BACKOFF).await?;
    tx.rollback().await.ok();
    Ok(rescued)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_its_time_limit_a_frozen_writer_holds_the_job(db: PgPool) -> anyhow::Result<()> {
    let limit = ("enter", "'idle_in_transaction_session_timeout'", "'gristmill.nothing'");
    control(db, frozen_writer, &[limit], (1, 0)).await
}

/// A worker that lost its lease reports a failure; how many rows that moves.
async fn stale_report(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let stale = claim(&mut connect(world).await?, 1).await?.remove(0);
    rescue(world).await?;
    claim(&mut connect(world).await?, 1).await?;
    let late = [(stale.lease, Outcome::Retry { reason: "late".into() })];
    Ok(desk::acknowledge(&world.ctx.db, &late, BACKOFF).await?.held)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_epoch_a_stale_report_takes_the_job_from_its_holder(db: PgPool) -> anyhow::Result<()> {
    control(db, stale_report, &[("acknowledge", "AND j.epoch = a.epoch", "")], (0, 1)).await
}

/// A worker that lost its lease reports that all went well; how many jobs end of it.
async fn stale_finish(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let stale = claim(&mut connect(world).await?, 1).await?.remove(0);
    rescue(world).await?;
    claim(&mut connect(world).await?, 1).await?;
    desk::finish(&world.ctx.db, std::iter::once(stale.lease)).await?;
    world.count("SELECT count(*) FROM gristmill.jobs WHERE state = 'DONE'").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_epoch_a_stale_worker_ends_the_job_of_its_holder(db: PgPool) -> anyhow::Result<()> {
    control(db, stale_finish, &[("finish", "AND j.epoch = a.epoch", "")], (0, 1)).await
}

/// A job that kills every worker; how often it starts in six rounds, where it may twice.
async fn poison(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let mut starts = 0;
    for _ in 0..6 {
        for taken in claim(&mut connect(world).await?, 1).await? {
            // As the worker does: one attempt more than it has is for its burial.
            starts += i64::from(taken.attempt <= 2);
        }
        rescue(world).await?;
    }
    Ok(starts)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_counting_at_the_claim_a_poisonous_job_starts_for_ever(db: PgPool) -> anyhow::Result<()> {
    control(db, poison, &[("claim", COUNTED, "attempts = 0")], (2, 6)).await
}

const COUNTED: &str = "attempts = least(j.attempts + 1, 32767)";

/// A worker dies with a job in hand; how many get it back.
async fn orphan(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    claim(&mut connect(world).await?, 1).await?;
    rescue(world).await?;
    Ok(claim(&mut connect(world).await?, 1).await?.len() as i64)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_rescue_a_dead_workers_job_is_lost(db: PgPool) -> anyhow::Result<()> {
    control(db, orphan, &[("rescue", "lease_until < clock_timestamp()", "false")], (1, 0)).await
}

/// Two workers claim at the same moment what is one job; how many have it.
async fn claim_at_once(world: &World) -> anyhow::Result<i64> {
    ask(world, None).await?;
    let (mut one, mut two) = (connect(world).await?, connect(world).await?);
    let mut tx = one.begin().await?;
    let first = claim(&mut tx, 1).await?.len();
    let second = tokio::spawn(async move { claim(&mut two, 1).await });
    // It meets the first before that commits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    tx.commit().await?;
    Ok((first + second.await??.len()) as i64)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_its_locks_a_claim_gives_one_job_to_two(db: PgPool) -> anyhow::Result<()> {
    // Three guards do the same: claims of a lane go one after the other, each locks its rows, and
    // it takes them where it locked them.
    let in_turn = "PERFORM pg_advisory_xact_lock(hashtextextended('gristmill.claim', of_lane));";
    let in_place = "WHERE j.ctid = ANY (taken) AND j.state = 'WAITING'";
    let anywhere = "WHERE j.id = ANY (ARRAY(SELECT x.id FROM gristmill.jobs x WHERE x.ctid = ANY (taken)))";
    let without =
        [("claim", in_turn, ""), ("claim", "FOR UPDATE SKIP LOCKED", ""), ("claim", in_place, anywhere)];
    control(db, claim_at_once, &without, (1, 2)).await
}

/// Somebody holds a job's row; whether the next job is claimed at once all the same.
async fn claim_beside_a_lock(world: &World) -> anyhow::Result<i64> {
    let (held, _) = ask(world, None).await?;
    ask(world, None).await?;
    let mut holder = connect(world).await?;
    let mut tx = holder.begin().await?;
    sqlx::query("SELECT 1 FROM gristmill.jobs WHERE id = $1 FOR UPDATE").bind(held).execute(&mut *tx).await?;
    let mut other = connect(world).await?;
    let claimed = tokio::time::timeout(AT_ONCE, claim(&mut other, 1)).await;
    tx.rollback().await?;
    claimed.map_or(Ok(0), |taken| taken.map(|taken| taken.len() as i64))
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_skipping_what_is_locked_claims_wait_for_one_another(db: PgPool) -> anyhow::Result<()> {
    control(db, claim_beside_a_lock, &[("claim", "SKIP LOCKED", "")], (1, 0)).await
}

/// Two ask for one thing in the same moment; how many jobs there are.
async fn ask_at_once(world: &World) -> anyhow::Result<i64> {
    let mut one = world.admin.begin().await?;
    ask_in(&mut one, world.workspace, Some("key")).await?;
    let (db, workspace) = (world.admin.clone(), world.workspace);
    let second = tokio::spawn(async move { ask_in(&mut *db.acquire().await?, workspace, Some("key")).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    one.commit().await?;
    second.await??;
    world.count("SELECT count(*) FROM gristmill.jobs").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_unique_key_two_askers_make_two_jobs(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    assert_eq!(ask_at_once(&world).await?, 1, "with every guard in place");
    world.change("DELETE FROM gristmill.jobs").await?;
    world.change("DROP INDEX gristmill.jobs_unique").await?;
    // An index that covers no row: the clause finds it, and it holds nobody back.
    let never = "CREATE UNIQUE INDEX ON gristmill.jobs (workspace_id, kind, unique_key) WHERE unique_key IS NOT NULL AND state = 'DONE'";
    world.admin.execute(never).await?;
    let states = "state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')\n            DO NOTHING";
    take_out(&world.admin, ("enqueue", states, "state = 'DONE'\n            DO NOTHING")).await?;
    assert_eq!(ask_at_once(&world).await?, 2);
    Ok(())
}

/// What the checks and the dump say when a database at rest is damaged by hand.
const DAMAGES: [(&str, &str); 9] = [
    ("INV1", "UPDATE gristmill.jobs SET state = 'WAITING', finished_at = NULL WHERE kind = 'embed'"),
    ("INV1", "UPDATE gristmill.jobs SET attempts = 11 WHERE kind = 'scan'"),
    ("INV2", "DELETE FROM gristmill.chunks WHERE ord = 1"),
    ("INV2", "UPDATE gristmill.resources SET live_generation = NULL"),
    ("INV5", "UPDATE gristmill.attachments SET status = 'SCANNING'"),
    ("INV6", "DELETE FROM gristmill.verdicts"),
    (
        "INV10",
        "INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body)
         SELECT workspace_id, type, subject, subject_id, body FROM gristmill.events WHERE type = 'attachment.ready'",
    ),
    (
        "INV12",
        "INSERT INTO gristmill.attachment_history (workspace_id, attachment_id, from_status, to_status)
         SELECT workspace_id, id, 'READY', 'SCANNING' FROM gristmill.attachments",
    ),
    ("INV12", "DELETE FROM gristmill.attachment_history WHERE to_status = 'SCANNING'"),
];

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_checks_and_the_dump_see_every_kind_of_damage(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.upload("a.txt", "The upper stone is the runner. ".repeat(120).as_bytes()).await?;
    world.work(every_kind).await?;
    let mut owner = world.admin.acquire().await?;
    let sound = dump::lines(&mut owner).await?;
    assert_eq!(violations(&mut owner).await?, Vec::<String>::new());
    assert!(sound.len() > 12, "{sound:#?}");
    for (invariant, damage) in DAMAGES {
        let mut tx = owner.begin().await?;
        // The database itself refuses some of these: its triggers are told to look away.
        tx.execute("SET LOCAL session_replication_role = replica").await?;
        let done = tx.execute(damage).await?.rows_affected();
        let (found, seen) = (violations(&mut tx).await?, dump::lines(&mut tx).await?);
        tx.rollback().await?;
        assert!(done > 0, "{damage} changed nothing");
        assert!(found.iter().any(|what| what.starts_with(invariant)), "{damage}\n{found:#?}");
        // How often a job was tried is not in the dump.
        let counted = damage.contains("attempts");
        assert_eq!(dump::differences(&sound, &seen).is_empty(), counted, "{damage}");
    }
    Ok(())
}
