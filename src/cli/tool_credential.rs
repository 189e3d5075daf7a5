//! `gristmill tool credential`: what a tool's server is shown to know the caller.
//!
//! The secret is read from standard input, or asked for at a terminal, and never from an argument:
//! those stand in the list of processes and in the shell's history.

use crate::cli::house::House;
use crate::cli::operate::Tenant;
use crate::cli::table;
use crate::domain::{Credential, Sealed, WorkspaceId, origin_of};
use crate::seal::{Keys, SealError};
use crate::store::mcp_servers;
use crate::store::tool_credentials::{self, Holder, Subject, Terms};
use crate::store::tool_subjects::{self, Found};
use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgConnection;
use std::io::{IsTerminal, Read};
use std::process::ExitCode;

/// Credentials of tools and MCP servers, sealed with the keys of the settings.
#[derive(Debug, Subcommand)]
pub enum Credentials {
    /// Saves one; the secret comes from standard input or a prompt. Calls that wait for it go on.
    Set(Set),
    /// Lists them: for what, whose, for which origin. Never what they hold.
    List {
        #[command(flatten)]
        tenant: Tenant,
    },
    /// Removes one.
    Remove {
        #[command(flatten)]
        whose: Whose,
    },
    /// Seals anew, with the current key, what another key sealed; all workspaces.
    Reseal,
}

/// Whose credential, and for what.
#[derive(Debug, Args)]
pub struct Whose {
    /// A tool, or an MCP server of the catalogue, by its name.
    subject: String,
    /// A user's, by the id the chat layer knows; without it the whole workspace's.
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    #[command(flatten)]
    tenant: Tenant,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub struct Set {
    #[command(flatten)]
    whose: Whose,
    /// How it is shown to the server.
    #[arg(long = "type", value_enum, default_value = "bearer")]
    how: How,
    /// The header or query parameter that carries it.
    #[arg(long, required_if_eq_any([("how", "header"), ("how", "query")]))]
    name: Option<String>,
    /// The user's name, of `basic`.
    #[arg(long, required_if_eq("how", "basic"))]
    username: Option<String>,
    /// The client's id, of `client-credentials`.
    #[arg(long, required_if_eq("how", "client-credentials"))]
    client_id: Option<String>,
    /// Where tokens are given out, of `client-credentials`.
    #[arg(long, value_name = "URL", required_if_eq("how", "client-credentials"))]
    token_url: Option<String>,
    /// Scopes to ask for, of `client-credentials`.
    #[arg(long)]
    scope: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    Bearer,
    Header,
    Basic,
    Query,
    ClientCredentials,
}

impl Credentials {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        match self {
            Self::Set(set) => set.run(house).await,
            Self::List { tenant } => list(house, tenant.find(house).await?).await,
            Self::Remove { whose } => remove(house, &whose).await,
            Self::Reseal => reseal(house).await,
        }
    }
}

impl Set {
    async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let keys = Keys::open(&house.settings.seal)?;
        anyhow::ensure!(keys.current().is_some(), SealError::NoKey);
        let workspace = self.whose.tenant.find(house).await?;
        let db = crate::store::connect(&house.settings.database).await?;
        let mut tx = crate::store::tenant(&db, workspace).await?;
        let (holder, found) = self.whose.find(&mut tx, workspace).await?;
        let origin = origin(&mut tx, workspace, &found).await?;
        let credential = self.credential(secret(&self.whose.subject)?)?;
        let terms = Terms { origin: &origin, expires_at: None, replaces: None };
        tool_credentials::save(&mut tx, &holder, &terms, |bond| sealed(&keys, &credential, bond)).await?;
        tx.commit().await?;
        println!("saved for {origin}");
        Ok(ExitCode::SUCCESS)
    }

    fn credential(&self, secret: SecretString) -> anyhow::Result<Credential> {
        let need =
            |value: &Option<String>, what| value.clone().with_context(|| format!("--{what} is missing"));
        Ok(match self.how {
            How::Bearer => Credential::Bearer { token: secret },
            How::Header => {
                let name = need(&self.name, "name")?;
                reqwest::header::HeaderName::try_from(&name).context("--name is no header")?;
                Credential::Header { name, value: secret }
            }
            How::Basic => Credential::Basic { username: need(&self.username, "username")?, password: secret },
            How::Query => Credential::Query { name: need(&self.name, "name")?, value: secret },
            How::ClientCredentials => Credential::ClientCredentials {
                client_id: need(&self.client_id, "client-id")?,
                client_secret: secret,
                token_url: need(&self.token_url, "token-url")?,
                scope: self.scope.clone(),
            },
        })
    }
}

/// Seals a credential for its row; what failed is told without it.
pub(super) fn sealed(keys: &Keys, credential: &Credential, bond: &[u8]) -> anyhow::Result<Sealed> {
    Ok(keys.seal(credential.to_json().as_bytes(), bond)?)
}

/// The place that it leads to now, which a credential for it is saved for.
pub(super) async fn origin(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    found: &Found,
) -> anyhow::Result<String> {
    match (&found.url, found.subject) {
        (Some(url), _) => origin_of(url).context("it leads to no place that a credential could be sent to"),
        (None, Subject::Connection(id)) => {
            let row = mcp_servers::connection(conn, workspace, id).await?;
            Ok(crate::jobs::connect::origin(&row.context("the connection has gone")?)?)
        }
        (None, Subject::Tool(_)) => anyhow::bail!("the tool leads nowhere"),
    }
}

impl Whose {
    pub(super) async fn find(
        &self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
    ) -> anyhow::Result<(Holder, Found)> {
        let found = tool_subjects::find(&mut *conn, workspace, &self.subject).await?;
        let found = found.with_context(|| {
            format!("there is no tool and no connected server {:?} with a place to send it to", self.subject)
        })?;
        let user = match &self.user {
            None => None,
            Some(id) => Some(
                tool_subjects::user(&mut *conn, workspace, id)
                    .await?
                    .with_context(|| format!("there is no user {id:?}"))?,
            ),
        };
        Ok((Holder { workspace, user, subject: found.subject }, found))
    }

    pub(super) async fn workspace(&self, house: &House) -> anyhow::Result<WorkspaceId> {
        self.tenant.find(house).await
    }
}

async fn list(house: &House, workspace: WorkspaceId) -> anyhow::Result<ExitCode> {
    let db = crate::store::connect(&house.settings.database).await?;
    let mut tx = crate::store::tenant(&db, workspace).await?;
    let rows = tool_credentials::list(&mut tx).await?;
    tx.commit().await?;
    let mut table = table::table(["for", "whose", "origin", "version", "key", "until", "serves"]);
    for row in rows {
        let until = row.expires_at.map(|at| at.format("%F %T").to_string());
        table.add_row([
            row.subject,
            row.user.unwrap_or_else(|| "everybody".into()),
            row.origin,
            row.version.to_string(),
            row.key_id,
            until.unwrap_or_default(),
            row.failure.unwrap_or_else(|| "yes".into()),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

async fn remove(house: &House, whose: &Whose) -> anyhow::Result<ExitCode> {
    let workspace = whose.tenant.find(house).await?;
    let db = crate::store::connect(&house.settings.database).await?;
    let mut tx = crate::store::tenant(&db, workspace).await?;
    let (holder, _) = whose.find(&mut tx, workspace).await?;
    let removed = tool_credentials::remove(&mut tx, &holder).await?;
    tx.commit().await?;
    anyhow::ensure!(removed, "there was none");
    println!("removed");
    Ok(ExitCode::SUCCESS)
}

/// Workspace by workspace, a hundred rows a transaction; what does not open is told and left.
async fn reseal(house: &House) -> anyhow::Result<ExitCode> {
    let keys = Keys::open(&house.settings.seal)?;
    let current = keys.current().context(SealError::NoKey)?.to_owned();
    let db = crate::store::connect(&house.settings.database).await?;
    let (mut done, mut left) = (0, Vec::new());
    for workspace in crate::store::sweeps::workspaces(&mut *db.acquire().await?).await? {
        loop {
            let mut tx = crate::store::tenant(&db, workspace).await?;
            let rows = tool_credentials::sealed_otherwise(&mut tx, workspace, &current, &left).await?;
            if rows.is_empty() {
                break;
            }
            for held in rows {
                match keys.open_sealed(&held.sealed, &held.bond()) {
                    Ok(plain) => {
                        let sealed = keys.seal(plain.expose_secret(), &held.bond())?;
                        tool_credentials::reseal(&mut tx, &held, &sealed).await?;
                        done += 1;
                    }
                    Err(error) => {
                        eprintln!("{}: {error}", held.id);
                        left.push(held.id);
                    }
                }
            }
            tx.commit().await?;
        }
    }
    println!("{done} sealed anew with {current}, {} left", left.len());
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line of standard input; at a terminal it is asked for and not shown.
pub(super) fn secret(subject: &str) -> anyhow::Result<SecretString> {
    let stdin = std::io::stdin();
    let mut line = secrecy::zeroize::Zeroizing::new(String::new());
    if stdin.is_terminal() {
        eprint!("Secret for {subject}: ");
        let _hidden = Hidden::begin();
        stdin.read_line(&mut line)?;
        eprintln!();
    } else {
        stdin.take(64 * 1024).read_to_string(&mut line)?;
    }
    let secret = line.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!secret.is_empty(), "no secret came by standard input");
    anyhow::ensure!(!secret.contains(['\r', '\n', '\0']), "the secret is to be one line");
    Ok(SecretString::from(secret.to_owned()))
}

/// The terminal shows nothing of what is typed while this lives.
struct Hidden(Option<libc::termios>);

impl Hidden {
    #[allow(unsafe_code, reason = "termios has no safe door here")]
    fn begin() -> Self {
        // SAFETY: tcgetattr fills the struct when it answers 0, and only then is it read.
        unsafe {
            let mut was = std::mem::zeroed::<libc::termios>();
            if libc::tcgetattr(libc::STDIN_FILENO, &raw mut was) != 0 {
                return Self(None);
            }
            let mut hidden = was;
            hidden.c_lflag &= !libc::ECHO;
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const hidden);
            Self(Some(was))
        }
    }
}

impl Drop for Hidden {
    #[allow(unsafe_code, reason = "termios has no safe door here")]
    fn drop(&mut self) {
        if let Some(was) = &self.0 {
            // SAFETY: these are the settings that tcgetattr gave.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const *was) };
        }
    }
}
