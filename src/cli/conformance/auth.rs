//! What the suites' servers ask for before they answer: a login without a person, or a program's token.

use crate::domain::Credential;
use crate::guard::Guard;
use crate::oauth::{Client, Oauth, Which, Wish};
use anyhow::Context as _;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::time::Duration;
use url::Url;
use uuid::Uuid;

/// Where the suites say that our client describes itself, for servers that read such documents.
const DOCUMENT: &str = "https://conformance-test.local/client-metadata.json";
const BACK: &str = "http://localhost:3000/callback";

/// Who we are, where a scenario registered us by hand.
#[derive(Debug, Default, Deserialize)]
pub struct Known {
    name: Option<String>,
    client_id: Option<String>,
    client_secret: Option<SecretString>,
}

/// What was granted so far.
pub struct Wallet {
    oauth: Oauth,
    guard: Guard,
    known: Known,
    id: Uuid,
    /// Grows with each grant.
    pub version: i32,
    credential: Option<Credential>,
}

impl Wallet {
    pub fn new(guard: &Guard, known: Known) -> anyhow::Result<Self> {
        let (oauth, guard) = (Oauth::new(guard)?, guard.clone());
        Ok(Self { oauth, guard, known, id: Uuid::now_v7(), version: 0, credential: None })
    }

    /// The headers that show what was granted, and what a session belongs to.
    pub fn shown(&self) -> anyhow::Result<(HeaderMap, Option<(Uuid, i32)>)> {
        let mut headers = HeaderMap::new();
        let Some(Credential::Oauth { access_token: token, .. } | Credential::Bearer { token }) =
            &self.credential
        else {
            return Ok((headers, None));
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok((headers, Some((self.id, self.version))))
    }

    /// Does what the server's refusal asks for.
    pub async fn obey(&mut self, server: &Url, challenge: Option<&str>) -> anyhow::Result<()> {
        self.version += 1;
        let for_programs = self.known.name.as_deref().is_some_and(|name| name.contains("client-credentials"));
        self.credential = Some(if for_programs {
            Credential::Bearer { token: self.program(server).await? }
        } else {
            self.consent(server, challenge).await?
        });
        Ok(())
    }

    async fn program(&self, server: &Url) -> anyhow::Result<SecretString> {
        let credential = Credential::ClientCredentials {
            client_id: self.known.client_id.clone().context("the scenario names no client")?,
            client_secret: self.known.client_secret.clone().context("the scenario gives no secret")?,
            token_url: String::new(),
            scope: None,
        };
        let which = Which { credential: self.id, version: self.version, refused: false };
        Ok(self.oauth.token(which, server, &credential).await?)
    }

    /// A login whose user consents at once: the suites send the browser straight back.
    async fn consent(&self, server: &Url, challenge: Option<&str>) -> anyhow::Result<Credential> {
        let client = match &self.known.client_id {
            Some(id) => Client::Known { id: id.clone(), secret: self.known.client_secret.clone() },
            None => Client::Document { url: DOCUMENT.to_owned() },
        };
        let scopes = match &self.credential {
            Some(Credential::Oauth { scope: Some(scope), .. }) => {
                scope.split_whitespace().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let redirect = Url::parse(BACK)?;
        let wish = Wish { server, redirect: &redirect, client, scopes, challenge };
        let login = self.oauth.begin(&wish).await?;
        let browser = self.guard.client(Duration::from_secs(5), None)?;
        let answer = browser.get(login.url).send().await?;
        let location = answer.headers().get(LOCATION).context("the browser is not sent back")?;
        let back = redirect.join(location.to_str()?)?;
        Ok(self.oauth.finish(&login.pending, &back).await?.0)
    }
}
