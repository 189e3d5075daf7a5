//! `tool_sync`: keeps the definitions of a server's tools, pinned by hash, and reviewed.
//!
//! By the clock for every connection of every tenant (the run without a connection fans out), when a
//! server says that its tools changed, when a credential came that one asked for, and when somebody
//! asks. What is new or has changed waits for a person, as the connection's policy says; its calls
//! wait with it, and other tools do not notice. `tool_call` sends nothing to a tool whose present
//! definition is not approved.
//!
//! Accepted race: a server that changes a tool and does not say so is found out by the next sync;
//! calls in between run under the definition that was approved, with what it does now.

pub(crate) mod pin;

use crate::config::Review;
use crate::context::Context;
use crate::job::{Done, Job, JobError, Turn};
use crate::jobs::connect::{Connected, Wanted, connect};
use crate::mcp::{Listing, McpError};
use crate::queue::{Payload, Terms, enqueue_as};
use crate::store::Tx;
use crate::store::events::{Event, announce};
use crate::store::mcp_servers::{self, Seen};
use crate::store::tool_definitions::{self, News};
use pin::Described;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// Of a failure's text, so much stands on the connection.
const FAILURE: usize = 1000;
/// What may pass is tried again so often.
const TRIES: i32 = 3;
/// Between two looks at a server that changes its tools all the time.
const AGAIN: Duration = Duration::from_secs(3);

/// Looks at one connection's tools; without one, queues a look at each connection of every tenant.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ToolSync {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Uuid>,
}

impl Payload for ToolSync {
    const KIND: &'static str = "tool_sync";

    fn key(&self) -> Option<String> {
        self.connection.map(|id| id.to_string())
    }
}

impl Job for ToolSync {
    const TIMEOUT: Duration = Duration::from_mins(10);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        match self.connection {
            None => fan_out(ctx, turn).await,
            Some(connection) => sync(ctx, turn, connection).await,
        }
    }
}

async fn fan_out(ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
    let mut tx = turn.begin(ctx).await?;
    for (workspace, connection) in mcp_servers::syncable(&mut tx).await? {
        let terms = Terms { parent: Some(turn.job()), ..Terms::default() };
        enqueue_as(&mut tx, workspace, &ToolSync { connection: Some(connection) }, &terms).await?;
    }
    turn.finish(tx).await
}

async fn sync(ctx: &Context, turn: &Turn, connection: Uuid) -> Result<Done, JobError> {
    let mut tx = turn.begin(ctx).await?;
    let began = mcp_servers::now(&mut tx).await?;
    let row = mcp_servers::connection(&mut tx, turn.workspace(), connection).await?;
    let user = mcp_servers::somebody(&mut tx, connection).await?;
    tx.commit().await?;
    if !row.is_some_and(|row| row.enabled && row.offered) {
        return Ok(turn.nothing_to_write());
    }
    let wanted = Wanted { workspace: turn.workspace(), connection, user, refused: None };
    let (connected, listing) = match list(ctx, wanted).await {
        Ok(listed) => listed,
        Err(error) => return failed(ctx, turn, connection, error).await,
    };
    let mut tx = turn.begin(ctx).await?;
    let seen = Seen::Connected { protocol_version: &listing.protocol_version };
    if mcp_servers::note(&mut tx, connection, seen).await? {
        tell_status(&mut tx, turn, connection, json!({ "status": "connected" })).await?;
    }
    learn(ctx, turn, &mut tx, &connected, &listing).await?;
    if mcp_servers::synced(&mut tx, connection, began).await? {
        tx.commit().await?;
        return Err(JobError::Wait {
            delay: AGAIN,
            reason: "the server's tools changed meanwhile".to_owned(),
        });
    }
    turn.finish(tx).await
}

/// Lists, and once more with a renewed token where the server refuses the one it was shown.
async fn list(ctx: &Context, mut wanted: Wanted) -> Result<(Connected, Listing), JobError> {
    let mut renewed = false;
    loop {
        let connected = connect(ctx, &wanted).await?;
        let listed = ctx.mcp.list(&connected.key, &connected.server).await;
        match listed {
            Ok(listing) => return Ok((connected, listing)),
            Err(McpError::NeedsAuth { status: 401, .. }) if connected.version().is_some() && !renewed => {
                // Once: each renewal is a new version, which would be refused in its turn.
                renewed = true;
                wanted.refused = connected.version();
            }
            Err(error @ McpError::NeedsAuth { .. }) => {
                let reason = format!("{error}; `gristmill tool login {}`", connected.row.server);
                return Err(JobError::Park { why: crate::job::Parked::NeedsAuth, reason });
            }
            Err(error) if error.is_transient() => return Err(JobError::transient(error)),
            Err(error) => return Err(JobError::refused("server_failed", error)),
        }
    }
}

/// Notes on the connection why it does not work. What may pass is tried again; what a person must
/// mend is not: a saved credential or the clock brings the next look.
async fn failed(ctx: &Context, turn: &Turn, connection: Uuid, error: JobError) -> Result<Done, JobError> {
    if matches!(error, JobError::Lost) {
        return Err(error);
    }
    let why = pin::clean(&error.to_string(), FAILURE);
    let mut tx = turn.begin(ctx).await?;
    if mcp_servers::note(&mut tx, connection, Seen::Failed { why: &why }).await? {
        tell_status(&mut tx, turn, connection, json!({ "status": "error", "failure": why })).await?;
    }
    match error {
        JobError::Park { .. } | JobError::Refused { .. } => {
            tracing::warn!(%connection, why, "the server's tools were not listed");
            turn.finish(tx).await
        }
        // The clock brings another look anyway: no dead job for each hour that a server is away.
        JobError::Transient(_) if turn.attempt >= TRIES => turn.finish(tx).await,
        error => {
            tx.commit().await?;
            Err(error)
        }
    }
}

async fn tell_status(tx: &mut Tx, turn: &Turn, connection: Uuid, body: Value) -> sqlx::Result<()> {
    announce(tx, turn.workspace(), &Event::Connection { id: connection, what: "seen", body }).await
}

/// Pins every definition, switches off what is gone, and tells what is news.
async fn learn(
    ctx: &Context,
    turn: &Turn,
    tx: &mut Tx,
    connected: &Connected,
    listing: &Listing,
) -> Result<(), JobError> {
    let row = &connected.row;
    let policy = policy(ctx, row.review.as_deref());
    let Described { tools, left_out } = pin::describe(&row.server, &listing.tools);
    let mut there = Vec::with_capacity(tools.len());
    let mut left_out = left_out;
    for mut pinned in tools {
        pinned.approved = match policy {
            Review::ReviewAll => false,
            // A tool that a known server adds later is no first use.
            Review::TrustOnFirstUse => !row.synced,
            Review::AutoForReadOnly => row.believe_hints && pin::only_reads(&pinned.definition),
        };
        let learned = tool_definitions::pin(tx, turn.workspace(), row.id, &pinned).await?;
        let what = match learned.news {
            News::Taken => {
                left_out.push((pinned.remote_name, "its name is taken by another tool".to_owned()));
                continue;
            }
            News::None => None,
            News::Added => Some("added"),
            News::Changed => Some("changed"),
        };
        there.push(learned.tool.0);
        if let Some(what) = what {
            let body =
                json!({ "tool": pinned.name, "definition": learned.definition, "review": learned.review });
            announce(tx, turn.workspace(), &Event::Tool { id: learned.tool, what, body }).await?;
        }
    }
    for (tool, name) in tool_definitions::vanish(tx, row.id, &there).await? {
        let body = json!({ "tool": name });
        announce(tx, turn.workspace(), &Event::Tool { id: tool, what: "vanished", body }).await?;
    }
    if !left_out.is_empty() {
        let body: Vec<Value> =
            left_out.iter().take(50).map(|(name, why)| json!({ "tool": name, "why": why })).collect();
        let event = Event::Connection { id: row.id, what: "left_out", body: json!({ "tools": body }) };
        announce(tx, turn.workspace(), &event).await?;
    }
    Ok(())
}

fn policy(ctx: &Context, own: Option<&str>) -> Review {
    match own {
        Some("trust_on_first_use") => Review::TrustOnFirstUse,
        Some("auto_for_read_only") => Review::AutoForReadOnly,
        // A word that this version does not know lets nothing through.
        Some(_) => Review::ReviewAll,
        None => ctx.settings.mcp.review,
    }
}
