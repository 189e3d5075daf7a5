//! Objects that no row names go; young ones, named ones and everything outside of the worker's own
//! part of the bucket stay.

use super::*;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_text_that_no_row_names_is_removed_and_everything_else_stays(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let other = another_tenant(&world).await?;
    let id = world.ingest("mill.txt", prose(3).as_bytes()).await?;
    let theirs = world.upload_of(other, "theirs.txt", b"their words").await?;
    world.work(every_kind).await?;
    let mut kept = [world.keys(world.workspace).await?, world.keys(other).await?].concat();
    for workspace in [world.workspace, other] {
        for tail in ["texts/orphan.txt", "uploads/not-announced.txt", "avatar.png"] {
            let key = world.ctx.objects.tenant_key(workspace, tail);
            world.put(&key, b"bytes").await?;
            if !tail.starts_with("texts/") {
                kept.push(key);
            }
        }
    }
    world.put("texts/of-nobody.txt", b"bytes").await?;
    // A job at work may have just put it there, and not yet committed its row.
    let sha256 =
        world.words("SELECT checksum_sha256 FROM gristmill.attachments WHERE name = 'mill.txt'").await?;
    let unfinished =
        world.ctx.objects.tenant_key(world.workspace, &format!("texts/{}-0123abcd.txt", sha256[0]));
    world.put(&unfinished, b"bytes").await?;
    kept.push(unfinished);
    kept.sort();

    world.tidy_deep().await?;
    assert_eq!(
        world.keys(world.workspace).await?.len() + world.keys(other).await?.len(),
        kept.len() + 2,
        "what is a minute old may be about to get its row"
    );
    world.restart(|settings| settings.tidy.orphan_hours = 0)?;
    world.tidy_deep().await?;
    let mut left = [world.keys(world.workspace).await?, world.keys(other).await?].concat();
    left.sort();
    assert_eq!(left, kept);
    assert_eq!(world.tidied().await?, serde_json::json!({ "objects": 2 }));
    assert_eq!(world.get("texts/of-nobody.txt").await?, b"bytes", "outside of any tenant");
    for attachment in [id, theirs] {
        assert_eq!(world.ended(attachment).await?, ended("READY", "-", "INDEXED"));
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_was_learned_of_bytes_goes_when_the_chat_layer_removes_the_last_row_that_has_them(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    world.restart(|settings| settings.tidy.orphan_hours = 0)?;
    let text = prose(3);
    let (one, twin) =
        (world.ingest("one.txt", text.as_bytes()).await?, world.ingest("two.txt", text.as_bytes()).await?);
    let delete = async |id: AttachmentId| {
        sqlx::query("DELETE FROM gristmill.attachments WHERE id = $1").bind(id.0).execute(&world.admin).await
    };
    delete(one).await?;
    world.tidy_deep().await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 1, "the twin needs it");
    assert_eq!(world.ended(twin).await?, ended("READY", "-", "INDEXED"));
    delete(twin).await?;
    world.tidy_deep().await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 0);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.verdicts").await?, 0);
    let left = world.keys(world.workspace).await?;
    assert!(!left.iter().any(|key| key.contains("/texts/")), "{left:?}");
    Ok(())
}
