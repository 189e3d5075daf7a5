//! How a job reaches an MCP server: no kind of its own, but a step of `tool_call` and `tool_sync`.
//!
//! From a connection's row to what a session is opened with: the catalogue's entry with the tenant's
//! values in their places, the credential of whoever calls, in a header, a query or a variable.

use crate::catalogue::Entry;
use crate::config::EnvValue;
use crate::context::Context;
use crate::domain::{Credential, UserId, WorkspaceId, origin_of};
use crate::job::{JobError, Parked};
use crate::jobs::authenticate::{Need, Proof, prove};
use crate::mcp::{Endpoint, Program, Server, SessionKey, resolve};
use crate::store::mcp_servers::{self, Connection};
use crate::store::tool_credentials::Subject;
use anyhow::anyhow;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use url::Url;
use uuid::Uuid;

/// To which connection, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub workspace: WorkspaceId,
    pub connection: Uuid,
    /// Whose credential; None: the workspace's.
    pub user: Option<UserId>,
    /// The version of the credential that the server has just refused with 401.
    pub refused: Option<i32>,
}

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct Connected {
    pub key: SessionKey,
    pub server: Server,
    pub row: Connection,
}

impl Connected {
    /// The version of the credential that was shown.
    pub fn version(&self) -> Option<i32> {
        self.key.credential.map(|(_, version)| version)
    }
}

/// Reads the connection and makes it ready; what a person must mend first parks the job.
pub async fn connect(ctx: &Context, wanted: &Wanted) -> Result<Connected, JobError> {
    let mut tx = crate::store::tenant(&ctx.db, wanted.workspace).await?;
    let row = mcp_servers::connection(&mut tx, wanted.workspace, wanted.connection).await?;
    tx.commit().await?;
    let row = row.ok_or_else(|| refused(anyhow!("there is no connection {}", wanted.connection)))?;
    if !row.enabled || !row.offered {
        let why = if row.enabled { "is no longer in the operator's catalogue" } else { "is switched off" };
        return Err(refused(anyhow!("the connection to {} {why}", row.server)));
    }
    let url = match &row.url {
        Some(url) => Some(Url::parse(url).map_err(|_| refused(anyhow!("the server's address is no URL")))?),
        None => None,
    };
    let proof = proof(ctx, wanted, &row, url.as_ref()).await?;
    let server = match url {
        Some(url) => remote(&row, url, proof.as_ref())?,
        None => Server::Stdio(program(ctx, &row, proof.as_ref())?),
    };
    let key = SessionKey {
        workspace: wanted.workspace,
        server: row.id,
        credential: proof.map(|proof| (proof.id, proof.version)),
    };
    Ok(Connected { key, server, row })
}

/// The place that a credential for a connection's server is saved for.
pub fn origin(row: &Connection) -> Result<String, JobError> {
    match &row.url {
        Some(url) => origin_of(url).ok_or_else(|| refused(anyhow!("the server leads nowhere"))),
        None => entry(row)?.origin(given(row)).map_err(|error| refused(error.into())),
    }
}

async fn proof(
    ctx: &Context,
    wanted: &Wanted,
    row: &Connection,
    url: Option<&Url>,
) -> Result<Option<Proof>, JobError> {
    let origin = origin(row)?;
    let need = Need {
        workspace: wanted.workspace,
        user: wanted.user,
        subject: Subject::Connection(row.id),
        origin: &origin,
        server: url,
        refused: wanted.refused,
    };
    prove(ctx, &need).await
}

fn remote(row: &Connection, mut url: Url, proof: Option<&Proof>) -> Result<Server, JobError> {
    let mut headers = HeaderMap::new();
    match proof.map(|proof| &proof.credential) {
        None => {}
        Some(Credential::Query { name, value }) => {
            url.query_pairs_mut().append_pair(name, value.expose_secret());
        }
        Some(credential) => {
            let (name, value) = header(credential)
                .ok_or_else(|| park("the credential cannot stand in a header: save it anew".to_owned()))?;
            headers.insert(name, value);
        }
    }
    let endpoint = Endpoint { url, headers };
    Ok(if row.transport == "sse" { Server::Sse(endpoint) } else { Server::StreamableHttp(endpoint) })
}

/// The header that carries a credential; it is marked as sensitive.
pub fn header(credential: &Credential) -> Option<(HeaderName, HeaderValue)> {
    let sensitive = |text: &str| {
        let mut value = HeaderValue::from_str(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    match credential {
        Credential::Bearer { token } => {
            let line = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
            Some((AUTHORIZATION, sensitive(&line)?))
        }
        Credential::Basic { username, password } => {
            let pair = Zeroizing::new(format!("{username}:{}", password.expose_secret()));
            let line = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            Some((AUTHORIZATION, sensitive(&line)?))
        }
        Credential::Header { name, value } => {
            Some((HeaderName::try_from(name).ok()?, sensitive(value.expose_secret())?))
        }
        _ => None,
    }
}

fn entry(row: &Connection) -> Result<Entry, JobError> {
    let env: BTreeMap<String, EnvValue> = serde_json::from_value(row.env.clone())
        .map_err(|_| refused(anyhow!("the environment of {} is not texts and credentials", row.server)))?;
    Ok(Entry {
        name: row.server.clone(),
        command: row.command.clone().unwrap_or_default(),
        arguments: row.arguments.clone(),
        env,
        parameters: row.parameters.clone(),
    })
}

fn given(row: &Connection) -> &Map<String, Value> {
    static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    row.given.as_object().unwrap_or(&NOTHING)
}

fn program(ctx: &Context, row: &Connection, proof: Option<&Proof>) -> Result<Program, JobError> {
    let filled = entry(row)?.fill(given(row), proof.map(secret).as_ref()).map_err(|error| match error {
        crate::catalogue::CatalogueError::NoCredential { .. } => park(error.to_string()),
        other => refused(other.into()),
    })?;
    let command = resolve(&filled.command, &ctx.settings.mcp.path).ok_or_else(|| {
        // Another worker may have it, or somebody installs it.
        JobError::transient(anyhow!("{} is not on this host (mcp.path)", filled.command))
    })?;
    Ok(Program { command, arguments: filled.arguments, env: filled.env })
}

/// The bare secret, for a variable.
fn secret(proof: &Proof) -> SecretString {
    match &proof.credential {
        Credential::Bearer { token: secret }
        | Credential::Header { value: secret, .. }
        | Credential::Query { value: secret, .. }
        | Credential::Basic { password: secret, .. } => secret.clone(),
        Credential::Oauth { access_token, .. } => access_token.clone(),
        Credential::ClientCredentials { client_secret, .. } => client_secret.clone(),
    }
}

fn refused(reason: anyhow::Error) -> JobError {
    JobError::refused("server_refused", reason)
}

fn park(reason: String) -> JobError {
    JobError::Park { why: Parked::NeedsAuth, reason }
}
