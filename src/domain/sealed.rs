//! A sealed secret as it lies in its row's columns.

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
