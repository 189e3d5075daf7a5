//! Rows as a model reads them: structured, and as a table of text.

use crate::domain::ToolOutput;
use serde_json::{Value, json};

/// The longest text of one cell in the table of text; structured rows keep the whole.
const WIDEST: usize = 200;

/// What a query gave.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
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

impl Table {
    pub(super) fn new(columns: Vec<String>) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Takes a row, or tells that there is room for no more. A row that is larger than all there
    /// is room for is cut, so that something of it is seen.
    pub(super) fn push(&mut self, mut row: Vec<Value>, caps: Caps) -> bool {
        if row.iter().map(size).sum::<usize>() > caps.bytes {
            let share = caps.bytes / row.len().max(1);
            for value in &mut row {
                cut(value, share);
            }
            self.truncated = true;
        }
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

/// Cuts a text, or what is written as one, to so many bytes.
fn cut(value: &mut Value, most: usize) {
    if size(value) <= most || matches!(value, Value::Null | Value::Bool(_) | Value::Number(_)) {
        return;
    }
    let text = match &*value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    *value = text[..end].into();
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        other => other.to_string().len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps { rows: 2, bytes: 20 };

    #[test]
    fn a_row_larger_than_the_room_is_cut_and_told() {
        let mut table = Table::new(vec!["a".to_owned(), "b".to_owned()]);
        assert!(table.push(vec![Value::Null, "äöüäöüäöü".into()], Caps { bytes: 30, ..CAPS }));
        assert!(!table.truncated);
        let mut table = Table::new(vec!["a".to_owned(), "b".to_owned()]);
        assert!(
            table.push(vec!["ääääääää".into(), json!({ "k": "0123456789" })], Caps { bytes: 15, ..CAPS })
        );
        assert_eq!(table.rows, [vec![json!("äää"), json!("{\"k\":\"0")]]);
        assert!(table.truncated);
    }

    #[test]
    fn rows_and_bytes_are_counted_together() {
        let mut table = Table::new(vec!["a".to_owned()]);
        assert!(table.push(vec!["0123456789".into()], CAPS));
        assert!(!table.push(vec!["0123456789x".into()], CAPS), "the bytes are used up");
        let mut table = Table::new(vec!["a".to_owned()]);
        assert!(table.push(vec![1.into()], CAPS) && table.push(vec![2.into()], CAPS) && !table.truncated);
        assert!(!table.push(vec![3.into()], CAPS) && table.truncated);
    }
}
