//! A sealed secret as it lies in its row's columns, and a credential as it is sealed.

use crate::domain::Credential;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

/// AES-256-GCM in text columns: hex or base64, as `seal` and other programs write them.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// `credential` or `api_key`; a product without a column for the key's id writes it before,
    /// as `v2:`.
    pub ciphertext: String,
    pub iv: String,
    pub auth_tag: String,
    /// None: a row from before there were ids, which is bound to no row.
    pub key_id: Option<String>,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({} characters, key {:?})", self.ciphertext.len(), self.key_id)
    }
}

impl Credential {
    /// The JSON that is sealed; wiped when it is let go.
    pub fn to_json(&self) -> Zeroizing<String> {
        let secret = |secret: &SecretString| secret.expose_secret().to_owned();
        let value = match self {
            Self::Header { name, value } => json!({ "type": "header", "name": name, "value": secret(value) }),
            Self::Bearer { token } => json!({ "type": "bearer", "token": secret(token) }),
            Self::Basic { username, password } => {
                json!({ "type": "basic", "username": username, "password": secret(password) })
            }
            Self::Query { name, value } => json!({ "type": "query", "name": name, "value": secret(value) }),
            Self::Oauth {
                access_token,
                refresh_token,
                client_id,
                client_secret,
                token_url,
                scope,
                resource,
            } => {
                json!({
                    "type": "oauth", "access_token": secret(access_token),
                    "refresh_token": refresh_token.as_ref().map(secret), "client_id": client_id,
                    "client_secret": client_secret.as_ref().map(secret), "token_url": token_url,
                    "scope": scope, "resource": resource,
                })
            }
            Self::ClientCredentials { client_id, client_secret, token_url, scope } => json!({
                "type": "client_credentials", "client_id": client_id,
                "client_secret": secret(client_secret), "token_url": token_url, "scope": scope,
            }),
        };
        Zeroizing::new(value.to_string())
    }

    /// Reads what [`Credential::to_json`] wrote. The error tells no part of it.
    pub fn from_json(json: &[u8]) -> Result<Self, Unreadable> {
        serde_json::from_slice(json).map_err(|_| Unreadable)
    }
}

/// What was sealed is no credential that this version knows.
#[derive(Debug, thiserror::Error)]
#[error("what was opened is no credential of this version")]
pub struct Unreadable;
