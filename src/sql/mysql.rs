//! MySQL and MariaDB: a read-only transaction, and a second connection that can kill.

use super::error::SqlError;
use super::relay::Relay;
use super::rows::Table;
use super::target::{Server, Tls};
use super::{Asked, Sql, sort};
use futures::TryStreamExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::mysql::types::MySqlTime;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow, MySqlSslMode};
use sqlx::types::chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Statement, TypeInfo,
    ValueRef,
};
use std::fmt::Display;
use std::time::Duration;

/// For the cancel and for the goodbye.
const GRACE: Duration = Duration::from_secs(1);

/// Tables and views with columns, keys and comments.
pub(super) const SCHEMA: &str = "
SELECT c.table_schema AS table_schema, c.table_name AS table_name,
       CASE t.table_type WHEN 'VIEW' THEN 'view' ELSE 'table' END AS kind, t.table_comment AS table_comment,
       c.column_name AS column_name, c.column_type AS data_type, c.is_nullable = 'YES' AS nullable,
       (SELECT GROUP_CONCAT(CASE WHEN k.constraint_name = 'PRIMARY' THEN 'primary key'
                                 WHEN k.referenced_table_name IS NULL THEN 'unique'
                                 ELSE CONCAT('references ', k.referenced_table_name) END SEPARATOR ', ')
        FROM information_schema.key_column_usage k
        WHERE k.table_schema = c.table_schema AND k.table_name = c.table_name AND k.column_name = c.column_name)
           AS `keys`,
       c.column_comment AS column_comment
FROM information_schema.columns c
JOIN information_schema.tables t ON t.table_schema = c.table_schema AND t.table_name = c.table_name
WHERE c.table_schema NOT IN ('information_schema', 'mysql', 'performance_schema', 'sys')
ORDER BY 1, 2, c.ordinal_position";

/// What a role may hold on everything without being more than a reader.
const HARMLESS: [&str; 4] = ["USAGE", "SELECT", "SHOW VIEW", "SHOW DATABASES"];

/// How quotes and backslashes are read: as the judge read them.
pub(super) const MODE: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// Runs one statement that was judged, or our own listing.
pub(super) async fn ask(sql: &Sql, server: &Server, statement: &str) -> Result<Asked, SqlError> {
    let (relay, tls) = sql.way(server).await?;
    let options = options(server, &relay, tls);
    let (mut conn, id) = tokio::time::timeout(sql.connect, open(sql, &options))
        .await
        .unwrap_or(Err(SqlError::ConnectTimeout(sql.connect)))?;
    let asked = tokio::time::timeout(sql.query, read(sql, &mut conn, statement)).await;
    match asked {
        Err(_) => {
            kill(&options, id).await;
            Ok(Asked::Late)
        }
        // Rows that were not fetched are still on their way: the server is told to stop.
        Ok(Ok(Asked::Rows(rows))) if rows.truncated => {
            kill(&options, id).await;
            Ok(Asked::Rows(rows))
        }
        Ok(asked) => {
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
    }
}

fn options(server: &Server, relay: &Relay, tls: Tls) -> MySqlConnectOptions {
    let mode = match tls {
        Tls::Off => MySqlSslMode::Disabled,
        Tls::Prefer => MySqlSslMode::Preferred,
        Tls::Require => MySqlSslMode::Required,
        Tls::VerifyFull => MySqlSslMode::VerifyIdentity,
    };
    MySqlConnectOptions::new()
        .host(&server.host)
        .port(server.port)
        .socket(relay.socket())
        .database(&server.database)
        .username(&server.username)
        .password(server.password.expose_secret())
        .ssl_mode(mode)
        .pipes_as_concat(false)
        .statement_cache_capacity(0)
        .disable_statement_logging()
}

async fn open(sql: &Sql, options: &MySqlConnectOptions) -> Result<(MySqlConnection, u64), SqlError> {
    let mut conn = options.connect().await.map_err(SqlError::connecting)?;
    let id =
        sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut conn).await.map_err(SqlError::Lost)?;
    if sql.refuse_powerful_roles {
        let grants = sqlx::query("SHOW GRANTS").fetch_all(&mut conn).await.map_err(SqlError::Lost)?;
        for grant in grants {
            let text: String = grant.try_get_unchecked(0).map_err(SqlError::Lost)?;
            if let Some(power) = power(&text) {
                return Err(SqlError::PowerfulRole(power));
            }
        }
    }
    Ok((conn, id))
}

/// What a grant on everything allows beyond reading.
pub(super) fn power(grant: &str) -> Option<String> {
    let (rights, _) = grant.strip_prefix("GRANT ")?.split_once(" ON *.* TO ")?;
    rights.split(", ").find(|right| !HARMLESS.contains(right)).map(|right| format!("{right} on everything"))
}

/// The whole of a call, within a transaction that is never committed.
async fn read(sql: &Sql, conn: &mut MySqlConnection, statement: &str) -> sqlx::Result<Asked> {
    sqlx::raw_sql(MODE).execute(&mut *conn).await?;
    let limit = format!("SET SESSION sql_select_limit = {}, transaction_read_only = 1", sql.caps.rows + 1);
    let older = limit.replace("transaction_read_only", "tx_read_only");
    if sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *conn).await.is_err() {
        sqlx::raw_sql(AssertSqlSafe(older)).execute(&mut *conn).await?;
    }
    let (seconds, millis) = ((sql.query + GRACE).as_secs_f64(), (sql.query + GRACE).as_millis());
    // MariaDB's name and unit, then MySQL's: whichever this server knows.
    for own_limit in [
        format!("SET SESSION max_statement_time = {seconds}"),
        format!("SET SESSION max_execution_time = {millis}"),
    ] {
        let _ = sqlx::raw_sql(AssertSqlSafe(own_limit)).execute(&mut *conn).await;
    }
    sqlx::raw_sql("START TRANSACTION READ ONLY").execute(&mut *conn).await?;
    let described = (&mut *conn).prepare(AssertSqlSafe(statement.to_owned()).into_sql_str()).await?;
    let columns = described.columns().iter().map(|column| column.name().to_owned()).collect();
    drop(described);
    let mut rows = Table::new(columns);
    let mut found = sqlx::query(AssertSqlSafe(statement.to_owned())).persistent(false).fetch(&mut *conn);
    while let Some(row) = found.try_next().await? {
        let values = (0..row.len()).map(|i| value(&row, i)).collect();
        if !rows.push(values, sql.caps) {
            break;
        }
    }
    Ok(Asked::Rows(rows))
}

/// A value as JSON, where JSON has such a type and loses nothing; bytes that are no text as hexadecimal.
fn value(row: &MySqlRow, i: usize) -> Value {
    let kind = match row.try_get_raw(i) {
        Ok(raw) if raw.is_null() => return Value::Null,
        Ok(raw) => raw.type_info().name().to_owned(),
        Err(_) => return Value::Null,
    };
    let read = match kind.as_str() {
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            row.try_get_unchecked::<i64, _>(i).ok().map(Value::from)
        }
        "FLOAT" => row.try_get_unchecked::<f32, _>(i).ok().map(Value::from),
        "DOUBLE" => row.try_get_unchecked::<f64, _>(i).ok().map(Value::from),
        "DATE" => text(row.try_get_unchecked::<NaiveDate, _>(i)),
        "DATETIME" => text(row.try_get_unchecked::<NaiveDateTime, _>(i)),
        "TIMESTAMP" => row.try_get_unchecked::<DateTime<Utc>, _>(i).ok().map(|at| at.to_rfc3339().into()),
        "TIME" => text(row.try_get_unchecked::<MySqlTime, _>(i)),
        "JSON" => row.try_get_unchecked::<Value, _>(i).ok(),
        kind if kind.ends_with("UNSIGNED") || matches!(kind, "YEAR" | "BIT") => {
            row.try_get_unchecked::<u64, _>(i).ok().map(Value::from)
        }
        kind if kind.ends_with("BLOB") || kind.ends_with("BINARY") || kind == "GEOMETRY" => {
            row.try_get_unchecked::<Vec<u8>, _>(i).ok().map(bytes)
        }
        _ => None,
    };
    read.or_else(|| text(row.try_get_unchecked::<String, _>(i))).unwrap_or_else(|| format!("({kind})").into())
}

fn text<T: Display>(value: sqlx::Result<T>) -> Option<Value> {
    value.ok().map(|value| Value::String(value.to_string()))
}

/// A text with a binary collation comes as bytes too.
fn bytes(bytes: Vec<u8>) -> Value {
    let is_text = |text: &String| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    match String::from_utf8(bytes.clone()).ok().filter(is_text) {
        Some(text) => Value::String(text),
        None => format!("0x{}", hex::encode(bytes)).into(),
    }
}

/// Stops the statement and its session on the server.
async fn kill(options: &MySqlConnectOptions, id: u64) {
    let stopped = tokio::time::timeout(GRACE, async {
        let mut second = options.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}"))).execute(&mut second).await?;
        second.close().await
    })
    .await;
    if !matches!(stopped, Ok(Ok(()))) {
        tracing::warn!(
            db.connection = id,
            "a late statement could not be killed; the server's own limit will"
        );
    }
}
