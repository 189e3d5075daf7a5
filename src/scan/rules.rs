//! The built-in engine: a few byte patterns over every part of a file.
//!
//! Light on purpose. It knows the test file, and droppers so plain that nobody means well with
//! them; for the wide world there is clamd.

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;
use sha2::{Digest, Sha256};

const SIGNATURES: &str = include_str!("../../config/signatures.toml");
/// Two halves, so that no file of ours holds the string that scanners look for.
const EICAR: [&str; 2] = ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!$H+H*"];

/// Which parts a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scope {
    Any,
    Pdf,
    Office,
    Macro,
    Markup,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    scope: Scope,
    #[serde(default)]
    head: String,
    all: Vec<String>,
    #[serde(default)]
    any: Vec<String>,
    /// A second list of which one must be there, beside `any`.
    #[serde(default)]
    with: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct RuleFile {
    rule: Vec<Written>,
}

/// A rule whose strings have become bits.
#[derive(Debug)]
struct Rule {
    name: String,
    scope: Scope,
    head: Vec<u8>,
    all: u64,
    any: u64,
    with: u64,
}

/// Every rule in one automaton.
#[derive(Debug)]
pub(super) struct Rules {
    all: Vec<Rule>,
    automaton: AhoCorasick,
    longest: usize,
    /// Changes with the rules.
    pub version: String,
}

/// Why the compiled-in rules do not load; only a developer sees this.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("signatures.toml: {0}")]
    Written(#[from] ::config::ConfigError),
    #[error("signatures.toml: head of {0} is not hex")]
    Head(String),
    #[error("signatures.toml: more than 64 strings")]
    TooMany,
    #[error("signatures.toml: {0}")]
    Automaton(#[from] aho_corasick::BuildError),
}

impl Rules {
    /// Loads the rules that are compiled in.
    pub(super) fn load() -> Result<Self, RuleError> {
        let source = ::config::File::from_str(SIGNATURES, ::config::FileFormat::Toml);
        let file: RuleFile = ::config::Config::builder().add_source(source).build()?.try_deserialize()?;
        let mut strings: Vec<String> = Vec::new();
        let mut bits = |wanted: &[String]| {
            wanted.iter().fold(0_u64, |mask, text| {
                let at = strings.iter().position(|s| s == text).unwrap_or_else(|| {
                    strings.push(text.clone());
                    strings.len() - 1
                });
                mask | 1_u64.checked_shl(at as u32).unwrap_or(0)
            })
        };
        let eicar = bits(&[EICAR.concat()]);
        let name = "Eicar-Test-Signature".to_owned();
        let mut rules = vec![Rule { name, scope: Scope::Any, head: vec![], all: eicar, any: 0, with: 0 }];
        for rule in file.rule {
            let head = hex::decode(&rule.head).map_err(|_| RuleError::Head(rule.name.clone()))?;
            let (all, any, with) = (bits(&rule.all), bits(&rule.any), bits(&rule.with));
            rules.push(Rule { name: rule.name, scope: rule.scope, head, all, any, with });
        }
        if strings.len() > 64 {
            return Err(RuleError::TooMany);
        }
        let longest = strings.iter().map(String::len).max().unwrap_or(1);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            .build(&strings)?;
        let version = hex::encode(&Sha256::digest(SIGNATURES)[..4]);
        Ok(Self { all: rules, automaton, longest, version })
    }

    /// A sieve for one part.
    pub(super) fn sieve(&self) -> Sieve<'_> {
        Sieve { rules: self, seen: 0, head: Vec::new(), window: Vec::new() }
    }
}

/// One part on its way through the rules, in pieces of any size.
#[derive(Debug)]
pub(super) struct Sieve<'a> {
    rules: &'a Rules,
    seen: u64,
    head: Vec<u8>,
    window: Vec<u8>,
}

impl Sieve<'_> {
    /// Looks at the next piece, together with the end of the one before.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        let room = 8_usize.saturating_sub(self.head.len());
        self.head.extend_from_slice(&piece[..room.min(piece.len())]);
        self.window.extend_from_slice(piece);
        for found in self.rules.automaton.find_overlapping_iter(&self.window) {
            self.seen |= 1 << found.pattern().as_u32();
        }
        let keep = (self.rules.longest - 1).min(self.window.len());
        self.window.drain(..self.window.len() - keep);
    }

    /// Begins another part that counts together with this one: the heads of both are looked at,
    /// the seam between them is not.
    pub(super) fn next_stream(&mut self) {
        self.head.clear();
        self.window.clear();
    }

    /// The rule that fires for this part, if one does.
    pub(super) fn verdict(&self, scope: Scope) -> Option<&str> {
        let (seen, head) = (self.seen, &self.head);
        let fires = |rule: &&Rule| {
            (rule.scope == Scope::Any || rule.scope == scope)
                && seen & rule.all == rule.all
                && (rule.any == 0 || seen & rule.any != 0)
                && (rule.with == 0 || seen & rule.with != 0)
                && head.starts_with(&rule.head)
        };
        if seen == 0 {
            return None;
        }
        self.rules.all.iter().find(fires).map(|rule| rule.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_across_pieces_of_any_size() {
        let rules = Rules::load().unwrap();
        let text = format!("{}{}{}", "x".repeat(5_000), EICAR.concat(), "y".repeat(77));
        for size in [1, 7, 67, 68, 69, 4096, 100_000] {
            let mut sieve = rules.sieve();
            text.as_bytes().chunks(size).for_each(|piece| sieve.feed(piece));
            assert_eq!(sieve.verdict(Scope::Any), Some("Eicar-Test-Signature"), "pieces of {size}");
        }
    }

    #[test]
    fn half_of_a_rule_is_silent_and_scopes_hold() {
        let rules = Rules::load().unwrap();
        let verdict = |text: &str, scope| {
            let mut sieve = rules.sieve();
            sieve.feed(text.as_bytes());
            sieve.verdict(scope).map(str::to_owned)
        };
        assert_eq!(verdict(EICAR[0], Scope::Any), None);
        assert_eq!(verdict("/OpenAction << /JavaScript", Scope::Pdf), None);
        assert!(verdict("/OpenAction /JavaScript /Launch", Scope::Pdf).is_some());
        assert_eq!(verdict("/OpenAction /JavaScript /Launch", Scope::Any), None);
        assert_eq!(verdict("Sub AutoOpen()", Scope::Macro), None);
        assert_eq!(verdict("x = Shell(\"cmd\")", Scope::Macro), None);
        assert!(verdict("Sub AutoOpen()\n x = Shell(\"cmd\")", Scope::Macro).is_some());
        assert_eq!(verdict("see: This program cannot be run in DOS mode", Scope::Pdf), None);
        assert!(verdict("MZ.. This program cannot be run in DOS mode", Scope::Pdf).is_some());
    }
}
