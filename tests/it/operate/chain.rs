//! A chain of jobs as one tree: a failed step ends its subject, one retry carries it to its end.

use super::*;

/// The failure of one step, told on the attachment; then what was away is back.
async fn fails_and_is_retried(world: &World, step: &'static str) -> anyhow::Result<AttachmentId> {
    let id = world.upload("a.txt", b"the miller and the stone").await?;
    world.work(|| without(step)).await?;
    let standing = world.standing(id).await?;
    assert_eq!((standing.status.as_str(), standing.failure_code.as_deref()), ("FAILED", Some("gave_up")));
    let failure = standing.failure.unwrap_or_default();
    assert!(failure.contains(&format!("what {step} needs is away")), "{failure}");
    assert!(standing.index.is_none_or(|index| index == "FAILED"));
    assert_eq!(world.broken().await?, Vec::<String>::new());

    let dead = world.dead().await?;
    assert_eq!(dead.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), [step]);
    let (outcome, next) = world.retry(dead[0].id).await?;
    let itself = matches!(step, "fetch" | "scan");
    assert_eq!(
        (outcome.as_str(), next == Some(dead[0].id)),
        (if itself { "retried" } else { "restarted" }, itself)
    );
    assert_eq!(world.standing(id).await?.status, "STORED");
    assert!(world.dead().await?.is_empty(), "it is no longer among the dead");

    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()), "{step}");
    assert_eq!(world.chunks(id).await?.len(), 1);
    assert_eq!(world.broken().await?, Vec::<String>::new());
    Ok(id)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_step_that_failed_ends_the_attachment_and_one_retry_makes_it_ready(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    for step in ["fetch", "scan", "extract", "embed"] {
        let id = fails_and_is_retried(&world, step).await?;
        let told = "SELECT count(*) FROM gristmill.events WHERE type = 'attachment.stored' AND body @> '{\"retried\": true}'";
        assert_eq!(world.count(told).await?, 1, "{step}: the chat layer is told");
        world.change("DELETE FROM gristmill.events").await?;
        let history = world.history(id).await?;
        let again: Vec<_> =
            history.iter().map(String::as_str).skip_while(|status| *status != "FAILED").collect();
        assert_eq!(again, ["FAILED", "STORED", "SCANNING", "READY"], "{step}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_tree_holds_every_step_and_the_retry_below_the_one_that_failed(db: PgPool) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    let id = fails_and_is_retried(&world, "extract").await?;
    let roots = jobs::roots_of(&world.admin, id).await?;
    assert_eq!(roots.len(), 1);
    let tree = jobs::tree(&world.admin, roots[0]).await?;
    let parent =
        |job: &jobs::Row| tree.iter().find(|other| Some(other.id) == job.parent).map(|p| p.kind.as_str());
    let steps: Vec<_> = tree.iter().map(|job| (parent(job), job.kind.as_str(), job.state.as_str())).collect();
    assert_eq!(
        steps,
        [
            (None, "fetch", "DONE"),
            (Some("fetch"), "scan", "DONE"),
            (Some("scan"), "extract", "CANCELLED"),
            (Some("extract"), "fetch", "DONE"),
            (Some("fetch"), "scan", "DONE"),
            (Some("scan"), "extract", "DONE"),
            (Some("extract"), "embed", "DONE"),
        ]
    );
    let replaced = tree[2].reason.clone().unwrap_or_default();
    assert!(replaced.starts_with(&format!("retried as {}", tree[3].id)), "{replaced}");
    assert!(replaced.contains("what extract needs is away"), "{replaced}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_same_bytes_are_not_scanned_anew_and_vectors_are_kept_over_a_retry(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    fails_and_is_retried(&world, "embed").await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.verdicts").await?, 1);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_died_while_the_store_was_away_is_ready_after_one_command(db: PgPool) -> anyhow::Result<()> {
    let mut world = hasty(db).await?;
    let id = world.upload("a.txt", b"the miller and the stone").await?;
    world.change("UPDATE gristmill.jobs SET max_attempts = 2").await?;
    let endpoint = world.ctx.settings.objects.endpoint.clone();
    world.restart(|settings| settings.objects.endpoint = "http://127.0.0.1:9".into())?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?.1, "gave_up");

    world.restart(|settings| settings.objects.endpoint = endpoint)?;
    let retried = world.gristmill(&["jobs", "dead", "--retry"])?;
    assert!(retried.status.success() && said(&retried).contains("retried"), "{}", complained(&retried));
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()));
    assert_eq!(world.broken().await?, Vec::<String>::new());
    Ok(())
}
