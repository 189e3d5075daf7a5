//! Tables: one file each, free functions over an executor. All SQL of the program is here and
//! in `queue`; stores know no services.
//!
//! Row-level security binds every statement: a transaction sees the tenant that
//! [`enter`](crate::queue::Lease::enter) or [`tenant`] set, and without one it sees no rows.

pub mod attachments;
pub mod bench;
pub mod budgets;
pub mod bytes;
pub mod chats;
pub mod chunks;
pub mod doctor;
pub mod events;
pub mod extractions;
pub mod generations;
pub mod invariants;
pub mod jobs;
pub mod leftovers;
pub mod line;
pub mod mcp_servers;
pub mod migrations;
pub mod outcomes;
pub mod profiles;
pub mod reports;
pub mod resources;
pub mod runtime_statuses;
pub mod schedules;
pub mod search;
pub mod sweeps;
pub mod tenants;
pub mod tool_access;
pub mod tool_attempts;
pub mod tool_calls;
pub mod tool_credentials;
pub mod tool_definitions;
pub mod tool_policies;
pub mod tool_reports;
pub mod tool_results;
pub mod tool_subjects;
pub mod user_keys;
pub mod verdicts;

use crate::config;
use crate::domain::WorkspaceId;
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Postgres, Row, Transaction};
use std::str::FromStr;
use std::time::Duration;

/// A transaction of the worker.
pub type Tx = Transaction<'static, Postgres>;

/// How long a connection of the pool may take to show that it is sound.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to reach a database that is not there yet.
const PAUSE: Duration = Duration::from_secs(1);

/// The working pool. Every connection takes the worker's role, so that row-level security
/// binds it whoever logged in. A database that is not there yet is waited for.
pub async fn connect(settings: &config::Database) -> sqlx::Result<PgPool> {
    let url = settings.url.as_ref().map(ExposeSecret::expose_secret).unwrap_or_default();
    let options = PgConnectOptions::from_str(url)?.application_name("gristmill");
    reach(&options, Duration::from_secs_f64(settings.connect_seconds)).await?;
    pool(options, &settings.role, settings.max_connections).await
}

/// Waits until the database takes connections; what waiting does not mend is told at once.
pub async fn reach(options: &PgConnectOptions, patience: Duration) -> sqlx::Result<()> {
    let began = tokio::time::Instant::now();
    loop {
        let error = match line::in_time(PATIENCE, options.connect()).await {
            Ok(connection) => return connection.close().await,
            Err(error) => error,
        };
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() || !mends_itself(&error) {
            return Err(error);
        }
        tracing::warn!(
            %error,
            host = options.get_host(),
            port = options.get_port(),
            "the database does not answer; trying for {} s more",
            left.as_secs()
        );
        tokio::time::sleep(PAUSE.min(left)).await;
    }
}

/// Whether a failed connect is one of a database that starts, stops, or is out of reach.
fn mends_itself(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        // Starting up or shutting down (57P), and too many connections.
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("53"))
        }
        _ => false,
    }
}

/// [`connect`] from parsed options, as tests have them.
pub async fn pool(options: PgConnectOptions, role: &str, connections: u32) -> sqlx::Result<PgPool> {
    let role = role.to_owned();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(30))
        // The guard asks more than sqlx's own test does, and costs the same one round trip.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(line::in_time(PATIENCE, is_outside_transaction(connection))))
        // sqlx tests a connection that comes back too, but waits for the answer without limit,
        // and the place in the pool is gone as long.
        .after_release(|connection, _| {
            Box::pin(async { line::in_time(PATIENCE, connection.ping()).await.map(|()| true) })
        })
        .after_connect(move |connection, _| {
            let role = role.clone();
            Box::pin(async move { line::in_time(PATIENCE, take_role(connection, &role)).await })
        })
        .connect_with(options)
        .await
}

/// The guard on every loan: refuses a connection that was left inside a transaction.
///
/// sqlx 0.9.0 gives a connection back in an open transaction when `begin()` is dropped half-way
/// (see [`begin`]); what the next borrower writes would be lost with it. Outside a transaction
/// a statement's transaction begins with it, so both times are equal; inside one it began
/// earlier; inside a failed one the question is an error, which refuses the connection too.
///
/// It must be a simple query: the extended protocol times its transaction by `Bind` and its
/// statement by `Execute`, which are never equal.
async fn is_outside_transaction(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let asked = sqlx::raw_sql("SELECT statement_timestamp() = transaction_timestamp()");
    let outside: bool = asked.fetch_one(connection).await?.try_get(0)?;
    if !outside {
        tracing::warn!("a connection came back inside a transaction; it is closed");
    }
    Ok(outside)
}

/// Takes the worker's role on a fresh connection, and has the server notice when we are gone:
/// a session behind a dead wire would hold its locks for hours.
pub async fn take_role(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    sqlx::query(
        "SELECT set_config('role', $1, false), set_config('tcp_keepalives_idle', '30', false),
                set_config('tcp_keepalives_interval', '10', false), set_config('tcp_keepalives_count', '3', false),
                set_config('tcp_user_timeout', '60000', false),
                set_config('client_connection_check_interval', '5000', false)",
    )
    .bind(role)
    .execute(connection)
    .await?;
    Ok(())
}

/// Begins a transaction that a cancelled caller cannot poison.
///
/// sqlx 0.9.0 hands a connection back to the pool inside an open transaction when `begin()` is
/// dropped half-way, and the next borrower's writes are lost (transact-rs/sqlx#4393). Here the
/// begin runs in a task of its own: a caller that goes away leaves it to finish and roll back.
/// The pool's guard is the second lock, for a `begin` that did not come this way.
pub async fn begin(db: &PgPool) -> sqlx::Result<Tx> {
    let db = db.clone();
    let begun = tokio::spawn(async move {
        let connection = db.acquire().await?;
        // The pool tells a connection that is given up here from a sound one.
        line::in_time(PATIENCE, Transaction::begin(connection, None)).await
    });
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
