//! Work that a server goes on with by itself outlives the worker that asked for it.

use super::Chat;
use super::effects::world;
use crate::mcp::modern::{mill, poll};
use crate::mcp::served::Served;
use gristmill::runtime::{Worker, every_kind};
use serde_json::json;
use sqlx::PgPool;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, atomic};
use uuid::Uuid;

/// The mill as a tool that the agent may call without asking.
async fn tool(chat: &Chat<'_>, served: &Served) -> anyhow::Result<()> {
    let admin = &chat.world.admin;
    let row: Uuid = sqlx::query_scalar(
        "INSERT INTO gristmill.mcp_servers (name, transport, url) VALUES ('mill', 'streamable_http', $1) RETURNING id",
    )
    .bind(&served.url)
    .fetch_one(admin)
    .await?;
    let tool: Uuid = sqlx::query_scalar(
        "WITH there AS (
             INSERT INTO gristmill.mcp_server_connections (workspace_id, server_id) VALUES ($1, $2) RETURNING id)
         INSERT INTO gristmill.tools (workspace_id, connection_id, name, remote_name, type, effect)
         SELECT $1, id, 'mill__grind', 'grind', 'MCP', 'effectful' FROM there RETURNING id",
    )
    .bind(chat.workspace.0)
    .bind(row)
    .fetch_one(admin)
    .await?;
    chat.give(tool).await?;
    for sql in [
        format!(
            "INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition, review, reviewed_at)
             VALUES ('{}', '{tool}', sha256('x'), '{{}}', 'APPROVED', now())",
            chat.workspace
        ),
        format!(
            "INSERT INTO gristmill.tool_policies (workspace_id, tool_id, decision) VALUES ('{}', '{tool}', 'allow')",
            chat.workspace
        ),
    ] {
        chat.change(sql).await?;
    }
    Ok(())
}

fn flour() -> serde_json::Value {
    json!({ "content": [{ "type": "text", "text": "flour" }], "resultType": "complete" })
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_task_holds_no_place_and_the_next_worker_asks_for_it(db: PgPool) -> anyhow::Result<()> {
    let mut world = world(db).await?;
    let ready = Arc::new(AtomicBool::new(false));
    let done = ready.clone();
    let served = mill(move |_, asked| {
        if done.load(Ordering::SeqCst) {
            poll(asked, &json!({ "status": "completed", "result": flour() }))
        } else {
            // To be asked again so late that the job is better put down meanwhile.
            poll(asked, &json!({ "status": "working", "pollIntervalMs": 2500 }))
        }
    })
    .await;
    let call = {
        let chat = Chat::new(&world).await?;
        tool(&chat, &served).await?;
        let call = chat.call("a", "mill__grind", json!({})).await?;
        let worker = Worker::start(&world.ctx, every_kind)?;
        let waits = "SELECT count(*) = 1 FROM gristmill.jobs WHERE state = 'SCHEDULED' AND attempts = 0
                     AND reason LIKE '%works on it%'";
        let waited = world.until("the job was put down", waits).await;
        worker.stop().await;
        waited?;
        assert_eq!(chat.state(call).await?.0, "STARTED");
        let kept = "SELECT count(*) FROM gristmill.tool_attempts WHERE task = 't-1' AND outcome IS NULL";
        assert_eq!(world.count(kept).await?, 1);
        call
    };
    world.ctx.mcp.close().await;
    world.restart(|_| {})?;
    ready.store(true, atomic::Ordering::SeqCst);
    world.work(every_kind).await?;
    let ended =
        "SELECT count(*) FROM gristmill.tool_calls c JOIN gristmill.tool_results r ON r.call_id = c.id
                 WHERE c.state = 'OK' AND r.view LIKE '%flour'";
    assert_eq!(world.count(ended).await?, 1, "{call}");
    assert_eq!(served.calls().len(), 1, "asked for once");
    assert_eq!(world.count("SELECT count(*) FROM gristmill.tool_attempts").await?, 1);
    world.ctx.mcp.close().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_task_that_failed_is_an_answer_and_one_that_takes_too_long_is_unknown(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let chat = Chat::new(&world).await?;
    let served = mill(|n, asked| match n {
        0 => {
            poll(asked, &json!({ "status": "failed", "error": { "code": 1, "message": "the stone broke" } }))
        }
        _ => poll(asked, &json!({ "status": "working" })),
    })
    .await;
    tool(&chat, &served).await?;
    let failed = chat.call("a", "mill__grind", json!({})).await?;
    chat.work().await?;
    let (state, reason) = chat.state(failed).await?;
    assert_eq!(state, "ERROR");
    assert!(reason.unwrap_or_default().contains("the stone broke"));
    chat.change("UPDATE gristmill.tools SET total_seconds = 1".into()).await?;
    let message = chat.ask().await?;
    let slow = chat.call_of(message, "b", "mill__grind", json!({})).await?;
    chat.work().await?;
    assert_eq!(chat.state(slow).await?.0, "UNKNOWN");
    let given_up =
        served.asked.lock().unwrap().iter().filter(|asked| asked.body["method"] == "tasks/cancel").count();
    assert_eq!(given_up, 1, "the server is told");
    world.ctx.mcp.close().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_task_that_is_cancelled_between_two_looks_is_cancelled_at_its_server(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let chat = Chat::new(&world).await?;
    let served =
        mill(|_, asked| poll(asked, &json!({ "status": "working", "pollIntervalMs": 60_000 }))).await;
    tool(&chat, &served).await?;
    let call = chat.call("a", "mill__grind", json!({})).await?;
    let worker = Worker::start(&world.ctx, every_kind)?;
    let waits =
        "SELECT count(*) = 1 FROM gristmill.jobs WHERE state = 'SCHEDULED' AND reason LIKE '%works on it%'";
    let waited = world.until("the job was put down", waits).await;
    chat.say("SELECT gristmill.cancel_call($1)", call).await?;
    let ended =
        world.until("it ended", "SELECT bool_and(state = 'CANCELLED') FROM gristmill.tool_calls").await;
    worker.stop().await;
    waited?;
    ended?;
    let given_up =
        served.asked.lock().unwrap().iter().filter(|asked| asked.body["method"] == "tasks/cancel").count();
    assert_eq!(given_up, 1, "the server is told");
    assert!(chat.told().await?[0].text.contains("it may have been done"));
    world.ctx.mcp.close().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_whose_server_changed_is_parked_until_a_sync_has_looked(db: PgPool) -> anyhow::Result<()> {
    let world = world(db).await?;
    let chat = Chat::new(&world).await?;
    let served = mill(|_, asked| poll(asked, &json!({ "status": "completed", "result": flour() }))).await;
    tool(&chat, &served).await?;
    chat.change("UPDATE gristmill.mcp_server_connections SET changed_at = now()".into()).await?;
    let call = chat.call("a", "mill__grind", json!({})).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "NEEDS_APPROVAL");
    let waits = "SELECT count(*) FROM gristmill.jobs WHERE state = 'PARKED'";
    assert_eq!(world.count(waits).await?, 1);
    let connection: Uuid =
        sqlx::query_scalar("SELECT id FROM gristmill.mcp_server_connections").fetch_one(&world.admin).await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, chat.workspace).await?;
    let now = gristmill::store::mcp_servers::now(&mut tx).await?;
    assert!(!gristmill::store::mcp_servers::synced(&mut tx, connection, now).await?);
    tx.commit().await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    world.ctx.mcp.close().await;
    Ok(())
}
