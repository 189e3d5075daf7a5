//! Tool calls from a chat layer's SQL to the `tool` message, through the real queue.

mod answers;
mod approvals;
mod bank;
mod command;
mod crash;
mod effects;
mod ordering;
mod permissions;
mod server;
mod tasks;
mod tenants;
mod unknown;

use crate::world::World;
use gristmill::domain::WorkspaceId;
use gristmill::runtime::every_kind;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, Row};
use uuid::Uuid;

/// A conversation of a user with an agent, and an assistant's message that can call tools.
pub struct Chat<'a> {
    pub world: &'a World,
    pub workspace: WorkspaceId,
    pub user: Uuid,
    pub agent: Uuid,
    pub conversation: Uuid,
    pub message: Uuid,
}

/// A `tool` message: its place among the message's, the id it answers, its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub tool_call_id: String,
    pub text: String,
    pub metadata: Value,
}

async fn one<T>(db: &PgPool, sql: &'static str, workspace: WorkspaceId) -> anyhow::Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    Ok(sqlx::query_scalar(sql).bind(workspace.0).fetch_one(db).await?)
}

impl<'a> Chat<'a> {
    pub async fn new(world: &'a World) -> anyhow::Result<Self> {
        Self::of(world, world.workspace).await
    }

    pub async fn of(world: &'a World, workspace: WorkspaceId) -> anyhow::Result<Self> {
        let db = &world.admin;
        let user = one(
            db,
            "INSERT INTO gristmill.users (workspace_id, name) VALUES ($1, 'Ada') RETURNING id",
            workspace,
        );
        let user: Uuid = user.await?;
        let agent: Uuid = one(
            db,
            "INSERT INTO gristmill.agents (workspace_id, name) VALUES ($1, 'Planner') RETURNING id",
            workspace,
        )
        .await?;
        let conversation: Uuid = sqlx::query_scalar(
            "INSERT INTO gristmill.conversations (workspace_id, user_id, agent_id) VALUES ($1, $2, $3) RETURNING id",
        )
        .bind(workspace.0)
        .bind(user)
        .bind(agent)
        .fetch_one(db)
        .await?;
        let mut chat = Self { world, workspace, user, agent, conversation, message: Uuid::nil() };
        chat.message = chat.ask().await?;
        Ok(chat)
    }

    /// One more assistant's message.
    pub async fn ask(&self) -> anyhow::Result<Uuid> {
        Ok(sqlx::query_scalar(
            "INSERT INTO gristmill.messages (workspace_id, conversation_id, role, content_text)
             VALUES ($1, $2, 'assistant', 'Let me look.') RETURNING id",
        )
        .bind(self.workspace.0)
        .bind(self.conversation)
        .fetch_one(&self.world.admin)
        .await?)
    }

    /// Lets the agent call a tool.
    pub async fn give(&self, tool: Uuid) -> anyhow::Result<()> {
        sqlx::query(
            "INSERT INTO gristmill.agent_tools (workspace_id, agent_id, tool_id) VALUES ($1, $2, $3)",
        )
        .bind(self.workspace.0)
        .bind(self.agent)
        .bind(tool)
        .execute(&self.world.admin)
        .await?;
        Ok(())
    }

    /// An empty knowledge base that the agent may call.
    pub async fn knowledge_base(&self, name: &str) -> anyhow::Result<Uuid> {
        let mut conn = self.world.admin.acquire().await?;
        let tool = gristmill::store::tenants::ensure_knowledge_base(&mut conn, self.workspace, name).await?;
        self.give(tool.0).await?;
        Ok(tool.0)
    }

    /// Calls a tool as the chat layer does.
    pub async fn call(&self, id: &str, tool: &str, arguments: Value) -> anyhow::Result<Uuid> {
        self.call_of(self.message, id, tool, arguments).await
    }

    pub async fn call_of(
        &self,
        message: Uuid,
        id: &str,
        tool: &str,
        arguments: Value,
    ) -> anyhow::Result<Uuid> {
        let row = sqlx::query("SELECT call_id FROM gristmill.call_tool($1, $2, $3, $4)")
            .bind(message)
            .bind(id)
            .bind(tool)
            .bind(arguments)
            .fetch_one(&self.world.admin)
            .await?;
        Ok(row.get(0))
    }

    /// Works until nothing is left to do now.
    pub async fn work(&self) -> anyhow::Result<()> {
        self.world.work(every_kind).await
    }

    /// State and reason of a call.
    pub async fn state(&self, call: Uuid) -> anyhow::Result<(String, Option<String>)> {
        let row = sqlx::query("SELECT state::text, reason FROM gristmill.tool_calls WHERE id = $1")
            .bind(call)
            .fetch_one(&self.world.admin)
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// The `tool` messages of the conversation, in their order.
    pub async fn told(&self) -> anyhow::Result<Vec<Told>> {
        let rows = sqlx::query(
            "SELECT tool_call_id, content_text, metadata FROM gristmill.messages
             WHERE conversation_id = $1 AND role = 'tool' ORDER BY serial_number",
        )
        .bind(self.conversation)
        .fetch_all(&self.world.admin)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Told { tool_call_id: row.get(0), text: row.get(1), metadata: row.get(2) })
            .collect())
    }

    /// The events of a call, in their order.
    pub async fn events(&self, call: Uuid) -> anyhow::Result<Vec<String>> {
        let sql = "SELECT substr(type, 11) FROM gristmill.events WHERE subject_id = $1 ORDER BY id";
        Ok(sqlx::query_scalar(sql).bind(call).fetch_all(&self.world.admin).await?)
    }

    /// Runs one of the functions a person's word goes through, as the chat layer does.
    pub async fn say(&self, sql: &'static str, call: Uuid) -> sqlx::Result<()> {
        sqlx::query(sql).bind(call).execute(&self.world.admin).await?;
        Ok(())
    }

    pub async fn change(&self, sql: String) -> anyhow::Result<u64> {
        Ok(sqlx::query(AssertSqlSafe(sql)).execute(&self.world.admin).await?.rows_affected())
    }
}
