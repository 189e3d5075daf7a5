//! A tenant's values: declared, of the declared form, and harmless as one argument.

use super::CatalogueError;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The longest value, in bytes.
const LONGEST: usize = 1024;

/// The parameters that a schema declares, each with its own schema.
pub fn declared(schema: &Value) -> Result<BTreeMap<&str, &Value>, String> {
    let Some(object) = schema.as_object() else { return Err("`parameters` is no JSON object".to_owned()) };
    let Some(properties) = object.get("properties") else {
        return if object.is_empty() {
            Ok(BTreeMap::new())
        } else {
            Err("`parameters` declares no properties".to_owned())
        };
    };
    let Some(properties) = properties.as_object() else {
        return Err("`properties` is no JSON object".to_owned());
    };
    properties
        .iter()
        .map(|(name, schema)| match schema["type"].as_str() {
            Some("string" | "integer" | "number" | "boolean") => Ok((name.as_str(), schema)),
            _ => Err(format!("parameter {name} is to be a string, an integer, a number or a boolean")),
        })
        .collect()
}

/// The values as arguments, defaults included.
pub fn accept(
    schema: &Value,
    given: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, CatalogueError> {
    let declared = declared(schema).map_err(CatalogueError::Schema)?;
    if let Some(name) = given.keys().find(|name| !declared.contains_key(name.as_str())) {
        // Cut, for it is a stranger's word in our log.
        let name = name.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(CatalogueError::Value { name, why: "the server has no such parameter".to_owned() });
    }
    let whole = declared.iter().filter_map(|(name, schema)| {
        let value = given.get(*name).or_else(|| schema.get("default"))?;
        Some(((*name).to_owned(), value.clone()))
    });
    let whole: Map<String, Value> = whole.collect();
    let validator =
        jsonschema::validator_for(schema).map_err(|error| CatalogueError::Schema(error.to_string()))?;
    let instance = Value::Object(whole);
    if let Some(error) = validator.iter_errors(&instance).next() {
        // Where and which rule, without the value.
        let at = error.instance_path().to_string();
        return Err(CatalogueError::Schema(format!(
            "{} at {}",
            error.schema_path(),
            if at.is_empty() { "/" } else { &at }
        )));
    }
    let Value::Object(whole) = instance else { return Ok(BTreeMap::new()) };
    whole
        .into_iter()
        .map(|(name, value)| {
            let text = text(&value, declared.get(&*name).copied().unwrap_or(&Value::Null))
                .map_err(|why| CatalogueError::Value { name: name.clone(), why })?;
            Ok((name, text))
        })
        .collect()
}

fn text(value: &Value, schema: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => return Err("it is no plain value".to_owned()),
    };
    if text.is_empty() || text.len() > LONGEST {
        return Err(format!("it is empty or longer than {LONGEST} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("it holds control characters".to_owned());
    }
    if value.is_string() {
        // Whatever it was meant as, the program would read an option.
        if text.starts_with('-') {
            return Err("it begins with a dash".to_owned());
        }
        if text.split(['/', '\\']).any(|part| part == "..") {
            return Err("it climbs out of its folder".to_owned());
        }
        let ruled = ["pattern", "enum", "const"].iter().any(|rule| schema.get(rule).is_some());
        if !ruled {
            plain(&text)?;
        }
    }
    Ok(text)
}

/// What a string may be where its schema does not say: a word or a relative path.
fn plain(text: &str) -> Result<(), String> {
    if text.starts_with(['/', '~']) || text.contains(':') {
        return Err("an absolute path or address needs a `pattern` in the server's schema".to_owned());
    }
    let safe = |c: char| c.is_alphanumeric() || " ._@/+,-".contains(c);
    if text.chars().all(safe) {
        Ok(())
    } else {
        Err("it holds characters that a shell would read".to_owned())
    }
}
