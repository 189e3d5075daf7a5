//! The schema keeps its promises whoever writes: states, tenants, money, history, migrations.
//!
//! These tests need a server (`DATABASE_URL`, a superuser); each has a database of its own.

mod chat;
mod edges;
mod migrating;
mod money;
mod tenancy;

use std::path::PathBuf;

use gristmill::MIGRATOR;
use sqlx::AssertSqlSafe;
use sqlx::PgConnection;
use sqlx::PgPool;

/// The workspace that all sample rows belong to.
const ACME: &str = "00000000-0000-7000-8000-00000000000a";
/// A workspace without rows.
const BIRCH: &str = "00000000-0000-7000-8000-00000000000b";

const CHECK_VIOLATION: &str = "23514";
const UNIQUE_VIOLATION: &str = "23505";
const FOREIGN_KEY_VIOLATION: &str = "23503";
const RESTRICT_VIOLATION: &str = "23001";
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The sample rows that belong to one migration's tables.
fn samples(version: i64, description: &str) -> anyhow::Result<String> {
    let path: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests/data/migrations",
        &format!("{version:04}_{}.sql", description.replace(' ', "_")),
    ]
    .iter()
    .collect();
    std::fs::read_to_string(&path)
        .map_err(|e| anyhow::anyhow!("each migration has sample rows in {}: {e}", path.display()))
}

async fn insert_samples(db: &PgPool) -> anyhow::Result<()> {
    for migration in MIGRATOR.iter() {
        let sql = samples(migration.version, &migration.description)?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
    }
    Ok(())
}

async fn run(conn: &mut PgConnection, sql: &str) -> sqlx::Result<u64> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(conn).await?;
    Ok(done.rows_affected())
}

/// The names that a catalogue query answers with.
async fn names(db: &PgPool, sql: &'static str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(sql).fetch_all(db).await
}

/// The SQLSTATE that the statement was refused with; a statement that passes fails the test.
#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: sqlx::Result<T>) -> String {
    match outcome {
        Err(sqlx::Error::Database(e)) => e.code().unwrap_or_default().into_owned(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Runs in a transaction that is rolled back, so that refusals leave nothing behind.
async fn attempt(db: &PgPool, sql: &str) -> sqlx::Result<u64> {
    let mut tx = db.begin().await?;
    run(&mut tx, sql).await
}

/// Tables with a `workspace_id`; all but `jobs` are closed by row-level security.
async fn tenant_tables(db: &PgPool) -> sqlx::Result<Vec<String>> {
    names(
        db,
        "SELECT c.relname::text FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
         WHERE c.relnamespace = 'gristmill'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'jobs'
         ORDER BY 1",
    )
    .await
}
