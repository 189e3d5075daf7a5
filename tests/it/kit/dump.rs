//! A database as text that two runs of the same work have in common.
//!
//! Every table of the schema is in it, row by row, every column, but for what a run cannot
//! repeat, and what a fault may change without harm:
//! - ids: each is replaced by the order of its first appearance, wherever it stands (columns,
//!   keys of objects, payloads, texts), so that what refers to what is compared;
//! - times: only whether one is set;
//! - how often and by whom a job was tried (attempts, epoch, worker), and generated numbers
//!   (identity columns, the space's id), which leave gaps when a transaction is rolled back;
//!   rows of tables with such a number stay in its order;
//! - the part of a text object's key that names the attempt which stored it;
//! - `chunks_seen` of a space, a count that a crash may leave short;
//! - the progress events of an index between its first chunk and its last, told once a second
//!   at most, so that their number is a matter of speed;
//! - who is there right now (`workers`), what goes on by the clock (`schedules`), the system's
//!   own jobs, and the migrations' ledger.

use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::HashMap;

const TABLES_LEFT_OUT: [&str; 5] = ["_sqlx_migrations", "workers", "schedules", "kinds", "leaders"];
const COLUMNS_LEFT_OUT: [&str; 6] = ["attempts", "epoch", "worker", "xid", "space_id", "chunks_seen"];
const SYSTEM: &str = "00000000-0000-0000-0000-000000000001";
/// Longer texts stand as their hash.
const LONG: usize = 200;

/// The lines of the dump: `table: row`.
pub async fn lines(owner: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'gristmill'::regnamespace AND relkind IN ('r', 'p')
         ORDER BY relname",
    )
    .fetch_all(&mut *owner)
    .await?;
    let mut lines = Vec::new();
    for table in tables.iter().filter(|table| !TABLES_LEFT_OUT.contains(&table.as_str())) {
        lines.extend(rows(&mut *owner, table).await?.into_iter().map(|row| format!("{table}: {row}")));
    }
    let mut names = HashMap::new();
    Ok(lines.iter().map(|line| with_ids(line, |id| name_of(&mut names, id))).collect())
}

/// What is in one dump and not in the other, with a sign before it.
pub fn differences(wanted: &[String], got: &[String]) -> Vec<String> {
    let mut left: HashMap<&str, i32> = HashMap::new();
    for line in got {
        *left.entry(line).or_default() += 1;
    }
    for line in wanted {
        *left.entry(line).or_default() -= 1;
    }
    let sign = |n: i32| if n > 0 { '+' } else { '-' };
    let mut found: Vec<_> =
        left.into_iter().filter(|(_, n)| *n != 0).map(|(line, n)| format!("{}{line}", sign(n))).collect();
    found.sort();
    found
}

/// A text without its ids.
pub fn masked(text: &str) -> String {
    with_ids(text, |_| "id".into())
}

/// The rows of one table, ids still in them, in an order that does not depend on ids.
async fn rows(owner: &mut PgConnection, table: &str) -> anyhow::Result<Vec<String>> {
    let columns: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT attname::text, atttypid::regtype::text, attidentity <> '' FROM pg_attribute
         WHERE attrelid = format('gristmill.%I', $1::text)::regclass AND attnum > 0 AND NOT attisdropped",
    )
    .bind(table)
    .fetch_all(&mut *owner)
    .await?;
    let numbered = columns.iter().find(|(_, _, identity)| *identity).map(|(name, _, _)| name);
    let order = numbered.map(|name| format!("ORDER BY t.{name}")).unwrap_or_default();
    let sql = format!("SELECT to_jsonb(t) FROM gristmill.{table} t {order}");
    let stored: Vec<Value> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *owner).await?;
    let mut rows = Vec::new();
    for row in stored.iter().filter(|row| !is_systems(row) && !is_progress(table, row)) {
        let cells = columns
            .iter()
            .filter(|(name, _, identity)| !identity && !COLUMNS_LEFT_OUT.contains(&name.as_str()));
        let cells: Vec<_> =
            cells.map(|(name, kind, _)| format!("{name}={}", cell(&row[name], kind))).collect();
        rows.push(cells.join(" "));
    }
    if numbered.is_none() {
        rows.sort_by_cached_key(|row| masked(row));
    }
    Ok(rows)
}

fn cell(value: &Value, kind: &str) -> String {
    if kind.starts_with("timestamp") && !value.is_null() {
        return "set".into();
    }
    let text = match value {
        Value::String(text) => without_attempt(text),
        other => other.to_string(),
    };
    if text.len() > LONG { format!("sha256:{}", &hex::encode(Sha256::digest(text))[..16]) } else { text }
}

/// The key of an extracted text, whichever attempt stored it: `texts/SHA256-ATTEMPT.txt`.
pub fn without_attempt(key: &str) -> String {
    match key.rsplit_once('-') {
        Some((bytes, attempt)) if key.contains("/texts/") && attempt.strip_suffix(".txt").is_some() => {
            format!("{bytes}.txt")
        }
        _ => key.to_owned(),
    }
}

fn is_systems(row: &Value) -> bool {
    row["workspace_id"] == SYSTEM || row["id"] == SYSTEM
}

fn is_progress(table: &str, row: &Value) -> bool {
    let body = &row["body"];
    table == "events"
        && row["type"] == "index.embedding"
        && body["done"] != 0
        && body["done"] != body["total"]
}

fn name_of(names: &mut HashMap<String, usize>, id: &str) -> String {
    let next = names.len() + 1;
    format!("#{}", names.entry(id.to_owned()).or_insert(next))
}

/// The text with every uuid in it replaced.
fn with_ids(text: &str, mut name: impl FnMut(&str) -> String) -> String {
    let (mut named, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        if let Some(id) = rest.get(..36).filter(|start| is_id(start)) {
            named.push_str(&name(id));
            rest = &rest[36..];
        } else {
            named.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    named
}

fn is_id(text: &str) -> bool {
    text.bytes().enumerate().all(|(n, byte)| match n {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}
