//! The arithmetic of turns, by a clock that the tests turn.

use super::{provider, world};
use crate::world::World;
use gristmill::domain::WorkspaceId;
use gristmill::queue::limits;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use std::collections::HashMap;
use uuid::Uuid;

const BULK: i32 = 1;
const INTERACTIVE: i32 = 0;

/// A moment, in seconds since the test's clock began.
async fn take(world: &World, job: Uuid, (lane, tokens): (i32, i64), second: f64) -> anyhow::Result<f64> {
    let turn = "SELECT extract(epoch FROM wait)::float8
                FROM gristmill.take_turn($1, $2, $3, $4, $5, to_timestamp($6))";
    let wait = sqlx::query_scalar(turn)
        .bind(job)
        .bind(provider().key_ref)
        .bind(provider().model)
        .bind(tokens)
        .bind(lane)
        .bind(ZERO + second)
        .fetch_one(&world.ctx.db);
    Ok(wait.await?)
}

/// When the test's clock began: long after today, so that jobs of that day are SCHEDULED.
const ZERO: f64 = 4_000_000_000.0;

async fn jobs(world: &World, workspace: WorkspaceId, count: i32) -> anyhow::Result<Vec<Uuid>> {
    let queued = "SELECT (gristmill.enqueue('call', jsonb_build_object('number', n, 'deed', 'Call'),
                         workspace => $1, run_at => to_timestamp($3))).job_id FROM generate_series(1, $2) n";
    Ok(sqlx::query_scalar(queued).bind(workspace.0).bind(count).bind(ZERO).fetch_all(&world.admin).await?)
}

async fn neighbour(world: &World, name: &str) -> anyhow::Result<WorkspaceId> {
    Ok(gristmill::store::tenants::ensure_workspace(&mut *world.admin.acquire().await?, name).await?)
}

/// Gives each job the second at which it asks first.
async fn ask_at(world: &World, seconds: &[(Uuid, f64)]) -> anyhow::Result<()> {
    let (jobs, seconds): (Vec<_>, Vec<_>) = seconds.iter().map(|(job, s)| (*job, ZERO + s)).unzip();
    sqlx::query("UPDATE gristmill.jobs j SET run_at = to_timestamp(s) FROM unnest($1, $2) a (id, s) WHERE j.id = a.id")
        .bind(jobs)
        .bind(seconds)
        .execute(&world.admin)
        .await?;
    Ok(())
}

/// What became of a queue that was worked off by the turned clock.
#[derive(Debug, Default)]
struct Run {
    starts: Vec<Start>,
    looks: HashMap<Uuid, u32>,
}

#[derive(Debug, Clone, Copy)]
struct Start {
    job: Uuid,
    second: f64,
    tokens: i64,
}

/// Works off the SCHEDULED jobs in the order of their times, each later by what `delay` says.
async fn work_off(
    world: &World,
    terms: &HashMap<Uuid, (i32, i64)>,
    end: f64,
    mut delay: impl FnMut() -> f64,
) -> anyhow::Result<Run> {
    let mut run = Run::default();
    let mut clock = 0.0_f64;
    let next = "SELECT id, extract(epoch FROM run_at)::float8 FROM gristmill.jobs
                WHERE state = 'SCHEDULED' ORDER BY run_at, id LIMIT 1";
    while let Some((job, due)) = sqlx::query_as::<_, (Uuid, f64)>(next).fetch_optional(&world.admin).await? {
        clock = clock.max(due - ZERO);
        clock += delay();
        if clock > end {
            break;
        }
        let (lane, tokens) = terms[&job];
        *run.looks.entry(job).or_default() += 1;
        let wait = take(world, job, (lane, tokens), clock).await?;
        let after = if wait == 0.0 {
            run.starts.push(Start { job, second: clock, tokens });
            "UPDATE gristmill.jobs SET state = 'DONE', finished_at = now() WHERE id = $1 AND $2::float8 IS NOT NULL"
        } else {
            "UPDATE gristmill.jobs SET run_at = to_timestamp($2) WHERE id = $1"
        };
        sqlx::query(after).bind(job).bind(ZERO + clock + wait).execute(&world.admin).await?;
        anyhow::ensure!(run.looks[&job] < 60, "job {job} never gets its turn");
    }
    Ok(run)
}

/// The most requests, and tokens less the last call's, of any 60 seconds.
fn busiest_minute(starts: &[Start]) -> (usize, i64) {
    let mut most = (0, 0);
    for (first, from) in starts.iter().enumerate() {
        let minute: Vec<_> = starts[first..].iter().take_while(|s| s.second <= from.second + 60.0).collect();
        let largest = minute.iter().map(|s| s.tokens).max().unwrap_or_default();
        let tokens: i64 = minute.iter().map(|s| s.tokens).sum();
        most = (most.0.max(minute.len()), most.1.max(tokens - largest));
    }
    most
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn no_minute_holds_more_than_the_limit_a_sixth_of_it_and_one_call(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    for (seed, requests, tokens) in
        [(1, 60, Some(40_000)), (2, 600, None), (3, 30, Some(100_000)), (4, 6, None)]
    {
        sqlx::raw_sql("DELETE FROM gristmill.jobs; DELETE FROM gristmill.limits")
            .execute(&world.admin)
            .await?;
        limits::set(&world.ctx.db, &provider(), Some(requests), tokens).await?;
        let mut random = StdRng::seed_from_u64(seed);
        let count = (requests * 2).min(250);
        let (mut terms, mut asks) = (HashMap::new(), Vec::new());
        for workspace in [world.workspace, neighbour(&world, "birch").await?] {
            for job in jobs(&world, workspace, count / 2).await? {
                let lane = if random.random_bool(0.2) { INTERACTIVE } else { BULK };
                terms.insert(job, (lane, random.random_range(1..4000)));
                asks.push((job, random.random_range(0.0..40.0)));
            }
        }
        ask_at(&world, &asks).await?;
        // Workers are late, and now and then by an outage of half a minute.
        let run = work_off(&world, &terms, f64::INFINITY, || match random.random_range(0..200) {
            0 => 30.0,
            1..20 => random.random_range(0.0..1.0),
            _ => 0.0,
        })
        .await?;
        assert_eq!(run.starts.len(), terms.len(), "seed {seed}: each has its turn, once");
        let (most, most_tokens) = busiest_minute(&run.starts);
        assert!(most as i32 <= requests + requests / 6 + 1, "seed {seed}: {most} requests in a minute");
        let allowed = tokens.map_or(i64::MAX, |t| t + t / 6);
        assert!(most_tokens <= allowed, "seed {seed}: {most_tokens} tokens in a minute");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_whole_rate_is_used_in_order_and_each_job_looks_once_or_twice_more(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), Some(600), None).await?;
    let queued = jobs(&world, world.workspace, 400).await?;
    let terms = queued.iter().map(|job| (*job, (BULK, 0))).collect();
    let asks: Vec<_> = queued.iter().enumerate().map(|(n, job)| (*job, n as f64 * 0.001)).collect();
    ask_at(&world, &asks).await?;
    let run = work_off(&world, &terms, f64::INFINITY, || 0.0).await?;
    assert_eq!(run.starts.iter().map(|s| s.job).collect::<Vec<_>>(), queued, "first come, first served");
    // 50 at once, the others at ten a second.
    let last = run.starts.last().map(|s| s.second).unwrap_or_default();
    assert!((34.0..38.0).contains(&last), "400 jobs took {last} s");
    let most = run.looks.values().max().copied().unwrap_or_default();
    assert!(most <= 3, "a job looked {most} times");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_slow_limit_is_used_in_full_too(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), Some(2), None).await?;
    let queued = jobs(&world, world.workspace, 6).await?;
    let terms = queued.iter().map(|job| (*job, (BULK, 0))).collect();
    let run = work_off(&world, &terms, f64::INFINITY, || 0.0).await?;
    let seconds: Vec<i64> = run.starts.iter().map(|s| s.second.round() as i64).collect();
    assert_eq!(seconds, [0, 30, 60, 90, 120, 150]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn people_do_not_wait_behind_a_thousand_bulk_jobs_and_bulk_does_not_starve(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), Some(600), None).await?;
    let mut terms = HashMap::new();
    for job in jobs(&world, world.workspace, 1000).await? {
        take(&world, job, (BULK, 0), 0.0).await?;
        terms.insert(job, (BULK, 0));
    }
    for person in jobs(&world, world.workspace, 25).await? {
        assert_eq!(take(&world, person, (INTERACTIVE, 0), 0.0).await?, 0.0);
    }
    let gone = "UPDATE gristmill.jobs SET state = 'DONE', finished_at = now()
                WHERE id IN (SELECT job_id FROM gristmill.limit_turns WHERE taken_at IS NOT NULL)";
    sqlx::query(gone).execute(&world.admin).await?;
    // For half a minute people ask for twice what the limit allows.
    let people = jobs(&world, world.workspace, 600).await?;
    let asks: Vec<_> = people.iter().enumerate().map(|(n, job)| (*job, n as f64 * 0.05)).collect();
    ask_at(&world, &asks).await?;
    terms.extend(people.iter().map(|job| (*job, (INTERACTIVE, 0))));
    let run = work_off(&world, &terms, 60.0, || 0.0).await?;
    let served = |of: i32| run.starts.iter().filter(|s| terms[&s.job].0 == of).count();
    let (people, bulk) = (served(INTERACTIVE), served(BULK));
    assert!(people >= 480, "{people} people in a minute: four fifths of the rate are theirs");
    assert!(bulk >= 40, "{bulk} bulk jobs in a minute: of the rest, what people's burst left");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tenant_with_a_few_jobs_does_not_stand_behind_one_with_thousands(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), Some(600), None).await?;
    let many = jobs(&world, world.workspace, 600).await?;
    let few = jobs(&world, neighbour(&world, "birch").await?, 10).await?;
    let mut terms: HashMap<_, _> = many.iter().map(|job| (*job, (BULK, 0))).collect();
    terms.extend(few.iter().map(|job| (*job, (BULK, 0))));
    ask_at(&world, &few.iter().map(|job| (*job, 1.0)).collect::<Vec<_>>()).await?;
    let run = work_off(&world, &terms, 30.0, || 0.0).await?;
    assert_eq!(run.starts.iter().filter(|s| few.contains(&s.job)).count(), 10);
    let last = run.starts.iter().filter(|s| few.contains(&s.job)).map(|s| s.second).fold(0.0, f64::max);
    assert!(last < 10.0, "the last of ten jobs waited {last} s behind 600");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_longest_pause_counts_and_the_line_moves_on_as_it_stood(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), Some(60), None).await?;
    let queued = jobs(&world, world.workspace, 8).await?;
    let mut before = Vec::new();
    for job in &queued {
        before.push(take(&world, *job, (BULK, 0), 0.0).await?);
    }
    let pause = "SELECT extract(epoch FROM gristmill.pause_limit($1, $2, $3 * interval '1 s', '429', to_timestamp($4)))::float8";
    let mut ends = Vec::new();
    for seconds in [20.0, 5.0, 0.0] {
        let end = sqlx::query_scalar::<_, f64>(pause).bind(provider().key_ref).bind(provider().model);
        ends.push(end.bind(seconds).bind(ZERO + 0.5).fetch_one(&world.ctx.db).await? - ZERO);
    }
    assert_eq!(ends, [20.5, 20.5, 20.5]);
    for (job, before) in queued.iter().zip(before).skip(5) {
        let wait = take(&world, *job, (BULK, 0), 1.0).await?;
        // Half a second had gone by when the line stopped for twenty, and half of those have.
        assert!((wait - (before + 20.0 - 1.0)).abs() < 0.01, "{before} became {wait}");
    }
    let person = take(&world, Uuid::now_v7(), (INTERACTIVE, 0), 1.0).await?;
    assert!((19.5..22.0).contains(&person), "people wait for the provider too: {person}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_an_estimate_had_too_much_is_given_back_and_what_it_lacked_is_paid(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), None, Some(60_000)).await?;
    let settle = "SELECT gristmill.settle_turn($1, $2, $3, $4, to_timestamp($5))";
    let settled = async |job: Uuid, tokens: i64, second: f64| {
        let settle = sqlx::query_scalar::<_, bool>(settle).bind(job).bind(provider().key_ref);
        settle.bind(provider().model).bind(tokens).bind(ZERO + second).fetch_one(&world.ctx.db).await
    };
    let queued = jobs(&world, world.workspace, 3).await?;
    assert_eq!(take(&world, queued[0], (BULK, 30_000), 0.0).await?, 0.0);
    assert!(take(&world, queued[1], (BULK, 1000), 1.0).await? > 1.0, "30,000 tokens are half a minute");
    assert!(settled(queued[0], 1000, 1.0).await?);
    assert!(!settled(queued[0], 1000, 1.0).await?, "a turn is settled once");
    assert_eq!(take(&world, queued[1], (BULK, 1000), 3.0).await?, 0.0, "given back");

    assert!(settled(queued[1], 30_000, 3.0).await?);
    assert!(take(&world, queued[2], (BULK, 1000), 4.0).await? > 1.0, "the debt of the call before");
    assert!(take(&world, queued[2], (BULK, 1000), 20.0).await? > 1.0, "half of it is paid");
    assert_eq!(take(&world, queued[2], (BULK, 1000), 40.0).await?, 0.0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn reservations_of_jobs_that_are_over_are_swept_and_others_move_up(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    limits::set(&world.ctx.db, &provider(), Some(60), None).await?;
    let mut waiting = Vec::new();
    for job in jobs(&world, world.workspace, 30).await? {
        let now = "SELECT wait > interval '0' FROM gristmill.take_turn($1, $2, $3, as_of => now() - interval '30 s')";
        let waits =
            sqlx::query_scalar::<_, bool>(now).bind(job).bind(provider().key_ref).bind(provider().model);
        if waits.fetch_one(&world.ctx.db).await? {
            waiting.push(job);
        }
    }
    assert!(waiting.len() > 20);
    sqlx::query("UPDATE gristmill.jobs SET state = 'CANCELLED', finished_at = now() WHERE NOT id = ANY ($1)")
        .bind(&waiting[5..])
        .execute(&world.admin)
        .await?;
    assert_eq!(limits::sweep(&world.ctx.db).await?, 10, "five that had begun and five that waited");
    assert_eq!(limits::sweep(&world.ctx.db).await?, 0);
    let moved =
        "SELECT count(*) FROM gristmill.jobs WHERE state = 'SCHEDULED' AND run_at < now() + interval '10 s'";
    assert!(world.count(moved).await? > 0, "the room was let in although nobody came");

    assert!(limits::clear(&world.ctx.db, &provider()).await?);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.limit_turns").await?, 0);
    let all = "SELECT count(*) FROM gristmill.jobs WHERE state = 'SCHEDULED' AND run_at > now()";
    assert_eq!(world.count(all).await?, 0, "without a limit nobody waits");
    Ok(())
}
