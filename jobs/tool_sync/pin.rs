//! From what a server says of its tools to what is kept: a hash of all it said, and of the texts
//! what a person and a model may see.

use crate::mcp::Definition;
use crate::store::tool_definitions::Pinned;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fmt::Write;

/// Ceilings of what is kept, in bytes.
const DESCRIPTION: usize = 2 * 1024;
const SCHEMA: usize = 16 * 1024;
const ANNOTATIONS: usize = 2 * 1024;
/// Tools of one server.
const TOOLS: usize = 500;
/// What models' providers take as a name.
const NAME: usize = 64;

/// A server's tools.
#[derive(Debug)]
pub struct Described {
    pub tools: Vec<Pinned>,
    /// Those that cannot be used as they are, and why.
    pub left_out: Vec<(String, String)>,
}

/// Names, pins and cleans what a server listed.
pub fn describe(server: &str, listed: &[Definition]) -> Described {
    let (mut tools, mut left_out) = (Vec::new(), Vec::new());
    let (mut names, mut remote_names) = (HashSet::new(), HashSet::new());
    for tool in listed {
        let shown = clean(&tool.name, NAME);
        let outcome = if tools.len() == TOOLS {
            Err(format!("the server has more than {TOOLS} tools"))
        } else if !remote_names.insert(&tool.name) {
            Err("the server lists it twice".to_owned())
        } else {
            one(server, tool, &mut names)
        };
        match outcome {
            Ok(pinned) => tools.push(pinned),
            Err(why) => left_out.push((shown, why)),
        }
    }
    Described { tools, left_out }
}

fn one(server: &str, tool: &Definition, names: &mut HashSet<String>) -> Result<Pinned, String> {
    if tool.name.is_empty() || tool.name.len() > 256 || tool.name.chars().any(is_hidden) {
        return Err("its name is empty, too long, or holds characters that are not seen".to_owned());
    }
    let schema = Value::Object(tool.input_schema.clone());
    if canonical(&schema).len() > SCHEMA {
        return Err(format!("its schema is larger than {SCHEMA} bytes"));
    }
    if has_hidden_key(&schema) {
        return Err("its schema has names with characters that are not seen".to_owned());
    }
    let annotations = tool.annotations.clone().unwrap_or_default();
    if canonical(&annotations).len() > ANNOTATIONS || has_hidden_key(&annotations) {
        return Err("its annotations are too large or hide something".to_owned());
    }
    let mut definition = json!({
        "name": tool.name,
        "description": clean(tool.description.as_deref().unwrap_or_default(), DESCRIPTION),
        "inputSchema": cleaned(schema),
        "annotations": cleaned(annotations),
    });
    if let Some(title) = &tool.title {
        definition["title"] = clean(title, 200).into();
    }
    let name = unique(&name(server, &tool.name), names);
    Ok(Pinned { name, remote_name: tool.name.clone(), sha256: hash(tool), definition, approved: false })
}

/// Of all that the server said, hidden characters and what is beyond a ceiling included.
fn hash(tool: &Definition) -> [u8; 32] {
    let said = json!({
        "name": tool.name, "description": tool.description,
        "inputSchema": tool.input_schema, "annotations": tool.annotations,
    });
    Sha256::digest(canonical(&said)).into()
}

/// JSON with its keys in order, whatever order a map keeps.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, into: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            into.push('{');
            for (n, (name, value)) in fields.into_iter().enumerate() {
                if n > 0 {
                    into.push(',');
                }
                // Writing into a string does not fail.
                let _ = write!(into, "{}:", Value::from(name.as_str()));
                write(value, into);
            }
            into.push('}');
        }
        Value::Array(items) => {
            into.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    into.push(',');
                }
                write(item, into);
            }
            into.push(']');
        }
        plain => {
            let _ = write!(into, "{plain}");
        }
    }
}

/// `server__tool`, in the letters and the length that models' providers take.
fn name(server: &str, tool: &str) -> String {
    let whole = format!("{server}__{tool}");
    let plain: String =
        whole.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    if plain == whole && plain.len() <= NAME {
        return plain;
    }
    // Two tools that differ only in what was replaced or cut still have two names.
    let digest = hex::encode(&Sha256::digest(tool)[..4]);
    format!("{}_{digest}", &plain[..plain.len().min(NAME - 9)])
}

/// A name that another tool was given already gets a number; only a digest made twice comes here.
fn unique(name: &str, taken: &mut HashSet<String>) -> String {
    let mut candidate = name.to_owned();
    let mut n = 2;
    while !taken.insert(candidate.clone()) {
        candidate = format!("{}_{n}", &name[..name.len().min(NAME - 4)]);
        n += 1;
    }
    candidate
}

/// Whether its server says that it changes nothing; a contradiction is not believed.
pub fn only_reads(definition: &Value) -> bool {
    let hint = |name: &str| definition["annotations"][name] == Value::Bool(true);
    hint("readOnlyHint") && !hint("destructiveHint")
}

/// Characters that a person does not see and a model reads: control, zero-width, bidirectional,
/// tags, variation selectors, and what is of no character.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
}

/// Without hidden characters, but for line breaks and tabs; cut between two characters.
pub fn clean(text: &str, longest: usize) -> String {
    let mut kept = String::with_capacity(text.len().min(longest));
    for c in text.chars().filter(|c| matches!(c, '\n' | '\t') || !is_hidden(*c)) {
        if kept.len() + c.len_utf8() > longest {
            break;
        }
        kept.push(c);
    }
    kept
}

/// The value with its texts cleaned; names are known to be clean.
fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(&text, SCHEMA)),
        Value::Array(items) => items.into_iter().map(cleaned).collect(),
        Value::Object(map) => {
            let fields: Map<String, Value> = map.into_iter().map(|(name, v)| (name, cleaned(v))).collect();
            Value::Object(fields)
        }
        plain => plain,
    }
}

fn has_hidden_key(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            map.iter().any(|(name, value)| name.chars().any(is_hidden) || has_hidden_key(value))
        }
        Value::Array(items) => items.iter().any(has_hidden_key),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "schemas are written in place")]
    fn tool(name: &str, description: &str, schema: Value) -> Definition {
        Definition {
            name: name.into(),
            title: None,
            description: Some(description.into()),
            input_schema: schema.as_object().unwrap().clone(),
            output_schema: None,
            annotations: None,
        }
    }

    fn plain(name: &str) -> Definition {
        tool(name, "Reads.", json!({ "type": "object" }))
    }

    #[test]
    fn what_is_hidden_from_people_does_not_reach_the_model_and_changes_the_hash() {
        let hidden = "Re\u{200b}ads\u{202e} a \u{e0041}\u{e007f}file\u{1b}[31m.\u{0}\r\n\tSecond\u{fe0f} line.\u{feff}";
        let schema = json!({ "type": "object", "properties": { "p": { "description": "a\u{2066}b\u{0}" } } });
        let described = describe("files", &[tool("read", hidden, schema)]);
        let definition = &described.tools[0].definition;
        assert_eq!(definition["description"], "Reads a file[31m.\n\tSecond line.");
        assert_eq!(definition["inputSchema"]["properties"]["p"]["description"], "ab");
        let seen = describe(
            "files",
            &[tool("read", "Reads a file[31m.\n\tSecond line.", json!({ "type": "object" }))],
        );
        assert_ne!(described.tools[0].sha256, seen.tools[0].sha256);
    }

    #[test]
    fn each_part_of_a_definition_is_in_its_hash_and_the_order_of_keys_is_not() {
        let base = || tool("read", "Reads.", json!({ "type": "object", "required": ["p"] }));
        let mut others = vec![
            tool("read2", "Reads.", json!({ "type": "object", "required": ["p"] })),
            tool("read", "Reads!", json!({ "type": "object", "required": ["p"] })),
            tool("read", "Reads.", json!({ "type": "object", "required": ["q"] })),
            Definition { description: None, ..base() },
        ];
        for hints in [json!({ "readOnlyHint": true }), json!({ "readOnlyHint": false }), json!({})] {
            others.push(Definition { annotations: Some(hints), ..base() });
        }
        let mut hashes: HashSet<_> = others.iter().map(hash).collect();
        assert!(hashes.insert(hash(&base())) && hashes.len() == 8);
        let turned: Value = serde_json::from_str(r#"{"required": ["p"], "type": "object"}"#).unwrap();
        assert_eq!(hash(&tool("read", "Reads.", turned)), hash(&base()));
        assert_eq!(
            canonical(&json!({ "b": [1, { "d": null, "c": "é\n" }], "a": 1.5 })),
            r#"{"a":1.5,"b":[1,{"c":"é\n","d":null}]}"#
        );
    }

    #[test]
    fn sizes_are_bounded_and_what_is_too_large_to_cut_is_left_out() {
        let long = "ü".repeat(5000);
        let wide = "name of something ".repeat(1000);
        let listed = [
            tool("long", &long, json!({ "type": "object" })),
            tool("wide", "x", json!({ "type": "object", "description": wide })),
            tool("hidden", "x", json!({ "type": "object", "properties": { "a\u{200b}": {} } })),
            plain("na\u{202e}me"),
            plain(""),
            plain("twice"),
            plain("twice"),
        ];
        let described = describe("s", &listed);
        let names: Vec<_> = described.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["s__long", "s__twice"]);
        assert_eq!(described.tools[0].definition["description"].as_str().unwrap().len(), 2048);
        assert_eq!(described.left_out.len(), 5);
        let many: Vec<_> = (0..600).map(|n| plain(&format!("t{n}"))).collect();
        assert_eq!((describe("s", &many).tools.len(), describe("s", &many).left_out.len()), (500, 100));
    }

    #[test]
    fn names_are_unique_and_what_every_provider_takes() {
        let server = "s".repeat(60);
        let long = "x".repeat(200);
        let listed: Vec<_> = ["a.b", "a/b", "a_b", "ä", "ö", &long, &format!("{long}y")].map(plain).into();
        let described = describe(&server, &listed);
        let names: HashSet<_> = described.tools.iter().map(|tool| tool.name.clone()).collect();
        assert_eq!(names.len(), listed.len());
        assert!(
            names
                .iter()
                .all(|n| n.len() <= 64 && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)))
        );
        assert_eq!(describe("git", &[plain("git_log")]).tools[0].name, "git__git_log");
        // The same tool has the same name each time.
        assert_eq!(
            describe("s", &[plain("a.b")]).tools[0].name,
            describe("s", &[plain("x"), plain("a.b")]).tools[1].name
        );
    }
}
