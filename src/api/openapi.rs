//! An OpenAPI 3.0 or 3.1 document: read, its own references followed, its schemas turned into
//! the JSON Schema that a model is shown.

use super::error::ToolError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};

/// The largest document that is read.
const LARGEST: usize = 4 << 20;
/// References that lead from one to the next.
const LONGEST_CHAIN: usize = 16;
/// Schemas that one operation may refer to, and schemas in them all.
const MOST_DEFINITIONS: usize = 500;
const MOST_COPIED: usize = 50_000;
const SCHEMA_KEYS: [&str; 12] = [
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
    "additionalItems",
];
const SCHEMA_MAPS: [&str; 4] = ["properties", "patternProperties", "dependentSchemas", "$defs"];
const SCHEMA_LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords of OpenAPI's that say nothing to a validator or a model.
const DROPPED: [&str; 7] =
    ["example", "examples", "xml", "externalDocs", "discriminator", "nullable", "readOnly"];

/// A document that was read.
pub(super) struct Document {
    root: Value,
    /// 3.0 has its own dialect of JSON Schema.
    old: bool,
}

impl Document {
    /// Reads JSON or YAML text, or a document that is JSON already.
    pub(super) fn read(source: &Value) -> Result<Self, ToolError> {
        let root = match source {
            Value::String(text) if text.len() > LARGEST => {
                return Err(ToolError::TooLarge { limit: LARGEST });
            }
            Value::String(text) if text.trim_start().starts_with('{') => serde_json::from_str(text)?,
            Value::String(text) => {
                super::yaml::read(text).map_err(|fault| ToolError::Unreadable(fault.to_string()))?
            }
            other => other.clone(),
        };
        let version = root.get("openapi").and_then(Value::as_str).unwrap_or_default();
        let old = version.starts_with("3.0");
        if old || version.starts_with("3.1") { Ok(Self { root, old }) } else { Err(ToolError::Version) }
    }

    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// The value itself, or what it refers to in this document.
    pub(super) fn resolve<'a>(&'a self, value: &'a Value) -> Result<&'a Value, ToolError> {
        let mut value = value;
        for _ in 0..LONGEST_CHAIN {
            let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return Ok(value) };
            value = self.pointed(reference)?;
        }
        Err(ToolError::Reference("a chain of references".to_owned()))
    }

    fn pointed(&self, reference: &str) -> Result<&Value, ToolError> {
        let pointer = pointer(reference)?;
        self.root.pointer(&pointer).ok_or_else(|| ToolError::Reference(reference.to_owned()))
    }

    /// The schema and all it refers to, as one object schema of the given properties.
    pub(super) fn object(
        &self,
        properties: Vec<(String, Value)>,
        required: &[String],
    ) -> Result<Value, ToolError> {
        let mut gather = Gather {
            document: self,
            names: BTreeMap::new(),
            words: BTreeMap::new(),
            open: VecDeque::new(),
            copied: 0,
        };
        let mut shown = Map::new();
        for (name, schema) in properties {
            shown.insert(name, gather.schema(&schema)?);
        }
        let mut definitions = Map::new();
        while let Some((pointer, name)) = gather.open.pop_front() {
            let found = self.root.pointer(&pointer).ok_or(ToolError::Reference(pointer))?;
            let schema = gather.schema(found)?;
            definitions.insert(name, schema);
        }
        let mut object = json!({
            "type": "object", "properties": shown, "required": required, "additionalProperties": false,
        });
        if !definitions.is_empty() {
            object["$defs"] = definitions.into();
        }
        Ok(object)
    }
}

/// Collects the schemas that others refer to.
struct Gather<'a> {
    document: &'a Document,
    /// By what their references point to, however these are spelled.
    names: BTreeMap<String, String>,
    /// How often a word was the last of a reference.
    words: BTreeMap<String, usize>,
    copied: usize,
    open: VecDeque<(String, String)>,
}

impl Gather<'_> {
    fn schema(&mut self, schema: &Value) -> Result<Value, ToolError> {
        self.copied += 1;
        if self.copied > MOST_COPIED {
            return Err(ToolError::Unsupported(format!("an operation with more than {MOST_COPIED} schemas")));
        }
        let Value::Object(schema) = schema else { return Ok(schema.clone()) };
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            self.document.pointed(reference)?;
            return Ok(json!({ "$ref": format!("#/$defs/{}", self.name(reference)?) }));
        }
        let mut shown = Map::new();
        for (key, value) in schema {
            let key_is = |keys: &[&str]| keys.contains(&key.as_str());
            if key_is(&DROPPED) || key.starts_with("x-") {
                continue;
            }
            let value = match value {
                value if key_is(&SCHEMA_KEYS) => self.schema(value)?,
                Value::Object(map) if key_is(&SCHEMA_MAPS) => {
                    let mut schemas = Map::new();
                    for (name, value) in map.iter().filter(|(_, value)| !is_read_only(value)) {
                        schemas.insert(name.clone(), self.schema(value)?);
                    }
                    schemas.into()
                }
                Value::Array(list) if key_is(&SCHEMA_LISTS) => {
                    list.iter().map(|value| self.schema(value)).collect::<Result<Vec<_>, _>>()?.into()
                }
                value => value.clone(),
            };
            shown.insert(key.clone(), value);
        }
        forget_read_only(schema, &mut shown);
        if self.document.old {
            modernise(schema, &mut shown);
        }
        Ok(shown.into())
    }

    /// The definition's name: the last word of its reference, told apart where two are alike.
    fn name(&mut self, reference: &str) -> Result<String, ToolError> {
        let pointer = pointer(reference)?;
        if let Some(name) = self.names.get(&pointer) {
            return Ok(name.clone());
        }
        if self.names.len() >= MOST_DEFINITIONS {
            let most = format!("an operation that refers to more than {MOST_DEFINITIONS} schemas");
            return Err(ToolError::Unsupported(most));
        }
        let word = pointer.rsplit('/').next().unwrap_or_default();
        let word: String = word.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let n = self.words.entry(word.clone()).or_default();
        *n += 1;
        // A dot is in no word, so that no word is another's name.
        let name = if *n == 1 { word } else { format!("{word}.{n}") };
        self.names.insert(pointer.clone(), name.clone());
        self.open.push_back((pointer, name.clone()));
        Ok(name)
    }
}

/// What a reference within the document points to.
fn pointer(reference: &str) -> Result<String, ToolError> {
    let pointer = reference.strip_prefix('#').map(decode);
    pointer.ok_or_else(|| ToolError::Reference(reference.to_owned()))
}

fn is_read_only(schema: &Value) -> bool {
    schema.get("readOnly") == Some(&Value::Bool(true))
}

/// What only the server writes is neither shown nor required.
fn forget_read_only(schema: &Map<String, Value>, shown: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = schema.get("properties") else { return };
    let is_kept =
        |name: &Value| !name.as_str().and_then(|name| properties.get(name)).is_some_and(is_read_only);
    if let Some(Value::Array(required)) = shown.get_mut("required") {
        required.retain(is_kept);
    }
}

/// 3.0's dialect in the words of JSON Schema.
fn modernise(schema: &Map<String, Value>, shown: &mut Map<String, Value>) {
    for (exclusive, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        match schema.get(exclusive) {
            Some(Value::Bool(true)) => {
                shown.remove(exclusive);
                if let Some(limit) = shown.remove(bound) {
                    shown.insert(exclusive.to_owned(), limit);
                }
            }
            Some(Value::Bool(false)) => drop(shown.remove(exclusive)),
            _ => {}
        }
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) {
        if let Some(kind @ Value::String(_)) = shown.get("type").cloned() {
            shown.insert("type".to_owned(), json!([kind, "null"]));
        }
        if let Some(Value::Array(choices)) = shown.get_mut("enum") {
            choices.push(Value::Null);
        }
    }
}

/// A URI fragment may carry percent escapes.
pub(super) fn decode(pointer: &str) -> String {
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = escaped {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "so that each json! stands bare")]
    fn object(schemas: Value, properties: Value) -> Result<Value, ToolError> {
        let document = Document::read(&json!({ "openapi": "3.1.0", "b": schemas }))?;
        document.object(vec![("x".to_owned(), properties)], &[])
    }

    #[test]
    fn one_schema_has_one_name_however_its_reference_is_spelled() {
        let shown = object(
            json!({ "a": { "type": "string" }, "c": { "a": {} } }),
            json!({ "anyOf": [{ "$ref": "#/b/a" }, { "$ref": "#/%62/a" }, { "$ref": "#/b/c/a" }] }),
        );
        let names = [("a".to_owned(), json!({ "type": "string" })), ("a.2".to_owned(), json!({}))];
        assert_eq!(shown.unwrap()["$defs"], Value::Object(names.into_iter().collect()));
    }

    #[test]
    fn an_operation_refers_to_so_many_schemas_and_no_more() {
        let many = |n: usize| {
            let schemas: Map<_, _> = (0..n).map(|i| (format!("a{i}"), json!({}))).collect();
            let all: Vec<_> = schemas.keys().map(|name| json!({ "$ref": format!("#/b/{name}") })).collect();
            object(schemas.into(), json!({ "anyOf": all }))
        };
        assert!(many(500).is_ok());
        assert!(matches!(many(501), Err(ToolError::Unsupported(_))));
        let wide = json!({ "anyOf": vec![json!({}); 50_001] });
        assert!(matches!(object(json!({}), wide), Err(ToolError::Unsupported(_))));
    }

    #[test]
    fn a_yaml_whose_aliases_multiply_is_refused_before_it_fills_the_memory() {
        let mut bomb = format!("openapi: 3.1.0\na0: &a0 [{}]\n", vec!["x"; 50].join(", "));
        for i in 1..6 {
            let aliases = vec![format!("*a{}", i - 1); 50].join(", ");
            bomb = [bomb, format!("a{i}: &a{i} [{aliases}]\n")].concat();
        }
        assert!(matches!(Document::read(&bomb.into()), Err(ToolError::Unreadable(_))));
        let long =
            format!("openapi: 3.1.0\na: &a {}\nb: [{}]", "x".repeat(1_000_000), vec!["*a"; 100].join(", "));
        assert!(matches!(Document::read(&long.into()), Err(ToolError::Unreadable(_))));
        let plain = "openapi: 3.1.0\na: &a [1, -2, 1.5, true, null]\nb: *a\n200: c";
        let document = Document::read(&plain.into()).unwrap();
        assert_eq!(document.root()["b"], json!([1, -2, 1.5, true, null]));
        assert_eq!(document.root()["200"], "c");
    }
}
