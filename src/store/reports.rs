//! How attachments stand, for commands that watch and tell.

use crate::domain::AttachmentId;
use sqlx::PgExecutor;
use uuid::Uuid;

/// One attachment and its newest index.
#[derive(Debug, Clone)]
pub struct Standing {
    pub id: Uuid,
    pub name: Option<String>,
    pub mime: Option<String>,
    pub status: String,
    pub failure_code: Option<String>,
    pub failure: Option<String>,
    /// PENDING … INDEXED; none before the scan is over.
    pub index: Option<String>,
    pub done: i32,
    pub total: Option<i32>,
    /// What the index lacks, when it is PARTIAL or `NEEDS_OCR`.
    pub detail: Option<serde_json::Value>,
    pub seconds: f64,
}

impl Standing {
    /// Whether nothing more will happen by itself.
    pub fn is_final(&self) -> bool {
        matches!(self.status.as_str(), "READY" | "ATTACHED" | "FAILED" | "QUARANTINED")
    }
}

/// How these attachments stand now, in the order given.
pub async fn standings(db: impl PgExecutor<'_>, ids: &[AttachmentId]) -> sqlx::Result<Vec<Standing>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query_as!(
        Standing,
        r#"SELECT a.id, a.name, a.mime, a.status::text AS "status!", a.failure_code, a.failure,
                  g.status::text AS index, coalesce(g.done, 0) AS "done!", g.total, g.detail AS "detail?",
                  extract(epoch FROM a.updated_at - a.created_at)::float8 AS "seconds!"
           FROM unnest($1::uuid[]) WITH ORDINALITY AS wanted (id, place)
           JOIN gristmill.attachments a ON a.id = wanted.id
           LEFT JOIN LATERAL (
               SELECT g.* FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
               WHERE r.attachment_id = a.id ORDER BY g.created_at DESC, g.id DESC LIMIT 1) g ON true
           ORDER BY wanted.place"#,
        &ids
    )
    .fetch_all(db)
    .await
}
