//! What a batch costs the database: by the batch, whatever lies in the table beside it.

use crate::world::World;
use sqlx::PgPool;
use sqlx::Row;
use uuid::Uuid;

const ACKNOWLEDGE: &str = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
    SELECT gristmill.acknowledge($1, $2, array_fill('DONE'::text, ARRAY[10]), array_fill(NULL::bigint, ARRAY[10]),
                                 array_fill(false, ARRAY[10]), array_fill(NULL::text, ARRAY[10]), '1 s', '1 s')";
const RENEW: &str = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM gristmill.renew($1, $2, '30 s')";

/// Pages touched by a call for ten claimed jobs, by the database's own count.
async fn pages(world: &World, call: &'static str) -> anyhow::Result<i64> {
    let mut conn = world.admin.acquire().await?;
    let mut touched = 0;
    // The first call reads the catalogue and plans.
    for _ in 0..2 {
        sqlx::query("BEGIN").execute(&mut *conn).await?;
        let claimed = "SELECT id, epoch FROM gristmill.claim('w', 1, '{act}', 10, '30 s', 64,
                                                             '00000000-0000-0000-0000-000000000000', 0)";
        let rows = sqlx::query(claimed).fetch_all(&mut *conn).await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        let epochs: Vec<i32> = rows.iter().map(|row| row.get(1)).collect();
        assert_eq!(ids.len(), 10);
        let plan: serde_json::Value =
            sqlx::query_scalar(call).bind(ids).bind(epochs).fetch_one(&mut *conn).await?;
        sqlx::query("ROLLBACK").execute(&mut *conn).await?;
        let of = |key: &str| plan[0]["Plan"][key].as_i64().unwrap_or_default();
        touched = of("Shared Hit Blocks") + of("Shared Read Blocks");
    }
    Ok(touched)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn ending_and_renewing_ten_jobs_touches_no_more_pages_when_thirty_thousand_wait(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let fill = "INSERT INTO gristmill.jobs (workspace_id, kind, payload)
                SELECT $1, 'act', '{}' FROM generate_series(1, $2)";
    sqlx::query(fill).bind(world.workspace.0).bind(300).execute(&world.admin).await?;
    // The statistics say that nothing is at work, as they do after a quiet hour.
    sqlx::query("VACUUM ANALYZE gristmill.jobs").execute(&world.admin).await?;
    let few = [pages(&world, ACKNOWLEDGE).await?, pages(&world, RENEW).await?];
    sqlx::query(fill).bind(world.workspace.0).bind(30_000).execute(&world.admin).await?;
    sqlx::query("VACUUM ANALYZE gristmill.jobs").execute(&world.admin).await?;
    let many = [pages(&world, ACKNOWLEDGE).await?, pages(&world, RENEW).await?];
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= 2 * few, "{few} pages, then {many}");
    }
    Ok(())
}
