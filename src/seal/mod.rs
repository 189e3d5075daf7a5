//! Secrets at rest: sealed by AES-256-GCM into the columns of a row, and opened again.
//!
//! Whoever keeps a user's key or a tool's credential seals it here before the row is written;
//! jobs open it right before a request. A seal is bound to its row by additional data, so a
//! ciphertext that was copied into another row, or that an older version held, does not open.
//! Rows that Node's crypto wrote (IV of 12 or 16 bytes, hex or base64, no additional data) open
//! too, and are to be sealed anew by the next rotation ([`Keys::is_stale`]).
//!
//! Nothing here writes a plaintext into an error, and every plaintext is wiped when it is let go.

mod file;
mod text;

pub use crate::domain::Sealed;

use crate::config;
use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, Nonce, Tag};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};
use std::collections::BTreeMap;

/// The id of the key that a file holds.
const LOCAL: &str = "local";

/// Why something was not sealed or opened. No variant holds a plaintext or a key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("no key is configured: set GRISTMILL__SEAL__KEYS__<ID> to 32 random bytes in hex or base64")]
    NoKey,
    #[error("seal.{setting} names the key {id:?}, which is not configured")]
    NoSuchKey { setting: &'static str, id: String },
    #[error("several keys are configured: say with seal.current which one seals")]
    WhichKey,
    #[error("the key {id:?} is not 32 bytes in hex or base64")]
    BadKey { id: String },
    #[error("{id:?} is no id of a key: 1 to 32 of a-z, 0-9 and _")]
    BadId { id: String },
    #[error("the key file {path}: {why}")]
    File { path: String, why: String },
    #[error("sealed with the key {id:?}, which is not configured")]
    UnknownKey { id: String },
    #[error("the column says key {column:?} and the ciphertext {prefix:?}")]
    TwoKeys { column: String, prefix: String },
    #[error("the {column} is neither hex nor base64")]
    Encoding { column: &'static str },
    #[error("an IV has 12 or 16 bytes, not {bytes}")]
    Iv { bytes: usize },
    #[error("an authentication tag has 16 bytes, not {bytes}: a shorter one is refused")]
    Tag { bytes: usize },
    #[error("it does not open with the key {id:?}: another key, another row, or changed bytes")]
    Closed { id: String },
}

/// The keys by their ids, and the one that seals.
pub struct Keys {
    ring: BTreeMap<String, Box<Cipher>>,
    /// None: nothing can be sealed, for no key is configured.
    current: Option<String>,
    /// What opens rows that name no key.
    unnamed: Option<String>,
}

/// One key, expanded for both lengths of IV; wiped when it is dropped.
struct Cipher {
    iv12: AesGcm<Aes256, U12>,
    iv16: AesGcm<Aes256, U16>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("ids", &self.ring.keys())
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the keys of the settings, and the key file's, which is made when it is missing.
    ///
    /// Without any key the program runs, and sealing and opening fail with [`SealError::NoKey`].
    pub fn open(settings: &config::Seal) -> Result<Self, SealError> {
        let mut ring = BTreeMap::new();
        for (id, key) in &settings.keys {
            if !is_id(id) {
                return Err(SealError::BadId { id: id.clone() });
            }
            let bytes = text::either(key.expose_secret());
            ring.insert(id.clone(), cipher(id, bytes)?);
        }
        if !settings.file.as_os_str().is_empty() {
            ring.insert(LOCAL.to_owned(), cipher(LOCAL, file::key(&settings.file)?)?);
        }
        let named = |setting, id: &String| {
            let known = ring.contains_key(id).then(|| Some(id.clone()));
            known.ok_or_else(|| SealError::NoSuchKey { setting, id: id.clone() })
        };
        let current = match &*settings.current {
            "" => only(&ring, settings)?,
            _ => named("current", &settings.current)?,
        };
        let unnamed = match &*settings.unnamed {
            "" => current.clone(),
            _ => named("unnamed", &settings.unnamed)?,
        };
        Ok(Self { ring, current, unnamed })
    }

    /// Seals with the current key and a fresh IV; only the same `aad` opens it.
    pub fn seal(&self, plain: &[u8], aad: &[u8]) -> Result<Sealed, SealError> {
        let id = self.current.as_ref().ok_or(SealError::NoKey)?;
        let cipher = self.ring.get(id).ok_or(SealError::NoKey)?;
        let mut bytes = Zeroizing::new(plain.to_vec());
        let iv: [u8; 12] = rand::random();
        let tag = cipher
            .iv12
            .encrypt_inout_detached(&Nonce::from(iv), aad, bytes.as_mut_slice().into())
            // Only what is longer than 64 GiB is refused.
            .map_err(|_| SealError::Closed { id: id.clone() })?;
        Ok(Sealed {
            ciphertext: hex::encode(&*bytes),
            iv: hex::encode(iv),
            auth_tag: hex::encode(tag),
            key_id: Some(id.clone()),
        })
    }

    /// Opens what [`Keys::seal`] or Node's crypto sealed.
    ///
    /// A row whose column names its key was sealed here and opens with its `aad` alone. One that
    /// names it in the text, or not at all, may come from a program that binds nothing.
    pub fn open_sealed(&self, sealed: &Sealed, aad: &[u8]) -> Result<SecretSlice<u8>, SealError> {
        let (id, body) = self.key_of(sealed)?;
        let cipher = self.ring.get(id).ok_or_else(|| SealError::UnknownKey { id: id.to_owned() })?;
        let bound = sealed.key_id.as_deref().is_some_and(|column| !column.is_empty());
        let mut wrong = None;
        let aads: &[&[u8]] = if bound { &[aad] } else { &[aad, b""] };
        for reading in text::readings(body, &sealed.iv, &sealed.auth_tag) {
            let opened = reading.and_then(|parts| {
                let tried = |aad: &&[u8]| cipher.open(parts.clone(), aad, id);
                // The additional data fits or does not; each way round the reason is the same.
                aads.iter().map(tried).find(Result::is_ok).unwrap_or_else(|| tried(&aads[0]))
            });
            match opened {
                Ok(plain) => return Ok(plain),
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        Err(wrong.unwrap_or(SealError::Closed { id: id.to_owned() }))
    }

    /// Whether the next rotation seals this anew: another key's, or bound to no row.
    pub fn is_stale(&self, sealed: &Sealed) -> bool {
        sealed.key_id != self.current
    }

    /// The id of the key that seals.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// The key's id and the ciphertext without its prefix.
    fn key_of<'a>(&'a self, sealed: &'a Sealed) -> Result<(&'a str, &'a str), SealError> {
        let column = sealed.key_id.as_deref().filter(|id| !id.is_empty());
        let (prefix, body) = match sealed.ciphertext.split_once(':') {
            Some((prefix, body)) => (Some(prefix), body),
            None => (None, &*sealed.ciphertext),
        };
        match (column, prefix) {
            (Some(column), Some(prefix)) if column != prefix => {
                Err(SealError::TwoKeys { column: column.to_owned(), prefix: prefix.to_owned() })
            }
            (Some(id), _) | (None, Some(id)) => Ok((id, body)),
            (None, None) => Ok((self.unnamed.as_deref().ok_or(SealError::NoKey)?, body)),
        }
    }
}

impl Cipher {
    fn open(&self, parts: text::Parts, aad: &[u8], id: &str) -> Result<SecretSlice<u8>, SealError> {
        let text::Parts { ciphertext, iv, tag } = parts;
        let mut bytes = Zeroizing::new(ciphertext);
        // Truncated tags can be guessed: 32 bits of one are 2^31 tries.
        let tag = <[u8; 16]>::try_from(&*tag).map_err(|_| SealError::Tag { bytes: tag.len() })?;
        let tag = Tag::from(tag);
        let buffer = bytes.as_mut_slice().into();
        let opened = if let Ok(iv) = <[u8; 12]>::try_from(&*iv) {
            self.iv12.decrypt_inout_detached(&Nonce::from(iv), aad, buffer, &tag)
        } else if let Ok(iv) = <[u8; 16]>::try_from(&*iv) {
            self.iv16.decrypt_inout_detached(&Nonce::from(iv), aad, buffer, &tag)
        } else {
            return Err(SealError::Iv { bytes: iv.len() });
        };
        opened.map_err(|_| SealError::Closed { id: id.to_owned() })?;
        Ok(SecretSlice::from(std::mem::take(&mut *bytes)))
    }
}

fn cipher(id: &str, bytes: Option<Zeroizing<Vec<u8>>>) -> Result<Box<Cipher>, SealError> {
    let bytes = bytes.filter(|bytes| bytes.len() == 32);
    let bytes = bytes.ok_or_else(|| SealError::BadKey { id: id.to_owned() })?;
    let bad = |_| SealError::BadKey { id: id.to_owned() };
    Ok(Box::new(Cipher {
        iv12: AesGcm::new_from_slice(&bytes).map_err(bad)?,
        iv16: AesGcm::new_from_slice(&bytes).map_err(bad)?,
    }))
}

/// The key that seals when the settings do not say: the only configured one, else the file's.
fn only(ring: &BTreeMap<String, Box<Cipher>>, settings: &config::Seal) -> Result<Option<String>, SealError> {
    match settings.keys.len() {
        0 => Ok(ring.keys().next().cloned()),
        1 => Ok(settings.keys.keys().next().cloned()),
        _ => Err(SealError::WhichKey),
    }
}

fn is_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests;
