//! Budgets: what the counters say against what their rows say.

use crate::domain::WorkspaceId;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

/// A budget whose counters are not the sums of its rows. Money stays text: it is never a float.
#[derive(Debug, Clone)]
pub struct Difference {
    pub workspace: WorkspaceId,
    pub budget: Uuid,
    pub spent: String,
    pub settled: String,
    pub reserved: String,
    pub held: String,
}

impl Difference {
    /// The numbers for an event.
    pub fn body(&self) -> Value {
        json!({ "spent": self.spent, "settled": self.settled, "reserved": self.reserved, "held": self.held })
    }
}

/// Budgets that do not agree with their ledger, over all tenants.
pub async fn differences(conn: &mut PgConnection) -> sqlx::Result<Vec<Difference>> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "workspace_id!", budget_id AS "budget_id!", spent::text AS "spent!",
                  settled::text AS "settled!", reserved::text AS "reserved!", held::text AS "held!"
           FROM gristmill.budget_differences()"#
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Difference {
            workspace: WorkspaceId(row.workspace_id),
            budget: row.budget_id,
            spent: row.spent,
            settled: row.settled,
            reserved: row.reserved,
            held: row.held,
        })
        .collect())
}
