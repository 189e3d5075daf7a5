//! What may be queued, under which key, and how it is called off.

use super::{Act, Deed, act, registry, world};
use crate::world::World;
use gristmill::queue::desk::{self, Outcome};
use gristmill::queue::{EnqueueError, Enqueued, Notice, Terms, cancel, enqueue_as, enqueue_many};
use gristmill::runtime::Worker;
use serde_json::json;
use sqlx::PgPool;
use std::time::Duration;

async fn refusal(world: &World, kind: &str, payload: serde_json::Value) -> anyhow::Result<String> {
    let asked = sqlx::query("SELECT gristmill.enqueue($1, $2, workspace => $3)")
        .bind(kind)
        .bind(payload)
        .bind(world.workspace.0)
        .execute(&world.ctx.db)
        .await;
    match asked.map_err(EnqueueError::from) {
        Err(refused @ EnqueueError::Refused { .. }) => Ok(refused.to_string()),
        other => anyhow::bail!("expected a refusal, got {other:?}"),
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_kind_nobody_knows_and_a_payload_that_does_not_fit_are_refused_where_they_are_queued(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let unknown = refusal(&world, "nonsense", json!({})).await?;
    assert!(unknown.contains(r#"no worker knows the kind "nonsense""#), "{unknown}");
    assert!(unknown.contains("act, embed, extract"), "it names those that are known: {unknown}");
    let lacking = refusal(&world, "scan", json!({})).await?;
    assert!(lacking.contains("$ lacks attachment"), "{lacking}");
    let wrong = refusal(&world, "scan", json!({ "attachment": "seven" })).await?;
    assert!(wrong.contains("$.attachment is no uuid"), "{wrong}");
    let large = refusal(&world, "act", json!({ "name": "n".repeat(70_000) })).await?;
    assert!(large.contains("65536 fit"), "{large}");
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 0);
    Ok(())
}

/// Each row: a schema, a value, and whether it fits. The expectations are JSON Schema's (2020-12).
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_value_fits_its_schema_as_the_standard_says(db: PgPool) -> anyhow::Result<()> {
    let pair = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "additionalProperties": false });
    let either = json!({ "oneOf": [{ "required": ["a"] }, { "required": ["b"] }] });
    let named = json!({ "$ref": "#/$defs/Name", "$defs": { "Name": { "type": "string", "maxLength": 3 } } });
    let rows = [
        (json!(true), json!(1), true),
        (json!(false), json!(1), false),
        (json!({}), json!(null), true),
        (json!({ "type": "integer" }), json!(1.0), true),
        (json!({ "type": "integer" }), json!(1.5), false),
        (json!({ "type": "number" }), json!(1), true),
        (json!({ "type": ["string", "null"] }), json!(null), true),
        (json!({ "type": "string" }), json!(null), false),
        (json!({ "enum": ["x", 2] }), json!(2), true),
        (json!({ "enum": ["x", 2] }), json!("2"), false),
        (json!({ "const": { "a": [1] } }), json!({ "a": [1] }), true),
        (json!({ "const": "x" }), json!("y"), false),
        (pair.clone(), json!({ "a": 1 }), true),
        (pair.clone(), json!({ "a": 1, "b": 1 }), false),
        (pair, json!({ "a": "1" }), false),
        (json!({ "additionalProperties": { "type": "boolean" } }), json!({ "x": 1 }), false),
        (json!({ "items": { "minimum": 3 } }), json!([3, 4]), true),
        (json!({ "items": { "minimum": 3 } }), json!([3, 2]), false),
        (json!({ "minItems": 1, "maxItems": 2 }), json!([]), false),
        (json!({ "exclusiveMaximum": 3 }), json!(3), false),
        (json!({ "pattern": "^a+$" }), json!("aab"), false),
        (json!({ "minLength": 2 }), json!("ä"), false),
        (json!({ "minLength": 2 }), json!(1), true),
        (either.clone(), json!({ "a": 1 }), true),
        (either.clone(), json!({ "a": 1, "b": 1 }), false),
        (either, json!({}), false),
        (json!({ "anyOf": [{ "type": "null" }, { "minimum": 0 }] }), json!(-1), false),
        (json!({ "allOf": [{ "minimum": 0 }, { "maximum": 5 }] }), json!(6), false),
        (named.clone(), json!("abc"), true),
        (named, json!("abcd"), false),
    ];
    for (schema, value, fits) in rows {
        let fault: Option<String> = sqlx::query_scalar("SELECT gristmill.misfit($1, $2)")
            .bind(&schema)
            .bind(&value)
            .fetch_one(&db)
            .await?;
        assert_eq!(fault.is_none(), fits, "{value} under {schema}: {fault:?}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_older_program_does_not_overwrite_what_a_newer_one_published(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let notice = |schema| [Notice { schema, ..Notice::of::<Act>() }];
    gristmill::queue::publish(&world.ctx.db, &notice(json!({ "required": ["new"] })), 1000).await?;
    gristmill::queue::publish(&world.ctx.db, &notice(json!({ "required": ["old"] })), 999).await?;
    let lacking = refusal(&world, "act", json!({})).await?;
    assert!(lacking.contains("$ lacks new"), "{lacking}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn many_jobs_are_queued_in_one_statement_and_answered_in_order(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let keyed = |name: &str| Act { key: Some(name.into()), ..act(name, Deed::Succeed) };
    let first = world.ask(&keyed("b")).await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let asked = [act("a", Deed::Succeed), keyed("b"), keyed("c"), keyed("c")];
    let answers = enqueue_many(&mut tx, world.workspace, &asked, &Terms::default()).await?;
    tx.commit().await?;
    let Enqueued::New(c) = answers[2] else { panic!("{answers:?}") };
    assert!(matches!(answers[0], Enqueued::New(_)));
    assert_eq!(answers[1], Enqueued::Duplicate(first));
    assert_eq!(answers[3], Enqueued::Duplicate(c), "a key may be taken within the same call");
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 3);

    let one_is_wrong =
        json!([{ "kind": "act", "payload": { "name": "a" } }, { "kind": "act", "payload": {} }]);
    let refused = sqlx::query("SELECT gristmill.enqueue_many($1, $2)")
        .bind(one_is_wrong)
        .bind(world.workspace.0)
        .execute(&world.ctx.db)
        .await;
    assert!(matches!(refused.map_err(EnqueueError::from), Err(EnqueueError::Refused { .. })));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 3, "all or none");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_key_for_a_time_outlives_its_job_and_then_is_free_again(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let keyed = Act { key: Some("tick".into()), ..act("a", Deed::Succeed) };
    let an_hour = Terms { unique_for: Some(Duration::from_hours(1)), ..Terms::default() };
    let ask = async || -> anyhow::Result<Enqueued> {
        let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
        let queued = enqueue_as(&mut tx, world.workspace, &keyed, &an_hour).await?;
        tx.commit().await?;
        Ok(queued)
    };
    let Enqueued::New(first) = ask().await? else { panic!("a fresh key is free") };
    world.work(registry).await?;
    assert_eq!(world.job(first).await?.0, "DONE");
    assert_eq!(ask().await?, Enqueued::Duplicate(first), "its job is over, the hour is not");
    world.change("DELETE FROM gristmill.jobs").await?;
    assert_eq!(ask().await?, Enqueued::Duplicate(first), "not even pruning frees it");
    world.change("UPDATE gristmill.job_keys SET until = now() - interval '1 s'").await?;
    assert!(matches!(ask().await?, Enqueued::New(_)));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_waiting_job_that_is_called_off_tells_its_subject_and_never_runs(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let scheduled = {
        let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
        let later = Terms { delay: Duration::from_hours(1), ..Terms::default() };
        let queued = enqueue_as(&mut tx, world.workspace, &act("later", Deed::Succeed), &later).await?;
        tx.commit().await?;
        queued.job()
    };
    let waiting = world.ask(&act("waits", Deed::Succeed)).await?;
    assert_eq!(cancel(&world.ctx.db, waiting).await?.as_deref(), Some("WAITING"));
    assert_eq!(cancel(&world.ctx.db, scheduled).await?.as_deref(), Some("SCHEDULED"));
    let unknown = gristmill::domain::JobId(uuid::Uuid::now_v7());
    assert_eq!(cancel(&world.ctx.db, unknown).await?, None);
    world.work(registry).await?;
    for (id, name) in [(waiting, "waits"), (scheduled, "later")] {
        let (state, _, reason) = world.job(id).await?;
        assert_eq!(
            (state.as_str(), reason.as_deref()),
            ("CANCELLED", Some("cancelled: cancelled on request"))
        );
        assert_eq!(world.marked(&format!("start:{name}")).await?, 0);
        assert_eq!(world.marked(&format!("gave_up:{name}:cancelled")).await?, 1);
    }
    assert_eq!(
        cancel(&world.ctx.db, waiting).await?.as_deref(),
        Some("CANCELLED"),
        "once more changes nothing"
    );
    Ok(())
}

/// A notification is a hint: anybody who may connect can send one.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_forged_notification_cancels_nothing(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("blocks", Deed::BlockThread)).await?;
    let worker = Worker::start(&world.ctx, registry)?;
    world.until("it runs", "SELECT bool_and(state = 'RUNNING') FROM gristmill.jobs").await?;
    sqlx::query("SELECT pg_notify('gristmill_jobs', 'cancel ' || $1::text)")
        .bind(id.0)
        .execute(&world.admin)
        .await?;
    world.until("it is done", "SELECT bool_and(state = 'DONE') FROM gristmill.jobs").await?;
    worker.stop().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_row_that_somebody_holds_keeps_nobody_elses_end_from_being_written(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let ids = [world.ask(&act("held", Deed::Succeed)).await?, world.ask(&act("free", Deed::Succeed)).await?];
    let claimed = world.claim(2).await?;
    let mut holder = world.admin.begin().await?;
    sqlx::query("SELECT gristmill.cancel($1)").bind(ids[0].0).execute(&mut *holder).await?;
    let ends: Vec<_> = claimed.iter().map(|job| (job.lease, Outcome::Done)).collect();
    // The quick way gives up soon, and leaves all to the careful one.
    let quick = desk::finish(&world.ctx.db, claimed.iter().map(|job| job.lease));
    assert!(!tokio::time::timeout(Duration::from_secs(20), quick).await??);
    assert_eq!(world.job(ids[1]).await?.0, "RUNNING");
    let written = desk::acknowledge(&world.ctx.db, &ends, super::BACKOFF);
    let written = tokio::time::timeout(Duration::from_secs(20), written).await??;
    assert_eq!((written.held, written.busy.as_slice()), (1, [ids[0].0].as_slice()));
    assert_eq!(world.job(ids[1]).await?.0, "DONE");
    holder.rollback().await?;
    let again = desk::acknowledge(&world.ctx.db, &ends, super::BACKOFF).await?;
    assert_eq!((again.held, again.busy.len()), (1, 0));
    assert_eq!(world.job(ids[0]).await?.0, "DONE");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_was_called_off_while_it_ran_does_not_sit_out_its_wait(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("a", Deed::Succeed)).await?;
    let job = world.claim(1).await?.remove(0);
    cancel(&world.ctx.db, id).await?;
    let wait = Outcome::Wait { delay: Duration::from_hours(1), reason: "busy".into() };
    desk::acknowledge(&world.ctx.db, &[(job.lease, wait)], super::BACKOFF).await?;
    world.work(registry).await?;
    assert_eq!(world.job(id).await?.0, "CANCELLED");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tenant_cannot_call_off_another_ones_job(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let id = world.ask(&act("a", Deed::Succeed)).await?;
    let mut conn = world.admin.acquire().await?;
    let other = gristmill::store::tenants::ensure_workspace(&mut conn, "other").await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, other).await?;
    let found: Option<String> =
        sqlx::query_scalar("SELECT gristmill.cancel($1)::text").bind(id.0).fetch_one(&mut *tx).await?;
    assert_eq!(found, None, "as if there were none");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_key_that_outlives_its_job_is_taken_for_everybody(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let keyed = Act { key: Some("once".into()), ..act("a", Deed::Succeed) };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let an_hour = Terms { unique_for: Some(Duration::from_hours(1)), ..Terms::default() };
    let first = enqueue_as(&mut tx, world.workspace, &keyed, &an_hour).await?.job();
    tx.commit().await?;
    world.work(registry).await?;
    assert_eq!(world.ask(&keyed).await?, first, "also for who asks without a time");
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let many = enqueue_many(&mut tx, world.workspace, &[keyed], &Terms::default()).await?;
    assert_eq!(many, [Enqueued::Duplicate(first)]);
    Ok(())
}
