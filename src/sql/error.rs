//! Why a database tool gave nothing, and whether its server saw the call.

use crate::guard::Refusal;
use std::time::Duration;

/// Why a database tool gave nothing.
///
/// What the database itself says of a statement is no error but an output, for the model to
/// mend its query by.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("{0} is no address of a Postgres, MySQL or SQLite database")]
    Endpoint(String),
    #[error("the credential was saved for {saved}, not for {asked}")]
    Origin { saved: String, asked: String },
    #[error("a database takes a user name and a password, no other credential")]
    Credential,
    #[error("SQLite files are not enabled, or {0} lies outside of their folder or is not there")]
    File(String),
    #[error("the address is refused: {reason}")]
    Refused { reason: Refusal },
    #[error("{0} could not be looked up")]
    Lookup(String),
    #[error("this database is the server's own and tells of people, not of data")]
    ServersOwn,
    #[error("the worker's environment holds {0}, which the driver would use at this server too")]
    Environment(&'static str),
    #[error("this is the worker's own database")]
    OwnDatabase,
    #[error("the role may do more than read: {0}; a database tool needs a role of its own")]
    PowerfulRole(String),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("no connection: {0}")]
    Connect(#[source] sqlx::Error),
    #[error(
        "MySQL's {plugin} needs TLS here: enable TLS on the server (sslmode=require), or give the role another plugin"
    )]
    NeedsTls { plugin: &'static str },
    #[error("the connection was lost: {0}")]
    Lost(#[source] sqlx::Error),
    #[error("a room for the connection's socket: {0}")]
    Socket(#[from] std::io::Error),
}

impl SqlError {
    /// Whether a statement reached the server; it reads only, so nothing was done by it.
    pub fn was_sent(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Lookup(_) | Self::ConnectTimeout(_) | Self::Lost(_) | Self::Socket(_) => true,
            Self::Connect(error) => matches!(error, sqlx::Error::Io(_)),
            _ => false,
        }
    }

    /// Sorts what sqlx says before a connection stands.
    pub(super) fn connecting(error: sqlx::Error) -> Self {
        if error.to_string().contains("RSA auth backend disabled") {
            return Self::NeedsTls { plugin: "caching_sha2_password" };
        }
        Self::Connect(error)
    }
}
