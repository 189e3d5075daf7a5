//! Which database: an endpoint, and the credential that was saved for it.

use super::error::SqlError;
use crate::domain::{Credential, Saved, origin_of};
use secrecy::SecretString;
use std::path::{Component, Path, PathBuf};
use url::Url;
use uuid::Uuid;

/// The kinds of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    MySql,
    Sqlite,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    /// Where the server can; only for private networks.
    Prefer,
    Require,
    VerifyFull,
    Off,
}

/// A database server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub host: String,
    pub port: u16,
    pub database: String,
    pub username: String,
    pub password: SecretString,
    /// As the endpoint asks; without a word, by the network it lies in.
    pub tls: Option<Tls>,
}

/// Where a tool's statements go.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Postgres(Server),
    MySql(Server),
    Sqlite(PathBuf),
}

/// What a credential must have been saved for: one database of one server; SQLite has none.
pub fn origin(endpoint: &str) -> Result<String, SqlError> {
    match read(endpoint)? {
        (Engine::Sqlite, _) => Ok("sqlite:".to_owned()),
        (Engine::Postgres | Engine::MySql, url) => {
            origin_of(url.as_str()).ok_or_else(|| SqlError::Endpoint(shown(endpoint)))
        }
    }
}

/// The kind of database that an endpoint names.
pub(super) fn read(endpoint: &str) -> Result<(Engine, Url), SqlError> {
    let wrong = || SqlError::Endpoint(shown(endpoint));
    let url = Url::parse(endpoint).map_err(|_| wrong())?;
    let engine = match url.scheme() {
        "postgres" | "postgresql" => Engine::Postgres,
        "mysql" | "mariadb" => Engine::MySql,
        "sqlite" => Engine::Sqlite,
        _ => return Err(wrong()),
    };
    // A password in a tool's row would be read by everyone who may see the tool.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong());
    }
    Ok((engine, url))
}

/// An endpoint without what may be a secret.
fn shown(endpoint: &str) -> String {
    let Ok(mut url) = Url::parse(endpoint) else { return "it".to_owned() };
    let cleared = url.set_password(None).is_ok() && url.set_username("").is_ok();
    url.set_query(None);
    if cleared || !endpoint.contains('@') { url.into() } else { "it".to_owned() }
}

/// MySQL's own databases, which tell of the server and its people.
const SERVERS_OWN: [&str; 4] = ["mysql", "sys", "performance_schema", "information_schema"];

impl Target {
    /// Reads an endpoint; `folder` is where SQLite files may lie.
    pub(super) fn read(
        endpoint: &str,
        saved: Option<&Saved<'_>>,
        folder: &str,
        workspace: Uuid,
    ) -> Result<Self, SqlError> {
        let (engine, url) = read(endpoint)?;
        if engine == Engine::Sqlite {
            let folder = folder.replace("{workspace}", &workspace.to_string());
            return file(endpoint, &folder).map(Self::Sqlite);
        }
        let server = Server::read(&url, endpoint, saved)?;
        Ok(if engine == Engine::Postgres { Self::Postgres(server) } else { Self::MySql(server) })
    }
}

impl Server {
    fn read(url: &Url, endpoint: &str, saved: Option<&Saved<'_>>) -> Result<Self, SqlError> {
        let wrong = || SqlError::Endpoint(shown(endpoint));
        let asked = origin(endpoint)?;
        let (username, password) = match saved {
            None => (String::new(), SecretString::from("")),
            Some(saved) if origin_of(saved.origin).as_deref() != Some(&asked) => {
                return Err(SqlError::Origin { saved: saved.origin.to_owned(), asked });
            }
            Some(Saved { credential: Credential::Basic { username, password }, .. }) => {
                (username.clone(), password.clone())
            }
            Some(_) => return Err(SqlError::Credential),
        };
        let database = url.path().trim_start_matches('/');
        if database.is_empty() || database.contains('/') {
            return Err(wrong());
        }
        // Without a schema a statement's tables are those of the endpoint's database.
        let is_mysql = matches!(url.scheme(), "mysql" | "mariadb");
        if is_mysql && SERVERS_OWN.iter().any(|own| own.eq_ignore_ascii_case(database)) {
            return Err(SqlError::ServersOwn);
        }
        let tls = url.query_pairs().find(|(key, _)| matches!(&**key, "sslmode" | "ssl-mode"));
        let tls = match tls.as_ref().map(|(_, value)| value.to_ascii_lowercase()) {
            None => None,
            Some(mode) => Some(match mode.as_str() {
                "disable" | "disabled" => Tls::Off,
                "prefer" | "preferred" => Tls::Prefer,
                "require" | "required" => Tls::Require,
                "verify-full" | "verify_identity" => Tls::VerifyFull,
                _ => return Err(wrong()),
            }),
        };
        let usual = if url.scheme().starts_with("postgres") { 5432 } else { 3306 };
        Ok(Self {
            host: url.host_str().ok_or_else(wrong)?.trim_matches(['[', ']']).to_ascii_lowercase(),
            port: url.port().unwrap_or(usual),
            database: database.to_owned(),
            username,
            password,
            tls,
        })
    }
}

/// A file below the folder, whatever links and dots its name goes over.
fn file(endpoint: &str, folder: &str) -> Result<PathBuf, SqlError> {
    let named = endpoint.split_once(':').map_or("", |(_, rest)| rest).trim_start_matches('/');
    let refused = || SqlError::File(named.to_owned());
    let is_plain = Path::new(named).components().all(|part| matches!(part, Component::Normal(_)));
    if folder.is_empty() || named.is_empty() || !is_plain || named.contains(['?', '#', '%']) {
        return Err(refused());
    }
    let folder = Path::new(folder).canonicalize().map_err(|_| refused())?;
    let path = folder.join(named).canonicalize().map_err(|_| refused())?;
    if path.starts_with(&folder) && path.is_file() { Ok(path) } else { Err(refused()) }
}
