//! Calls of a real MCP server over stdio, from SQL to the `tool` message.

use super::Chat;
use crate::world::World;
use serde_json::{Value, json};
use sqlx::PgPool;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A bank in a process of its own, in the operator's catalogue, and its one tool.
struct Server {
    book: PathBuf,
    tool: Uuid,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn new(chat: &Chat<'_>, manner: &str, effect: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let book = folder.path().join("book");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tool_call/bank.py");
        let arguments = [script, book.clone(), manner.into()].map(|path| path.display().to_string());
        let admin = &chat.world.admin;
        let server: Uuid = sqlx::query_scalar(
            "INSERT INTO gristmill.mcp_servers (name, command, arguments) VALUES ('bank', $1, $2) RETURNING id",
        )
        .bind(crate::mcp::python().display().to_string())
        .bind(&arguments[..])
        .fetch_one(admin)
        .await?;
        let connection: Uuid = sqlx::query_scalar(
            "INSERT INTO gristmill.mcp_server_connections (workspace_id, server_id) VALUES ($1, $2) RETURNING id",
        )
        .bind(chat.workspace.0)
        .bind(server)
        .fetch_one(admin)
        .await?;
        let tool: Uuid = sqlx::query_scalar(
            "INSERT INTO gristmill.tools (workspace_id, connection_id, name, remote_name, type, effect)
             VALUES ($1, $2, 'bank__pay', 'pay', 'MCP', $3::gristmill.tool_effect) RETURNING id",
        )
        .bind(chat.workspace.0)
        .bind(connection)
        .bind(effect)
        .fetch_one(admin)
        .await?;
        chat.give(tool).await?;
        chat.change(format!(
            "INSERT INTO gristmill.tool_policies (workspace_id, tool_id, decision) VALUES ('{}', '{tool}', 'allow')",
            chat.workspace
        ))
        .await?;
        Ok(Self { book, tool, _folder: folder })
    }

    /// As `tool_sync` and a person leave it.
    async fn approve(&self, chat: &Chat<'_>) -> anyhow::Result<()> {
        chat.change(format!(
            "INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition, review, reviewed_at)
             VALUES ('{}', '{}', sha256('pay'), '{{\"name\": \"pay\"}}', 'APPROVED', now())",
            chat.workspace, self.tool
        ))
        .await?;
        Ok(())
    }

    /// What was done, a line each.
    fn done(&self) -> Vec<Value> {
        let book = std::fs::read_to_string(&self.book).unwrap_or_default();
        book.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tool_of_a_server_is_called_with_its_ids_once_its_definition_is_approved(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let server = Server::new(&chat, "answers", "effectful").await?;
    let call = chat.call("a", "bank__pay", json!({ "sum": 3 })).await?;
    chat.work().await?;
    let (state, reason) = chat.state(call).await?;
    assert_eq!(state, "NEEDS_APPROVAL");
    assert!(reason.unwrap_or_default().starts_with("definition: no definition of it is kept"));
    assert!(server.done().is_empty());

    server.approve(&chat).await?;
    chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", call).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?, ("OK".into(), None));
    let attempt: Uuid =
        sqlx::query_scalar("SELECT id FROM gristmill.tool_attempts").fetch_one(&world.admin).await?;
    assert_eq!(server.done(), [json!({ "key": call, "call": attempt, "sum": 3 })]);
    let told = chat.told().await?;
    assert!(told[0].text.contains("\npaid\n[image image/png, 4 bytes encoded]"), "{}", told[0].text);
    let kept = "SELECT count(*) FROM gristmill.tool_results r JOIN gristmill.messages m ON m.id = r.message_id
                WHERE r.result -> 'structuredContent' = '{\"receipt\": 7}' AND m.content #>> '{1,type}' = 'image'
                  AND m.content #>> '{1,data}' = 'QUJD'";
    assert_eq!(world.count(kept).await?, 1);
    world.ctx.mcp.close().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_server_that_dies_after_it_acted_leaves_the_call_unknown(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let server = Server::new(&chat, "dies", "effectful").await?;
    server.approve(&chat).await?;
    let call = chat.call("a", "bank__pay", json!({ "sum": 3 })).await?;
    chat.work().await?;
    assert_eq!((chat.state(call).await?.0.as_str(), server.done().len()), ("UNKNOWN", 1));
    world.ctx.mcp.close().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_error_of_a_tool_is_an_answer_without_what_no_database_takes(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let server = Server::new(&chat, "fails", "effectful").await?;
    server.approve(&chat).await?;
    let call = chat.call("a", "bank__pay", json!({ "sum": 3 })).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?, ("ERROR".into(), Some("no funds left".into())));
    assert_eq!(chat.told().await?[0].metadata["is_error"], true);
    world.ctx.mcp.close().await;
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn progress_of_a_call_at_work_is_told_about_once_a_second_and_a_cancel_ends_it(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let server = Server::new(&chat, "slow", "effectful").await?;
    server.approve(&chat).await?;
    let call = chat.call("a", "bank__pay", json!({ "sum": 3 })).await?;
    let worker = gristmill::runtime::Worker::start(&world.ctx, gristmill::runtime::every_kind)?;
    let told = "SELECT count(*) >= 2 FROM gristmill.events WHERE type = 'tool_call.progress'
                AND body ->> 'message' = 'counting' AND (body ->> 'total')::float = 40";
    let waited = world.until("progress was told", told).await;
    chat.say("SELECT gristmill.cancel_call($1)", call).await?;
    let ended = "SELECT bool_and(state = 'CANCELLED') FROM gristmill.tool_calls";
    let cancelled = world.until("it was cancelled", ended).await;
    worker.stop().await;
    waited?;
    cancelled?;
    let events = chat.events(call).await?;
    let progress = events.iter().filter(|kind| *kind == "progress").count();
    assert!((2..=5).contains(&progress), "forty words in four seconds: {events:?}");
    assert_eq!(server.done().len(), 1);
    assert!(chat.told().await?[0].text.contains("it may have been done"));
    world.ctx.mcp.close().await;
    Ok(())
}
