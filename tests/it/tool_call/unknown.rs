//! What a worker that died half-way leaves: harmless calls run again, the others ask a person.

use super::Chat;
use super::bank::{Bank, Manner, sum};
use crate::world::World;
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

/// As a worker leaves a call that dies between its start and its outcome.
async fn abandon(chat: &Chat<'_>, call: Uuid, effect: &str) -> anyhow::Result<()> {
    chat.change(format!(
        "INSERT INTO gristmill.tool_attempts (workspace_id, call_id, effect, idempotency_key)
         VALUES ('{}', '{call}', '{effect}', '{call}')",
        chat.workspace
    ))
    .await?;
    chat.change(format!("UPDATE gristmill.tool_calls SET state = 'STARTED' WHERE id = '{call}'")).await?;
    Ok(())
}

async fn scene<'a>(world: &'a World, effect: &str) -> anyhow::Result<(Chat<'a>, Uuid)> {
    let chat = Chat::new(world).await?;
    let tool = chat.knowledge_base("kb").await?;
    chat.change(format!("UPDATE gristmill.tools SET effect = '{effect}' WHERE id = '{tool}'")).await?;
    let call = chat.call("a", "kb", json!({ "query": "q" })).await?;
    Ok((chat, call))
}

async fn starts(world: &World) -> anyhow::Result<i64> {
    world.count("SELECT count(*) FROM gristmill.tool_attempts").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn read_and_idempotent_calls_run_again_with_the_same_key(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    for (n, effect) in ["read", "idempotent"].into_iter().enumerate() {
        let (chat, call) = scene(&world, effect).await?;
        abandon(&chat, call, effect).await?;
        chat.work().await?;
        assert_eq!(chat.state(call).await?.0, "OK", "{effect}");
        assert_eq!(
            chat.events(call).await?,
            ["requested", "started", "retried", "started", "ok", "answered"]
        );
        assert_eq!(starts(&world).await?, 2 * (n as i64 + 1));
    }
    let keys = "SELECT count(DISTINCT idempotency_key) FROM gristmill.tool_attempts";
    assert_eq!(world.count(keys).await?, 2, "one for each call");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_effectful_call_becomes_unknown_and_asks_a_person_who_orders_one_more_start(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, call) = scene(&world, "effectful").await?;
    abandon(&chat, call, "effectful").await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "UNKNOWN");
    assert_eq!(chat.told().await?, [], "the model waits for the person's word");
    assert_eq!(starts(&world).await?, 1);
    // Waking the job by hand is no word.
    chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", call).await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), starts(&world).await?), ("UNKNOWN", 1));

    let order = format!("SELECT gristmill.resolve_unknown('{call}', 'again', by_user => '{}')", chat.user);
    chat.change(order).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    let ordered = "SELECT count(*) FROM gristmill.tool_attempts WHERE ordered AND ordered_by IS NOT NULL AND outcome = 'OK'";
    assert_eq!((world.count(ordered).await?, starts(&world).await?), (1, 2));
    assert_eq!(chat.told().await?.len(), 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_person_can_say_how_an_unknown_call_ended(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, first) = scene(&world, "effectful").await?;
    let second = chat.call("b", "kb", json!({ "query": "q" })).await?;
    let third = chat.call("c", "kb", json!({ "query": "q" })).await?;
    for call in [first, second, third] {
        abandon(&chat, call, "effectful").await?;
    }
    chat.work().await?;
    chat.say("SELECT gristmill.resolve_unknown($1, 'ok', note => 'receipt 7')", first).await?;
    chat.say("SELECT gristmill.resolve_unknown($1, 'error')", second).await?;
    chat.say("SELECT gristmill.resolve_unknown($1, 'leave')", third).await?;
    chat.work().await?;
    let states = [chat.state(first).await?.0, chat.state(second).await?.0, chat.state(third).await?.0];
    assert_eq!(states, ["OK", "ERROR", "UNKNOWN"]);
    let told = chat.told().await?;
    let texts: Vec<_> = told.iter().map(|told| told.text.split("] ").nth(1).unwrap_or_default()).collect();
    assert_eq!(
        texts,
        [
            "a person looked: it was done: receipt 7",
            "a person looked: it was not done",
            "nobody knows whether it was done; do not repeat it without looking"
        ]
    );
    for call in [first, second, third] {
        assert!(chat.say("SELECT gristmill.resolve_unknown($1, 'again')", call).await.is_err(), "said once");
    }
    assert_eq!(starts(&world).await?, 3);
    Ok(())
}

/// What the tool was taken for when it started, and what it is taken for now: the graver counts.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tool_that_became_effectful_meanwhile_is_not_run_again(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, call) = scene(&world, "effectful").await?;
    abandon(&chat, call, "read").await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), starts(&world).await?), ("UNKNOWN", 1));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_ledger_itself_refuses_a_second_start_of_an_effectful_call(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, call) = scene(&world, "effectful").await?;
    abandon(&chat, call, "effectful").await?;
    let refused = abandon(&chat, call, "effectful").await.unwrap_err();
    assert!(refused.to_string().contains("tool_attempts_effectful_once"), "{refused}");
    let unsent = "UPDATE gristmill.tool_attempts SET unsent = true, outcome = 'ERROR', finished_at = now()";
    chat.change(unsent.into()).await?;
    abandon(&chat, call, "effectful").await?;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_cancelled_call_ends_whether_it_waited_or_was_at_work(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, waiting) = scene(&world, "effectful").await?;
    let at_work = chat.call("b", "kb", json!({ "query": "q" })).await?;
    chat.work().await?;
    chat.say("SELECT gristmill.cancel_call($1, 'changed my mind')", waiting).await?;
    assert_eq!(chat.state(waiting).await?, ("CANCELLED".into(), Some("cancelled: changed my mind".into())));
    chat.change(
        "UPDATE gristmill.tool_calls SET state = 'REQUESTED', reason = NULL WHERE state = 'NEEDS_APPROVAL'"
            .into(),
    )
    .await?;
    abandon(&chat, at_work, "effectful").await?;
    chat.say("SELECT gristmill.cancel_call($1)", at_work).await?;
    assert_eq!(chat.state(at_work).await?.0, "STARTED", "its worker must hear of it first");
    chat.work().await?;
    assert_eq!(chat.state(at_work).await?.0, "CANCELLED");
    assert!(chat.told().await?[1].text.contains("it may have been done"));
    Ok(())
}

/// The job is used up by workers that died: the call is told, and asked of a person.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_whose_workers_all_died_does_not_end_in_silence(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, effectful) = scene(&world, "effectful").await?;
    let second = chat.call("b", "kb", json!({ "query": "q" })).await?;
    abandon(&chat, effectful, "effectful").await?;
    chat.change("UPDATE gristmill.jobs SET attempts = max_attempts, reason = 'worker_crash: gone'".into())
        .await?;
    chat.work().await?;
    assert_eq!(chat.state(effectful).await?, ("UNKNOWN".into(), Some("worker_crash: gone".into())));
    assert_eq!(chat.state(second).await?, ("ERROR".into(), Some("worker_crash: gone".into())));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state = 'DEAD'").await?, 2);
    // A person's word finds it although its job is dead.
    chat.say("SELECT gristmill.resolve_unknown($1, 'again')", effectful).await?;
    chat.work().await?;
    assert_eq!(chat.state(effectful).await?.0, "OK");
    assert_eq!(chat.told().await?.len(), 2);
    Ok(())
}

/// An order is a person's: one that never left the house is still to be carried out.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_ordered_start_that_was_not_sent_is_made_again_by_the_same_order(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = super::effects::world(db).await?;
    let chat = Chat::new(&world).await?;
    let mut bank = Bank::open().await?;
    let tool = bank.tool(&chat, Manner::Answers, "effectful").await?;
    let port = bank.port;
    bank.close().await;
    let call = chat.call("a", &tool, sum()).await?;
    abandon(&chat, call, "effectful").await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "UNKNOWN");
    chat.say("SELECT gristmill.resolve_unknown($1, 'again')", call).await?;
    let worker = gristmill::runtime::Worker::start(&world.ctx, gristmill::runtime::every_kind)?;
    let failed = "SELECT count(*) >= 1 FROM gristmill.tool_attempts WHERE unsent AND ordered";
    let failed = world.until("the ordered start failed", failed).await;
    let bank = Bank::at(port).await?;
    let ended = "SELECT bool_and(state = 'OK') FROM gristmill.tool_calls";
    let ended = world.until("it was made", ended).await;
    worker.stop().await;
    failed?;
    ended?;
    assert_eq!(bank.executions(call), 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_denied_order_tells_the_model_that_an_earlier_start_may_have_been_done(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, call) = scene(&world, "effectful").await?;
    abandon(&chat, call, "effectful").await?;
    chat.work().await?;
    chat.say("SELECT gristmill.resolve_unknown($1, 'again')", call).await?;
    chat.say("SELECT gristmill.deny_call($1)", call).await?;
    assert!(chat.told().await?[0].text.contains("it may have been done all the same"));
    let fresh = chat.call("b", "kb", json!({ "query": "q" })).await?;
    chat.say("SELECT gristmill.deny_call($1)", fresh).await?;
    assert!(chat.told().await?[1].text.ends_with("a person said no"), "nothing was started");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_start_taken_for_harmless_and_left_open_is_not_repeated_once_it_counts_as_effectful(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, call) = scene(&world, "effectful").await?;
    chat.change(format!(
        "INSERT INTO gristmill.tool_policies (workspace_id, decision) VALUES ('{}', 'allow')",
        chat.workspace
    ))
    .await?;
    chat.change(format!(
        "INSERT INTO gristmill.tool_attempts (workspace_id, call_id, effect, idempotency_key, outcome, failure, finished_at)
         VALUES ('{}', '{call}', 'read', '{call}', 'UNKNOWN', 'lost', now())",
        chat.workspace
    ))
    .await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), starts(&world).await?), ("UNKNOWN", 1));
    chat.say("SELECT gristmill.resolve_unknown($1, 'again')", call).await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), starts(&world).await?), ("OK", 2));
    Ok(())
}
