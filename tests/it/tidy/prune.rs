//! Finished jobs go when their time comes, whole trees at once, at a cost that does not grow.

use super::*;

/// Rows of `n` finished jobs each: name, state, days since they ended.
async fn finished(world: &World, jobs: &[(&str, &str, Option<&str>, i32)]) -> anyhow::Result<()> {
    for (name, state, parent, days) in jobs {
        sqlx::query(
            "INSERT INTO gristmill.jobs (workspace_id, kind, payload, unique_key, state, reason, finished_at, parent_id, root_id)
             SELECT $1, 'fetch', '{}', $2, $3::gristmill.job_state, 'why',
                    CASE WHEN $3 IN ('DONE', 'DEAD', 'CANCELLED') THEN now() - $5 * interval '1 day' END,
                    p.id, coalesce(p.root_id, p.id)
             FROM (SELECT 1) one LEFT JOIN gristmill.jobs p ON p.unique_key = $4",
        )
        .bind(world.workspace.0)
        .bind(name)
        .bind(state)
        .bind(parent)
        .bind(days)
        .execute(&world.admin)
        .await?;
    }
    Ok(())
}

const NAMES: &str = "SELECT unique_key FROM gristmill.jobs WHERE unique_key IS NOT NULL ORDER BY 1";

async fn prune(world: &World) -> anyhow::Result<i64> {
    world.count("SELECT gristmill.prune('1 day', '30 days', 1000)").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn done_jobs_go_after_a_day_and_dead_ones_after_thirty(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    finished(
        &world,
        &[
            ("done-old", "DONE", None, 2),
            ("done-young", "DONE", None, 0),
            ("dead-old", "DEAD", None, 31),
            ("dead-young", "DEAD", None, 2),
            ("cancelled-old", "CANCELLED", None, 31),
            ("cancelled-young", "CANCELLED", None, 29),
            ("parked", "PARKED", None, 0),
        ],
    )
    .await?;
    world.tidy().await?;
    assert_eq!(world.tidied().await?, serde_json::json!({ "jobs": 3 }));
    assert_eq!(world.words(NAMES).await?, ["cancelled-young", "dead-young", "done-young", "parked"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tree_stays_until_its_last_job_is_past_its_time_and_then_goes_as_a_whole(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    finished(
        &world,
        &[
            ("a", "DONE", None, 9),
            ("a.child", "DONE", Some("a"), 8),
            ("a.child.parked", "PARKED", Some("a.child"), 0),
            ("b", "DONE", None, 9),
            ("b.dead", "DEAD", Some("b"), 8),
            ("c", "DONE", None, 9),
            ("c.child", "DONE", Some("c"), 0),
            ("d", "DONE", None, 9),
            ("d.child", "DONE", Some("d"), 8),
        ],
    )
    .await?;
    assert_eq!(prune(&world).await?, 2);
    let left = ["a", "a.child", "a.child.parked", "b", "b.dead", "c", "c.child"];
    assert_eq!(world.words(NAMES).await?, left);
    // The walk has passed by the older ones: they go with the last of their tree.
    world.change("UPDATE gristmill.jobs SET state = 'DONE', finished_at = now() - interval '25 hours' WHERE state = 'PARKED'").await?;
    world.change("UPDATE gristmill.jobs SET finished_at = now() - interval '25 hours' WHERE unique_key = 'c.child'").await?;
    assert_eq!(prune(&world).await?, 5);
    assert_eq!(world.words(NAMES).await?, ["b", "b.dead"]);
    world
        .change("UPDATE gristmill.jobs SET finished_at = now() - interval '31 days' WHERE state = 'DEAD'")
        .await?;
    assert_eq!(prune(&world).await?, 2);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_row_that_somebody_holds_is_passed_by_and_found_when_the_walk_begins_anew(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    finished(&world, &[("held", "DONE", None, 3), ("free", "DONE", None, 2)]).await?;
    let mut held = world.admin.begin().await?;
    sqlx::query("SELECT FROM gristmill.jobs WHERE unique_key = 'held' FOR UPDATE")
        .execute(&mut *held)
        .await?;
    assert_eq!(prune(&world).await?, 1);
    assert_eq!(world.words(NAMES).await?, ["held"]);
    held.rollback().await?;
    assert_eq!(prune(&world).await?, 0, "the walk is past it");
    world.tidy_deep().await?;
    world.tidy().await?;
    assert!(world.words(NAMES).await?.is_empty());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn two_at_once_remove_each_row_once(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world
        .age(
            "INSERT INTO gristmill.jobs (workspace_id, kind, payload, state, finished_at)
             SELECT gristmill.uuid7(), 'fetch', '{}', 'DONE', now() - interval '2 days' FROM generate_series(1, 3000)",
        )
        .await?;
    let batches = (0..12).map(|_| {
        sqlx::query_scalar::<_, i64>("SELECT gristmill.prune('1 day', '30 days', 250)")
            .fetch_one(&world.admin)
    });
    let removed: i64 = futures::future::try_join_all(batches).await?.into_iter().sum();
    let left = world.count("SELECT count(*) FROM gristmill.jobs").await?;
    assert_eq!(removed + left, 3000);
    assert!(removed >= 250, "{removed}");
    Ok(())
}

/// Pages that one batch of 500 reads.
async fn pages_of_a_batch(world: &World) -> anyhow::Result<i64> {
    let plan: serde_json::Value = sqlx::query_scalar(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT gristmill.prune('1 day', '30 days', 500)",
    )
    .fetch_one(&world.admin)
    .await?;
    let read = |key: &str| plan[0]["Plan"][key].as_i64().unwrap_or_default();
    Ok(read("Shared Hit Blocks") + read("Shared Read Blocks"))
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_batch_reads_as_much_of_a_large_table_as_of_a_small_one(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut pages = Vec::new();
    for rows in [4_000, 76_000] {
        world
            .age(&format!(
                "INSERT INTO gristmill.jobs (workspace_id, kind, payload, state, finished_at)
                 SELECT gristmill.uuid7(), 'fetch', '{{}}', 'DONE', now() - n * interval '1 second' - interval '1 day'
                 FROM generate_series(1, {rows}) n"
            ))
            .await?;
        world.change("VACUUM ANALYZE gristmill.jobs").await?;
        world.count("SELECT 0::bigint FROM gristmill.prune_anew()").await?;
        // The first one warms up what a session reads of the catalogues.
        pages_of_a_batch(&world).await?;
        pages.push(pages_of_a_batch(&world).await?);
    }
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 80_000 - 4 * 500);
    assert!(pages[1] < pages[0] * 3 / 2, "twenty times the rows: {pages:?}");
    Ok(())
}

/// Fills the table with jobs, works them off, and lets vacuum come by, as it does on its own.
async fn round(world: &World) -> anyhow::Result<()> {
    world
        .age(
            "INSERT INTO gristmill.jobs (workspace_id, kind, payload, unique_key)
             SELECT gristmill.uuid7(), 'fetch', '{}', gristmill.uuid7()::text FROM generate_series(1, 20000);
             UPDATE gristmill.jobs SET state = 'RUNNING', lease_until = now() WHERE state = 'WAITING';
             UPDATE gristmill.jobs SET state = 'DONE', lease_until = NULL, finished_at = now() - interval '2 days'
             WHERE state = 'RUNNING'",
        )
        .await
}

async fn size_after_vacuum(world: &World) -> anyhow::Result<i64> {
    world.change("VACUUM gristmill.jobs").await?;
    world.count("SELECT pg_total_relation_size('gristmill.jobs')").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_table_that_is_pruned_does_not_grow_and_one_that_is_not_does(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut sizes = Vec::new();
    for _ in 0..4 {
        round(&world).await?;
        while prune(&world).await? == 1000 {}
        sizes.push(size_after_vacuum(&world).await?);
    }
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 0);
    // The first rounds find their level: pages that vacuum freed are taken from the next round on.
    assert!(sizes[3] <= sizes[1] * 11 / 10, "{sizes:?}");
    for _ in 0..2 {
        round(&world).await?;
        sizes.push(size_after_vacuum(&world).await?);
    }
    assert!(sizes[5] > sizes[3] * 11 / 10, "without pruning it grows: {sizes:?}");
    Ok(())
}
