//! Arguments are judged before anything else happens, in words that a model can act on.

use super::error::ToolError;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Faults told at once; a model mends a few at a time.
const TOLD: usize = 5;
/// A compiled pattern of somebody else's schema takes no more than this.
const PATTERN_BYTES: usize = 1 << 20;
/// Steps back that one such pattern may take before it counts as not matching.
const BACKTRACKS: usize = 50_000;

/// Compiles a schema; references may lead only into the schema itself.
pub(super) fn compile(schema: &Value) -> Result<Validator, ToolError> {
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

/// What is wrong with the arguments.
pub(super) fn judge(validator: &Validator, arguments: &Map<String, Value>) -> Result<(), String> {
    let instance = Value::Object(arguments.clone());
    let mut faults = validator.iter_errors(&instance);
    let Some(first) = faults.next() else { return Ok(()) };
    let mut told = String::from("The arguments do not fit the tool's schema:");
    for fault in std::iter::once(first).chain(faults.by_ref()).take(TOLD) {
        let place = fault.instance_path().to_string();
        let place = if place.is_empty() { "arguments" } else { &place };
        // Writing into a String cannot fail.
        let _ = write!(told, "\n- {place}: {fault}");
    }
    match faults.count() {
        0 => {}
        more => {
            let _ = write!(told, "\n- and {more} more");
        }
    }
    Err(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Each would recurse for ever on any argument, and end the process with its stack.
    #[test]
    fn a_schema_that_leads_back_to_itself_at_once_ends_no_process() {
        let arguments = json!({ "x": 1 });
        for hostile in [
            json!({ "$defs": { "a": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
            json!({ "$defs": { "a": { "allOf": [{ "$ref": "#/$defs/b" }] }, "b": { "anyOf": [{ "$ref": "#/$defs/a" }] } },
                    "properties": { "x": { "$ref": "#/$defs/a" } } }),
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#" }] }),
            json!({ "not": { "$ref": "#" } }),
            json!({ "properties": { "x": { "if": { "$ref": "#/properties/x" } } } }),
            json!({ "$dynamicAnchor": "me", "allOf": [{ "$dynamicRef": "#me" }] }),
        ] {
            if let Ok(validator) = compile(&hostile) {
                let _ = judge(&validator, arguments.as_object().unwrap());
            }
        }
    }
}
