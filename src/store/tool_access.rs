//! What the rows say of one call's right to be made: tool, agent, user, role, credential, money.
//!
//! One statement in the worker's own transaction, whatever the payload or the chat layer said.

use crate::domain::{Effect, ToolCallId, ToolId};
use crate::store::decoded;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// A tool as a call needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub id: ToolId,
    pub name: String,
    /// What its server calls it.
    pub remote_name: String,
    /// `MCP`, or the custom kind: knowledgebase, API, database, `web_search`.
    pub kind: String,
    pub effect: Effect,
    pub input_schema: Value,
    pub custom_config: Value,
    pub endpoint: Option<String>,
    pub transport: Option<String>,
    pub authentication: String,
    pub connection: Option<Uuid>,
    pub idle_seconds: Option<i32>,
    pub total_seconds: Option<i32>,
}

/// Whether a server's description of its tool was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review {
    /// Not described by anybody else.
    Ours,
    /// An MCP tool that no definition is kept of.
    Unpinned,
    Pending,
    /// Its server says that its tools changed, and nobody has looked yet.
    Changed,
    Approved(Uuid),
    Refused,
}

/// What stands for and against a call.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and none follows from another")]
pub struct Access {
    /// `None`: no such tool in the workspace.
    pub tool: Option<Tool>,
    pub tool_enabled: bool,
    pub connection_enabled: bool,
    pub conversation_deleted: bool,
    /// The user reads along in somebody else's shared conversation.
    pub is_viewer: bool,
    /// `None`: nobody in particular asks.
    pub user_status: Option<String>,
    pub agent_has_tool: bool,
    pub user_has_tool: bool,
    pub asks_for_user: bool,
    pub role_allows: bool,
    pub has_credential: bool,
    pub review: Review,
    /// A budget with nothing left: whose.
    pub spent_budget: Option<String>,
    /// Of the agent.
    pub parallel_calls: Option<i32>,
}

/// Looks at the rows.
pub async fn of_call(conn: &mut PgConnection, call: ToolCallId) -> sqlx::Result<Access> {
    let row = sqlx::query!(
        r#"SELECT t.id AS "tool_id?", t.name AS "name?", t.remote_name AS "remote_name?", coalesce(t.mcp_type, t.type::text) AS kind,
                  t.effect::text AS effect, t.input_schema AS "input_schema?", t.custom_config AS "custom_config?",
                  t.endpoint AS "endpoint?", t.transport_type::text AS transport,
                  t.authentication_type::text AS authentication, t.connection_id AS "connection_id?",
                  t.idle_seconds AS "idle_seconds?", t.total_seconds AS "total_seconds?",
                  coalesce(t.enabled, false) AS "tool_enabled!", coalesce(t.per_user, false) AS "per_user!",
                  coalesce(s.enabled, t.connection_id IS NULL) AS "connection_enabled!",
                  s.changed_at IS NOT NULL AS "server_changed!",
                  v.deleted AS "deleted!", v.is_shared AND v.user_id IS DISTINCT FROM c.user_id AS "is_viewer!",
                  u.status::text AS user_status, a.parallel_calls AS "parallel_calls?",
                  EXISTS (SELECT FROM gristmill.agent_tools x WHERE x.agent_id = c.agent_id AND x.tool_id = t.id) AS "agent_has!",
                  EXISTS (SELECT FROM gristmill.user_tools x WHERE x.user_id = c.user_id AND x.tool_id = t.id) AS "user_has!",
                  -- Roles matter to tools from the first policy on that speaks of them.
                  c.user_id IS NULL
                  OR NOT EXISTS (SELECT FROM gristmill.policies p WHERE p.resource = '*' OR starts_with(p.resource, 'tool:'))
                  OR EXISTS (
                      SELECT FROM gristmill.role_policies rp JOIN gristmill.policies p ON p.id = rp.policy_id
                      WHERE rp.role_id = u.role_id AND p.action IN ('call', '*')
                        AND (p.resource IN ('*', 'tool:' || t.name)
                             OR right(p.resource, 1) = '*' AND starts_with('tool:' || t.name, rtrim(p.resource, '*')))
                  ) AS "role_allows!",
                  t.authentication_type::text = 'none' OR EXISTS (
                      SELECT FROM gristmill.tool_credentials k
                      WHERE (k.tool_id = t.id OR k.connection_id = t.connection_id)
                        AND (k.user_id = c.user_id OR k.user_id IS NULL)) AS has_credential,
                  d.id AS "definition_id?", d.review AS "review?",
                  (SELECT CASE WHEN b.user_id IS NOT NULL THEN 'user' WHEN b.agent_id IS NOT NULL THEN 'agent' ELSE 'workspace' END
                   FROM gristmill.budgets b
                   WHERE b.remaining <= 0
                     AND (b.user_id IS NULL AND b.agent_id IS NULL OR b.user_id = c.user_id OR b.agent_id = c.agent_id)
                   LIMIT 1) AS spent_budget
           FROM gristmill.tool_calls c
           JOIN gristmill.conversations v ON v.id = c.conversation_id
           LEFT JOIN gristmill.tools t ON t.id = c.tool_id
           LEFT JOIN gristmill.mcp_server_connections s ON s.id = t.connection_id
           LEFT JOIN gristmill.users u ON u.id = c.user_id
           LEFT JOIN gristmill.agents a ON a.id = c.agent_id
           -- What the server says of it now.
           LEFT JOIN LATERAL (SELECT x.id, x.review::text FROM gristmill.tool_definitions x WHERE x.tool_id = t.id
                              ORDER BY x.id = t.definition_id DESC NULLS LAST, x.created_at DESC, x.id DESC LIMIT 1) d ON true
           WHERE c.id = $1"#,
        call.0
    )
    .fetch_one(conn)
    .await?;
    let kind = row.kind.unwrap_or_default();
    let review = match (row.definition_id, row.review.as_deref()) {
        (Some(_), Some("APPROVED")) if row.server_changed => Review::Changed,
        (Some(id), Some("APPROVED")) => Review::Approved(id),
        (Some(_), Some("REFUSED")) => Review::Refused,
        (Some(_), _) => Review::Pending,
        (None, _) if kind == "MCP" => Review::Unpinned,
        (None, _) => Review::Ours,
    };
    let tool = match (row.tool_id, row.name) {
        (Some(id), Some(name)) => Some(Tool {
            id: ToolId(id),
            // A name of ours is server__tool.
            remote_name: row
                .remote_name
                .unwrap_or_else(|| name.split_once("__").map_or(name.as_str(), |(_, own)| own).to_owned()),
            name,
            kind,
            effect: decoded(row.effect.unwrap_or_default().parse())?,
            input_schema: row.input_schema.unwrap_or_default(),
            custom_config: row.custom_config.unwrap_or_default(),
            endpoint: row.endpoint,
            transport: row.transport,
            authentication: row.authentication.unwrap_or_default(),
            connection: row.connection_id,
            idle_seconds: row.idle_seconds,
            total_seconds: row.total_seconds,
        }),
        _ => None,
    };
    Ok(Access {
        tool,
        tool_enabled: row.tool_enabled,
        connection_enabled: row.connection_enabled,
        conversation_deleted: row.deleted,
        is_viewer: row.is_viewer,
        user_status: row.user_status,
        agent_has_tool: row.agent_has,
        user_has_tool: row.user_has,
        asks_for_user: row.per_user,
        role_allows: row.role_allows,
        has_credential: row.has_credential.unwrap_or_default(),
        review,
        spent_budget: row.spent_budget,
        parallel_calls: row.parallel_calls,
    })
}

/// Names of the tools that the call's agent may call, for a model that named none of them.
pub async fn names(conn: &mut PgConnection, call: ToolCallId) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT t.name FROM gristmill.tool_calls c
         JOIN gristmill.agent_tools x ON x.agent_id = c.agent_id
         JOIN gristmill.tools t ON t.id = x.tool_id AND t.enabled
         WHERE c.id = $1 ORDER BY t.name LIMIT 50",
        call.0
    )
    .fetch_all(conn)
    .await
}
