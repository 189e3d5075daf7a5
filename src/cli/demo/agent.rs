//! The second scene of `gristmill demo`: the calls of an agent, as a chat layer asks for them.
//!
//! One assistant's message calls an MCP server that nobody here wrote (`mcp-server-time`, which
//! `make demo` brings) and the knowledge base of the first scene; the worker writes the `tool`
//! messages that a model would read next, in the order of the calls.

use crate::cli::house::House;
use crate::config::{CatalogueServer, Transport};
use crate::context::Context;
use crate::domain::{ConversationId, ToolCallId, WorkspaceId};
use crate::jobs::ToolSync;
use crate::queue::enqueue;
use crate::runtime::{Worker, every_kind};
use crate::store::{chats, jobs, mcp_servers, tool_reports};
use anyhow::Context as _;
use serde_json::json;
use sqlx::PgPool;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The catalogue's entry.
const SERVER: &str = "time";
/// As `tool_sync` names the server's tool.
const CONVERT: &str = "time__convert_time";
/// Lines of a message that are printed.
const SHOWN: usize = 18;
const LOOK: Duration = Duration::from_millis(50);

/// Who asks for what.
pub struct Scene<'a> {
    pub workspace: WorkspaceId,
    /// The knowledge base by its name, and a question to it.
    pub knowledge_base: &'a str,
    pub question: &'a str,
}

/// Plays the scene and prints the conversation.
pub async fn play(house: &House, ctx: &Arc<Context>, scene: &Scene<'_>) -> anyhow::Result<()> {
    let owner = house.owner().await?;
    let has_server = connect(&owner, ctx, scene.workspace).await?;
    let worker = Worker::start(ctx, every_kind)?;
    let played = async {
        if has_server {
            sync(ctx, scene.workspace).await?;
        }
        let (conversation, calls) = ask(&owner, scene, has_server).await?;
        until_answered(&owner, &calls).await?;
        anyhow::Ok(conversation)
    }
    .await;
    worker.stop().await;
    ctx.mcp.close_within(Duration::from_millis(500)).await;
    print(&owner, played?).await?;
    owner.close().await;
    Ok(())
}

/// The server's entry in the catalogue, where its packages are.
fn server(deps: &Path) -> anyhow::Result<Option<CatalogueServer>> {
    let (script, packages) = (deps.join("mcp/time.py"), deps.join("mcp/python"));
    if !script.exists() || !packages.exists() {
        println!(
            "(no MCP server is here: `make deps-tools` brings some; the agent asks its knowledge base alone)\n"
        );
        return Ok(None);
    }
    let text = |path: PathBuf| anyhow::Ok(path.canonicalize()?.display().to_string());
    Ok(Some(CatalogueServer {
        name: SERVER.into(),
        transport: Transport::Stdio,
        command: Some("python3".into()),
        arguments: vec![text(script)?, text(packages)?, "--local-timezone".into(), "UTC".into()],
        env: std::collections::BTreeMap::new(),
        url: None,
        parameters: json!({}),
        // The operator of the demo knows the server: what it says only reads may run again.
        believe_hints: true,
    }))
}

/// Offers the server and connects the workspace to it.
async fn connect(owner: &PgPool, ctx: &Context, workspace: WorkspaceId) -> anyhow::Result<bool> {
    let Some(server) = server(&ctx.settings.embedded.deps_dir)? else { return Ok(false) };
    let mut tx = crate::store::begin(owner).await?;
    mcp_servers::offer(&mut tx, &[server]).await?;
    let wish = mcp_servers::Wish { server: SERVER, given: &json!({}), review: Some("trust_on_first_use") };
    mcp_servers::connect(&mut tx, workspace, &wish).await?.context("the server is not offered")?;
    tx.commit().await?;
    Ok(true)
}

/// Learns the server's tools; those of the first look are trusted here.
async fn sync(ctx: &Context, workspace: WorkspaceId) -> anyhow::Result<()> {
    let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
    let mut queued = Vec::new();
    for connection in mcp_servers::of_tenant(&mut tx).await? {
        let sync = ToolSync { connection: Some(connection) };
        queued.push(enqueue(&mut tx, workspace, &sync).await?.job());
    }
    tx.commit().await?;
    for row in jobs::until_over(&ctx.db, &queued).await? {
        let why = row.reason.unwrap_or_default();
        anyhow::ensure!(row.state == "DONE", "the server's tools could not be listed: {why}");
    }
    Ok(())
}

/// What a chat layer does: a message and its calls, in one transaction.
async fn ask(
    owner: &PgPool,
    scene: &Scene<'_>,
    has_server: bool,
) -> anyhow::Result<(ConversationId, Vec<ToolCallId>)> {
    let mut tx = crate::store::begin(owner).await?;
    let agent = chats::ensure_agent(&mut tx, scene.workspace, ("demo", "The harbour's assistant")).await?;
    let mut wanted = vec![(scene.knowledge_base, json!({ "query": scene.question }))];
    if has_server {
        let times =
            json!({ "source_timezone": "Europe/Berlin", "time": "22:30", "target_timezone": "Asia/Tokyo" });
        wanted.insert(0, (CONVERT, times));
    }
    let conversation = chats::begin(&mut tx, agent, "demo").await?;
    let also = if has_server { " And when it is 22:30 in Berlin, what time is it in Tokyo?" } else { "" };
    chats::say(&mut tx, conversation, "user", &format!("{}{also}", scene.question)).await?;
    let message = chats::say(&mut tx, conversation, "assistant", "Let me look.").await?;
    println!("An agent calls tools:");
    let mut calls = Vec::new();
    for (n, (tool, arguments)) in wanted.iter().enumerate() {
        anyhow::ensure!(chats::give_tool(&mut tx, agent, tool).await?, "there is no tool {tool}");
        calls.push(chats::call(&mut tx, message, &format!("call_{}", n + 1), (tool, arguments)).await?);
        println!("→ call_{} {tool} {arguments}", n + 1);
    }
    tx.commit().await?;
    Ok((conversation, calls))
}

async fn until_answered(owner: &PgPool, calls: &[ToolCallId]) -> anyhow::Result<()> {
    let ids: Vec<_> = calls.iter().map(|call| call.0).collect();
    loop {
        let rows = tool_reports::get(owner, &ids).await?;
        if rows.iter().all(|row| row.finished_at.is_some()) {
            return Ok(());
        }
        if let Some(row) = rows.iter().find(|row| row.state.starts_with("NEEDS")) {
            anyhow::bail!("{} waits: {} {}", row.tool, row.state, row.reason.as_deref().unwrap_or_default());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn print(owner: &PgPool, conversation: ConversationId) -> anyhow::Result<()> {
    println!();
    for said in chats::said(owner, conversation).await? {
        let id = said.tool_call_id.map(|id| format!(" {id}")).unwrap_or_default();
        println!("{}{id}:", said.role);
        for line in said.text.lines().take(SHOWN) {
            println!("    {}", crate::cli::tool::safe(line));
        }
        match said.text.lines().count().saturating_sub(SHOWN) {
            0 => {}
            more => println!("    … {more} lines more, which the model reads"),
        }
    }
    println!();
    Ok(())
}
