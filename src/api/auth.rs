//! Who calls: a credential set into a request, for the origin it was saved for and no other.

use super::error::ApiError;
use super::place::{Request, encode};
use crate::domain::{Credential, Saved};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
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
    let mut forms: Vec<String> = secrets.iter().flat_map(|secret| forms(secret.expose_secret())).collect();
    if let Credential::Basic { username, password } = saved.credential {
        forms.push(STANDARD.encode(format!("{username}:{}", password.expose_secret())));
    }
    // The longest first: what is left of a secret after another was taken out would be told.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms.iter().filter(|form| form.len() >= TELLING).fold(text, |text, form| {
        if text.contains(form.as_str()) { text.replace(form.as_str(), "[secret]") } else { text }
    })
}

/// How a server may write a secret that it echoes.
fn forms(secret: &str) -> [String; 4] {
    let in_json = Value::from(secret).to_string();
    let in_form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    [secret.to_owned(), encode(secret), in_form, in_json.trim_matches('"').to_owned()]
}

/// The texts and keys of a JSON value without the secret.
pub(super) fn mask_value(saved: &Saved<'_>, value: &mut Value) {
    match value {
        Value::String(text) => *text = mask(saved, std::mem::take(text)),
        Value::Array(items) => items.iter_mut().for_each(|item| mask_value(saved, item)),
        Value::Object(entries) => {
            for (key, mut item) in std::mem::take(entries) {
                mask_value(saved, &mut item);
                entries.insert(mask(saved, key), item);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn secret(text: &str) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| ApiError::Credential("it is no header value"))?;
    value.set_sensitive(true);
    Ok(value)
}
