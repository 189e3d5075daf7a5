//! Which keys belong to which tenant. Rows name keys, and rows are written by clients: a key
//! is checked here before the worker's wide rights are used on it.

use super::Objects;
use crate::domain::WorkspaceId;

const LONGEST_KEY: usize = 1024;

/// Why a key is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is empty")]
    Empty,
    #[error("the key has {bytes} bytes, the limit is {LONGEST_KEY}")]
    TooLong { bytes: usize },
    #[error("the key holds a control or direction character")]
    Control,
    #[error("the key holds a `.` or `..` segment")]
    Traversal,
    #[error("the key lies outside the workspace's prefix")]
    Foreign,
}

impl Objects {
    /// Refuses a key that is not plainly inside the workspace's own prefix.
    pub fn key_belongs(&self, workspace: WorkspaceId, key: &str) -> Result<(), KeyError> {
        check(&self.prefix(workspace), key)
    }

    /// The key of `tail` under the workspace's prefix; what is made here passes
    /// [`Objects::key_belongs`] unless `tail` itself does not.
    pub fn tenant_key(&self, workspace: WorkspaceId, tail: &str) -> String {
        format!("{}{tail}", self.prefix(workspace))
    }

    fn prefix(&self, workspace: WorkspaceId) -> String {
        self.tenant_prefix.replace("{workspace}", &workspace.to_string())
    }
}

fn check(prefix: &str, key: &str) -> Result<(), KeyError> {
    if key.is_empty() {
        return Err(KeyError::Empty);
    }
    if key.len() > LONGEST_KEY {
        return Err(KeyError::TooLong { bytes: key.len() });
    }
    if key.chars().any(|c| c.is_control() || is_direction_mark(c)) {
        return Err(KeyError::Control);
    }
    // Backslashes too: a store over a Windows or SMB folder would take them for separators.
    if key.split(['/', '\\']).any(|segment| matches!(segment, "." | "..")) {
        return Err(KeyError::Traversal);
    }
    match key.strip_prefix(prefix) {
        Some(tail) if !tail.is_empty() => Ok(()),
        _ => Err(KeyError::Foreign),
    }
}

/// Characters that make a name read differently from what it is.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "0192a/";

    #[test]
    fn hostile_keys_are_refused_each_for_its_reason() {
        let long = format!("{OURS}{}", "x".repeat(1024));
        let table: [(&str, KeyError); 18] = [
            ("", KeyError::Empty),
            (&long, KeyError::TooLong { bytes: long.len() }),
            ("0192a/..", KeyError::Traversal),
            ("0192a/../0192b/secret", KeyError::Traversal),
            ("../0192a/x", KeyError::Traversal),
            ("0192a/./x", KeyError::Traversal),
            ("0192a/a/../../b", KeyError::Traversal),
            ("0192a\\..\\b", KeyError::Traversal),
            ("0192a/a\0b", KeyError::Control),
            ("0192a/a\r\nX-Evil: 1", KeyError::Control),
            ("0192a/\u{7f}", KeyError::Control),
            ("0192a/\u{85}", KeyError::Control),
            ("0192a/invoice\u{202e}fdp.exe", KeyError::Control),
            ("0192b/x", KeyError::Foreign),
            ("0192a", KeyError::Foreign),
            ("0192a/", KeyError::Foreign),
            ("0192A/x", KeyError::Foreign),
            ("/0192a/x", KeyError::Foreign),
        ];
        for (key, why) in table {
            assert_eq!(check(OURS, key), Err(why), "{key:?}");
        }
    }

    #[test]
    fn ordinary_and_odd_but_harmless_keys_pass() {
        for tail in ["a.pdf", "a/b/c.txt", "..hidden", "a..b", "Übersicht 2026.docx", "%2e%2e/x", "日本語.md"]
        {
            assert_eq!(check(OURS, &format!("{OURS}{tail}")), Ok(()), "{tail}");
        }
    }
}
