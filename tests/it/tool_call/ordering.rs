//! Calls of one message: side by side, answered in their order.

use super::Chat;
use crate::world::World;
use serde_json::json;
use sqlx::PgPool;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_result_that_ends_early_waits_for_its_elders_as_a_row(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let slow = chat.knowledge_base("slow").await?;
    chat.knowledge_base("quick").await?;
    chat.change(format!("UPDATE gristmill.tools SET effect = 'effectful' WHERE id = '{slow}'")).await?;
    let query = json!({ "query": "q" });
    let elder = chat.call("a", "slow", query.clone()).await?;
    let younger = chat.call("b", "quick", query.clone()).await?;
    let middle_elder = chat.call("c", "slow", query.clone()).await?;
    let youngest = chat.call("d", "quick", query).await?;
    chat.work().await?;

    assert_eq!(chat.state(younger).await?.0, "OK");
    assert_eq!(chat.state(youngest).await?.0, "OK");
    assert_eq!(chat.told().await?, [], "the eldest is not there yet");
    let held =
        "SELECT count(*) FROM gristmill.jobs WHERE state = 'RUNNING' OR (state = 'PARKED' AND attempts > 0)";
    assert_eq!(world.count(held).await?, 0, "nobody holds a place or spent an attempt");

    chat.say("SELECT gristmill.approve_call($1)", elder).await?;
    chat.work().await?;
    let ids = |told: Vec<super::Told>| told.into_iter().map(|t| t.tool_call_id).collect::<Vec<_>>();
    assert_eq!(ids(chat.told().await?), ["a", "b"]);

    chat.say("SELECT gristmill.deny_call($1, reason => 'not today')", middle_elder).await?;
    assert_eq!(ids(chat.told().await?), ["a", "b", "c", "d"], "in the transaction of the last word");
    let open = "SELECT count(*) FROM gristmill.events WHERE type = 'tool_call.answered' AND (body ->> 'still_open')::int = 0";
    assert_eq!(world.count(open).await?, 1, "told once that the message is answered");
    chat.work().await?;
    assert_eq!(chat.told().await?.len(), 4, "nothing is written twice");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn no_more_calls_of_a_message_are_at_work_than_its_agent_may_have(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("kb").await?;
    chat.change("UPDATE gristmill.agents SET parallel_calls = 2".into()).await?;
    let calls: Vec<_> = (0..8)
        .map(|n| json!({ "tool_call_id": n.to_string(), "tool": "kb", "arguments": { "query": "q" } }))
        .collect();
    sqlx::query("SELECT gristmill.call_tools($1, $2)")
        .bind(chat.message)
        .bind(json!(calls))
        .execute(&world.admin)
        .await?;
    chat.work().await?;
    let order: Vec<_> = chat.told().await?.into_iter().map(|t| t.tool_call_id).collect();
    assert_eq!(order, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    // At the start of each, how many others had begun and not ended.
    let most = "SELECT max(n) FROM (
        SELECT (SELECT count(*) FROM gristmill.tool_attempts o
                WHERE o.started_at <= a.started_at AND o.finished_at > a.started_at) AS n
        FROM gristmill.tool_attempts a) x";
    assert!(world.count(most).await? <= 2, "{} at once", world.count(most).await?);
    let waited = "SELECT count(*) FROM gristmill.tool_attempts";
    assert_eq!(world.count(waited).await?, 8);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn asked_twice_it_is_one_call_and_with_other_arguments_it_is_refused(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("kb").await?;
    let first = chat.call("a", "kb", json!({ "query": "q", "top_k": 1 })).await?;
    let again = chat.call("a", "kb", json!({ "top_k": 1, "query": "q" })).await?;
    assert_eq!(first, again, "the same arguments in another order are the same");
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 1);
    let other = chat.call("a", "kb", json!({ "query": "another" })).await.unwrap_err();
    assert!(other.to_string().contains("with other arguments"), "{other}");
    chat.work().await?;
    assert_eq!(chat.call("a", "kb", json!({ "query": "q", "top_k": 1 })).await?, first);
    chat.work().await?;
    assert_eq!(chat.told().await?.len(), 1);
    let human = "UPDATE gristmill.messages SET role = 'user', sender_type = 'USER' WHERE role = 'assistant'";
    chat.change(human.into()).await?;
    assert!(chat.call("b", "kb", json!({})).await.unwrap_err().to_string().contains("only an assistant"));
    Ok(())
}

/// The negative control: without the order, a younger one's message is there first.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn control_without_the_wait_for_elders_messages_stand_in_the_wrong_order(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let slow = chat.knowledge_base("slow").await?;
    chat.knowledge_base("quick").await?;
    chat.change(format!("UPDATE gristmill.tools SET effect = 'effectful' WHERE id = '{slow}'")).await?;
    let without =
        ("write_tool_messages", "EXIT WHEN c.result_id IS NULL", "CONTINUE WHEN c.result_id IS NULL");
    crate::kit::guards::take_out(&world.admin, without).await?;
    let elder = chat.call("a", "slow", json!({ "query": "q" })).await?;
    chat.call("b", "quick", json!({ "query": "q" })).await?;
    chat.work().await?;
    chat.say("SELECT gristmill.approve_call($1)", elder).await?;
    chat.work().await?;
    let order: Vec<_> = chat.told().await?.into_iter().map(|t| t.tool_call_id).collect();
    assert_eq!(order, ["b", "a"]);
    Ok(())
}
