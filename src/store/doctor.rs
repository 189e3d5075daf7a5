//! What a doctor asks of a database that may be of any version, or hold no schema at all.
//!
//! Hence these statements are checked when they run, not when they are compiled, and a table
//! that is not there is an answer.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

/// The server, and whoever logged in.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Server {
    pub version: String,
    /// 180003 is 18.3.
    pub number: i32,
    pub login: String,
    pub connections: i64,
    pub max_connections: i32,
}

/// Asks the server for its name.
pub async fn server(conn: &mut PgConnection) -> sqlx::Result<Server> {
    sqlx::query_as(
        "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
                current_user::text AS login, (SELECT count(*) FROM pg_stat_activity) AS connections,
                current_setting('max_connections')::int AS max_connections",
    )
    .fetch_one(conn)
    .await
}

/// The database's clock.
pub async fn clock(conn: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(conn).await
}

/// The version of an extension, and whether the server has it to install.
pub async fn extension(conn: &mut PgConnection, name: &str) -> sqlx::Result<(Option<String>, bool)> {
    sqlx::query_as(
        "SELECT (SELECT extversion FROM pg_extension WHERE extname = $1),
                EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)",
    )
    .bind(name)
    .fetch_one(conn)
    .await
}

/// The migrations of the ledger; none if there is no ledger.
pub async fn applied(conn: &mut PgConnection) -> sqlx::Result<Option<Vec<(i64, Vec<u8>, bool)>>> {
    if !exists(conn, "_sqlx_migrations").await? {
        return Ok(None);
    }
    let rows = "SELECT version, checksum, success FROM gristmill._sqlx_migrations ORDER BY version";
    sqlx::query_as(rows).fetch_all(conn).await.map(Some)
}

async fn exists(conn: &mut PgConnection, table: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT to_regclass('gristmill.' || quote_ident($1)) IS NOT NULL")
        .bind(table)
        .fetch_one(conn)
        .await
}

/// The worker's role, and what it should not be able to do.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Role {
    pub superuser: bool,
    pub bypasses: bool,
    /// Tables of ours that it owns, and so may unlock.
    pub owns: i64,
    /// Whether whoever logged in may take it.
    pub may_take: bool,
    /// Tables of tenants on which row-level security is off.
    pub open_tables: i64,
}

/// The role of this name, if there is one.
pub async fn role(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<Role>> {
    sqlx::query_as(
        "SELECT r.rolsuper AS superuser, r.rolbypassrls AS bypasses,
                (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'gristmill' AND c.relowner = r.oid) AS owns,
                pg_has_role(r.oid, 'MEMBER') AS may_take,
                (SELECT count(*) FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'gristmill' AND NOT c.relrowsecurity) AS open_tables
         FROM pg_roles r WHERE r.rolname = $1",
    )
    .bind(name)
    .fetch_optional(conn)
    .await
}

/// Takes the role as a worker does, and gives it back.
pub async fn try_role(conn: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    crate::store::take_role(conn, name).await?;
    sqlx::query("RESET ROLE").execute(conn).await?;
    Ok(())
}

/// Takes the role for good where whoever logged in may not look into our schema: the worker's
/// login has no rights but that of taking it.
pub async fn see_as(conn: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let may_look =
        "SELECT bool_and(has_schema_privilege(oid, 'USAGE')) FROM pg_namespace WHERE nspname = 'gristmill'";
    let may_look: Option<bool> = sqlx::query_scalar(may_look).fetch_one(&mut *conn).await?;
    if may_look == Some(false) {
        crate::store::take_role(conn, name).await?;
    }
    Ok(())
}

/// A worker as it told of itself.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct WorkerSeen {
    pub name: String,
    pub host: String,
    pub version: String,
    pub kinds: Vec<String>,
    pub seconds_ago: f64,
}

/// The workers that told of themselves in the last day; none if this schema keeps no list.
pub async fn workers(conn: &mut PgConnection) -> sqlx::Result<Option<Vec<WorkerSeen>>> {
    if !exists(conn, "workers").await? {
        return Ok(None);
    }
    let rows =
        "SELECT name, host, version, kinds, extract(epoch FROM now() - last_seen)::float8 AS seconds_ago
                FROM gristmill.workers WHERE last_seen > now() - interval '1 day' ORDER BY last_seen DESC";
    sqlx::query_as(rows).fetch_all(conn).await.map(Some)
}

/// How the queue stands.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Queue {
    pub waiting: i64,
    pub oldest_waiting_seconds: f64,
    pub waiting_kinds: Vec<String>,
    pub running: i64,
    pub lapsed: i64,
    pub parked: i64,
    pub dead: i64,
}

/// How the queue stands; none if there is no schema.
pub async fn queue(conn: &mut PgConnection) -> sqlx::Result<Option<Queue>> {
    if !exists(conn, "jobs").await? {
        return Ok(None);
    }
    let rows = "SELECT count(*) FILTER (WHERE state = 'WAITING') AS waiting,
                       coalesce(extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'WAITING')), 0)::float8
                           AS oldest_waiting_seconds,
                       coalesce(array_agg(DISTINCT kind) FILTER (WHERE state = 'WAITING'), '{}') AS waiting_kinds,
                       count(*) FILTER (WHERE state = 'RUNNING') AS running,
                       count(*) FILTER (WHERE state = 'RUNNING' AND lease_until < clock_timestamp()) AS lapsed,
                       count(*) FILTER (WHERE state = 'PARKED') AS parked,
                       count(*) FILTER (WHERE state = 'DEAD') AS dead
                FROM gristmill.jobs WHERE state NOT IN ('DONE', 'CANCELLED')";
    sqlx::query_as(rows).fetch_one(conn).await.map(Some)
}

/// Vector spaces that hold chunks search can see, with the model that made them.
pub async fn spaces_in_use(conn: &mut PgConnection) -> sqlx::Result<Vec<(String, String)>> {
    if !exists(conn, "spaces").await? {
        return Ok(Vec::new());
    }
    let rows = "SELECT model, revision FROM gristmill.spaces s
                WHERE EXISTS (SELECT FROM gristmill.generations g WHERE g.space_id = s.id AND g.status = 'INDEXED')";
    sqlx::query_as(rows).fetch_all(conn).await
}

/// The schedules that are on, each with what its leader could not do; none if there is no table.
pub async fn schedules(conn: &mut PgConnection) -> sqlx::Result<Option<Vec<(String, Option<String>)>>> {
    if !exists(conn, "schedules").await? {
        return Ok(None);
    }
    let rows = "SELECT name, problem FROM gristmill.schedules WHERE enabled ORDER BY name";
    sqlx::query_as(rows).fetch_all(conn).await.map(Some)
}
