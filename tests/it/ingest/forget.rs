//! Forgetting: nothing of an attachment stays, and nothing that another one needs goes.

use super::*;

impl World {
    async fn forget(&self, id: AttachmentId) -> anyhow::Result<()> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, self.workspace).await?;
        enqueue(&mut tx, self.workspace, &Forget::Attachment(id)).await?;
        tx.commit().await?;
        self.work(every_kind).await
    }

    /// What the last `forget` said it removed.
    async fn told(&self) -> anyhow::Result<serde_json::Value> {
        let last =
            "SELECT body FROM gristmill.events WHERE type = 'attachment.forgotten' ORDER BY id DESC LIMIT 1";
        Ok(sqlx::query_scalar(last).fetch_one(&self.admin).await?)
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn forgetting_removes_rows_chunks_and_objects_but_not_what_a_twin_needs(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let text = prose(4);
    let first = world.ingest("one.txt", text.as_bytes()).await?;
    let twin = world.ingest("two.txt", text.as_bytes()).await?;
    let other = world.ingest("three.txt", b"quite another text").await?;
    let (chunks, others) = (world.chunks(first).await?, world.chunks(other).await?);
    assert_eq!(world.keys(world.workspace).await?.len(), 5);

    world.forget(first).await?;
    let n = chunks.len();
    assert_eq!(world.told().await?, json!({ "chunks": n, "generations": 1, "objects": 1, "artefacts": 0 }));
    assert!(standings(&world.admin, &[first]).await?.is_empty());
    assert_eq!(world.chunks(twin).await?, chunks);
    let sum = (n + others.len()) as i64;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.chunks").await?, sum);
    assert_eq!(world.keys(world.workspace).await?.len(), 4);

    world.forget(twin).await?;
    assert_eq!(world.told().await?, json!({ "chunks": n, "generations": 1, "objects": 1, "artefacts": 1 }));
    for table in [
        "SELECT count(*) FROM gristmill.attachments",
        "SELECT count(*) FROM gristmill.resources",
        "SELECT count(*) FROM gristmill.generations",
        "SELECT count(*) FROM gristmill.extractions",
        "SELECT count(*) FROM gristmill.verdicts",
        "SELECT count(DISTINCT attachment_id) FROM gristmill.attachment_history",
    ] {
        assert_eq!(world.count(table).await?, 1, "{table}");
    }
    assert_eq!(world.keys(world.workspace).await?.len(), 2);
    assert_eq!(world.chunks(other).await?, others);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_was_forgotten_can_be_forgotten_again_and_ingested_anew(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("one.txt", b"words of a mill").await?;
    world.forget(id).await?;
    world.forget(id).await?;
    assert!(world.keys(world.workspace).await?.is_empty());
    let again = world.ingest("one.txt", b"words of a mill").await?;
    assert_eq!(world.ended(again).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state <> 'DONE'").await?, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_that_is_gone_before_its_job_begins_is_no_error(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.upload("one.txt", b"words").await?;
    assert_eq!(world.change("DELETE FROM gristmill.attachments").await?, 1);
    world.work(every_kind).await?;
    assert_eq!(world.words("SELECT state::text FROM gristmill.jobs").await?, ["DONE"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn forgetting_does_not_reach_beyond_the_tenants_part_of_the_bucket(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let foreign = "somebody/else";
    world.put(foreign, b"their words").await?;
    let id = world.attach(world.workspace, &upload(world.bucket(), foreign, "a.txt")).await?;
    world.work(every_kind).await?;
    world.forget(id).await?;
    assert_eq!(world.told().await?["objects"], 0);
    assert!(standings(&world.admin, &[id]).await?.is_empty());
    assert_eq!(world.get(foreign).await?, b"their words");
    Ok(())
}
