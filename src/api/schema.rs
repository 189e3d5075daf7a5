//! Arguments are judged before anything else happens, in words that a model can act on.
//!
//! A schema is somebody else's program: a few lines of it can ask for more steps than there is
//! time. So it is weighed before it is compiled, and judging has a thread and a limit of its own.
//! Accepted: a schema that refers to itself twice over can still keep such a thread busy for long.

use super::error::ToolError;
use super::openapi::decode;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The most that is told of a fault, which may repeat the argument.
const LONGEST_FAULT: usize = 1_000;
/// A compiled pattern of somebody else's schema takes no more than this.
const PATTERN_BYTES: usize = 1 << 20;
/// Steps back that one such pattern may take before it counts as not matching.
const BACKTRACKS: usize = 50_000;
/// Words of a schema when all its references are written out.
const HEAVIEST: u64 = 100_000;
/// How deep arguments may be nested.
const DEEPEST: usize = 32;
const LONGEST: Duration = Duration::from_secs(2);

/// Compiles a schema; references may lead only into the schema itself.
pub(super) fn compile(schema: &Value) -> Result<Validator, ToolError> {
    let weight = Scale { root: schema, path: Vec::new(), known: HashMap::new() }.weigh(schema)?;
    if weight > HEAVIEST {
        return Err(ToolError::Schema("it is too large when its references are written out".to_owned()));
    }
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_pattern_options(
            PatternOptions::fancy_regex()
                .backtrack_limit(BACKTRACKS)
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES),
        )
        .offline()
        .build(schema)
        .map_err(|fault| ToolError::Schema(fault.to_string()))
}

/// Weighs a schema with its references written out; one that leads back is not written out again.
struct Scale<'a> {
    root: &'a Value,
    path: Vec<&'a str>,
    known: HashMap<&'a str, u64>,
}

impl<'a> Scale<'a> {
    fn weigh(&mut self, schema: &'a Value) -> Result<u64, ToolError> {
        let mut weight = 1_u64;
        match schema {
            Value::Object(map) => {
                for (key, value) in map {
                    let more = match (key.as_str(), value) {
                        ("$ref", Value::String(reference)) => self.reference(reference)?,
                        ("$dynamicRef" | "$recursiveRef", _) => {
                            return Err(ToolError::Unsupported(format!("the keyword {key}")));
                        }
                        _ => self.weigh(value)?,
                    };
                    weight = weight.saturating_add(more);
                }
            }
            Value::Array(items) => {
                for item in items {
                    weight = weight.saturating_add(self.weigh(item)?);
                }
            }
            _ => {}
        }
        Ok(weight)
    }

    fn reference(&mut self, reference: &'a str) -> Result<u64, ToolError> {
        if self.path.contains(&reference) {
            return Ok(1);
        }
        if let Some(weight) = self.known.get(reference) {
            return Ok(*weight);
        }
        let pointer = reference.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let found = pointer.and_then(|pointer| self.root.pointer(&decode(pointer)));
        let schema = found.ok_or_else(|| ToolError::Reference(reference.to_owned()))?;
        self.path.push(reference);
        let weight = self.weigh(schema)?;
        self.path.pop();
        self.known.insert(reference, weight);
        Ok(weight)
    }
}

/// What is wrong with the arguments.
pub(super) async fn judge(validator: &Arc<Validator>, arguments: &Map<String, Value>) -> Result<(), String> {
    let (validator, instance) = (Arc::clone(validator), Value::Object(arguments.clone()));
    if !is_shallow(&instance, DEEPEST) {
        return Err(format!("The arguments are nested deeper than {DEEPEST} levels."));
    }
    let judged = tokio::task::spawn_blocking(move || faults(&validator, &instance));
    match tokio::time::timeout(LONGEST, judged).await {
        Ok(Ok(faults)) => faults,
        _ => Err("The arguments could not be held against the tool's schema in time.".to_owned()),
    }
}

fn is_shallow(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => false,
        Value::Array(items) => items.iter().all(|item| is_shallow(item, levels - 1)),
        Value::Object(entries) => entries.values().all(|item| is_shallow(item, levels - 1)),
        _ => true,
    }
}

/// The first fault alone: all of them can be more than there is memory for.
pub(super) fn faults(validator: &Validator, instance: &Value) -> Result<(), String> {
    validator.validate(instance).map_err(|fault| {
        let place = fault.instance_path().to_string();
        let place = if place.is_empty() { "arguments" } else { &place };
        let told: String = fault.to_string().chars().take(LONGEST_FAULT).collect();
        format!("The arguments do not fit the tool's schema:\n- {place}: {told}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Each would recurse for ever on any argument, and end the process with its stack.
    #[test]
    fn a_schema_that_leads_back_to_itself_at_once_ends_no_process() {
        for hostile in [
            json!({ "$defs": { "a": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
            json!({ "$defs": { "a": { "allOf": [{ "$ref": "#/$defs/b" }] }, "b": { "anyOf": [{ "$ref": "#/$defs/a" }] } },
                    "properties": { "x": { "$ref": "#/$defs/a" } } }),
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#" }] }),
            json!({ "not": { "$ref": "#" } }),
            json!({ "properties": { "x": { "if": { "$ref": "#/properties/x" } } } }),
        ] {
            if let Ok(validator) = compile(&hostile) {
                let _ = faults(&validator, &json!({ "x": 1 }));
            }
        }
    }

    #[test]
    fn a_schema_that_doubles_with_each_line_is_refused() {
        let doubling = |lines: usize| {
            let mut definitions = Map::new();
            for i in 0..lines {
                let next = json!({ "$ref": format!("#/$defs/a{}", i + 1) });
                definitions.insert(format!("a{i}"), json!({ "anyOf": [next, next] }));
            }
            definitions.insert(format!("a{lines}"), json!({ "type": "string" }));
            json!({ "$defs": definitions, "properties": { "x": { "$ref": "#/$defs/a0" } } })
        };
        assert!(compile(&doubling(30)).unwrap_err().to_string().contains("too large"));
        assert!(compile(&doubling(8)).is_ok());
    }

    #[test]
    fn faults_without_number_are_told_as_one() {
        let schema = json!({ "properties": { "a": { "items": { "allOf": vec![json!({ "type": "string" }); 1_000] } } } });
        let told = faults(&compile(&schema).unwrap(), &json!({ "a": vec![1; 1_000] })).unwrap_err();
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(told.contains("/a/0") && told.len() < 2_000, "{told}");
    }

    #[test]
    fn references_lead_nowhere_else() {
        for reference in
            ["https://evil.example/x.json", "other.json", "#name", "file:///etc/passwd", "#/$defs/none"]
        {
            let schema = json!({ "$defs": { "a": { "$anchor": "name" } }, "properties": { "x": { "$ref": reference } } });
            assert!(matches!(compile(&schema), Err(ToolError::Reference(_))), "{reference}");
        }
        assert!(compile(&json!({ "$dynamicAnchor": "me", "allOf": [{ "$dynamicRef": "#me" }] })).is_err());
        // A tree that refers to itself is nothing strange.
        let tree =
            json!({ "properties": { "children": { "items": { "$ref": "#" } } }, "required": ["name"] });
        let validator = compile(&tree).unwrap();
        let told = faults(&validator, &json!({ "name": 1, "children": [{ "name": 2 }, {}] })).unwrap_err();
        assert!(told.contains("/children/1: \"name\" is a required property"), "{told}");
    }

    #[tokio::test]
    async fn arguments_that_are_too_deep_are_refused() {
        let validator = Arc::new(compile(&json!({})).unwrap());
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }));
        let judged = async |levels| judge(&validator, nested(levels).as_object().unwrap()).await;
        assert_eq!(judged(32).await, Ok(()));
        assert!(judged(33).await.unwrap_err().contains("deeper than 32"));
    }
}
