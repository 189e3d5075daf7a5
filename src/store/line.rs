//! A connection of one caller's own, beside the pool, that is never waited on for long.
//!
//! The loops that keep the queue going (claims, renewals, acknowledgements) have one each, so
//! an exhausted pool does not reach them, and they pay for no check on each loan. A call that
//! fails, or gets no answer in time, drops the connection: the next one begins anew.
//!
//! Accepted race: what an unanswered call asked for may have been done. Each caller's statement
//! is fenced or can be asked again.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use std::time::Duration;

/// The connection, when there is one, and how long each call may take.
#[derive(Debug)]
pub struct Line {
    options: PgConnectOptions,
    role: String,
    patience: Duration,
    open: Option<PgConnection>,
}

impl Line {
    /// Connects at the first call.
    pub fn new(options: PgConnectOptions, role: &str, patience: Duration) -> Self {
        Self { options, role: role.to_owned(), patience, open: None }
    }

    /// Takes the connection out, or makes one. A caller that drops it instead of giving it back
    /// closes it, so nobody finds a connection in the middle of something.
    pub async fn take(&mut self) -> sqlx::Result<PgConnection> {
        match self.open.take() {
            Some(connection) => Ok(connection),
            None => in_time(self.patience, self.connect()).await,
        }
    }

    /// Keeps the connection for the next call.
    pub fn give_back(&mut self, connection: PgConnection) {
        self.open = Some(connection);
    }

    async fn connect(&self) -> sqlx::Result<PgConnection> {
        let mut connection = self.options.connect().await?;
        super::take_role(&mut connection, &self.role).await?;
        // What we no longer wait for, the server need not go on with.
        sqlx::query("SELECT set_config('statement_timeout', $1, false)")
            .bind(self.patience.as_millis().to_string())
            .execute(&mut connection)
            .await?;
        Ok(connection)
    }
}

/// The answer, or an error when there is none in time. Only for connections that are closed
/// afterwards: what was asked may be on its way still.
pub async fn in_time<T>(patience: Duration, asked: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| {
        let late = format!("the database did not answer within {patience:?}");
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, late)))
    })
}
