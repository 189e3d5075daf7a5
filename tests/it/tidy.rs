//! What keeps the house clean: each sweep takes what is over, and leaves its neighbour that is not.

use crate::ingest::{ended, prose};
use crate::world::World;
use gristmill::domain::{AttachmentId, SYSTEM_WORKSPACE, WorkspaceId};
use gristmill::jobs::{Rescan, Tidy, ToolSync, UsageRollup};
use gristmill::queue::{Payload, enqueue};
use gristmill::runtime::every_kind;
use sqlx::{AssertSqlSafe, PgPool};

mod objects;
mod prune;
mod rescan;
mod stuck;

impl World {
    /// Runs one of the house's own jobs, and all that it asks for, to the end.
    pub async fn house<P: Payload>(&self, job: &P) -> anyhow::Result<()> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, SYSTEM_WORKSPACE).await?;
        enqueue(&mut tx, SYSTEM_WORKSPACE, job).await?;
        tx.commit().await?;
        self.work(every_kind).await
    }

    async fn tidy(&self) -> anyhow::Result<()> {
        self.house(&Tidy { deep: false }).await
    }

    async fn tidy_deep(&self) -> anyhow::Result<()> {
        self.house(&Tidy { deep: true }).await
    }

    /// Changes rows as no trigger sees it: what time does to them.
    async fn age(&self, sql: &str) -> anyhow::Result<()> {
        let sql = format!("BEGIN; SET LOCAL session_replication_role = replica; {sql}; COMMIT");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.admin).await?;
        Ok(())
    }

    /// What the last `tidy` said it did.
    async fn tidied(&self) -> anyhow::Result<serde_json::Value> {
        let last = "SELECT body FROM gristmill.events WHERE type = 'house.tidied' ORDER BY id DESC LIMIT 1";
        Ok(sqlx::query_scalar(last).fetch_one(&self.admin).await?)
    }
}

async fn another_tenant(world: &World) -> anyhow::Result<WorkspaceId> {
    let mut connection = world.admin.acquire().await?;
    Ok(gristmill::store::tenants::ensure_workspace(&mut connection, "birch").await?)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_house_with_nothing_to_tidy_is_left_as_it_is_and_nothing_is_told(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("mill.txt", prose(3).as_bytes()).await?;
    let chunks = world.chunks(id).await?;
    let events = "SELECT count(*) FROM gristmill.events";
    let before = world.count(events).await?;
    world.tidy_deep().await?;
    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.chunks(id).await?, chunks);
    assert_eq!(world.keys(world.workspace).await?.len(), 2);
    assert_eq!(world.count(events).await?, before);
    assert_eq!(world.words("SELECT DISTINCT state::text FROM gristmill.jobs").await?, ["DONE"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn logins_and_sign_in_links_go_when_they_are_over_in_every_tenant_and_no_sooner(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let other = another_tenant(&world).await?;
    for workspace in [world.workspace, other] {
        for (token, expires) in [("old", "-1 second"), ("young", "1 hour")] {
            sqlx::query(
                "WITH s AS (INSERT INTO gristmill.sessions (workspace_id, session_token, expires)
                            VALUES ($1, $2 || $1, now() + $3::interval))
                 INSERT INTO gristmill.verification_tokens (workspace_id, identifier, token, expires)
                 VALUES ($1, 'a@b', $2, now() + $3::interval)",
            )
            .bind(workspace.0)
            .bind(token)
            .bind(expires)
            .execute(&world.admin)
            .await?;
        }
    }
    world.tidy().await?;
    assert_eq!(world.tidied().await?["logins"], 4);
    assert_eq!(world.words("SELECT token FROM gristmill.verification_tokens").await?, ["young", "young"]);
    assert_eq!(
        world.words("SELECT left(session_token, 5) FROM gristmill.sessions").await?,
        ["young", "young"]
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn keys_whose_time_is_over_and_workers_long_unseen_go_and_the_others_stay(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world
        .age(
            "INSERT INTO gristmill.job_keys (workspace_id, kind, key, job_id, until)
             SELECT id, 'fetch', k.key, id, now() + k.left_over FROM gristmill.workspaces,
                    (VALUES ('over', interval '-1 second'), ('held', '1 hour'), ('for ever', '1000 years')) k (key, left_over)
             WHERE external_id = 'acme';
             INSERT INTO gristmill.workers (name, host, pid, version, kinds, places, last_seen)
             VALUES ('gone', 'h', 1, '0', '{}', 1, now() - interval '25 hours'),
                    ('quiet', 'h', 2, '0', '{}', 1, now() - interval '23 hours')",
        )
        .await?;
    world.tidy().await?;
    let tidied = world.tidied().await?;
    assert_eq!((&tidied["keys"], &tidied["workers"]), (&1.into(), &1.into()));
    assert_eq!(
        world.words("SELECT key FROM gristmill.job_keys WHERE kind = 'fetch' ORDER BY 1").await?,
        ["for ever", "held"]
    );
    assert_eq!(
        world.count("SELECT count(*) FROM gristmill.workers WHERE name IN ('gone', 'quiet')").await?,
        1
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_dead_call_gives_back_what_it_held_of_a_budget_and_a_living_one_does_not(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world
        .age(
            "INSERT INTO gristmill.budgets (id, workspace_id, amount, reserved)
             SELECT '00000000-0000-7000-8000-00000000b001', id, 10, 0.75 FROM gristmill.workspaces WHERE external_id = 'acme';
             INSERT INTO gristmill.usages (id, workspace_id, type, kind, provider, model, key_source)
             SELECT u.id::uuid, w.id, 'user', 'chat', 'p', 'm', 'platform' FROM gristmill.workspaces w,
                    (VALUES ('00000000-0000-7000-8000-00000000c001'), ('00000000-0000-7000-8000-00000000c002')) u (id)
             WHERE w.external_id = 'acme';
             INSERT INTO gristmill.reservations (workspace_id, usage_id, budget_id, amount, expires_at)
             SELECT workspace_id, id, '00000000-0000-7000-8000-00000000b001',
                    CASE WHEN id::text LIKE '%c001' THEN 0.5 ELSE 0.25 END,
                    now() + CASE WHEN id::text LIKE '%c001' THEN interval '-1 minute' ELSE interval '1 hour' END
             FROM gristmill.usages",
        )
        .await?;
    world.tidy().await?;
    assert_eq!(world.words("SELECT reserved::text FROM gristmill.budgets").await?, ["0.25"]);
    assert_eq!(world.words("SELECT amount::text FROM gristmill.reservations").await?, ["0.25"]);
    assert_eq!(
        world
            .words("SELECT state || coalesce(' ' || left(failure, 9), '') FROM gristmill.usages ORDER BY id")
            .await?,
        ["RELEASED abandoned", "OPEN"]
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_budget_that_differs_from_its_ledger_is_told_once_a_day_and_not_mended(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let other = another_tenant(&world).await?;
    world
        .age(&format!(
            "INSERT INTO gristmill.budgets (workspace_id, amount, spent) VALUES ('{}', 10, 0.3), ('{other}', 10, 0.1);
             INSERT INTO gristmill.usages (workspace_id, type, kind, state, provider, model, key_source, input_tokens,
                 cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost, source, settled_at)
             SELECT w, 'user', 'chat', 'SETTLED', 'p', 'm', 'platform', 1, 0, 0, 1, 0, 0.1, 'reported', now()
             FROM unnest(ARRAY['{}', '{other}']::uuid[]) w",
            world.workspace, world.workspace
        ))
        .await?;
    world.house(&UsageRollup {}).await?;
    world.house(&UsageRollup {}).await?;
    let told = "SELECT workspace_id || ' ' || body FROM gristmill.events WHERE type = 'budget.differs'";
    assert_eq!(
        world.words(told).await?,
        [format!(
            r#"{} {{"held": "0", "spent": "0.3", "settled": "0.1", "reserved": "0"}}"#,
            world.workspace
        )]
    );
    assert_eq!(
        world.words("SELECT spent::text FROM gristmill.budgets ORDER BY spent").await?,
        ["0.1", "0.3"]
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn events_go_when_they_are_old_and_stay_while_they_are_not(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.ingest("mill.txt", b"a few words").await?;
    let before = world.count("SELECT count(*) FROM gristmill.events").await?;
    world.age("UPDATE gristmill.events SET created_at = now() - interval '31 days' WHERE type = 'attachment.stored'").await?;
    world.tidy().await?;
    assert_eq!(world.tidied().await?, serde_json::json!({ "events": 1 }));
    assert_eq!(
        world.count("SELECT count(*) FROM gristmill.events").await?,
        before,
        "one went, one tells of it"
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_has_no_work_to_do_yet_says_so_among_the_dead(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.house(&ToolSync { connection: None }).await?;
    world.house(&Rescan { attachment: None }).await?;
    let dead = "SELECT kind || ' ' || split_part(reason, ':', 1) FROM gristmill.jobs WHERE state = 'DEAD' ORDER BY 1";
    assert_eq!(world.words(dead).await?, ["rescan no_clamd"]);
    Ok(())
}
