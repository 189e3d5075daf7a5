//! What stands still is taken up again once, and fails the second time; what has a job is not touched.

use super::*;

const HOURS_AGO: &str = "now() - interval '2 hours'";

impl World {
    /// An attachment whose job was cancelled, at a status, unchanged for two hours.
    async fn stranded(&self, name: &str, status: &str) -> anyhow::Result<AttachmentId> {
        self.stranded_of(self.workspace, name, status).await
    }

    async fn stranded_of(&self, of: WorkspaceId, name: &str, status: &str) -> anyhow::Result<AttachmentId> {
        let id = self.upload_of(of, name, b"words of a mill").await?;
        self.age(&format!(
            "UPDATE gristmill.jobs SET state = 'CANCELLED', reason = 'on request', finished_at = now()
             WHERE payload ->> 'attachment' = '{id}';
             UPDATE gristmill.attachments SET status = '{status}', created_at = {HOURS_AGO}, updated_at = {HOURS_AGO}
             WHERE id = '{id}'"
        ))
        .await?;
        Ok(id)
    }

    async fn years_ago(&self) -> anyhow::Result<()> {
        self.age(&format!(
            "UPDATE gristmill.attachments SET created_at = {HOURS_AGO}, updated_at = {HOURS_AGO};
             UPDATE gristmill.generations SET created_at = {HOURS_AGO}, updated_at = {HOURS_AGO}"
        ))
        .await
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_that_nobody_works_on_is_taken_up_again_where_it_stood(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let other = another_tenant(&world).await?;
    for status in ["STORED", "SCANNING"] {
        let ids = [world.workspace, other].map(|of| world.stranded_of(of, "a.txt", status));
        for id in futures::future::try_join_all(ids).await? {
            assert_eq!(world.ended(id).await?.0, status);
        }
        world.tidy().await?;
        assert_eq!(world.tidied().await?["revived"], 2, "{status}, in each tenant");
    }
    assert_eq!(world.words("SELECT DISTINCT status::text FROM gristmill.attachments").await?, ["READY"]);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.attachments").await?, 4);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_upload_that_never_came_waits_a_day_and_then_fails_with_its_reason(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.stranded("late.txt", "REQUESTED").await?;
    let key: String =
        sqlx::query_scalar("SELECT key FROM gristmill.attachments").fetch_one(&world.admin).await?;
    world.ctx.objects.delete(world.bucket(), &key).await?;
    world.tidy().await?;
    assert_eq!(world.ended(id).await?.0, "REQUESTED", "two hours are not a day");
    world.age("UPDATE gristmill.attachments SET created_at = now() - interval '25 hours', updated_at = now() - interval '25 hours'").await?;
    world.tidy().await?;
    assert_eq!(world.ended(id).await?, ended("FAILED", "object_missing", "-"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn one_that_stands_still_again_fails_as_stuck_and_the_chat_layer_learns_of_it(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.stranded("a.txt", "SCANNING").await?;
    world.age("UPDATE gristmill.attachments SET revived = 1").await?;
    world.tidy().await?;
    assert_eq!(world.ended(id).await?, ended("FAILED", "stuck", "-"));
    assert_eq!(world.tidied().await?, serde_json::json!({ "stuck": 1 }));
    let told =
        "SELECT count(*) FROM gristmill.events WHERE type = 'attachment.failed' AND body ->> 'code' = 'stuck'
                AND workspace_id = (SELECT id FROM gristmill.workspaces WHERE external_id = 'acme')";
    assert_eq!(world.count(told).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_with_a_job_of_any_key_or_that_is_young_is_not_touched(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let young = world.stranded("young.txt", "SCANNING").await?;
    let keyed = world.stranded("keyed.txt", "SCANNING").await?;
    let keyless = world.stranded("keyless.txt", "SCANNING").await?;
    let parked = world.stranded("parked.txt", "SCANNING").await?;
    let later = "now() + interval '1 day'";
    world
        .age(&format!(
            "UPDATE gristmill.attachments SET updated_at = now() WHERE id = '{young}';
             SELECT gristmill.enqueue('scan', '{{\"attachment\": \"{keyed}\"}}', '{keyed}', '{ws}', run_at => {later});
             SELECT gristmill.enqueue('extract', '{{\"attachment\": \"{keyless}\"}}', NULL, '{ws}', run_at => {later});
             SELECT gristmill.enqueue('scan', '{{\"attachment\": \"{parked}\"}}', 'mine', '{ws}', run_at => {later});
             UPDATE gristmill.jobs SET state = 'PARKED', reason = 'NEEDS_APPROVAL' WHERE unique_key = 'mine'",
            ws = world.workspace
        ))
        .await?;
    world.house_alone().await?;
    let untouched = "SELECT count(*) FROM gristmill.attachments WHERE status = 'SCANNING' AND revived = 0";
    assert_eq!(world.count(untouched).await?, 4);
    let live = "SELECT count(*) FROM gristmill.jobs WHERE kind <> 'tidy' AND state <> 'CANCELLED'";
    assert_eq!(world.count(live).await?, 3);
    Ok(())
}

impl World {
    /// Runs `tidy` beside jobs that are not due.
    async fn house_alone(&self) -> anyhow::Result<()> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, SYSTEM_WORKSPACE).await?;
        enqueue(&mut tx, SYSTEM_WORKSPACE, &Tidy { deep: false }).await?;
        tx.commit().await?;
        let worker = gristmill::runtime::Worker::start(&self.ctx, every_kind)?;
        let over = "SELECT bool_and(state = 'DONE') FROM gristmill.jobs WHERE kind = 'tidy'";
        let done = self.until("tidy is over", over).await;
        worker.stop().await;
        done
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_index_that_nobody_builds_is_built_on_and_one_that_stands_still_again_fails(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("mill.txt", prose(3).as_bytes()).await?;
    let chunks = world.chunks(id).await?;
    let back = "DELETE FROM gristmill.jobs; DELETE FROM gristmill.chunks WHERE ord > 0;
                UPDATE gristmill.resources SET live_generation = NULL;
                UPDATE gristmill.attachments SET status = 'SCANNING';
                UPDATE gristmill.generations SET status = 'EMBEDDING', finished_at = NULL, done = 1";
    world.age(back).await?;
    world.years_ago().await?;
    world.tidy().await?;
    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.chunks(id).await?, chunks);
    assert_eq!(world.tidied().await?, serde_json::json!({ "revived": 1 }));

    world.age(back).await?;
    world.years_ago().await?;
    world.tidy().await?;
    assert_eq!(world.ended(id).await?, ended("FAILED", "stuck", "FAILED"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_text_that_was_never_read_is_read_when_its_index_waits_for_it(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("mill.txt", prose(3).as_bytes()).await?;
    world
        .age(
            "DELETE FROM gristmill.jobs; DELETE FROM gristmill.chunks;
             UPDATE gristmill.resources SET live_generation = NULL;
             UPDATE gristmill.attachments SET status = 'SCANNING';
             UPDATE gristmill.generations SET status = 'EXTRACTING', finished_at = NULL, extraction_id = NULL,
                                              done = 0, total = NULL, plan = NULL",
        )
        .await?;
    world.years_ago().await?;
    world.tidy().await?;
    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_superseded_index_that_forget_missed_goes_and_the_live_one_stays(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("mill.txt", prose(3).as_bytes()).await?;
    let chunks = world.chunks(id).await?;
    // One that was replaced, and one that failed after the live one: it tells of itself.
    world
        .age(
            "INSERT INTO gristmill.generations (workspace_id, resource_id, status, created_at, finished_at)
             SELECT workspace_id, resource_id, 'FAILED', created_at + n * interval '1 minute', now() - interval '2 hours'
             FROM gristmill.generations, unnest(ARRAY[-1, 1]) n;
             UPDATE gristmill.generations SET finished_at = now() - interval '2 hours'",
        )
        .await?;
    world.tidy_deep().await?;
    assert_eq!(world.tidied().await?["superseded"], 1);
    assert_eq!(
        world.words("SELECT status::text FROM gristmill.generations ORDER BY created_at").await?,
        ["INDEXED", "FAILED"]
    );
    assert_eq!(world.chunks(id).await?, chunks);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_retry_by_hand_may_stand_still_once_again(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.stranded("a.txt", "SCANNING").await?;
    world.age("UPDATE gristmill.attachments SET revived = 1").await?;
    world.tidy().await?;
    let revived = "SELECT status || ' ' || revived FROM gristmill.attachments";
    assert_eq!(world.words(revived).await?, ["FAILED 1"]);
    world
        .change("UPDATE gristmill.attachments SET status = 'STORED', failure_code = NULL, failure = NULL")
        .await?;
    assert_eq!(world.words(revived).await?, ["STORED 0"]);
    Ok(())
}
