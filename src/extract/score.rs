//! How good an extraction is: measured against a manifest of documents whose text is known.
//!
//! The manifest is one JSON object a line. `expect` says what must become of the file,
//! `contains` what must be in its text, `expected_text` names the whole text in Markdown.

use super::ExtractError;
use crate::domain::Completeness;
use crate::domain::TextFacts;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use unicode_normalization::UnicodeNormalization;

/// A document of the manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// Its path below the folder of the manifest.
    pub file: String,
    pub format: String,
    pub expect: Expect,
    /// The path of its whole text in Markdown.
    pub expected_text: Option<String>,
    /// Phrases its text must contain.
    #[serde(default)]
    pub contains: Vec<String>,
    /// Phrases that only a very thorough extraction contains.
    #[serde(default)]
    pub contains_hard: Vec<String>,
    /// Phrases that must not reach its text.
    #[serde(default)]
    pub not_contains: Vec<String>,
}

/// What must become of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// It has text, or pictures of text.
    Text,
    /// Any told outcome.
    NoCrash,
    /// A final error; text only where the lock asks for no password.
    EncryptedError,
    /// An error or partial text, in bounded time and memory.
    HostileOrMalformed,
    /// Pictures of text: read, or said to be pictures.
    OcrOrEmpty,
}

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest cannot be opened")]
    Io(#[from] std::io::Error),
    #[error("line {line} of the manifest is not a document")]
    Line { line: usize, source: serde_json::Error },
}

/// Reads a manifest.
pub fn manifest(path: &Path) -> Result<Vec<Case>, ManifestError> {
    let lines = std::fs::read_to_string(path)?;
    let parse = |(line, text)| {
        serde_json::from_str(text).map_err(|source| ManifestError::Line { line: line + 1, source })
    };
    lines.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()).map(parse).collect()
}

/// True if a document came to an end that `expect` allows.
pub fn is_as_expected(expect: Expect, outcome: &Result<TextFacts, ExtractError>) -> bool {
    // A silent end is the one that is never right: a crash of ours, or no text called complete.
    match outcome {
        Err(e) if !e.is_final() => false,
        Err(ExtractError::Crashed { .. }) => expect == Expect::HostileOrMalformed,
        Err(ExtractError::Encrypted) => expect != Expect::Text,
        Err(_) => matches!(expect, Expect::NoCrash | Expect::HostileOrMalformed | Expect::EncryptedError),
        Ok(facts) => match expect {
            Expect::EncryptedError => facts.text_chars > 0,
            _ => facts.text_chars > 0 || facts.completeness != Completeness::Complete,
        },
    }
}

/// Figures over many documents.
#[derive(Debug, Default)]
pub struct Tally {
    pub files: usize,
    /// The files whose end `expect` does not allow.
    pub unexpected: Vec<String>,
    pub found: usize,
    pub wanted: usize,
    pub hard_found: usize,
    pub hard_wanted: usize,
    /// The token F1 of each document whose whole text is known.
    pub scores: Vec<f64>,
}

impl Tally {
    /// Counts one document: what became of it, its text (empty without one), and the whole
    /// text where it is known.
    pub fn add(
        &mut self,
        case: &Case,
        outcome: &Result<TextFacts, ExtractError>,
        text: &str,
        expected: Option<&str>,
    ) {
        self.files += 1;
        if !is_as_expected(case.expect, outcome) {
            self.unexpected.push(case.file.clone());
        }
        self.found += phrases_found(text, &case.contains);
        self.wanted += case.contains.len();
        self.hard_found += phrases_found(text, &case.contains_hard);
        self.hard_wanted += case.contains_hard.len();
        self.scores.extend(expected.map(|expected| token_f1(text, expected)));
    }

    /// The mean token F1; zero if no text is known.
    pub fn mean_f1(&self) -> f64 {
        self.scores.iter().sum::<f64>() / self.scores.len().max(1) as f64
    }
}

/// How many of `phrases` are in `text`, white space, case and compatibility forms aside.
///
/// Markdown's own signs do not hide a phrase: it is looked for in the marked text and in
/// the text without them.
pub fn phrases_found(text: &str, phrases: &[String]) -> usize {
    let marked = normalised(text);
    let bare = normalised(&without_markup(text));
    phrases
        .iter()
        .map(|phrase| normalised(phrase))
        .filter(|phrase| marked.contains(phrase) || bare.contains(phrase))
        .count()
}

/// The harmonic mean of precision and recall over words, lower-case and without markup.
pub fn token_f1(text: &str, expected: &str) -> f64 {
    let (ours, theirs) = (words(text), words(expected));
    let (given, wanted) = (ours.values().sum::<u64>(), theirs.values().sum::<u64>());
    if given + wanted == 0 {
        return 1.0;
    }
    let shared: u64 = ours.iter().map(|(word, n)| (*n).min(theirs.get(word).copied().unwrap_or(0))).sum();
    2.0 * shared as f64 / (given + wanted) as f64
}

fn normalised(text: &str) -> String {
    let folded = text.nfkc().collect::<String>().to_lowercase();
    folded.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> HashMap<String, u64> {
    let folded = without_tags(text).nfkc().collect::<String>().to_lowercase();
    let mut counts = HashMap::new();
    for word in folded.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()) {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

/// Markdown's emphasis, rules, table bars, link targets and HTML tags gone.
fn without_markup(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let text = without_tags(text);
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("](") {
        bare.push_str(before);
        rest = after.split_once(')').map_or(after, |(_, rest)| rest);
    }
    bare.push_str(rest);
    bare.retain(|c| !matches!(c, '*' | '`' | '|' | '[' | ']' | '\\'));
    bare
}

/// HTML tags and comments replaced by spaces; a lone `<` stays.
fn without_tags(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        bare.push_str(before);
        let end = if tag.starts_with("<!--") {
            tag.find("-->").map(|end| end + 3)
        } else if tag[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') {
            tag.find('>').map(|end| end + 1)
        } else {
            None
        };
        if let Some(end) = end {
            bare.push(' ');
            rest = &tag[end..];
        } else {
            bare.push('<');
            rest = &tag[1..];
        }
    }
    bare.push_str(rest);
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_counts_words_and_not_markup() {
        assert_eq!(token_f1("# The **Plan**\n<!-- x -->", "the plan"), 1.0);
        assert_eq!(token_f1("a b", "a c"), 0.5);
        assert_eq!(token_f1("", ""), 1.0);
        assert_eq!(token_f1("a", ""), 0.0);
        assert!((token_f1("a a a", "a") - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_phrase_is_found_across_lines_forms_and_emphasis() {
        let phrase = |phrase: &str| vec![phrase.to_owned()];
        assert_eq!(phrases_found("The\n ﬁrst  **Day**", &phrase("the first day")), 1);
        assert_eq!(phrases_found("see [the plan](http://x) now", &phrase("the plan now")), 1);
        assert_eq!(phrases_found("if a < b", &phrase("a < b")), 1);
        assert_eq!(phrases_found("nothing", &phrase("the first day")), 0);
    }

    #[test]
    fn a_locked_file_called_empty_is_not_as_expected() {
        let facts = TextFacts {
            text_bytes: 0,
            text_chars: 0,
            text_sha256: String::new(),
            completeness: Completeness::Empty,
            pages: Vec::new(),
            language: None,
            syntax: crate::domain::Syntax::Plain,
            title: None,
        };
        assert!(!is_as_expected(Expect::EncryptedError, &Ok(facts.clone())));
        assert!(is_as_expected(Expect::OcrOrEmpty, &Ok(facts)));
        assert!(is_as_expected(Expect::EncryptedError, &Err(ExtractError::Encrypted)));
        assert!(!is_as_expected(Expect::Text, &Err(ExtractError::Crashed { signal: Some(6) })));
    }

    #[test]
    fn a_manifest_names_its_broken_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let good = r#"{"file":"a.txt","format":"txt","expect":"no_crash"}"#;
        std::fs::write(file.path(), format!("{good}\nx\n")).unwrap();
        assert!(matches!(manifest(file.path()), Err(ManifestError::Line { line: 2, .. })));
    }
}
