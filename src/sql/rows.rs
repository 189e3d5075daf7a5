//! Rows as a model reads them: structured, and as a table of text.

use crate::domain::ToolOutput;
use serde_json::{Value, json};

/// The longest text of one cell in the table of text; structured rows keep the whole.
const WIDEST: usize = 200;

/// What a query gave.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rows {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// There was more than the limits let through.
    pub truncated: bool,
    /// Bytes of the values so far.
    pub bytes: usize,
}

/// Caps on what one call brings home.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caps {
    pub rows: usize,
    pub bytes: usize,
}

impl Rows {
    pub(super) fn new(columns: Vec<String>) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Takes a row, or tells that there is room for no more.
    pub(super) fn push(&mut self, row: Vec<Value>, caps: Caps) -> bool {
        let size: usize = row.iter().map(size).sum();
        if self.rows.len() >= caps.rows || self.bytes + size > caps.bytes {
            self.truncated = true;
            return false;
        }
        self.bytes += size;
        self.rows.push(row);
        true
    }

    /// The tool's output.
    pub(super) fn output(self) -> ToolOutput {
        let text = self.table();
        let structured = json!({ "columns": self.columns, "rows": self.rows, "truncated": self.truncated });
        ToolOutput { structured_content: Some(structured), ..ToolOutput::text(text) }
    }

    fn table(&self) -> String {
        let mut lines = vec![line(self.columns.iter().cloned())];
        lines.push(line(self.columns.iter().map(|_| "---".to_owned())));
        lines.extend(self.rows.iter().map(|row| line(row.iter().map(cell))));
        let count = match self.rows.len() {
            1 => "1 row".to_owned(),
            n => format!("{n} rows"),
        };
        let more =
            if self.truncated { ", and there were more: narrow the query or page through it" } else { "" };
        lines.push(format!("({count}{more})"));
        lines.join("\n")
    }
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut shown: String = text.chars().take(WIDEST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        other => other.to_string().len(),
    }
}
