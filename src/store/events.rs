//! What the chat layer learns, written in the transaction of the change it tells.

use crate::domain::{AttachmentId, GenerationId, JobId, ToolCallId, ToolId, WorkspaceId};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

/// Something that happened to a subject of the chat layer.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// `attachment.<status>`, with the reason where there is one.
    Attachment { id: AttachmentId, status: &'a str, body: Value },
    /// `index.<status>`: the stage of a generation, with done and total.
    Index {
        id: GenerationId,
        attachment: Option<AttachmentId>,
        status: &'a str,
        done: i32,
        total: Option<i32>,
    },
    /// `budget.differs`: the counters of a budget are not the sums of its rows.
    Budget { id: Uuid, body: Value },
    /// `tool_call.progress`: what a call at work said of itself. Its states are told by the database.
    ToolProgress { id: ToolCallId, body: Value },
    /// `tool.<what>`: a server's definition of it is new, changed or gone.
    Tool { id: ToolId, what: &'a str, body: Value },
    /// `server.<what>`: how a connection to an MCP server was found.
    Connection { id: Uuid, what: &'a str, body: Value },
    /// `house.<what>`: something the house did for itself; told in its own workspace.
    House { what: &'a str, job: JobId, body: Value },
}

impl Event<'_> {
    fn parts(&self) -> (String, &'static str, Uuid, Value) {
        match self {
            Self::Attachment { id, status, body } => {
                (format!("attachment.{}", status.to_lowercase()), "attachment", id.0, body.clone())
            }
            Self::Index { id, attachment, status, done, total } => (
                format!("index.{}", status.to_lowercase()),
                "generation",
                id.0,
                json!({ "attachment": attachment, "done": done, "total": total }),
            ),
            Self::Budget { id, body } => ("budget.differs".to_owned(), "budget", *id, body.clone()),
            Self::ToolProgress { id, body } => {
                ("tool_call.progress".to_owned(), "tool_call", id.0, body.clone())
            }
            Self::Tool { id, what, body } => (format!("tool.{what}"), "tool", id.0, body.clone()),
            Self::Connection { id, what, body } => {
                (format!("server.{what}"), "connection", *id, body.clone())
            }
            Self::House { what, job, body } => (format!("house.{what}"), "job", job.0, body.clone()),
        }
    }
}

/// Writes the event; a trigger notifies with its id when the transaction commits.
pub async fn announce(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    event: &Event<'_>,
) -> sqlx::Result<()> {
    let (name, subject, id, body) = event.parts();
    sqlx::query!(
        "INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body) VALUES ($1, $2, $3, $4, $5)",
        workspace.0,
        name,
        subject,
        id,
        body
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether the subject was told exactly this within the last day.
pub async fn told_today(conn: &mut PgConnection, event: &Event<'_>) -> sqlx::Result<bool> {
    let (name, _, id, body) = event.parts();
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM gristmill.events WHERE subject_id = $1 AND type = $2 AND body = $3
                          AND created_at > now() - interval '1 day') AS "told!""#,
        id,
        name,
        body
    )
    .fetch_one(conn)
    .await
}
