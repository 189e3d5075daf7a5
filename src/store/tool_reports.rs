//! Tools and their calls as people look at them, and the operator's own tools and calls.
//!
//! As the owner, who sees every tenant: commands name the workspace, or the call.

use crate::domain::{ToolCallId, WorkspaceId};
use crate::store::chats;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// A tool as a person sees it.
#[derive(Debug, Clone, Serialize)]
pub struct ToolRow {
    pub id: Uuid,
    pub name: String,
    pub kind: String,
    pub effect: String,
    pub enabled: bool,
    pub authentication: String,
    pub endpoint: Option<String>,
    /// Of the newest definition.
    pub review: Option<String>,
    pub agents: i64,
    pub calls: i64,
    pub failed: i64,
}

/// The tools of a workspace, by name.
pub async fn tools(db: &PgPool, workspace: WorkspaceId) -> sqlx::Result<Vec<ToolRow>> {
    sqlx::query_as!(
        ToolRow,
        r#"SELECT t.id, t.name, coalesce(t.mcp_type, t.type::text) AS "kind!", t.effect::text AS "effect!", t.enabled,
                  t.authentication_type::text AS "authentication!", t.endpoint,
                  (SELECT d.review::text FROM gristmill.tool_definitions d WHERE d.tool_id = t.id
                   ORDER BY d.created_at DESC, d.id DESC LIMIT 1) AS review,
                  (SELECT count(*) FROM gristmill.agent_tools a WHERE a.tool_id = t.id) AS "agents!",
                  (SELECT count(*) FROM gristmill.tool_calls c WHERE c.tool_id = t.id) AS "calls!",
                  (SELECT count(*) FROM gristmill.tool_calls c
                   WHERE c.tool_id = t.id AND c.state IN ('ERROR', 'UNKNOWN')) AS "failed!"
           FROM gristmill.tools t WHERE t.workspace_id = $1 ORDER BY t.name"#,
        workspace.0
    )
    .fetch_all(db)
    .await
}

/// A tool that an operator adds.
#[derive(Debug, Clone)]
pub struct NewTool<'a> {
    pub name: &'a str,
    pub description: &'a str,
    /// `None`: a tool of an MCP server.
    pub custom: Option<&'a Value>,
    /// A connection to a server of the catalogue, by the server's name.
    pub server: Option<&'a str>,
    pub endpoint: Option<&'a str>,
    pub authentication: &'a str,
    pub input_schema: Option<&'a Value>,
    pub effect: &'a str,
}

/// Adds a tool; `None`: the catalogue has no such server.
pub async fn add(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    tool: &NewTool<'_>,
) -> sqlx::Result<Option<Uuid>> {
    let connection = match tool.server {
        None => None,
        Some(server) => match connect(&mut *conn, workspace, server).await? {
            None => return Ok(None),
            some => some,
        },
    };
    sqlx::query_scalar!(
        "INSERT INTO gristmill.tools
             (workspace_id, connection_id, name, description, type, authentication_type, endpoint, input_schema, custom_config, effect)
         VALUES ($1, $2, $3, $4, CASE WHEN $5::jsonb IS NULL THEN 'MCP' ELSE 'custom' END::gristmill.tool_type,
                 $6::text::gristmill.tool_auth, $7, coalesce($8::jsonb, '{\"type\": \"object\"}'), coalesce($5::jsonb, '{}'),
                 $9::text::gristmill.tool_effect)
         RETURNING id",
        workspace.0,
        connection,
        tool.name,
        tool.description,
        tool.custom,
        tool.authentication,
        tool.endpoint,
        tool.input_schema,
        tool.effect
    )
    .fetch_one(conn)
    .await
    .map(Some)
}

/// The workspace's connection to a server of the catalogue, made when it is new.
async fn connect(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    server: &str,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.mcp_server_connections (workspace_id, server_id)
         SELECT $1, id FROM gristmill.mcp_servers WHERE name = $2
         ON CONFLICT (workspace_id, server_id) DO UPDATE SET enabled = mcp_server_connections.enabled RETURNING id",
        workspace.0,
        server
    )
    .fetch_optional(conn)
    .await
}

/// A call that an operator makes by hand: in a conversation of its own, by an agent that is the
/// command line, which is given the tool.
pub async fn call_by_hand(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    (tool, arguments): (&str, &Value),
) -> sqlx::Result<ToolCallId> {
    let agent = chats::ensure_agent(conn, workspace, ("gristmill:command-line", "The command line")).await?;
    chats::give_tool(conn, agent, tool).await?;
    let conversation = chats::begin(conn, agent, "gristmill tool call").await?;
    let message = chats::say(conn, conversation, "assistant", "by hand").await?;
    chats::call(conn, message, "by-hand", (tool, arguments)).await
}

/// A call as a person sees it.
#[derive(Debug, Clone, Serialize)]
pub struct CallRow {
    pub id: Uuid,
    pub workspace: String,
    pub tool: String,
    pub state: String,
    pub reason: Option<String>,
    pub arguments: Value,
    /// What an approval is bound to, in hex.
    pub arguments_sha256: String,
    pub attempts: i64,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Of the result, where there is one.
    pub handle: Option<Uuid>,
    pub view: Option<String>,
}

/// Which calls are meant; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub workspace: Option<WorkspaceId>,
    pub state: Option<String>,
    pub tool: Option<String>,
}

/// The newest calls of a filter, newest first.
pub async fn newest(db: &PgPool, of: &Filter, limit: i64) -> sqlx::Result<Vec<CallRow>> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM gristmill.tool_calls
         WHERE ($1::uuid IS NULL OR workspace_id = $1) AND ($2::text IS NULL OR state::text = upper($2))
           AND ($3::text IS NULL OR tool_name = $3)
         ORDER BY id DESC LIMIT $4",
        of.workspace.map(|id| id.0),
        of.state,
        of.tool,
        limit
    )
    .fetch_all(db)
    .await?;
    get(db, &ids).await
}

/// These calls, newest first.
pub async fn get(db: &PgPool, ids: &[Uuid]) -> sqlx::Result<Vec<CallRow>> {
    sqlx::query_as!(
        CallRow,
        r#"SELECT c.id, coalesce(w.external_id, w.id::text) AS "workspace!", c.tool_name AS tool, c.state::text AS "state!",
                  c.reason, c.arguments, encode(c.arguments_sha256, 'hex') AS "arguments_sha256!",
                  (SELECT count(*) FROM gristmill.tool_attempts a WHERE a.call_id = c.id) AS "attempts!",
                  c.created_at, c.expires_at, c.finished_at, r.id AS "handle?", r.view AS "view?"
           FROM gristmill.tool_calls c JOIN gristmill.workspaces w ON w.id = c.workspace_id
           LEFT JOIN gristmill.tool_results r ON r.call_id = c.id
           WHERE c.id = ANY ($1) ORDER BY c.id DESC"#,
        ids
    )
    .fetch_all(db)
    .await
}

/// The calls whose id, or whose result's, begins so; at most a few.
pub async fn beginning(db: &PgPool, prefix: &str) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM (
               SELECT id FROM gristmill.tool_calls WHERE starts_with(id::text, lower($1))
               UNION SELECT call_id FROM gristmill.tool_results WHERE starts_with(id::text, lower($1))) x
           ORDER BY id LIMIT 5"#,
        prefix
    )
    .fetch_all(db)
    .await
}

/// What happened to a call, told in its order.
#[derive(Debug, Clone, Serialize)]
pub struct EventRow {
    pub at: DateTime<Utc>,
    pub kind: String,
    pub body: Value,
}

/// The events of a call.
pub async fn events(db: &PgPool, call: Uuid) -> sqlx::Result<Vec<EventRow>> {
    sqlx::query_as!(
        EventRow,
        r#"SELECT created_at AS at, substr(type, 11) AS "kind!", body FROM gristmill.events
           WHERE subject_id = $1 AND subject = 'tool_call' ORDER BY id"#,
        call
    )
    .fetch_all(db)
    .await
}

/// A start of a call as a person sees it.
#[derive(Debug, Clone, Serialize)]
pub struct AttemptRow {
    pub id: Uuid,
    pub effect: String,
    pub ordered: bool,
    pub outcome: Option<String>,
    pub failure: Option<String>,
    pub unsent: bool,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// The starts of a call.
pub async fn attempts(db: &PgPool, call: Uuid) -> sqlx::Result<Vec<AttemptRow>> {
    sqlx::query_as!(
        AttemptRow,
        r#"SELECT id, effect::text AS "effect!", ordered, outcome::text AS outcome, failure, unsent, started_at, finished_at
           FROM gristmill.tool_attempts WHERE call_id = $1 ORDER BY started_at"#,
        call
    )
    .fetch_all(db)
    .await
}

/// A complete result: in its row, or where its object lies.
#[derive(Debug, Clone)]
pub struct Complete {
    pub result: Option<Value>,
    pub bucket: Option<String>,
    pub key: Option<String>,
    pub sha256: Vec<u8>,
}

/// The complete result of a call.
pub async fn result(db: &PgPool, call: Uuid) -> sqlx::Result<Option<Complete>> {
    sqlx::query_as!(
        Complete,
        "SELECT result, bucket, key, sha256 FROM gristmill.tool_results WHERE call_id = $1",
        call
    )
    .fetch_optional(db)
    .await
}

/// A person's yes; the digest is of the arguments that the person saw. Answers the approval's id.
pub async fn approve(
    db: &PgPool,
    call: Uuid,
    by: Option<Uuid>,
    digest: Option<&[u8]>,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT gristmill.approve_call($1, by_user => $2, arguments_sha256 => $3)",
        call,
        by,
        digest
    )
    .fetch_one(db)
    .await
}

/// A person's no.
pub async fn deny(db: &PgPool, call: Uuid, by: Option<Uuid>, reason: Option<&str>) -> sqlx::Result<()> {
    sqlx::query!("SELECT gristmill.deny_call($1, by_user => $2, reason => $3)", call, by, reason)
        .execute(db)
        .await?;
    Ok(())
}

/// Asks for a call's end; answers the state it has now.
pub async fn cancel(db: &PgPool, call: Uuid, reason: Option<&str>) -> sqlx::Result<String> {
    sqlx::query_scalar!(r#"SELECT gristmill.cancel_call($1, $2)::text AS "state!""#, call, reason)
        .fetch_one(db)
        .await
}

/// A person's word on a call whose outcome is unknown.
pub async fn resolve(
    db: &PgPool,
    call: Uuid,
    verdict: &str,
    (by, note): (Option<Uuid>, Option<&str>),
) -> sqlx::Result<()> {
    sqlx::query!(
        "SELECT gristmill.resolve_unknown($1, $2, by_user => $3, note => $4)",
        call,
        verdict,
        by,
        note
    )
    .execute(db)
    .await?;
    Ok(())
}
