//! Policies of a workspace on tool calls, in the order in which they are asked.

use crate::domain::{Effect, ToolId};
use crate::store::decoded;
use serde_json::Value;
use sqlx::PgConnection;

/// What a policy says of the calls it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Ask,
    Deny,
}

/// One policy; the first that fits decides.
#[derive(Debug, Clone)]
pub struct Policy {
    /// A JSON Schema of the arguments it is about; `None`: any.
    pub arguments: Option<Value>,
    pub decision: Decision,
    pub effect: Option<Effect>,
    pub note: Option<String>,
}

/// The policies that may fit a call of this tool.
pub async fn of_tool(conn: &mut PgConnection, tool: ToolId) -> sqlx::Result<Vec<Policy>> {
    let rows = sqlx::query!(
        r#"SELECT arguments, decision::text AS "decision!", effect::text AS effect, note FROM gristmill.tool_policies
           WHERE tool_id = $1 OR tool_id IS NULL ORDER BY ord, tool_id NULLS LAST, id"#,
        tool.0
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Policy {
                arguments: row.arguments,
                decision: match row.decision.as_str() {
                    "allow" => Decision::Allow,
                    "deny" => Decision::Deny,
                    // Also a word that a newer schema knows: a person decides.
                    _ => Decision::Ask,
                },
                effect: decoded(row.effect.map(|word| word.parse()).transpose())?,
                note: row.note,
            })
        })
        .collect()
}
