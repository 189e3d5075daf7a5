//! A user's consent: the address that the browser is sent to, and what it comes back with.
//!
//! Between the two lies [`Pending`], which holds everything the second half needs, so that another
//! process may do it: it is to be sealed where it is kept, and to be used once.

use crate::domain::Credential;
use crate::oauth::http::Guarded;
use crate::oauth::token::{Ask, Client as TokenClient, Grant, Granted, Method, secure};
use crate::oauth::{Oauth, OauthError, secret};
use rmcp::transport::auth::{
    AuthorizationManager, AuthorizationMetadata, InMemoryStateStore, OAuthClientConfig, OAuthHttpClient,
    StateStore,
};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use url::Url;

/// Who asks for the user's consent.
#[derive(Debug, Clone)]
pub enum Client {
    /// Registered by hand at the authorization server.
    Known { id: String, secret: Option<SecretString> },
    /// The URL of a document that describes the client, where the server takes one; else registered
    /// now, like [`Client::Register`].
    Document { url: String },
    /// Registered now, under this program's name.
    Register,
}

/// What is wanted of a login.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The address of the tool's server, in whose name the authorization server is looked for.
    pub server: &'a Url,
    /// Where the browser is sent back to.
    pub redirect: &'a Url,
    pub client: Client,
    /// Scopes that are asked for beside those the server names: what was granted before, say.
    pub scopes: Vec<String>,
    /// The `WWW-Authenticate` of the server's 401 or 403.
    pub challenge: Option<&'a str>,
}

/// A login that waits for its user.
#[derive(Debug)]
pub struct Login {
    /// To be opened in the user's browser.
    pub url: Url,
    pub pending: Pending,
}

/// The second half of a login. Holds secrets.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pending {
    state: String,
    verifier: String,
    issuer: Option<String>,
    requires_issuer: bool,
    client_id: String,
    client_secret: Option<String>,
    posts_secret: bool,
    token_url: String,
    redirect: String,
    resource: String,
    scopes: Vec<String>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Pending {
    /// The form in which it is sealed.
    pub fn to_json(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string(self).unwrap_or_default())
    }

    pub fn from_json(json: &[u8]) -> Result<Self, OauthError> {
        serde_json::from_slice(json).map_err(|_| OauthError::Callback("it cannot be read"))
    }

    /// What the browser brings back, and by which a login is found again.
    pub fn state(&self) -> &str {
        &self.state
    }
}

/// What was found out about a server's authorization.
pub(super) struct Discovered {
    manager: AuthorizationManager,
    metadata: AuthorizationMetadata,
    states: InMemoryStateStore,
}

/// Asks the server, or its challenge, where its tokens come from.
pub(super) async fn discover(
    http: &Arc<Guarded>,
    server: &Url,
    challenge: Option<&str>,
) -> Result<Discovered, OauthError> {
    http.guard.check(server)?;
    let client: Arc<dyn OAuthHttpClient> = Arc::clone(http) as _;
    let mut manager = AuthorizationManager::new_with_oauth_http_client(server.as_str(), client).await?;
    let states = InMemoryStateStore::new();
    manager.set_state_store(states.clone());
    let metadata = manager.resolve_metadata_from_challenge(challenge).await?.metadata;
    manager.set_metadata(metadata.clone());
    Ok(Discovered { manager, metadata, states })
}

impl Discovered {
    pub fn token_url(&self) -> String {
        self.metadata.token_endpoint.clone()
    }

    /// How the authorization server wants a secret; without a word, in a header (RFC 8414, 2).
    pub fn method(&self) -> Method {
        let named = self.metadata.additional_fields.get("token_endpoint_auth_methods_supported");
        let Some(named) = named.and_then(|named| named.as_array()) else { return Method::Auto };
        let takes = |method| named.iter().any(|name| name.as_str() == Some(method));
        match (takes("client_secret_basic"), takes("client_secret_post")) {
            (true, _) => Method::Basic,
            (false, true) => Method::Post,
            (false, false) => Method::Auto,
        }
    }

    /// What tokens are asked for: what the server's metadata says of itself, else its address.
    pub async fn resource(&mut self, server: &Url) -> String {
        // rmcp tells it only inside an address for a browser.
        let probe = OAuthClientConfig::new("gristmill", server.as_str());
        let address = match self.manager.configure_client(probe) {
            Ok(()) => self.manager.get_authorization_url(&[]).await.ok(),
            Err(_) => None,
        };
        let address = address.and_then(|address| Url::parse(&address).ok());
        let told = address.and_then(|address| {
            address.query_pairs().find(|(key, _)| key == "resource").map(|(_, value)| value.into_owned())
        });
        told.unwrap_or_else(|| server.to_string())
    }

    fn flag(&self, name: &str) -> bool {
        self.metadata.additional_fields.get(name).and_then(serde_json::Value::as_bool).unwrap_or_default()
    }
}

impl Oauth {
    /// Finds the authorization server, makes this program known to it, and makes the address that
    /// the user's browser is to open.
    pub async fn begin(&self, wish: &Wish<'_>) -> Result<Login, OauthError> {
        let mut found = discover(&self.http, wish.server, wish.challenge).await?;
        let mut scopes = wish.scopes.clone();
        for scope in found.manager.select_initial_scopes(&[]).await {
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        let config = client(&mut found, wish, &scopes).await?;
        let url = found.manager.get_authorization_url(&scopes).await?;
        let url = Url::parse(&url).map_err(|_| OauthError::Answer("the authorization endpoint is no URL"))?;
        secure(&url, "the authorization endpoint")?;
        let told = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, v)| v.into_owned());
        let state = told("state").ok_or(OauthError::Answer("no state was made"))?;
        let stored = found.states.load(&state).await?.ok_or(OauthError::Answer("no state was kept"))?;
        let pending = Pending {
            verifier: stored.pkce_verifier.clone(),
            issuer: stored.expected_issuer.clone(),
            requires_issuer: found.flag("authorization_response_iss_parameter_supported"),
            client_id: config.client_id,
            client_secret: config.client_secret,
            posts_secret: found.method() == Method::Post,
            token_url: found.token_url(),
            redirect: wish.redirect.to_string(),
            resource: told("resource").unwrap_or_else(|| wish.server.to_string()),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            state,
        };
        Ok(Login { url, pending })
    }

    /// Makes a credential of what the browser came back with; `callback` is the whole address.
    pub async fn finish(
        &self,
        pending: &Pending,
        callback: &Url,
    ) -> Result<(Credential, Granted), OauthError> {
        let code = code(pending, callback)?;
        let client_secret = pending.client_secret.as_deref().map(secret);
        let method = if pending.posts_secret { Method::Post } else { Method::Auto };
        let ask = Ask {
            url: &pending.token_url,
            client: TokenClient::new(&pending.client_id, client_secret.as_ref(), method),
            resource: Some(&pending.resource),
            grant: Grant::Code { code: &code, verifier: &pending.verifier, redirect: &pending.redirect },
        };
        let granted = self.http.token(&ask).await?;
        let asked = (!pending.scopes.is_empty()).then(|| pending.scopes.join(" "));
        let credential = Credential::Oauth {
            access_token: granted.access_token.clone(),
            refresh_token: granted.refresh_token.clone(),
            client_id: pending.client_id.clone(),
            client_secret,
            token_url: pending.token_url.clone(),
            // Without a word the grant is what was asked for (RFC 6749, 5.1).
            scope: granted.scope.clone().or(asked),
            resource: Some(pending.resource.clone()),
        };
        Ok((credential, granted))
    }
}

/// The client that asks: known, described by a document, or registered now.
async fn client(
    found: &mut Discovered,
    wish: &Wish<'_>,
    scopes: &[&str],
) -> Result<OAuthClientConfig, OauthError> {
    let config = match &wish.client {
        Client::Known { id, secret } => {
            let mut config = OAuthClientConfig::new(id, wish.redirect.as_str());
            config.client_secret = secret.as_ref().map(|secret| secret.expose_secret().to_owned());
            config
        }
        Client::Document { url } if found.flag("client_id_metadata_document_supported") => {
            OAuthClientConfig::new(url, wish.redirect.as_str())
        }
        Client::Document { .. } | Client::Register => {
            found.manager.register_client("Gristmill", wish.redirect.as_str(), scopes).await?
        }
    };
    found.manager.configure_client(config.clone())?;
    Ok(config)
}

/// The code, if the answer is to this login, and from the server that was asked (RFC 9207).
fn code(pending: &Pending, callback: &Url) -> Result<Zeroizing<String>, OauthError> {
    let told = |name: &str| callback.query_pairs().find(|(key, _)| key == name).map(|(_, v)| v.into_owned());
    if told("state").as_deref() != Some(&*pending.state) {
        return Err(OauthError::Callback("another state"));
    }
    match (told("iss"), &pending.issuer) {
        (None, _) if !pending.requires_issuer => {}
        (None, _) => return Err(OauthError::Callback("it does not say which server answers")),
        (Some(told), Some(expected)) if told == *expected => {}
        (Some(_), _) => return Err(OauthError::Callback("another server answers")),
    }
    if let Some(error) = told("error") {
        let code = error.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect();
        return Err(OauthError::Refused { code });
    }
    told("code").map(Zeroizing::new).ok_or(OauthError::Callback("no code"))
}
