//! Tables: one file each, free functions over an executor. All SQL of the program is here and
//! in `queue`; stores know no services.
//!
//! Row-level security binds every statement: a transaction sees the tenant that
//! [`enter`](crate::queue::Lease::enter) or [`tenant`] set, and without one it sees no rows.

pub mod attachments;
pub mod bench;
pub mod chunks;
pub mod events;
pub mod extractions;
pub mod generations;
pub mod jobs;
pub mod outcomes;
pub mod reports;
pub mod resources;
pub mod search;
pub mod tenants;
pub mod verdicts;

use crate::config;
use crate::domain::WorkspaceId;
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};
use std::str::FromStr;
use std::time::Duration;

/// A transaction of the worker.
pub type Tx = Transaction<'static, Postgres>;

/// The working pool. Every connection takes the worker's role, so that row-level security
/// binds it whoever logged in.
pub async fn connect(settings: &config::Database) -> sqlx::Result<PgPool> {
    let url = settings.url.as_ref().map(ExposeSecret::expose_secret).unwrap_or_default();
    let options = PgConnectOptions::from_str(url)?.application_name("gristmill");
    pool(options, &settings.role, settings.max_connections).await
}

/// [`connect`] from parsed options, as tests have them.
pub async fn pool(options: PgConnectOptions, role: &str, connections: u32) -> sqlx::Result<PgPool> {
    let role = role.to_owned();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(30))
        .after_connect(move |connection, _| {
            let role = role.clone();
            Box::pin(async move { take_role(connection, &role).await })
        })
        .connect_with(options)
        .await
}

/// Takes the worker's role on a fresh connection.
pub async fn take_role(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    // An identifier cannot be a parameter: quoted by the database itself.
    let statement: String =
        sqlx::query_scalar("SELECT format('SET ROLE %I', $1)").bind(role).fetch_one(&mut *connection).await?;
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

/// Begins a transaction that a cancelled caller cannot poison.
///
/// sqlx 0.9.0 hands a connection back to the pool inside an open transaction when `begin()` is
/// dropped half-way, and the next borrower's writes are lost (transact-rs/sqlx#4393). Here the
/// begin runs in a task of its own: a caller that goes away leaves it to finish and roll back.
pub async fn begin(db: &PgPool) -> sqlx::Result<Tx> {
    let db = db.clone();
    #[expect(clippy::disallowed_methods, reason = "this is the guarded place")]
    let begun = tokio::spawn(async move { db.begin().await });
    begun.await.map_err(|error| sqlx::Error::Protocol(error.to_string()))?
}

/// Begins a transaction that sees one tenant; for readers and commands that hold no job.
pub async fn tenant(db: &PgPool, workspace: WorkspaceId) -> sqlx::Result<Tx> {
    let mut tx = begin(db).await?;
    sqlx::query_scalar!("SELECT set_config('gristmill.workspace', $1, true)", workspace.to_string())
        .fetch_one(&mut *tx)
        .await?;
    Ok(tx)
}

/// A write that had to hit exactly one row hit another number.
pub(crate) fn exactly_one(done: &sqlx::postgres::PgQueryResult) -> sqlx::Result<()> {
    if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

fn decoded<T, E: std::error::Error + Send + Sync + 'static>(value: Result<T, E>) -> sqlx::Result<T> {
    value.map_err(|error| sqlx::Error::Decode(error.into()))
}
