//! `mcp_servers` and `mcp_server_connections`: the operator's catalogue, and how tenants use it.
//!
//! The worker's role reads the catalogue and cannot write it; [`offer`] runs as whoever migrates.

use crate::config::{CatalogueServer, Transport};
use crate::domain::{UserId, WorkspaceId};
use crate::store::exactly_one;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// A connection with the server it leads to.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "a row's columns")]
pub struct Connection {
    pub id: Uuid,
    pub workspace: WorkspaceId,
    pub enabled: bool,
    /// What the tenant filled in.
    pub given: Value,
    /// None: as the settings say.
    pub review: Option<String>,
    pub synced: bool,
    pub server: String,
    pub offered: bool,
    pub transport: String,
    pub command: Option<String>,
    pub arguments: Vec<String>,
    pub env: Value,
    pub url: Option<String>,
    pub parameters: Value,
    pub believe_hints: bool,
}

/// The tenant's connection of this id.
pub async fn connection(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> sqlx::Result<Option<Connection>> {
    let row = sqlx::query!(
        r#"SELECT c.id, c.enabled, c.parameters AS given, c.review::text, c.synced_at IS NOT NULL AS "synced!",
                  s.name, s.offered, s.transport::text AS "transport!", s.command, s.arguments, s.env, s.url,
                  s.parameters, s.believe_hints
           FROM gristmill.mcp_server_connections c JOIN gristmill.mcp_servers s ON s.id = c.server_id
           WHERE c.id = $1 AND c.workspace_id = $2"#,
        id,
        workspace.0
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Connection {
        id: row.id,
        workspace,
        enabled: row.enabled,
        given: row.given,
        review: row.review,
        synced: row.synced,
        server: row.name,
        offered: row.offered,
        transport: row.transport,
        command: row.command,
        arguments: row.arguments,
        env: row.env,
        url: row.url,
        parameters: row.parameters,
        believe_hints: row.believe_hints,
    }))
}

/// Every connection that is in use, of every tenant.
pub async fn syncable(conn: &mut PgConnection) -> sqlx::Result<Vec<(WorkspaceId, Uuid)>> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "workspace!", id AS "id!" FROM gristmill.syncable_connections()"#
    );
    Ok(rows.fetch_all(conn).await?.into_iter().map(|row| (WorkspaceId(row.workspace), row.id)).collect())
}

/// Whose credential a sync uses: the workspace's, else that of whoever saved one last. What the server
/// lists may depend on it.
pub async fn somebody(conn: &mut PgConnection, connection: Uuid) -> sqlx::Result<Option<UserId>> {
    let row = sqlx::query_scalar!(
        "SELECT user_id FROM gristmill.tool_credentials WHERE connection_id = $1
         ORDER BY user_id IS NOT NULL, failure IS NOT NULL, updated_at DESC LIMIT 1",
        connection
    );
    Ok(row.fetch_optional(conn).await?.flatten().map(UserId))
}

/// How a server was when last seen.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    Connected { protocol_version: &'a str },
    Failed { why: &'a str },
}

/// Notes how the server was; answers whether that is news.
pub async fn note(conn: &mut PgConnection, connection: Uuid, seen: Seen<'_>) -> sqlx::Result<bool> {
    let (status, failure, version) = match seen {
        Seen::Connected { protocol_version } => ("connected", None, Some(protocol_version)),
        Seen::Failed { why } => ("error", Some(why), None),
    };
    let was = sqlx::query_scalar!(
        r#"SELECT status::text AS "status!" FROM gristmill.mcp_server_connections WHERE id = $1 FOR UPDATE"#,
        connection
    )
    .fetch_one(&mut *conn)
    .await?;
    let done = sqlx::query!(
        "UPDATE gristmill.mcp_server_connections SET status = $2::text::gristmill.connection_status, failure = $3,
             protocol_version = coalesce($4, protocol_version),
             seen_at = CASE WHEN $3::text IS NULL THEN clock_timestamp() ELSE seen_at END
         WHERE id = $1",
        connection,
        status,
        failure,
        version
    )
    .execute(conn)
    .await?;
    exactly_one(&done)?;
    Ok(was != status)
}

/// A sync that began at `began` (the database's clock) has looked. Answers whether the server said
/// since then that its tools changed again: whoever wrote that found this job's key taken, and relies
/// on it to look once more. Calls that waited for this look go on.
pub async fn synced(
    conn: &mut PgConnection,
    connection: Uuid,
    began: chrono::DateTime<chrono::Utc>,
) -> sqlx::Result<bool> {
    let again = sqlx::query_scalar!(
        r#"UPDATE gristmill.mcp_server_connections
           SET synced_at = clock_timestamp(), changed_at = CASE WHEN changed_at > $2 THEN changed_at END WHERE id = $1
           RETURNING changed_at IS NOT NULL AS "again!""#,
        connection,
        began
    )
    .fetch_one(&mut *conn)
    .await?;
    if !again {
        sqlx::query!(
            "SELECT gristmill.wake_calls(c.workspace_id, ARRAY(SELECT t.id FROM gristmill.tools t WHERE t.connection_id = c.id),
                                         'NEEDS_APPROVAL')
             FROM gristmill.mcp_server_connections c WHERE c.id = $1",
            connection
        )
        .fetch_one(conn)
        .await?;
    }
    Ok(again)
}

/// The server said that its tools changed: its calls wait until a sync, which this queues, has looked.
pub async fn changed(conn: &mut PgConnection, connection: Uuid) -> sqlx::Result<()> {
    sqlx::query!("SELECT gristmill.server_changed($1)", connection).fetch_one(conn).await.map(drop)
}

/// The database's clock.
pub async fn now(conn: &mut PgConnection) -> sqlx::Result<chrono::DateTime<chrono::Utc>> {
    sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(conn).await
}

/// Makes the settings' servers the catalogue's, as its owner; a row that an operator made stays as it
/// is. Servers that the settings no longer have are not offered any more. Answers the names of those
/// that an operator's own row hides.
pub async fn offer(conn: &mut PgConnection, servers: &[CatalogueServer]) -> sqlx::Result<Vec<String>> {
    let mut hidden = Vec::new();
    for server in servers {
        let transport = match server.transport {
            Transport::Stdio => "stdio",
            Transport::StreamableHttp => "streamable_http",
            Transport::Sse => "sse",
        };
        let done = sqlx::query!(
            "INSERT INTO gristmill.mcp_servers AS s
                 (name, transport, command, arguments, env, url, parameters, believe_hints, by_config)
             VALUES ($1, $2::text::gristmill.transport, $3, $4, $5, $6, $7, $8, true)
             ON CONFLICT (name) DO UPDATE SET
                 transport = excluded.transport, command = excluded.command, arguments = excluded.arguments,
                 env = excluded.env, url = excluded.url, parameters = excluded.parameters,
                 believe_hints = excluded.believe_hints, offered = true
             WHERE s.by_config",
            server.name,
            transport,
            server.command,
            &server.arguments,
            serde_json::to_value(&server.env).unwrap_or_default(),
            server.url,
            server.parameters,
            server.believe_hints
        )
        .execute(&mut *conn)
        .await?;
        if done.rows_affected() == 0 {
            hidden.push(server.name.clone());
        }
    }
    let names: Vec<String> = servers.iter().map(|server| server.name.clone()).collect();
    sqlx::query!(
        "UPDATE gristmill.mcp_servers SET offered = false WHERE by_config AND offered AND name <> ALL ($1)",
        &names
    )
    .execute(conn)
    .await?;
    Ok(hidden)
}

/// The offered servers by name, with what starts them.
pub async fn offered(conn: &mut PgConnection) -> sqlx::Result<Vec<(String, Option<String>)>> {
    let rows = sqlx::query!("SELECT name, command FROM gristmill.mcp_servers WHERE offered ORDER BY name");
    Ok(rows.fetch_all(conn).await?.into_iter().map(|row| (row.name, row.command)).collect())
}

/// What a connection is to be.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub server: &'a str,
    pub given: &'a Value,
    /// None: as it is, or as the settings say.
    pub review: Option<&'a str>,
}

/// The tenant's connection to a server of the catalogue, made when it is new.
pub async fn connect(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    wish: &Wish<'_>,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "INSERT INTO gristmill.mcp_server_connections AS c (workspace_id, server_id, parameters, review)
         SELECT $1, id, $3, $4::text::gristmill.review_policy FROM gristmill.mcp_servers WHERE name = $2 AND offered
         ON CONFLICT (workspace_id, server_id) DO UPDATE SET
             parameters = excluded.parameters, review = coalesce(excluded.review, c.review), enabled = true
         RETURNING id",
        workspace.0,
        wish.server,
        wish.given,
        wish.review
    )
    .fetch_optional(conn)
    .await
}

/// Switches the tenant's connection off; false: there is none.
pub async fn switch_off(conn: &mut PgConnection, server: &str) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE gristmill.mcp_server_connections c SET enabled = false, status = 'disconnected', failure = NULL
         FROM gristmill.mcp_servers s WHERE s.id = c.server_id AND s.name = $1",
        server
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The tenant's connections that are in use.
pub async fn of_tenant(conn: &mut PgConnection) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!("SELECT id FROM gristmill.mcp_server_connections WHERE enabled ORDER BY id")
        .fetch_all(conn)
        .await
}

/// A server of the catalogue as a tenant sees it.
#[derive(Debug, Clone)]
pub struct Overview {
    pub name: String,
    /// Its address, or the program that it is.
    pub place: String,
    /// None: the tenant has no connection.
    pub status: Option<String>,
    pub protocol_version: Option<String>,
    pub failure: Option<String>,
    pub tools: i64,
    /// Definitions that wait for a person.
    pub waiting: i64,
}

/// The catalogue with the tenant's connections.
pub async fn overview(conn: &mut PgConnection) -> sqlx::Result<Vec<Overview>> {
    sqlx::query_as!(
        Overview,
        r#"SELECT s.name, coalesce(s.url, s.command, '') AS "place!",
                  CASE WHEN c.enabled THEN c.status::text WHEN NOT c.enabled THEN 'off' END AS status,
                  c.protocol_version AS "protocol_version?", c.failure AS "failure?",
                  (SELECT count(*) FROM gristmill.tools t WHERE t.connection_id = c.id AND t.enabled) AS "tools!",
                  (SELECT count(*) FROM gristmill.tools t JOIN gristmill.tool_definitions d ON d.id = t.definition_id
                   WHERE t.connection_id = c.id AND d.review = 'PENDING') AS "waiting!"
           FROM gristmill.mcp_servers s
           LEFT JOIN gristmill.mcp_server_connections c ON c.server_id = s.id
           WHERE s.offered ORDER BY s.name"#
    )
    .fetch_all(conn)
    .await
}
