//! The token endpoint: one request, three grants.

use crate::domain::Credential;
use crate::oauth::OauthError;
use crate::oauth::http::{Answer, Guarded};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method as Verb, Request};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::time::Duration;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

/// A token without a lifetime is asked for anew after so long.
const UNTOLD: Duration = Duration::from_hours(1);

/// What an authorization server gave.
#[derive(Debug, Clone)]
pub struct Granted {
    pub access_token: SecretString,
    /// None: the old one, if there was one, goes on serving.
    pub refresh_token: Option<SecretString>,
    pub expires_in: Option<Duration>,
    pub scope: Option<String>,
}

impl Granted {
    /// The credential with these tokens in place of its own.
    pub fn renewed(self, old: &Credential) -> Option<Credential> {
        let Credential::Oauth { refresh_token, client_id, client_secret, token_url, scope, resource, .. } =
            old
        else {
            return None;
        };
        Some(Credential::Oauth {
            access_token: self.access_token,
            refresh_token: self.refresh_token.or_else(|| refresh_token.clone()),
            client_id: client_id.clone(),
            client_secret: client_secret.clone(),
            token_url: token_url.clone(),
            scope: self.scope.or_else(|| scope.clone()),
            resource: resource.clone(),
        })
    }

    /// So long it may be used without asking again.
    pub fn lifetime(&self) -> Duration {
        self.expires_in.unwrap_or(UNTOLD)
    }
}

/// How a client with a secret shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// In a header, which every server must take (RFC 6749, 2.3.1); where it does not, in the body.
    Auto,
    Basic,
    Post,
}

pub struct Client<'a> {
    pub id: &'a str,
    pub secret: Option<&'a SecretString>,
    pub method: Method,
}

impl<'a> Client<'a> {
    pub fn new(id: &'a str, secret: Option<&'a SecretString>, method: Method) -> Self {
        Self { id, secret, method }
    }
}

pub enum Grant<'a> {
    Code { code: &'a str, verifier: &'a str, redirect: &'a str },
    Refresh { token: &'a SecretString, scope: Option<&'a str> },
    ClientCredentials { scope: Option<&'a str> },
}

pub struct Ask<'a> {
    pub url: &'a str,
    pub client: Client<'a>,
    /// What the token is for (RFC 8707).
    pub resource: Option<&'a str>,
    pub grant: Grant<'a>,
}

#[derive(Deserialize)]
struct Tokens {
    access_token: SecretString,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    refresh_token: Option<SecretString>,
    /// A number; some write it as text.
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
    #[serde(default)]
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Complaint {
    error: String,
}

impl Guarded {
    /// Asks for a token.
    pub async fn token(&self, ask: &Ask<'_>) -> Result<Granted, OauthError> {
        let url = Url::parse(ask.url).map_err(|_| OauthError::Answer("the token endpoint is no URL"))?;
        secure(&url, "the token endpoint")?;
        let first = if ask.client.method == Method::Post { Method::Post } else { Method::Basic };
        let answer = self.send(request(&url, ask, first)?, 0).await?;
        // Nothing was used up by a request whose client was not known.
        if ask.client.method == Method::Auto
            && ask.client.secret.is_some()
            && matches!(answer.status, 400 | 401)
            && complaint(&answer).is_some_and(|code| code == "invalid_client")
        {
            return granted(&self.send(request(&url, ask, Method::Post)?, 0).await?);
        }
        granted(&answer)
    }
}

/// https, or this machine, where the settings let it be reached at all.
pub fn secure(url: &Url, what: &'static str) -> Result<(), OauthError> {
    let here = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "https" || (url.scheme() == "http" && here) {
        Ok(())
    } else {
        Err(OauthError::Insecure { what })
    }
}

fn request(url: &Url, ask: &Ask<'_>, method: Method) -> Result<Request, OauthError> {
    let mut form = Serializer::new(String::new());
    match &ask.grant {
        Grant::Code { code, verifier, redirect } => {
            form.append_pair("grant_type", "authorization_code").append_pair("code", code);
            form.append_pair("code_verifier", verifier).append_pair("redirect_uri", redirect);
        }
        Grant::Refresh { token, scope } => {
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("refresh_token", token.expose_secret());
            scope.map(|scope| form.append_pair("scope", scope));
        }
        Grant::ClientCredentials { scope } => {
            form.append_pair("grant_type", "client_credentials");
            scope.map(|scope| form.append_pair("scope", scope));
        }
    }
    ask.resource.map(|resource| form.append_pair("resource", resource));
    let mut request = Request::new(Verb::POST, url.clone());
    match (ask.client.secret, method) {
        (Some(secret), Method::Basic | Method::Auto) => {
            request.headers_mut().insert(AUTHORIZATION, basic(ask.client.id, secret)?);
        }
        (Some(secret), Method::Post) => {
            form.append_pair("client_id", ask.client.id).append_pair("client_secret", secret.expose_secret());
        }
        (None, _) => {
            form.append_pair("client_id", ask.client.id);
        }
    }
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    *request.body_mut() = Some(form.finish().into());
    Ok(request)
}

/// Both parts are form-encoded first (RFC 6749, 2.3.1).
fn basic(id: &str, secret: &SecretString) -> Result<HeaderValue, OauthError> {
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encoded(id), encoded(secret.expose_secret())));
    let line = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&line).map_err(|_| OauthError::Answer("the client's id is odd"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The machine-readable word of a refusal, and nothing else of it: the rest may echo what was sent.
fn complaint(answer: &Answer) -> Option<String> {
    let code = serde_json::from_slice::<Complaint>(&answer.body).ok()?.error;
    let word = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    word.then_some(code)
}

fn granted(answer: &Answer) -> Result<Granted, OauthError> {
    if !(200..300).contains(&answer.status) {
        return Err(match complaint(answer) {
            // Some say so in words that belong to a server's bad day.
            Some(code) if code == "temporarily_unavailable" || code == "server_error" => {
                OauthError::Status { code: 503 }
            }
            Some(code) if answer.status < 500 && answer.status != 429 => OauthError::Refused { code },
            _ => OauthError::Status { code: answer.status },
        });
    }
    let tokens: Tokens = serde_json::from_slice(&answer.body).map_err(|_| match complaint(answer) {
        // Some answer a refusal with 200.
        Some(code) => OauthError::Refused { code },
        None => OauthError::Answer("no access token in it"),
    })?;
    if tokens.token_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err(OauthError::Answer("the token is not of type Bearer"));
    }
    // It becomes a header: what cannot stand in one is no token.
    let token = tokens.access_token.expose_secret();
    if token.is_empty() || HeaderValue::from_str(token).is_err() {
        return Err(OauthError::Answer("the access token cannot stand in a header"));
    }
    let seconds = tokens.expires_in.as_ref().and_then(|value| {
        value.as_f64().or_else(|| value.as_str().and_then(|text| text.trim().parse::<f64>().ok()))
    });
    let seconds = seconds.filter(|seconds| seconds.is_finite()).map(|seconds| seconds.clamp(0.0, 1e9));
    Ok(Granted {
        access_token: tokens.access_token,
        refresh_token: tokens.refresh_token.filter(|token| !token.expose_secret().is_empty()),
        expires_in: seconds.map(Duration::from_secs_f64),
        scope: tokens.scope.filter(|scope| !scope.is_empty()),
    })
}
