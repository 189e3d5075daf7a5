//! The custom tool `database`: a model's question to somebody's Postgres, MySQL or SQLite.
//!
//! Nothing is written, by layers that each would do: a role that may only read (others are
//! refused), one statement made of known harmless parts (`statement`), the extended protocol,
//! which takes no second one, a READ ONLY transaction that is always rolled back, our own clock
//! with a cancel over a second connection, a connection that is closed after each call, caps on
//! rows and bytes, and the guard before any address. The worker's own database is never a target.
//!
//! Accepted race: a call whose future is dropped leaves its statement to the server's own limit,
//! a second after ours.

mod error;
mod expressions;
mod functions;
mod mysql;
mod postgres;
mod relay;
mod rows;
mod sqlite;
mod statement;
mod target;

pub use error::SqlError;
pub use target::{Engine, origin};

use crate::config;
use crate::domain::{Saved, ToolOutput, WorkspaceId};
use crate::guard::Guard;
use relay::{Limits, Relay};
use rows::{Caps, Table};
use serde_json::{Value, json};
use sqlx::PgPool;
use statement::{Objection, Written};
use std::net::SocketAddr;
use std::time::Duration;
use target::{Server, Target, Tls};

/// A database that a tool may ask.
#[derive(Debug, Clone, Copy)]
pub struct Database<'a> {
    /// `postgres://host:port/name`, `mysql://host:port/name` or `sqlite:file`, with no secret in it.
    pub endpoint: &'a str,
    /// A [`crate::domain::Credential::Basic`].
    pub saved: Option<Saved<'a>>,
    pub workspace: WorkspaceId,
}

/// Asks databases.
#[derive(Debug, Clone)]
pub struct Sql {
    guard: Guard,
    own: PgPool,
    connect: Duration,
    query: Duration,
    caps: Caps,
    max_wire_bytes: u64,
    refuse_powerful_roles: bool,
    sqlite_folder: String,
    sqlite_memory_bytes: u64,
    /// Off only in the tests that show that the other layers hold.
    judged: bool,
}

/// What came of asking a server.
enum Asked {
    Rows(Table),
    /// The database's own words against the statement.
    Refused(String),
    /// Our time was up, and the statement is cancelled.
    Late,
    /// The server sent more than is taken in.
    TooMuch,
    /// The database knows a reason that the text does not show.
    NotRun(Objection),
}

/// The most of a server's own words that is told.
const LONGEST_WORDS: usize = 2_000;

/// How a driver's error is taken, once the connection stands.
fn sort(error: sqlx::Error) -> Result<Asked, SqlError> {
    match error {
        sqlx::Error::Database(fault) => {
            Ok(Asked::Refused(fault.message().chars().take(LONGEST_WORDS).collect()))
        }
        error @ (sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }) => {
            Ok(Asked::Refused(error.to_string().chars().take(LONGEST_WORDS).collect()))
        }
        error => Err(SqlError::Lost(error)),
    }
}

impl Sql {
    /// `own` is the worker's own pool: its database is refused as a target.
    pub fn new(settings: &config::Sql, guard: Guard, own: PgPool) -> Self {
        Self {
            guard,
            own,
            connect: Duration::from_secs_f64(settings.connect_seconds),
            query: Duration::from_secs_f64(settings.query_seconds),
            caps: Caps { rows: settings.max_rows, bytes: settings.max_bytes },
            max_wire_bytes: settings.max_wire_bytes,
            refuse_powerful_roles: settings.refuse_powerful_roles,
            sqlite_folder: settings.sqlite_folder.clone(),
            sqlite_memory_bytes: settings.sqlite_memory_bytes,
            judged: true,
        }
    }

    /// Runs one query that only reads.
    ///
    /// A refused statement, a fault of the database and a time-out are outputs, for the model to
    /// mend its query by.
    pub async fn query(&self, database: &Database<'_>, sql: &str) -> Result<ToolOutput, SqlError> {
        let (engine, _) = target::read(database.endpoint)?;
        let written = match statement::judge(engine, sql) {
            Ok(written) => written,
            Err(_) if !self.judged => Written::ours(sql),
            Err(objection) => return Ok(not_run(&objection)),
        };
        self.run(database, &written).await
    }

    /// Lists tables with their columns, keys and comments, so that a query can be written.
    pub async fn schema(&self, database: &Database<'_>) -> Result<ToolOutput, SqlError> {
        let (engine, _) = target::read(database.endpoint)?;
        let listing = match engine {
            Engine::Postgres => postgres::SCHEMA,
            Engine::MySql => mysql::SCHEMA,
            Engine::Sqlite => sqlite::SCHEMA,
        };
        self.run(database, &Written::ours(listing)).await
    }

    async fn run(&self, database: &Database<'_>, sql: &Written) -> Result<ToolOutput, SqlError> {
        let saved = database.saved.as_ref();
        let target = Target::read(database.endpoint, saved, &self.sqlite_folder, database.workspace.0)?;
        let asked = match target {
            Target::Postgres(server) => postgres::ask(self, &server, sql).await?,
            Target::MySql(server) => mysql::ask(self, &server, &sql.text).await?,
            Target::Sqlite(file) => sqlite::ask(self, &file, &sql.text).await?,
        };
        Ok(match asked {
            Asked::Rows(rows) => rows.output(),
            Asked::Refused(words) => {
                ToolOutput::error(format!("The database refused the statement: {words}"))
            }
            Asked::NotRun(objection) => not_run(&objection),
            Asked::TooMuch => ToolOutput::error(
                "The answer was larger than is taken in. Narrow the query: fewer rows, fewer or shorter columns.",
            ),
            Asked::Late => ToolOutput::error(format!(
                "The statement took longer than {:?} and was cancelled. Narrow it down.",
                self.query
            )),
        })
    }

    /// A way to the server that the guard admitted, and how it is to be protected.
    async fn way(&self, server: &Server) -> Result<(Relay, Tls), SqlError> {
        let addresses =
            tokio::time::timeout(self.connect, relay::admitted(&self.guard, &server.host, server.port))
                .await
                .map_err(|_| SqlError::ConnectTimeout(self.connect))??;
        let tls = tls(server.tls, &addresses);
        let limits = Limits { connect: self.connect, bytes: self.max_wire_bytes };
        Ok((Relay::open(addresses, server.port, limits)?, tls))
    }

    /// What a model is shown of the tool's arguments: with `sql` it asks, without it lists.
    pub fn input_schema() -> Value {
        let described = "One SELECT statement. Left out, tables are listed with columns, keys and comments.";
        json!({
            "type": "object",
            "properties": { "sql": { "type": "string", "description": described } },
            "additionalProperties": false,
        })
    }
}

fn not_run(objection: &Objection) -> ToolOutput {
    ToolOutput::error(format!("Not run: {objection}."))
}

/// As the endpoint asks, but on a public network never without TLS: whoever may edit a tool's
/// endpoint may not thereby read the password that somebody saved for it.
fn tls(asked: Option<Tls>, addresses: &[SocketAddr]) -> Tls {
    match (asked, usual_tls(addresses)) {
        (None | Some(Tls::Off | Tls::Prefer), Tls::Require) => Tls::Require,
        (asked, usual) => asked.unwrap_or(usual),
    }
}

/// An address that only the settings opened is a private network, where TLS is rare; on any other
/// a password goes over TLS or not at all.
fn usual_tls(addresses: &[SocketAddr]) -> Tls {
    let nothing_opened = Guard::new(&[]);
    let is_private = |address: &SocketAddr| nothing_opened.admit("", address.ip()).is_err();
    if addresses.iter().all(is_private) { Tls::Prefer } else { Tls::Require }
}

#[cfg(test)]
mod tests;
