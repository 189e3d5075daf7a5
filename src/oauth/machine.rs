//! Tokens of programs: kept in this process while they last, asked for by one at a time.
//!
//! They are not stored: whoever has the client's secret can have another at once. Each process has
//! its own, which every authorization server allows.

use crate::domain::Credential;
use crate::oauth::{Oauth, OauthError};
use secrecy::SecretString;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

/// A token that ends so soon is not used any more.
const MARGIN: Duration = Duration::from_secs(30);
/// Credentials whose tokens are kept; beyond it all are forgotten, and asked for anew.
const KEPT: usize = 10_000;

struct Token {
    version: i32,
    value: SecretString,
    until: Instant,
}

type Place = Arc<tokio::sync::Mutex<Option<Token>>>;

#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<HashMap<Uuid, Place>>>);

impl Tokens {
    fn place(&self, credential: Uuid) -> Place {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.clear();
        }
        Arc::clone(all.entry(credential).or_default())
    }
}

/// Which credential, and whether the server has just refused the token it gave.
#[derive(Debug, Clone, Copy)]
pub struct Which {
    pub credential: Uuid,
    pub version: i32,
    pub refused: bool,
}

impl Oauth {
    /// The token of a program's credential for one server.
    pub async fn token(
        &self,
        which: Which,
        server: &Url,
        credential: &Credential,
    ) -> Result<SecretString, OauthError> {
        let place = self.tokens.place(which.credential);
        // Whoever waits here finds the token that the one before it brought.
        let mut kept = place.lock().await;
        if let Some(token) = kept.as_ref()
            && token.version == which.version
            && token.until > Instant::now()
            && !which.refused
        {
            return Ok(token.value.clone());
        }
        *kept = None;
        let granted = self.client_credentials(server, credential).await?;
        let until = Instant::now() + granted.lifetime().saturating_sub(MARGIN);
        let value = granted.access_token;
        *kept = Some(Token { version: which.version, value: value.clone(), until });
        Ok(value)
    }
}
