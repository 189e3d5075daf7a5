//! Looking again at what older signatures called clean.

use super::*;
use crate::scan::clamd::{Manner, fake};
use gristmill::store::search::{self, Filters, Mode, Query};

impl World {
    async fn hits(&self, of: WorkspaceId, question: &str) -> anyhow::Result<usize> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, of).await?;
        let query = Query {
            text: question,
            mode: Mode::Lexical,
            filters: Filters::default(),
            top_k: 10,
            candidates: 100,
            ef_search: 100,
            per_document: 0,
            neighbours: 0,
        };
        Ok(search::search(&mut tx, &query).await?.len())
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_file_that_new_signatures_find_infected_leaves_retrieval_with_all_its_twins(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let text = prose(3);
    let one = world.ingest("one.txt", text.as_bytes()).await?;
    let twin = world.ingest("two.txt", text.as_bytes()).await?;
    assert!(world.hits(world.workspace, "mill1").await? > 0);

    let (address, clamd) = fake(Manner::Says(b"stream: Win.Worm FOUND\0")).await;
    world.restart(|settings| settings.scan.clamd = address)?;
    world.house(&Rescan { attachment: None }).await?;
    clamd.abort();
    for id in [one, twin] {
        assert_eq!(world.ended(id).await?.0, "QUARANTINED");
        assert_eq!(world.standing(id).await?.failure_code.as_deref(), Some("infected"));
    }
    assert_eq!(world.hits(world.workspace, "mill1").await?, 0);
    for gone in ["SELECT count(*) FROM gristmill.chunks", "SELECT count(*) FROM gristmill.generations"] {
        assert_eq!(world.count(gone).await?, 0, "{gone}");
    }
    assert_eq!(
        world.count("SELECT count(*) FROM gristmill.events WHERE type = 'attachment.quarantined'").await?,
        2
    );
    assert_eq!(
        world.count("SELECT count(*) FROM gristmill.attachment_history WHERE to_status = 'SCANNING'").await?,
        2,
        "only when they were new"
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_file_that_is_still_clean_stays_readable_and_is_not_scanned_a_third_time(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let id = world.ingest("one.txt", prose(3).as_bytes()).await?;
    let failed = world.ingest("gone.zip", &crate::scan::nested(10)).await?;
    let chunks = world.chunks(id).await?;
    let (address, clamd) = fake(Manner::Says(b"stream: OK\0")).await;
    world.restart(|settings| settings.scan.clamd = address)?;
    world.house(&Rescan { attachment: None }).await?;
    world.house(&Rescan { attachment: None }).await?;
    clamd.abort();
    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.ended(failed).await?.0, "FAILED");
    assert_eq!(world.chunks(id).await?, chunks);
    let looks = "SELECT count(*) FROM gristmill.jobs WHERE kind = 'rescan' AND payload <> '{}'";
    assert_eq!(world.count(looks).await?, 1);
    let verdicts =
        "SELECT engine || ' ' || outcome FROM gristmill.verdicts WHERE outcome = 'CLEAN' ORDER BY created_at";
    assert_eq!(world.words(verdicts).await?, ["gristmill CLEAN", "gristmill+clamd CLEAN"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_verdict_of_older_signatures_is_renewed_when_it_is_old_and_not_before(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let (address, clamd) = fake(Manner::Says(b"stream: OK\0")).await;
    world.restart(|settings| settings.scan.clamd = address)?;
    world.ingest("one.txt", b"a few words").await?;
    let looks = "SELECT count(*) FROM gristmill.jobs WHERE kind = 'rescan' AND payload <> '{}'";
    world.age("UPDATE gristmill.verdicts SET created_at = now() - interval '8 days'").await?;
    world.house(&Rescan { attachment: None }).await?;
    assert_eq!(world.count(looks).await?, 0, "the same signatures say the same");
    world.age("UPDATE gristmill.verdicts SET signature_version = 'older', created_at = now()").await?;
    world.house(&Rescan { attachment: None }).await?;
    assert_eq!(world.count(looks).await?, 0, "a verdict of today");
    world.age("UPDATE gristmill.verdicts SET created_at = now() - interval '8 days'").await?;
    world.house(&Rescan { attachment: None }).await?;
    assert_eq!(world.count(looks).await?, 1);
    clamd.abort();
    Ok(())
}
