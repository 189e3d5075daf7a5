//! Whose turn it is: weights, caps, lanes, ageing; and that a claim costs the same whatever waits.

use super::{act, world};
use crate::world::World;
use gristmill::domain::WorkspaceId;
use gristmill::queue::Lane;
use gristmill::queue::desk::{self, Ask, Claimed, Place};
use sqlx::PgPool;
use std::collections::HashMap;
use std::time::Duration;

fn ask(kinds: &[&str], workspace_cap: i32) -> Ask {
    Ask {
        worker: "w".into(),
        lane: Lane::Bulk,
        kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(),
        lease: Duration::from_secs(30),
        workspace_cap,
    }
}

impl World {
    async fn crowd(&self, name: &str, jobs: i32) -> anyhow::Result<WorkspaceId> {
        let mut conn = self.admin.acquire().await?;
        let workspace = gristmill::store::tenants::ensure_workspace(&mut conn, name).await?;
        self.fill(workspace, "act", jobs).await?;
        Ok(workspace)
    }

    async fn fill(&self, workspace: WorkspaceId, kind: &str, jobs: i32) -> anyhow::Result<()> {
        sqlx::query("INSERT INTO gristmill.jobs (workspace_id, kind, payload) SELECT $1, $2, '{\"name\": \"n\"}' FROM generate_series(1, $3)")
            .bind(workspace.0)
            .bind(kind)
            .bind(jobs)
            .execute(&self.admin)
            .await?;
        Ok(())
    }
}

fn shares(claimed: &[Claimed]) -> HashMap<WorkspaceId, usize> {
    let mut counts = HashMap::new();
    for job in claimed {
        *counts.entry(job.lease.workspace).or_default() += 1;
    }
    counts
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_workspace_of_weight_three_gets_three_turns_for_each_of_its_neighbours(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let (heavy, light) = (world.crowd("heavy", 100).await?, world.crowd("light", 100).await?);
    sqlx::query("INSERT INTO gristmill.shares (workspace_id, weight) VALUES ($1, 3)")
        .bind(heavy.0)
        .execute(&world.admin)
        .await?;
    // One place at a time, as in a busy worker: the turns that are left are carried over.
    let mut place = Place::default();
    let mut claimed = Vec::new();
    for _ in 0..40 {
        claimed.extend(desk::claim(&world.ctx.db, &ask(&["act"], 1000), 1, &mut place).await?);
    }
    let shares = shares(&claimed);
    assert_eq!((shares[&heavy], shares[&light]), (30, 10));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_caps_of_a_kind_and_of_a_workspace_hold_over_claims_at_once(db: PgPool) -> anyhow::Result<()> {
    let world = std::sync::Arc::new(world(db).await?);
    let small = world.crowd("small", 50).await?;
    for n in 0..4 {
        let other = world.crowd(&format!("other {n}"), 0).await?;
        world.fill(other, "scan", 50).await?;
    }
    world.change("UPDATE gristmill.kinds SET in_flight_cap = 7 WHERE kind = 'scan'").await?;
    sqlx::query("INSERT INTO gristmill.shares (workspace_id, in_flight_cap) VALUES ($1, 5)")
        .bind(small.0)
        .execute(&world.admin)
        .await?;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let world = world.clone();
        claims.spawn(async move {
            desk::claim(&world.ctx.db, &ask(&["act", "scan"], 1000), 6, &mut Place::default()).await
        });
    }
    let claimed: Vec<Claimed> = claims.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    assert_eq!(claimed.iter().filter(|job| job.kind == "scan").count(), 7);
    assert_eq!(claimed.iter().filter(|job| job.lease.workspace == small).count(), 5);
    assert_eq!(claimed.len(), 12);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn bulk_work_up_to_its_cap_leaves_the_interactive_lane_of_the_workspace_open(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    world.fill(world.workspace, "act", 10).await?;
    world
        .change("UPDATE gristmill.jobs SET lane = 0 WHERE id IN (SELECT id FROM gristmill.jobs LIMIT 3)")
        .await?;
    let bulk = desk::claim(&world.ctx.db, &ask(&["act"], 2), 9, &mut Place::default()).await?;
    assert_eq!(bulk.len(), 2);
    let interactive = Ask { lane: Lane::Interactive, ..ask(&["act"], 2) };
    assert_eq!(desk::claim(&world.ctx.db, &interactive, 9, &mut Place::default()).await?.len(), 2);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_has_waited_long_enough_goes_before_what_is_urgent(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    for (name, priority, waited) in [("urgent", 5, 0), ("old", 0, 6), ("young", 0, 4), ("new", 0, 0)] {
        let sql = "INSERT INTO gristmill.jobs (workspace_id, kind, priority, payload, run_at)
                   VALUES ($1, 'act', $2, jsonb_build_object('name', $3::text), now() - $4 * interval '1 minute')";
        let insert = sqlx::query(sql).bind(world.workspace.0).bind(priority).bind(name).bind(waited);
        insert.execute(&world.admin).await?;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        let next = desk::claim(&world.ctx.db, &ask(&["act"], 9), 1, &mut Place::default()).await?.remove(0);
        order.push(next.payload["name"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(order, ["old", "urgent", "young", "new"]);
    Ok(())
}

/// A transaction that holds a waiting job's row, and stays open, holds up nobody else.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_row_that_somebody_holds_is_passed_over(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let held = world.ask(&act("held", super::Deed::Succeed)).await?;
    let free = world.ask(&act("free", super::Deed::Succeed)).await?;
    let mut holder = world.admin.begin().await?;
    sqlx::query("SELECT gristmill.cancel($1)").bind(held.0).execute(&mut *holder).await?;
    let (wish, mut place) = (ask(&["act"], 9), Place::default());
    let claim = desk::claim(&world.ctx.db, &wish, 9, &mut place);
    let claimed = tokio::time::timeout(Duration::from_secs(20), claim).await??;
    assert_eq!(claimed.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [free]);
    holder.rollback().await?;
    Ok(())
}

/// Pages touched by a claim of ten, by the database's own count.
async fn pages(world: &World) -> anyhow::Result<i64> {
    let sql = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
               SELECT * FROM gristmill.claim('w', 1, '{act,scan,extract,embed}', 10, '30 s', 64,
                                             '00000000-0000-0000-0000-000000000000', 0)";
    let mut tx = world.admin.begin().await?;
    // The first call reads the catalogue and plans.
    sqlx::query(sql).execute(&mut *tx).await?;
    let plan: serde_json::Value = sqlx::query_scalar(sql).fetch_one(&mut *tx).await?;
    tx.rollback().await?;
    let of = |key: &str| plan[0]["Plan"][key].as_i64().unwrap_or_default();
    Ok(of("Shared Hit Blocks") + of("Shared Read Blocks"))
}

/// The inner search of a claim, as it stands in `gristmill.claim`.
const NEXT_OF_A_WORKSPACE: &str = "EXPLAIN (FORMAT TEXT)
    SELECT j.id FROM gristmill.jobs j
    WHERE j.state = 'WAITING' AND j.lane = 1 AND j.workspace_id = '00000000-0000-7000-8000-000000000007' AND j.kind = 'act'
    ORDER BY gristmill.turn(j.run_at, j.priority) LIMIT 4 FOR UPDATE SKIP LOCKED";

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_claim_touches_no_more_pages_when_a_million_jobs_of_a_thousand_workspaces_wait(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let fill = "INSERT INTO gristmill.jobs (workspace_id, kind, payload)
                SELECT ('00000000-0000-7000-8000-' || lpad((1 + n % 1000)::text, 12, '0'))::uuid, 'act', '{}'
                FROM generate_series(1, $1) n";
    sqlx::query(fill).bind(10_000).execute(&world.admin).await?;
    world.change("VACUUM ANALYZE gristmill.jobs").await?;
    let before = pages(&world).await?;
    sqlx::query(fill).bind(990_000).execute(&world.admin).await?;
    // Statistics still speak of ten thousand rows, as they do in a sudden flood.
    let sudden = pages(&world).await?;
    world.change("VACUUM ANALYZE gristmill.jobs").await?;
    let after = pages(&world).await?;
    eprintln!("pages of a claim of 10: {before} at 10,000 waiting, {sudden} and {after} at 1,000,000");
    assert!(sudden.max(after) <= 2 * before, "{before}, then {sudden} and {after}");

    let plan: Vec<String> = sqlx::query_scalar(NEXT_OF_A_WORKSPACE).fetch_all(&world.admin).await?;
    let plan = plan.join("\n");
    assert!(plan.contains("Index Scan using jobs_waiting") && !plan.contains("Sort"), "{plan}");
    Ok(())
}

/// Two claims between which nothing was free must not cost the next workspace its turn.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_claim_that_finds_no_room_takes_nobodys_turn(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    for name in ["a", "b", "c"] {
        world.crowd(name, 20).await?;
    }
    world.change("UPDATE gristmill.kinds SET in_flight_cap = 1 WHERE kind = 'act'").await?;
    let (ask, mut place) = (ask(&["act"], 64), Place::default());
    let mut claimed = Vec::new();
    for _ in 0..9 {
        claimed.extend(desk::claim(&world.ctx.db, &ask, 4, &mut place).await?);
        assert!(desk::claim(&world.ctx.db, &ask, 4, &mut place).await?.is_empty());
        world.change("UPDATE gristmill.jobs SET state = 'DONE', lease_until = NULL, finished_at = now() WHERE state = 'RUNNING'").await?;
    }
    assert_eq!(shares(&claimed).into_values().collect::<Vec<_>>(), [3, 3, 3]);
    Ok(())
}

/// Turns left with a workspace that has nobody waiting any more, and one beside it at its cap.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn turns_left_with_one_that_has_no_jobs_end_the_round_all_the_same(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let gone = world.crowd("gone", 0).await?;
    for name in ["full", "full too"] {
        world.crowd(name, 5).await?;
    }
    let ask = ask(&["act"], 2);
    assert_eq!(desk::claim(&world.ctx.db, &ask, 9, &mut Place::default()).await?.len(), 4);
    let mut place = Place { workspace: gone.0, turns_left: 3 };
    assert!(desk::claim(&world.ctx.db, &ask, 9, &mut place).await?.is_empty());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn one_that_was_alone_is_not_owed_all_the_places_when_another_comes(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let alone = world.crowd("alone", 600).await?;
    // Soon worked off: from then on one has all the places, by ever larger rounds.
    world.crowd("few", 3).await?;
    let (ask, mut place) = (ask(&["act"], 1000), Place::default());
    desk::claim(&world.ctx.db, &ask, 100, &mut place).await?;
    let late = world.crowd("late", 1).await?;
    let mut before = 0;
    loop {
        let next = desk::claim(&world.ctx.db, &ask, 1, &mut place).await?.remove(0);
        if next.lease.workspace == late {
            break;
        }
        assert_eq!(next.lease.workspace, alone);
        before += 1;
    }
    assert!(before <= 100 / 8, "{before} went before it");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_was_called_off_passes_every_cap(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("a", super::Deed::Succeed)).await?;
    world.change("UPDATE gristmill.kinds SET in_flight_cap = 0 WHERE kind = 'act'").await?;
    assert!(desk::claim(&world.ctx.db, &ask(&["act"], 0), 9, &mut Place::default()).await?.is_empty());
    gristmill::queue::cancel(&world.ctx.db, id).await?;
    let claimed = desk::claim(&world.ctx.db, &ask(&["act"], 0), 9, &mut Place::default()).await?;
    assert!(claimed.len() == 1 && claimed[0].cancel_requested);
    Ok(())
}
