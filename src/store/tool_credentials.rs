//! `tool_credentials`: what proves to a tool's server who calls, sealed, and for one origin only.
//!
//! A row belongs to a user, or to the whole workspace, and to one tool or one connection. What it
//! holds is bound by additional data to all of that, to its origin and to its version, so that
//! neither a copied row nor an older one put back opens. The caller brings the origin that the
//! tool has now: a credential of another origin is not handed out at all.
//!
//! Of those who want to renew an expired token one holds a lease ([`claim`]) and the others wait for
//! the next version. Accepted race: whoever dies between the provider's answer and [`save`] has
//! used up a refresh token that nobody stored; the next one is refused, and the user signs in anew.

use crate::domain::{Sealed, ToolId, UserId, WorkspaceId};
use crate::store::exactly_one;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use std::time::Duration;
use uuid::Uuid;

/// What a credential is for: one tool, or every tool of a connection to an MCP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Tool(ToolId),
    Connection(Uuid),
}

/// Whose credential, and for what. There is at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub workspace: WorkspaceId,
    /// None: everybody's in the workspace who has none of their own.
    pub user: Option<UserId>,
    pub subject: Subject,
}

impl Holder {
    fn tool(&self) -> Option<Uuid> {
        if let Subject::Tool(id) = self.subject { Some(id.0) } else { None }
    }

    fn connection(&self) -> Option<Uuid> {
        if let Subject::Connection(id) = self.subject { Some(id) } else { None }
    }

    /// What a seal is bound to: the whole identity of the row, in a form with one reading.
    fn bond(&self, origin: &str, version: i32) -> Vec<u8> {
        let user = self.user.map(|user| user.0);
        let place = ("tool_credentials", self.workspace, user, self.tool(), self.connection());
        serde_json::json!([place, origin, version]).to_string().into_bytes()
    }
}

/// A credential as it lies there.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: Uuid,
    /// Grows with each save; part of what the seal is bound to.
    pub version: i32,
    /// The row's own holder: the user, or the workspace where the user has none.
    pub holder: Holder,
    pub origin: String,
    pub sealed: Sealed,
    pub expires_at: Option<DateTime<Utc>>,
    /// Why it no longer serves, though it is there.
    pub failure: Option<String>,
    /// The database's clock says that it ends within the half minute.
    pub is_over: bool,
}

impl Held {
    /// The additional data that opens it.
    pub fn bond(&self) -> Vec<u8> {
        self.holder.bond(&self.origin, self.version)
    }
}

/// What came of looking for a credential to send to an origin.
#[derive(Debug)]
pub enum Found {
    Nothing,
    Held(Box<Held>),
    /// There is one, for another place: the tool's endpoint was changed since it was saved.
    OtherOrigin {
        saved_for: String,
    },
}

/// The user's credential for this origin, else the workspace's. Sees the tenant of `conn` alone.
///
/// A user's credential for another origin hides the workspace's: the user chose to be somebody.
pub async fn load(conn: &mut PgConnection, of: &Holder, origin: &str) -> sqlx::Result<Found> {
    let row = sqlx::query!(
        r#"SELECT id, user_id, version, origin, credential, iv, auth_tag, key_id, expires_at, failure,
                  coalesce(expires_at < clock_timestamp() + interval '30 s', false) AS "is_over!"
           FROM gristmill.tool_credentials
           WHERE workspace_id = $1 AND tool_id IS NOT DISTINCT FROM $2 AND connection_id IS NOT DISTINCT FROM $3
             AND (user_id = $4 OR user_id IS NULL)
           ORDER BY user_id IS NULL LIMIT 1"#,
        of.workspace.0,
        of.tool(),
        of.connection(),
        of.user.map(|user| user.0)
    )
    .fetch_optional(conn)
    .await?;
    Ok(match row {
        None => Found::Nothing,
        Some(row) if row.origin != origin => Found::OtherOrigin { saved_for: row.origin },
        Some(row) => Found::Held(Box::new(Held {
            id: row.id,
            version: row.version,
            holder: Holder { user: row.user_id.map(UserId), ..*of },
            origin: row.origin,
            sealed: Sealed {
                ciphertext: row.credential,
                iv: row.iv,
                auth_tag: row.auth_tag,
                key_id: Some(row.key_id),
            },
            expires_at: row.expires_at,
            failure: row.failure,
            is_over: row.is_over,
        })),
    })
}

/// Where a credential is to be sent, and when it ends.
#[derive(Debug, Clone)]
pub struct Terms<'a> {
    pub origin: &'a str,
    pub expires_at: Option<DateTime<Utc>>,
    /// A renewal, and only in place of this version: it must not undo what somebody saved meanwhile.
    pub replaces: Option<i32>,
}

/// Saves a new version, sealed by `seal` with the additional data it is given; answers the version,
/// or None when the one to be replaced is no longer there. Wakes the calls that waited, unless it
/// is a renewal.
pub async fn save<E: From<sqlx::Error>>(
    conn: &mut PgConnection,
    of: &Holder,
    terms: &Terms<'_>,
    seal: impl FnOnce(&[u8]) -> Result<Sealed, E>,
) -> Result<Option<i32>, E> {
    let was = sqlx::query_scalar!(
        "SELECT version FROM gristmill.tool_credentials
         WHERE workspace_id = $1 AND tool_id IS NOT DISTINCT FROM $2 AND connection_id IS NOT DISTINCT FROM $3
           AND user_id IS NOT DISTINCT FROM $4
         FOR UPDATE",
        of.workspace.0,
        of.tool(),
        of.connection(),
        of.user.map(|user| user.0)
    )
    .fetch_optional(&mut *conn)
    .await?;
    if terms.replaces.is_some() && terms.replaces != was {
        return Ok(None);
    }
    let version = was.unwrap_or_default() + 1;
    let sealed = seal(&of.bond(terms.origin, version))?;
    // Two first saves at once: the second finds version 1 and changes nothing, which is an error.
    let done = sqlx::query!(
        "INSERT INTO gristmill.tool_credentials AS c (workspace_id, user_id, tool_id, connection_id, origin,
             credential, iv, auth_tag, key_id, version, expires_at, renewed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, ''), $10, $11, CASE WHEN $12 THEN clock_timestamp() END)
         ON CONFLICT (workspace_id, user_id, tool_id, connection_id) DO UPDATE SET
             origin = excluded.origin, credential = excluded.credential, iv = excluded.iv,
             auth_tag = excluded.auth_tag, key_id = excluded.key_id, version = excluded.version,
             expires_at = excluded.expires_at, renewed_at = excluded.renewed_at,
             failure = NULL, renewing_until = NULL
         WHERE c.version = excluded.version - 1",
        of.workspace.0,
        of.user.map(|user| user.0),
        of.tool(),
        of.connection(),
        terms.origin,
        sealed.ciphertext,
        sealed.iv,
        sealed.auth_tag,
        sealed.key_id,
        version,
        terms.expires_at,
        terms.replaces.is_some()
    )
    .execute(conn)
    .await?;
    exactly_one(&done)?;
    Ok(Some(version))
}

/// Takes the right to renew this version for `lease`; false: somebody else holds it, or renewed it.
pub async fn claim(conn: &mut PgConnection, held: &Held, lease: Duration) -> sqlx::Result<bool> {
    let lease = PgInterval { months: 0, days: 0, microseconds: lease.as_micros() as i64 };
    let done = sqlx::query!(
        "UPDATE gristmill.tool_credentials SET renewing_until = clock_timestamp() + $3
         WHERE id = $1 AND version = $2 AND failure IS NULL
           AND (renewing_until IS NULL OR renewing_until < clock_timestamp())",
        held.id,
        held.version,
        lease
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Gives the right to renew back. With a `failure` this version serves no more.
pub async fn release(
    conn: &mut PgConnection,
    (id, version): (Uuid, i32),
    failure: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE gristmill.tool_credentials SET renewing_until = NULL, failure = coalesce($3, failure)
         WHERE id = $1 AND version = $2",
        id,
        version,
        failure
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A credential as a person sees it: all but what it holds.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: Uuid,
    pub subject: String,
    pub user: Option<String>,
    pub origin: String,
    pub key_id: String,
    pub version: i32,
    pub expires_at: Option<DateTime<Utc>>,
    pub failure: Option<String>,
    pub updated_at: DateTime<Utc>,
}

/// The tenant's credentials, by what they are for.
pub async fn list(conn: &mut PgConnection) -> sqlx::Result<Vec<Listed>> {
    sqlx::query_as!(
        Listed,
        r#"SELECT c.id, coalesce(t.name, s.name, '?') AS "subject!", coalesce(u.external_id, u.id::text) AS "user",
                  c.origin, c.key_id, c.version, c.expires_at, c.failure, c.updated_at
           FROM gristmill.tool_credentials c
           LEFT JOIN gristmill.tools t ON t.id = c.tool_id
           LEFT JOIN gristmill.mcp_server_connections n ON n.id = c.connection_id
           LEFT JOIN gristmill.mcp_servers s ON s.id = n.server_id
           LEFT JOIN gristmill.users u ON u.id = c.user_id
           ORDER BY 2, 3 NULLS FIRST"#
    )
    .fetch_all(conn)
    .await
}

/// Removes a credential; false: there was none.
pub async fn remove(conn: &mut PgConnection, of: &Holder) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM gristmill.tool_credentials
         WHERE workspace_id = $1 AND tool_id IS NOT DISTINCT FROM $2 AND connection_id IS NOT DISTINCT FROM $3
           AND user_id IS NOT DISTINCT FROM $4",
        of.workspace.0,
        of.tool(),
        of.connection(),
        of.user.map(|user| user.0)
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Some of the tenant's credentials that another key sealed, locked, so that each is sealed anew
/// by one.
pub async fn sealed_otherwise(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    than: &str,
    but: &[Uuid],
) -> sqlx::Result<Vec<Held>> {
    let rows = sqlx::query!(
        r#"SELECT id, user_id, tool_id, connection_id, version, origin, credential, iv, auth_tag, key_id,
                  expires_at, failure
           FROM gristmill.tool_credentials WHERE workspace_id = $1 AND key_id <> $2 AND id <> ALL ($3)
           ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED"#,
        workspace.0,
        than,
        but
    )
    .fetch_all(conn)
    .await?;
    let held = rows.into_iter().filter_map(|row| {
        let tool = row.tool_id.map(|id| Subject::Tool(ToolId(id)));
        let subject = tool.or(row.connection_id.map(Subject::Connection))?;
        Some(Held {
            id: row.id,
            version: row.version,
            holder: Holder { workspace, user: row.user_id.map(UserId), subject },
            origin: row.origin,
            sealed: Sealed {
                ciphertext: row.credential,
                iv: row.iv,
                auth_tag: row.auth_tag,
                key_id: Some(row.key_id),
            },
            expires_at: row.expires_at,
            failure: row.failure,
            is_over: false,
        })
    });
    Ok(held.collect())
}

/// Puts the same secret, sealed by another key, in its place: the same version, the same bond.
pub async fn reseal(conn: &mut PgConnection, held: &Held, sealed: &Sealed) -> sqlx::Result<()> {
    let done = sqlx::query!(
        "UPDATE gristmill.tool_credentials SET credential = $3, iv = $4, auth_tag = $5, key_id = coalesce($6, '')
         WHERE id = $1 AND version = $2",
        held.id,
        held.version,
        sealed.ciphertext,
        sealed.iv,
        sealed.auth_tag,
        sealed.key_id
    )
    .execute(conn)
    .await?;
    exactly_one(&done)
}
