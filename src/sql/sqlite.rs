//! SQLite: a file that is opened to be read, and a clock that interrupts.

use super::error::SqlError;
use super::rows::Table;
use super::{Asked, Sql, sort};
use futures::TryStreamExt;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Statement, TypeInfo,
    ValueRef,
};
use std::path::Path;
use std::time::{Duration, Instant};

/// Steps of SQLite's machine between two looks at the clock.
const STEPS: i32 = 1_000;
/// For the goodbye, and for a step that is long.
const GRACE: Duration = Duration::from_secs(1);

/// Tables and views with columns and keys; SQLite has no comments, so the definition stands for them.
pub(super) const SCHEMA: &str = "
SELECT 'main' AS table_schema, m.name AS table_name, m.type AS kind, c.name AS column_name, c.type AS data_type,
       c.\"notnull\" = 0 AS nullable,
       trim(CASE WHEN c.pk > 0 THEN 'primary key' ELSE '' END || coalesce(
           (SELECT ' references ' || f.\"table\" FROM pragma_foreign_key_list(m.name) f WHERE f.\"from\" = c.name), ''))
           AS keys,
       CASE WHEN c.cid = 0 THEN m.sql END AS definition
FROM sqlite_schema m, pragma_table_info(m.name) c
WHERE m.type IN ('table', 'view') AND m.name NOT LIKE 'sqlite_%'
ORDER BY m.name, c.cid";

/// Runs one statement that was judged, or our own listing.
pub(super) async fn ask(sql: &Sql, file: &Path, statement: &str) -> Result<Asked, SqlError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(sql.query)
        .pragma("query_only", "ON")
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON")
        .pragma("mmap_size", "0")
        .pragma("hard_heap_limit", sql.sqlite_memory_bytes.to_string())
        .statement_cache_capacity(0)
        .disable_statement_logging();
    let mut conn = options.connect().await.map_err(SqlError::Connect)?;
    let end = Instant::now() + sql.query;
    match conn.lock_handle().await {
        Ok(mut handle) => handle.set_progress_handler(STEPS, move || Instant::now() < end),
        Err(error) => return Err(SqlError::Connect(error)),
    }
    let asked = tokio::time::timeout(sql.query + GRACE, read(sql, &mut conn, statement)).await;
    let is_late = Instant::now() >= end;
    let _ = tokio::time::timeout(GRACE, conn.close()).await;
    match asked {
        Err(_) => Ok(Asked::Late),
        Ok(Err(_)) if is_late => Ok(Asked::Late),
        Ok(asked) => asked.or_else(sort),
    }
}

async fn read(sql: &Sql, conn: &mut SqliteConnection, statement: &str) -> sqlx::Result<Asked> {
    sqlx::raw_sql("BEGIN").execute(&mut *conn).await?;
    let described = (&mut *conn).prepare(AssertSqlSafe(statement.to_owned()).into_sql_str()).await?;
    let columns = described.columns().iter().map(|column| column.name().to_owned()).collect();
    drop(described);
    let mut rows = Table::new(columns);
    {
        let mut found = sqlx::query(AssertSqlSafe(statement.to_owned())).persistent(false).fetch(&mut *conn);
        while let Some(row) = found.try_next().await? {
            let values = (0..row.len()).map(|i| value(&row, i, sql.caps.bytes)).collect();
            if !rows.push(values, sql.caps) {
                break;
            }
        }
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut *conn).await?;
    Ok(Asked::Rows(rows))
}

/// A value as what it is, whatever its column was declared; bytes as hexadecimal. Of a long one
/// no more is copied than shows that it is too long.
fn value(row: &SqliteRow, i: usize, longest: usize) -> Value {
    let kind = match row.try_get_raw(i) {
        Ok(raw) if raw.is_null() => return Value::Null,
        Ok(raw) => raw.type_info().name().to_owned(),
        Err(_) => return Value::Null,
    };
    let read = match kind.as_str() {
        "INTEGER" | "BOOLEAN" => row.try_get_unchecked::<i64, _>(i).ok().map(Value::from),
        "REAL" => row.try_get_unchecked::<f64, _>(i).ok().map(Value::from),
        "BLOB" => row
            .try_get_unchecked::<&[u8], _>(i)
            .ok()
            .map(|bytes| format!("0x{}", hex::encode(&bytes[..bytes.len().min(longest)])).into()),
        _ => None,
    };
    let text = |text: &str| text[..text.floor_char_boundary(longest + 1)].to_owned();
    read.or_else(|| row.try_get_unchecked::<&str, _>(i).ok().map(|found| Value::String(text(found))))
        .unwrap_or_else(|| format!("({kind})").into())
}
