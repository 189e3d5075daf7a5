//! An answer in one shape, whoever gave it.

use super::Question;
use crate::domain::ToolOutput;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A source, and the part of the answer that rests on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Citation {
    pub title: String,
    pub url: String,
    /// The source's own words, where the provider quotes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
    /// Characters of the answer, where the provider tells which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<usize>,
}

/// What the ledger is charged for.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Usage {
    pub provider: String,
    pub model: String,
    pub input_tokens: u64,
    /// Of those, read from the provider's cache.
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Searches, which providers charge for by themselves.
    pub searches: u64,
}

/// An answer from the web.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Answer {
    pub answer: String,
    pub citations: Vec<Citation>,
    pub queries: Vec<String>,
    pub usage: Usage,
    /// The provider stopped before it was done.
    pub truncated: bool,
    /// What Google asks to be shown beside an answer of its search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestions_html: Option<String>,
}

impl Answer {
    pub(super) fn new(question: &Question<'_>) -> Self {
        let usage = Usage {
            provider: format!("{:?}", question.provider).to_lowercase(),
            model: question.model.to_owned(),
            ..Usage::default()
        };
        Self { usage, ..Self::default() }
    }

    /// Characters so far: where the next part begins.
    pub(super) fn chars(&self) -> usize {
        self.answer.chars().count()
    }

    pub(super) fn cite(&mut self, citation: Citation) {
        if !citation.url.is_empty() && !self.citations.contains(&citation) {
            self.citations.push(citation);
        }
    }

    pub(super) fn searched(&mut self, query: Option<&str>) {
        if let Some(query) = query
            && !self.queries.iter().any(|known| known == query)
        {
            self.queries.push(query.to_owned());
        }
    }

    /// The answer and its sources as a tool's output; an empty answer is an error.
    pub fn output(self) -> ToolOutput {
        let mut text = self.answer.clone();
        let mut seen: Vec<&str> = Vec::new();
        for citation in &self.citations {
            if !seen.contains(&citation.url.as_str()) {
                seen.push(&citation.url);
                let before = if seen.len() == 1 { "\n\nSources:" } else { "" };
                let title = if citation.title.is_empty() { &citation.url } else { &citation.title };
                // Writing into a String cannot fail.
                let _ = write!(text, "{before}\n[{}] {title} {}", seen.len(), citation.url);
            }
        }
        if self.truncated {
            text.push_str("\n\n(The answer was cut off.)");
        }
        let is_error = self.answer.trim().is_empty();
        if is_error {
            text = format!("The search gave no answer.{text}");
        }
        let structured = serde_json::to_value(&self).unwrap_or(Value::Null);
        ToolOutput {
            content: vec![json!({ "type": "text", "text": text })],
            structured_content: Some(structured),
            is_error,
        }
    }
}
