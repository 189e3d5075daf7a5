//! An OpenAPI 3.0 or 3.1 document: read, its own references followed, its schemas turned into
//! the JSON Schema that a model is shown.

use super::error::ToolError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};

/// The largest document that is read.
const LARGEST: usize = 4 << 20;
/// References that lead from one to the next.
const LONGEST_CHAIN: usize = 16;
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
                yaml_serde::from_str(text).map_err(|fault| ToolError::Unreadable(fault.to_string()))?
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
        reference
            .strip_prefix('#')
            .and_then(|pointer| self.root.pointer(&decode(pointer)))
            .ok_or_else(|| ToolError::Reference(reference.to_owned()))
    }

    /// The schema and all it refers to, as one object schema of the given properties.
    pub(super) fn object(
        &self,
        properties: Vec<(String, Value)>,
        required: &[String],
    ) -> Result<Value, ToolError> {
        let mut gather = Gather { document: self, names: BTreeMap::new(), open: VecDeque::new() };
        let mut shown = Map::new();
        for (name, schema) in properties {
            shown.insert(name, gather.schema(&schema)?);
        }
        let mut definitions = Map::new();
        while let Some((pointer, name)) = gather.open.pop_front() {
            let schema = gather.schema(self.pointed(&pointer)?)?;
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
    names: BTreeMap<String, String>,
    open: VecDeque<(String, String)>,
}

impl Gather<'_> {
    fn schema(&mut self, schema: &Value) -> Result<Value, ToolError> {
        let Value::Object(schema) = schema else { return Ok(schema.clone()) };
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            self.document.pointed(reference)?;
            return Ok(json!({ "$ref": format!("#/$defs/{}", self.name(reference)) }));
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
    fn name(&mut self, reference: &str) -> String {
        if let Some(name) = self.names.get(reference) {
            return name.clone();
        }
        let word = reference.rsplit('/').next().unwrap_or_default();
        let word: String = word.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut name = word.clone();
        let mut n = 2;
        while self.names.values().any(|taken| *taken == name) {
            name = format!("{word}_{n}");
            n += 1;
        }
        self.names.insert(reference.to_owned(), name.clone());
        self.open.push_back((reference.to_owned(), name.clone()));
        name
    }
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
