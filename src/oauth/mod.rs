//! OAuth 2.1 for tools' servers: how a user consents, how a program proves itself, how a token is
//! renewed.
//!
//! A server answers 401; [`Oauth::begin`] finds out from it (protected resource metadata, then its
//! authorization server's) where the user is to be sent, [`Oauth::finish`] makes tokens of what the
//! user came back with, [`Oauth::renew`] keeps them fresh, and `Oauth::client_credentials` asks
//! for one without a user. Discovery, registration, scopes and PKCE are rmcp's; every request goes
//! through the guarded client. Who stores and seals the tokens is not decided here.
//!
//! Accepted: what a server's metadata names as its authorization server is believed, as the
//! specification has it. So a client secret that was given for a server reaches whatever token
//! endpoint that server names, unless its address was given with it.

mod http;
mod login;
mod machine;
mod token;

pub use login::{Client, Login, Pending, Wish};
pub use machine::Which;
pub use token::Granted;

use crate::domain::Credential;
use crate::guard::{Guard, Refusal};
use http::Guarded;
use rmcp::transport::auth::AuthError;
use secrecy::SecretString;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// A request to an authorization server may take so long, redirects included.
pub const REQUEST: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(10);
/// Longer texts of a server are cut in errors.
const SAID: usize = 300;

/// Why there is no token. What a server says of itself is somebody else's text; secrets, codes and
/// tokens stand in none of these.
#[derive(Debug, thiserror::Error)]
pub enum OauthError {
    #[error("an address of the authorization is refused: {0}")]
    Address(#[from] Refusal),
    #[error("{what} is not https")]
    Insecure { what: &'static str },
    #[error("the authorization server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the authorization server did not answer within {REQUEST:?}")]
    Timeout,
    #[error("the authorization server answered with HTTP {code}")]
    Status { code: u16 },
    #[error("the authorization server's answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the authorization server's answer is not understood: {0}")]
    Answer(&'static str),
    /// The provider's final word; a user must consent anew, or a client be set up anew.
    #[error("the authorization server refuses: {code}")]
    Refused { code: String },
    #[error("discovery: {0}")]
    Discovery(String),
    #[error("what the browser brought back is not this login's: {0}")]
    Callback(&'static str),
    #[error("the credential holds nothing that could renew it")]
    NothingToRenew,
    #[error("the client could not be made: {0}")]
    Client(String),
}

impl OauthError {
    /// Whether the same may succeed later, without anybody doing something.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Timeout => true,
            Self::Status { code } => *code == 429 || *code >= 500,
            _ => false,
        }
    }

    /// Whether a person must act: consent anew, or bring another credential.
    pub fn needs_auth(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NothingToRenew)
    }
}

impl From<AuthError> for OauthError {
    fn from(error: AuthError) -> Self {
        // What our own client said lies in the chain, and is more exact than what stands around it.
        if let AuthError::DiscoveryRequestFailed { source, .. } = error {
            return match source.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => Self::Discovery(clean(&other.to_string())),
            };
        }
        Self::Discovery(clean(&error.to_string()))
    }
}

/// Somebody else's text, short and in one line.
fn clean(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(SAID).collect()
}

/// The client of authorization servers, with the tokens that programs were given.
#[derive(Clone)]
pub struct Oauth {
    http: Arc<Guarded>,
    tokens: machine::Tokens,
}

impl Oauth {
    pub fn new(guard: &Guard) -> Result<Self, OauthError> {
        let client = guard.client(CONNECT, Some(REQUEST));
        let client = client.map_err(|error| OauthError::Client(error.to_string()))?;
        Ok(Self {
            http: Arc::new(Guarded { client, guard: guard.clone() }),
            tokens: machine::Tokens::default(),
        })
    }

    /// A fresh token in place of an expired one. The old refresh token may be used up after it,
    /// whatever comes back.
    pub async fn renew(&self, credential: &Credential) -> Result<Granted, OauthError> {
        let Credential::Oauth { refresh_token, client_id, client_secret, token_url, scope, resource, .. } =
            credential
        else {
            return Err(OauthError::NothingToRenew);
        };
        let refresh = refresh_token.as_ref().ok_or(OauthError::NothingToRenew)?;
        let client = token::Client::new(client_id, client_secret.as_ref(), token::Method::Auto);
        let ask = token::Ask {
            url: token_url,
            client,
            resource: resource.as_deref(),
            grant: token::Grant::Refresh { token: refresh, scope: scope.as_deref() },
        };
        self.http.token(&ask).await
    }

    /// A fresh token for a program, for one server. Without a `token_url` the server's own metadata
    /// says where to ask.
    async fn client_credentials(&self, server: &Url, credential: &Credential) -> Result<Granted, OauthError> {
        let Credential::ClientCredentials { client_id, client_secret, token_url, scope } = credential else {
            return Err(OauthError::NothingToRenew);
        };
        let (url, method, resource) = if token_url.is_empty() {
            let mut found = login::discover(&self.http, server, None).await?;
            (found.token_url(), found.method(), found.resource(server).await)
        } else {
            (token_url.clone(), token::Method::Auto, server.to_string())
        };
        let ask = token::Ask {
            url: &url,
            client: token::Client::new(client_id, Some(client_secret), method),
            resource: Some(&resource),
            grant: token::Grant::ClientCredentials { scope: scope.as_deref() },
        };
        self.http.token(&ask).await
    }
}

impl std::fmt::Debug for Oauth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Oauth")
    }
}

/// A secret that was a plain text in somebody's answer.
fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}
