//! Who calls: a credential set into a request, for the origin it was saved for and no other.

use super::error::ApiError;
use super::place::Request;
use crate::domain::{Credential, Saved};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// Shorter secrets are not looked for in answers: they would be found everywhere.
const TELLING: usize = 8;

/// Sets the credential into the request, or refuses before anything is connected to.
pub(super) fn apply(saved: &Saved<'_>, request: &mut Request) -> Result<(), ApiError> {
    let asked = request.url.origin();
    let own = Url::parse(saved.origin).map(|url| url.origin());
    if !own.is_ok_and(|own| own.is_tuple() && own == asked) {
        return Err(ApiError::Origin { saved: saved.origin.to_owned(), asked: asked.ascii_serialization() });
    }
    let bearer = |token: &SecretString| secret(&format!("Bearer {}", token.expose_secret()));
    let (name, value) = match saved.credential {
        Credential::Header { name, value } => {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| ApiError::Credential("its name is no header name"))?;
            (name, secret(value.expose_secret())?)
        }
        Credential::Bearer { token } => (AUTHORIZATION, bearer(token)?),
        Credential::Oauth { access_token, .. } => (AUTHORIZATION, bearer(access_token)?),
        Credential::Basic { username, password } => {
            if username.contains(':') {
                return Err(ApiError::Credential("a user name holds no colon"));
            }
            let pair = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
            (AUTHORIZATION, secret(&format!("Basic {pair}"))?)
        }
        Credential::Query { name, value } => {
            request.query(name, value.expose_secret());
            return Ok(());
        }
        Credential::ClientCredentials { .. } => {
            return Err(ApiError::Credential("client credentials must be exchanged for a token first"));
        }
    };
    request.headers.insert(name, value);
    Ok(())
}

/// The answer's text without the secret, where a server echoes it.
pub(super) fn mask(saved: &Saved<'_>, text: String) -> String {
    let secrets: &[&SecretString] = match saved.credential {
        Credential::Header { value, .. } | Credential::Query { value, .. } => &[value],
        Credential::Bearer { token } => &[token],
        Credential::Basic { password, .. } => &[password],
        Credential::Oauth { access_token, .. } => &[access_token],
        Credential::ClientCredentials { client_secret, .. } => &[client_secret],
    };
    secrets.iter().map(|secret| secret.expose_secret()).filter(|secret| secret.len() >= TELLING).fold(
        text,
        |text, secret| if text.contains(secret) { text.replace(secret, "[secret]") } else { text },
    )
}

fn secret(text: &str) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| ApiError::Credential("it is no header value"))?;
    value.set_sensitive(true);
    Ok(value)
}
