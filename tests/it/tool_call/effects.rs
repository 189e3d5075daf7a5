//! Calls with effects at a server that answers, says nothing, or is not there.

use super::Chat;
use super::bank::{Bank, Manner, sum};
use crate::world::{World, settings};
use serde_json::json;
use sqlx::PgPool;

/// A world that may reach this machine.
pub async fn world(db: PgPool) -> anyhow::Result<World> {
    let mut settings = settings();
    settings.fetch.allow = vec!["127.0.0.0/8".parse()?];
    World::with(db, settings).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_server_that_acts_and_says_nothing_is_asked_once(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let (chat, bank) = (Chat::new(&world).await?, Bank::open().await?);
    let tool = bank.tool(&chat, Manner::Drops, "effectful").await?;
    let call = chat.call("a", &tool, sum()).await?;
    chat.work().await?;
    let (state, reason) = chat.state(call).await?;
    assert_eq!((state.as_str(), bank.executions(call)), ("UNKNOWN", 1), "{reason:?}");
    chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", call).await?;
    chat.work().await?;
    assert_eq!(bank.executions(call), 1, "until a person orders it");
    chat.say("SELECT gristmill.resolve_unknown($1, 'again')", call).await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), bank.executions(call)), ("UNKNOWN", 2));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn harmless_calls_are_tried_again_and_then_answered_with_the_failure(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let (chat, bank) = (Chat::new(&world).await?, Bank::open().await?);
    let tool = bank.tool(&chat, Manner::Drops, "idempotent").await?;
    let call = chat.call("a", &tool, sum()).await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), bank.executions(call)), ("ERROR", 4), "with one key");
    assert!(chat.told().await?[0].text.contains("the connection was lost before the answer"));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state = 'DEAD'").await?, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_that_surely_was_not_sent_is_tried_again_even_with_effects(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let chat = Chat::new(&world).await?;
    // Its port, before anybody listens there.
    let mut bank = Bank::open().await?;
    let tool = bank.tool(&chat, Manner::Answers, "effectful").await?;
    let port = bank.port;
    bank.close().await;
    let call = chat.call("a", &tool, sum()).await?;
    let worker = gristmill::runtime::Worker::start(&world.ctx, gristmill::runtime::every_kind)?;
    let failed = "SELECT count(*) >= 1 FROM gristmill.tool_attempts WHERE unsent";
    world.until("it failed once", failed).await?;
    let bank = Bank::at(port).await?;
    let ended = "SELECT bool_and(finished_at IS NOT NULL) FROM gristmill.tool_calls";
    let waited = world.until("it ended", ended).await;
    worker.stop().await;
    waited?;
    assert_eq!((chat.state(call).await?.0.as_str(), bank.executions(call)), ("OK", 1));
    let starts = "SELECT count(*) FROM gristmill.tool_attempts WHERE effect = 'effectful' AND NOT unsent";
    assert_eq!(world.count(starts).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_address_that_the_guard_refuses_is_told_and_not_connected_to(db: PgPool) -> anyhow::Result<()> {
    // Nothing is allowed here.
    let world = World::new(db).await?;
    let (chat, bank) = (Chat::new(&world).await?, Bank::open().await?);
    let tool = bank.tool(&chat, Manner::Answers, "effectful").await?;
    let call = chat.call("a", &tool, sum()).await?;
    chat.work().await?;
    let (state, reason) = chat.state(call).await?;
    assert_eq!((state.as_str(), bank.executions(call)), ("ERROR", 0));
    assert!(reason.unwrap_or_default().contains("refused"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tool_whose_settings_describe_no_request_is_answered_before_it_is_started(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let chat = Chat::new(&world).await?;
    for (name, config) in [
        ("api", json!({ "McpType": "API" })),
        ("base", json!({ "McpType": "database" })),
        ("web", json!({ "McpType": "web_search" })),
    ] {
        let id: uuid::Uuid = sqlx::query_scalar(
            "INSERT INTO gristmill.tools (workspace_id, name, type, custom_config, effect) VALUES ($1, $2, 'custom', $3, 'read') RETURNING id",
        )
        .bind(chat.workspace.0)
        .bind(name)
        .bind(config)
        .fetch_one(&world.admin)
        .await?;
        chat.give(id).await?;
        let message = chat.ask().await?;
        let call = chat.call_of(message, name, name, json!({})).await?;
        chat.work().await?;
        let (state, reason) = chat.state(call).await?;
        assert_eq!(state, "ERROR", "{name}: {reason:?}");
    }
    assert_eq!(world.count("SELECT count(*) FROM gristmill.tool_attempts").await?, 0);
    Ok(())
}
