//! Postgres: a read-only transaction, a cursor, and a second connection that can cancel.

use super::error::SqlError;
use super::relay::Relay;
use super::rows::Table;
use super::statement::{Objection, Written};
use super::target::{Server, Tls};
use super::{Asked, Sql, sort};
use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Statement, TypeInfo,
};
use std::time::Duration;

/// Rows brought at a time: a few, then ever more, since nobody knows how wide they are.
const FIRST_BATCH: usize = 1;
const LARGEST_BATCH: usize = 200;
/// What the driver takes from the environment and no option can take back.
const ENVIRONMENT: [&str; 4] = ["PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGOPTIONS"];
/// The server's own limit ends a statement whose caller is gone; ours comes first.
const GRACE: Duration = Duration::from_secs(1);

/// Tables and views with columns, keys and comments.
pub(super) const SCHEMA: &str = "
SELECT n.nspname AS table_schema, c.relname AS table_name,
       CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'view' WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind,
       obj_description(c.oid, 'pg_class') AS table_comment,
       a.attname AS column_name, format_type(a.atttypid, a.atttypmod) AS data_type, NOT a.attnotnull AS nullable,
       (SELECT string_agg(CASE k.contype WHEN 'p' THEN 'primary key' WHEN 'u' THEN 'unique'
                               ELSE 'references ' || k.confrelid::regclass::text END, ', ' ORDER BY k.contype)
        FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f') AND a.attnum = ANY (k.conkey)) AS keys,
       col_description(c.oid, a.attnum) AS column_comment
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg_toast%' AND n.nspname NOT LIKE 'pg_temp%'
  AND has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')
ORDER BY 1, 2, a.attnum";

/// What a role of a database tool must not be.
const POWERS: &str = "
SELECT r.rolsuper, r.rolbypassrls, r.rolcreaterole OR r.rolreplication AS manages,
       (SELECT string_agg(p.rolname, ', ') FROM pg_roles p
        WHERE p.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program',
                            'pg_write_all_data', 'pg_read_all_data', 'pg_maintain', 'pg_monitor',
                            'pg_read_all_settings', 'pg_read_all_stats', 'pg_signal_backend')
          AND pg_has_role(p.oid, 'MEMBER')) AS member_of
FROM pg_roles r WHERE r.rolname = current_user";

/// Whether a worker of our kind lives here.
const PLACE: &str = "
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'gristmill' AND c.relname = 'jobs')";

/// The session that is to be cancelled: a number is soon somebody else's, with a time it is not.
const SESSION: &str = "
SELECT pg_catalog.pg_backend_pid(),
       (SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid())";

const CANCEL: &str = "
SELECT pg_catalog.pg_cancel_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND backend_start = $2";

/// Functions that a dot may call and that are more than a computation or a change of type.
const CALLED: &str = "
SELECT p.proname::text FROM pg_catalog.pg_proc p
WHERE p.proname = ANY ($1::text[]::name[]) AND p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1
  AND p.provolatile <> 'i' AND NOT 'pg_catalog.internal'::regtype::oid = ANY (p.proargtypes)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_type t
                  WHERE t.oid = p.prorettype AND t.typname = p.proname AND p.pronamespace = t.typnamespace
                    AND t.typnamespace = 'pg_catalog'::regnamespace)
ORDER BY 1 LIMIT 1";

/// Which database this is, whatever its address: its cluster's number, and its own in the cluster.
const IDENTITY: &str = "
SELECT (SELECT system_identifier FROM pg_control_system()),
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database())";

/// Runs one statement that was judged, or our own listing.
pub(super) async fn ask(sql: &Sql, server: &Server, statement: &Written) -> Result<Asked, SqlError> {
    refuse_environment(|name| std::env::var_os(name).is_some())?;
    let late = || SqlError::ConnectTimeout(sql.connect);
    tokio::time::timeout(sql.connect, refuse_own_address(sql, server)).await.map_err(|_| late())??;
    let (relay, tls) = sql.way(server).await?;
    let options = options(server, &relay, tls);
    let (mut conn, session) =
        tokio::time::timeout(sql.connect, open(sql, &options)).await.map_err(|_| late())??;
    let asked = tokio::time::timeout(sql.query, read(sql, &mut conn, statement)).await;
    let Ok(asked) = asked else {
        cancel(&options, session).await;
        return Ok(Asked::Late);
    };
    // Never kept: whatever the statement did to its session ends with it.
    let _ = tokio::time::timeout(GRACE, async {
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut conn).await;
        let _ = conn.close().await;
    })
    .await;
    match asked {
        Err(_) if relay.overran() => Ok(Asked::TooMuch),
        asked => asked.or_else(sort),
    }
}

/// The worker's own certificates and settings are not for a user's server.
fn refuse_environment(is_set: impl Fn(&str) -> bool) -> Result<(), SqlError> {
    match ENVIRONMENT.iter().find(|name| is_set(name)) {
        Some(name) => Err(SqlError::Environment(name)),
        None => Ok(()),
    }
}

fn options(server: &Server, relay: &Relay, tls: Tls) -> PgConnectOptions {
    let mode = match tls {
        Tls::Off => PgSslMode::Disable,
        Tls::Prefer => PgSslMode::Prefer,
        Tls::Require => PgSslMode::Require,
        Tls::VerifyFull => PgSslMode::VerifyFull,
    };
    // Everything that the environment could name is set here or refused before: none of the
    // worker's own secrets may end up at a user's server.
    PgConnectOptions::new_without_pgpass()
        .host(&server.host)
        .port(server.port)
        .socket(relay.folder())
        .database(&server.database)
        .username(&server.username)
        .password(server.password.expose_secret())
        .ssl_mode(mode)
        .application_name("gristmill tool")
        .statement_cache_capacity(0)
        .disable_statement_logging()
}

/// Before any connection: the worker's own address is refused whatever name it goes by.
async fn refuse_own_address(sql: &Sql, server: &Server) -> Result<(), SqlError> {
    let own = sql.own.connect_options();
    if own.get_port() != server.port || own.get_database() != Some(&server.database) {
        return Ok(());
    }
    if own.get_host().eq_ignore_ascii_case(&server.host) {
        return Err(SqlError::OwnDatabase);
    }
    let look = async |host: &str| match tokio::net::lookup_host((host, server.port)).await {
        Ok(found) => found.map(|address| address.ip()).collect::<Vec<_>>(),
        Err(_) => Vec::new(),
    };
    let (ours, theirs) = (look(own.get_host()).await, look(&server.host).await);
    if ours.iter().any(|address| theirs.contains(address)) { Err(SqlError::OwnDatabase) } else { Ok(()) }
}

/// A backend and when it began.
type Session = (i32, Option<DateTime<Utc>>);

/// Connects, looks at who we are and where, and begins, before a statement of a user runs.
async fn open(sql: &Sql, options: &PgConnectOptions) -> Result<(PgConnection, Session), SqlError> {
    let mut conn = options.connect().await.map_err(SqlError::connecting)?;
    // No prepared statement is kept: behind a pooler the next one may meet another backend.
    let has_worker: bool =
        sqlx::query_scalar(PLACE).persistent(false).fetch_one(&mut conn).await.map_err(SqlError::Lost)?;
    // Some providers keep the cluster's number to themselves; the worker's tables tell too.
    let theirs: Option<(i64, i64)> =
        sqlx::query_as(IDENTITY).persistent(false).fetch_one(&mut conn).await.ok();
    let ours: Option<(i64, i64)> = match theirs {
        Some(_) => sqlx::query_as(IDENTITY).fetch_one(&sql.own).await.ok(),
        None => None,
    };
    if has_worker || (theirs.is_some() && theirs == ours) {
        return Err(SqlError::OwnDatabase);
    }
    if sql.refuse_powerful_roles {
        refuse_power(&mut conn).await?;
    }
    let session = begin(sql, &mut conn).await.map_err(SqlError::Lost)?;
    Ok((conn, session))
}

/// Begins the transaction; within it, even a pooler leaves us the backend that is told of here.
async fn begin(sql: &Sql, conn: &mut PgConnection) -> sqlx::Result<Session> {
    let limit = (sql.query + GRACE).as_millis();
    // LOCAL: behind a pooler, a session's settings would meet its next user.
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = {limit}; \
         SET LOCAL lock_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {}; \
         SET LOCAL standard_conforming_strings = on",
        limit * 2
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *conn).await?;
    sqlx::query_as(SESSION).persistent(false).fetch_one(conn).await
}

async fn refuse_power(conn: &mut PgConnection) -> Result<(), SqlError> {
    let row = sqlx::query(POWERS).persistent(false).fetch_one(conn).await.map_err(SqlError::Lost)?;
    let is = |what: &str| row.try_get::<bool, _>(what).unwrap_or(true);
    let powers =
        [("rolsuper", "SUPERUSER"), ("rolbypassrls", "BYPASSRLS"), ("manages", "CREATEROLE or REPLICATION")];
    if let Some((_, name)) = powers.iter().find(|(column, _)| is(column)) {
        return Err(SqlError::PowerfulRole((*name).to_owned()));
    }
    match row.try_get::<Option<String>, _>("member_of").map_err(SqlError::Lost)? {
        None => Ok(()),
        Some(roles) => Err(SqlError::PowerfulRole(format!("it is a member of {roles}"))),
    }
}

/// The statement, within a transaction that is never committed.
async fn read(sql: &Sql, conn: &mut PgConnection, written: &Written) -> sqlx::Result<Asked> {
    if let Some(name) = called(conn, written).await? {
        return Ok(Asked::NotRun(Objection::Called(name)));
    }
    let statement = &written.text;
    let described = (&mut *conn).prepare(AssertSqlSafe(statement.to_owned()).into_sql_str()).await?;
    let columns: Vec<String> = described.columns().iter().map(|column| column.name().to_owned()).collect();
    let kinds: Vec<String> =
        described.columns().iter().map(|column| column.type_info().name().to_ascii_lowercase()).collect();
    if columns.is_empty() {
        return Ok(Asked::Refused("it gives no columns".to_owned()));
    }
    drop(described);
    sqlx::query(AssertSqlSafe(cursor(statement, columns.len(), sql.caps.bytes)))
        .persistent(false)
        .execute(&mut *conn)
        .await?;
    let mut rows = Table::new(columns);
    let mut wanted = FIRST_BATCH;
    loop {
        let fetch = format!("FETCH FORWARD {wanted} FROM gristmill_cursor");
        let batch = sqlx::query(AssertSqlSafe(fetch)).persistent(false).fetch_all(&mut *conn).await?;
        let is_last = batch.len() < wanted;
        wanted = (wanted * 2).min(LARGEST_BATCH);
        for row in batch {
            let values: sqlx::Result<Vec<_>> =
                kinds.iter().enumerate().map(|(i, kind)| Ok(value(kind, row.try_get(i)?))).collect();
            if !rows.push(values?, sql.caps) {
                return Ok(Asked::Rows(rows));
            }
        }
        if is_last {
            return Ok(Asked::Rows(rows));
        }
    }
}

/// A function that the statement would call by a dot.
async fn called(conn: &mut PgConnection, written: &Written) -> sqlx::Result<Option<String>> {
    if written.fields.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = written.fields.iter().map(String::as_str).collect();
    sqlx::query_scalar(CALLED).persistent(false).bind(names).fetch_optional(conn).await
}

/// The statement within a cursor, each column as a text that the server cuts to a character more
/// than there is room for, so that the cut is seen.
fn cursor(statement: &str, columns: usize, longest: usize) -> String {
    let names: Vec<_> = (0..columns).map(|i| format!("c{i}")).collect();
    let texts: Vec<_> = names.iter().map(|name| format!("left({name}::text, {})", longest + 1)).collect();
    format!(
        "DECLARE gristmill_cursor NO SCROLL CURSOR FOR SELECT {} FROM (\n{statement}\n) AS asked({})",
        texts.join(", "),
        names.join(", ")
    )
}

/// A text of the server's as JSON, where JSON has such a type. Numbers within JSON are read as
/// the worker reads all JSON: beyond 64 bits, digits are lost.
fn value(kind: &str, text: Option<String>) -> Value {
    let Some(text) = text else { return Value::Null };
    let read = match kind {
        "bool" => match text.as_str() {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            _ => None,
        },
        "int2" | "int4" | "int8" | "oid" => text.parse::<i64>().ok().map(Value::from),
        // Not a number is none in JSON; it stays a text.
        "float4" | "float8" => text.parse::<f64>().ok().filter(|n| n.is_finite()).map(Value::from),
        "json" | "jsonb" => serde_json::from_str(&text).ok(),
        _ => None,
    };
    read.unwrap_or(Value::String(text))
}

/// Stops the statement on its server: a lost connection alone would not.
async fn cancel(options: &PgConnectOptions, (pid, began): Session) {
    let stopped = tokio::time::timeout(GRACE, async {
        let mut second = options.connect().await?;
        sqlx::query(CANCEL).persistent(false).bind(pid).bind(began).execute(&mut second).await?;
        second.close().await
    })
    .await;
    if !matches!(stopped, Ok(Ok(()))) {
        tracing::warn!(
            db.backend = pid,
            "a late statement could not be cancelled; the server's own limit will"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_s_own_certificate_goes_to_no_user_s_server() {
        assert!(refuse_environment(|_| false).is_ok());
        let refused = refuse_environment(|name| name == "PGSSLKEY");
        assert!(matches!(refused, Err(SqlError::Environment("PGSSLKEY"))), "{refused:?}");
    }
}
