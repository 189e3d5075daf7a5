//! What a retry may and may not do.

use super::*;

const EICAR: [&str; 2] = ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"];

async fn kill(world: &World, sql: &str) -> anyhow::Result<Uuid> {
    let sql = format!(
        "UPDATE gristmill.jobs SET state = 'DEAD', reason = 'planted: for this test', lease_until = NULL,
             finished_at = now() WHERE {sql} RETURNING id"
    );
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&world.admin).await?)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_retried_job_has_all_its_attempts_a_new_epoch_and_its_old_reason(db: PgPool) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    world.upload("a.txt", b"words").await?;
    world.work(|| without("fetch")).await?;
    let dead = world.dead().await?.remove(0);
    let epoch = "SELECT epoch::int8 FROM gristmill.jobs WHERE kind = 'fetch'";
    let before = world.count(epoch).await?;
    world.retry(dead.id).await?;
    let (state, attempts, reason) = world.job(JobId(dead.id)).await?;
    assert_eq!((state.as_str(), attempts), ("WAITING", 0));
    assert!(reason.is_some_and(|reason| reason.starts_with("retried; before: gave_up")));
    assert_eq!(world.count(epoch).await?, before + 1);
    assert_eq!(world.retry(dead.id).await?, ("alive".into(), Some(dead.id)), "once is enough");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_quarantined_attachment_is_never_revived(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("evil.txt", EICAR.concat().as_bytes()).await?;
    assert_eq!(world.standing(id).await?.status, "QUARANTINED");
    for kind in ["fetch", "scan"] {
        let dead = kill(&world, &format!("kind = '{kind}'")).await?;
        assert_eq!(world.retry(dead).await?.0, "refused");
        assert_eq!(world.job(JobId(dead)).await?.0, "DEAD");
    }
    assert_eq!(jobs::retry_attachment(&world.ctx.db, id).await?.outcome, "refused");
    let output = world.gristmill(&["jobs", "retry", &id.to_string()])?;
    assert_eq!(output.status.code(), Some(1), "{}", complained(&output));
    assert!(said(&output).contains("refused"), "{}", said(&output));
    world.work(every_kind).await?;
    assert_eq!(world.standing(id).await?.status, "QUARANTINED");
    assert_eq!(world.history(id).await?.last().map(String::as_str), Some("QUARANTINED"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_live_job_that_holds_the_key_is_the_answer(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let queue = "SELECT job_id FROM gristmill.enqueue('forget', '{\"generation\": \"00000000-0000-7000-8000-000000000001\"}',
                     key => 'one', workspace => $1)";
    let first: Uuid = sqlx::query_scalar(queue).bind(world.workspace.0).fetch_one(&world.admin).await?;
    kill(&world, "unique_key = 'one'").await?;
    let second: Uuid = sqlx::query_scalar(queue).bind(world.workspace.0).fetch_one(&world.admin).await?;
    assert_eq!(world.retry(first).await?, ("alive".into(), Some(second)));
    let (state, _, reason) = world.job(JobId(first)).await?;
    assert_eq!(state, "CANCELLED");
    assert!(reason.is_some_and(|reason| reason.starts_with(&format!("retried as {second}"))));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_is_done_or_unknown_or_another_tenants_is_left_alone(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.ingest("a.txt", b"words").await?;
    let done = jobs::roots_of(&world.admin, id).await?[0];
    assert_eq!(world.retry(done).await?.0, "settled");
    assert_eq!(world.retry(Uuid::now_v7()).await?.0, "unknown");

    let dead = kill(&world, "kind = 'fetch'").await?;
    let other = gristmill::domain::WorkspaceId(Uuid::now_v7());
    let mut tx = gristmill::store::tenant(&world.ctx.db, other).await?;
    let foreign = "SELECT outcome FROM gristmill.retry($1)";
    let outcome: String = sqlx::query_scalar(foreign).bind(dead).fetch_one(&mut *tx).await?;
    assert_eq!(outcome, "unknown");
    let outcome: String = sqlx::query_scalar("SELECT outcome FROM gristmill.retry_attachment($1)")
        .bind(id.0)
        .fetch_one(&mut *tx)
        .await?;
    assert_eq!(outcome, "unknown");
    tx.commit().await?;
    assert_eq!(world.job(JobId(dead)).await?.0, "DEAD");

    // The attachment reached its end without it: nothing is done twice.
    assert_eq!(world.retry(dead).await?.0, "settled");
    assert_eq!(world.job(JobId(dead)).await?.0, "CANCELLED");
    assert_eq!(world.standing(id).await?.status, "READY");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn every_resource_of_a_revived_attachment_is_indexed(db: PgPool) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    let id = world.upload("a.txt", b"the miller and the stone").await?;
    for _ in 0..2 {
        let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
        gristmill::store::resources::insert(&mut tx, world.workspace, id, "a.txt", None).await?;
        tx.commit().await?;
    }
    world.work(|| without("embed")).await?;
    assert_eq!(world.standing(id).await?.status, "FAILED");
    let dead = world.dead().await?;
    for job in &dead {
        world.retry(job.id).await?;
    }
    world.work(every_kind).await?;
    assert_eq!(world.standing(id).await?.status, "READY");
    let live =
        "SELECT count(*) FROM gristmill.resources r JOIN gristmill.generations g ON g.id = r.live_generation
                WHERE g.status = 'INDEXED'";
    assert_eq!(world.count(live).await?, 2);
    assert!(world.dead().await?.is_empty());
    assert_eq!(world.broken().await?, Vec::<String>::new());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_index_that_could_not_be_renewed_is_tried_again_beside_the_old_one(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    let id = world.ingest("a.txt", b"the miller and the stone").await?;
    let live = "SELECT live_generation::text FROM gristmill.resources";
    let old = world.words(live).await?;
    for step in ["extract", "embed"] {
        world
            .change("INSERT INTO gristmill.generations (workspace_id, resource_id) SELECT workspace_id, id FROM gristmill.resources")
            .await?;
        let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
        gristmill::queue::enqueue(&mut tx, world.workspace, &Extract { attachment: id }).await?;
        tx.commit().await?;
        let before = world.words(live).await?;
        world.work(|| without(step)).await?;
        assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "FAILED".into()));
        assert_eq!(world.words(live).await?, before, "search goes on with the old one");

        let dead = world.dead().await?.remove(0);
        assert_eq!(dead.kind, step);
        world.retry(dead.id).await?;
        world.work(every_kind).await?;
        assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()), "{step}");
        assert_ne!(world.words(live).await?, before, "{step}");
        assert_eq!(world.broken().await?, Vec::<String>::new());
    }
    assert_ne!(world.words(live).await?, old);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_object_that_was_missing_is_taken_up_by_the_attachments_id_once_it_is_there(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    let key = world.ctx.objects.tenant_key(world.workspace, "uploads/late.txt");
    let id = world.attach(world.workspace, &upload(world.bucket(), &key, "late.txt")).await?;
    world.work(every_kind).await?;
    assert_eq!(world.standing(id).await?.failure_code.as_deref(), Some("object_missing"));
    assert!(world.dead().await?.is_empty(), "no job died: the answer was no");

    world.put(&key, b"better late").await?;
    let output = world.gristmill(&["jobs", "retry", &id.to_string()])?;
    assert!(output.status.success(), "{}", complained(&output));
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_remote_file_that_never_came_is_brought_at_the_retry(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.queue.backoff_ceiling_seconds = 0.05;
    let world = World::with(db, settings).await?;
    let key = world.ctx.objects.tenant_key(world.workspace, "remote/a.txt");
    let url = "http://127.0.0.1:9/a.txt";
    let mut new = upload(world.bucket(), &key, "a.txt");
    new.origin = gristmill::domain::Origin::Remote;
    new.source_url = Some(url);
    let id = world.attach(world.workspace, &new).await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?.1, "url_refused");
    jobs::retry_attachment(&world.ctx.db, id).await?;
    world.work(every_kind).await?;
    // Asked for again, not looked for in the bucket where it never lay.
    assert_eq!(world.ended(id).await?.1, "url_refused");
    Ok(())
}
