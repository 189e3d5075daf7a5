//! `gristmill tool login`: a user's consent to call a server's tools in their name.
//!
//! The browser comes back to a port of this machine; whoever runs the command elsewhere forwards it.

use crate::cli::house::House;
use crate::cli::tool_credential::{Whose, origin, sealed, secret};
use crate::guard::Guard;
use crate::oauth::{Client, Oauth, Wish};
use crate::seal::{Keys, SealError};
use crate::store::tool_credentials::{self, Terms};
use anyhow::Context as _;
use chrono::{TimeDelta, Utc};
use clap::Args;
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// So long the user may take.
const PATIENCE: Duration = Duration::from_mins(10);
const PATH: &str = "/callback";

/// Arguments of `login`.
#[derive(Debug, Args)]
pub struct Login {
    #[command(flatten)]
    whose: Whose,
    /// A client that is registered at the authorization server; without it one is registered now.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Asks for that client's secret, or reads it from standard input.
    #[arg(long, requires = "client_id")]
    client_secret: bool,
    /// The URL of a document that describes the client, for servers that take one.
    #[arg(long, value_name = "URL", conflicts_with = "client_id")]
    client_document: Option<String>,
    /// A scope to ask for beside those the server names; may be repeated.
    #[arg(long)]
    scope: Vec<String>,
    /// The port that the browser comes back to; any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

impl Login {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let keys = Keys::open(&house.settings.seal)?;
        anyhow::ensure!(keys.current().is_some(), SealError::NoKey);
        let workspace = self.whose.workspace(house).await?;
        let db = crate::store::connect(&house.settings.database).await?;
        let mut tx = crate::store::tenant(&db, workspace).await?;
        let (holder, found) = self.whose.find(&mut tx, workspace).await?;
        let origin = origin(&mut tx, workspace, &found).await?;
        tx.commit().await?;
        let server = found.url.context("the server runs beside the worker: it has no login")?;
        let server = Url::parse(&server)?;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await?;
        let redirect = Url::parse(&format!("http://127.0.0.1:{}{PATH}", listener.local_addr()?.port()))?;

        let oauth = Oauth::new(&Guard::new(&house.settings.fetch.allow))?;
        let (client, scopes) = (self.client()?, self.scope.clone());
        let wish = Wish { server: &server, redirect: &redirect, client, scopes, challenge: None };
        let login = oauth.begin(&wish).await?;
        eprintln!("Open this address in a browser, and consent:\n");
        println!("{}", login.url);
        open(&login.url);
        let back = tokio::time::timeout(PATIENCE, come_back(&listener, &redirect, login.pending.state()));
        let back = back.await.context("nobody consented in time")??;
        let (credential, granted) = oauth.finish(&login.pending, &back).await?;

        let expires_at = granted.expires_in.and_then(|d| TimeDelta::from_std(d).ok()).map(|d| Utc::now() + d);
        let terms = Terms { origin: &origin, expires_at, replaces: None };
        let mut tx = crate::store::tenant(&db, workspace).await?;
        tool_credentials::save(&mut tx, &holder, &terms, |bond| sealed(&keys, &credential, bond)).await?;
        tx.commit().await?;
        let lasts =
            if granted.refresh_token.is_some() { "renewed by itself" } else { "to be renewed by you" };
        eprintln!("saved for {origin}, {lasts}");
        Ok(ExitCode::SUCCESS)
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(match (&self.client_id, &self.client_document) {
            (Some(id), _) => Client::Known {
                id: id.clone(),
                secret: if self.client_secret { Some(secret("the client")?) } else { None },
            },
            (None, Some(url)) => Client::Document { url: url.clone() },
            (None, None) => Client::Register,
        })
    }
}

/// Opens the browser where there is one; the address stands on the terminal anyway.
fn open(url: &Url) {
    use std::io::IsTerminal;
    if !std::io::stdout().is_terminal() {
        return;
    }
    let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = std::process::Command::new(opener);
    command.arg(url.as_str()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = command.spawn();
}

/// Waits for the browser; whatever else knocks is sent away.
async fn come_back(listener: &TcpListener, redirect: &Url, state: &str) -> anyhow::Result<Url> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        // One that says nothing holds nobody up.
        let asked = tokio::time::timeout(Duration::from_secs(5), target(&mut stream)).await;
        let url = asked.ok().flatten().and_then(|target| redirect.join(&target).ok());
        let url = url.filter(|url| url.origin() == redirect.origin() && url.path() == PATH);
        let ours = url.filter(|url| url.query_pairs().any(|(name, value)| name == "state" && value == state));
        let (status, says) = match &ours {
            Some(_) => ("200 OK", "You can close this page and go back to the terminal."),
            None => ("404 Not Found", "This is not the address of the login that runs here."),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\nreferrer-policy: no-referrer\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{says}",
            says.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        if let Some(url) = ours {
            return Ok(url);
        }
    }
}

/// The target of a GET request.
async fn target(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut some = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let n = stream.read(&mut some).await.ok().filter(|n| *n > 0)?;
        head.extend_from_slice(&some[..n]);
        if head.len() > 16 * 1024 {
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.strip_prefix("GET ")?.split(' ').next()?;
    target.starts_with('/').then(|| target.to_owned())
}
