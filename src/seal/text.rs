//! Hex or base64, told apart by alphabet.
//!
//! Never by length: 24 characters are 12 bytes in hex and 16 in base64. Base64 can by chance look
//! like hex, so a row is hex where all of its columns are (a tag of 16 bytes ends in `==`, or in
//! one of four letters of which hex has two). Where that does not open, or the columns differ,
//! the other reading is tried: the tag decides which one was meant.

use crate::seal::SealError;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::zeroize::Zeroizing;

/// Padded or not; the URL alphabet is mapped onto this one before.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(false),
);

/// A sealed row in bytes.
#[derive(Clone)]
pub struct Parts {
    pub ciphertext: Vec<u8>,
    pub iv: Vec<u8>,
    pub tag: Vec<u8>,
}

/// What the three columns may mean, the likeliest first.
pub fn readings(ciphertext: &str, iv: &str, tag: &str) -> Vec<Result<Parts, SealError>> {
    let columns = [("ciphertext", ciphertext), ("iv", iv), ("auth_tag", tag)];
    let hexes = columns.map(|(_, text)| is_hex(text));
    let mut readings = vec![read(columns, hexes)];
    if hexes.contains(&true) {
        readings.push(read(columns, [false; 3]));
    }
    readings
}

fn read(columns: [(&'static str, &str); 3], hexes: [bool; 3]) -> Result<Parts, SealError> {
    let mut parts = columns.into_iter().zip(hexes).map(|((column, text), as_hex)| {
        let bytes = if as_hex { hex::decode(text).ok() } else { base64(text) };
        bytes.ok_or(SealError::Encoding { column })
    });
    let mut next = || parts.next().unwrap_or(Err(SealError::Encoding { column: "row" }));
    Ok(Parts { ciphertext: next()?, iv: next()?, tag: next()? })
}

/// A key of the settings.
pub fn either(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.trim();
    let bytes = if is_hex(text) { hex::decode(text).ok() } else { base64(text) };
    bytes.map(Zeroizing::new)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let text = Zeroizing::new(text.replace('-', "+").replace('_', "/"));
    BASE64.decode(text.as_bytes()).ok()
}
