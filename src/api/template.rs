//! A request template: texts with `{{argument}}` in them.
//!
//! A placeholder is a place, not a macro: what is set in is never read again, so an argument
//! that looks like a placeholder, a path, or a piece of JSON stays a text.

use super::error::ToolError;
use super::place::{Misfit, Request, Slashes, may_set, no_dots, part, scalar};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use url::Url;

/// `request` in the tool's `custom_config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Template {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub query: BTreeMap<String, Value>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub body: Option<Value>,
    /// Arguments that may hold slashes where they stand in the path.
    #[serde(default)]
    pub slashes: BTreeMap<String, Slashes>,
}

/// A piece of a text.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Place(&'a str),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, (name, after))) =
        rest.split_once("{{").and_then(|(before, after)| Some((before, after.split_once("}}")?)))
    {
        found.push(Piece::Text(before));
        found.push(Piece::Place(name.trim()));
        rest = after;
    }
    found.push(Piece::Text(rest));
    found.retain(|piece| *piece != Piece::Text(""));
    found
}

fn has_place(text: &str) -> bool {
    pieces(text).iter().any(|piece| matches!(piece, Piece::Place(_)))
}

impl Template {
    /// Refuses a template with placeholders where none may stand.
    pub(super) fn check(&self) -> Result<(), ToolError> {
        method(&self.method)?;
        if !self.path.starts_with('/') || self.path.contains(['?', '#', '\\']) {
            return Err(ToolError::Unsupported(format!("the path {}", self.path)));
        }
        if self.query.keys().any(|name| has_place(name)) {
            return Err(ToolError::Placeholder("the names of query parameters"));
        }
        if let Some(name) = self.headers.keys().find(|name| !may_set(name)) {
            return Err(ToolError::Header(name.clone()));
        }
        match &self.body {
            Some(body) if keys_have_places(body) => Err(ToolError::Placeholder("the keys of the body")),
            _ => Ok(()),
        }
    }

    /// Names of all arguments that have a place.
    pub(super) fn places(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut note = |text: &str| {
            for piece in pieces(text) {
                if let Piece::Place(name) = piece {
                    names.insert(name.to_owned());
                }
            }
        };
        note(&self.path);
        self.headers.values().for_each(|text| note(text));
        self.query.values().chain(&self.body).for_each(|value| each_text(value, &mut note));
        names
    }

    /// A schema for a tool that has none of its own: every placeholder, as one plain value. An
    /// object would put keys of its own into the body; who wants that writes a schema.
    pub(super) fn schema(&self) -> Value {
        let in_path: Vec<_> = pieces(&self.path)
            .into_iter()
            .filter_map(|piece| if let Piece::Place(name) = piece { Some(name) } else { None })
            .collect();
        let plain = json!({ "type": ["string", "number", "boolean", "null"] });
        let properties: Map<_, _> = self.places().into_iter().map(|name| (name, plain.clone())).collect();
        json!({
            "type": "object", "properties": properties, "required": in_path, "additionalProperties": false,
        })
    }

    /// The request with the arguments in their places.
    pub(super) fn fill(&self, base: &Url, arguments: &Map<String, Value>) -> Result<Request, Misfit> {
        let method = method(&self.method).map_err(|_| Misfit::Astray)?;
        let mut request = Request::new(method, base);
        request.path(&self.fill_path(arguments)?)?;
        for (name, value) in &self.query {
            match fill_value(value, arguments)? {
                None | Some(Value::Null) => {}
                Some(Value::Array(items)) => {
                    for item in items {
                        request.query(name, &scalar(name, &item)?);
                    }
                }
                Some(value) => request.query(name, &scalar(name, &value)?),
            }
        }
        for (name, text) in &self.headers {
            if let Some(value) = fill_text(text, arguments)? {
                request.header(name, &value)?;
            }
        }
        request.body = match &self.body {
            Some(body) => fill_value(body, arguments)?,
            None => None,
        };
        Ok(request)
    }

    fn fill_path(&self, arguments: &Map<String, Value>) -> Result<String, Misfit> {
        let mut path = String::new();
        for piece in pieces(&self.path) {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Place(name) => {
                    let value = arguments.get(name).unwrap_or(&Value::Null);
                    let slashes = self.slashes.get(name).copied().unwrap_or_default();
                    path.push_str(&part(name, &scalar(name, value)?, slashes)?);
                }
            }
        }
        no_dots(&path)?;
        Ok(path)
    }
}

/// A text with its places filled; `None` where it is nothing but an argument that was not given.
fn fill_text(text: &str, arguments: &Map<String, Value>) -> Result<Option<String>, Misfit> {
    let pieces = pieces(text);
    if let [Piece::Place(name)] = pieces[..] {
        return arguments.get(name).filter(|value| !value.is_null()).map(|v| scalar(name, v)).transpose();
    }
    let mut filled = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Place(name) => {
                filled.push_str(&scalar(name, arguments.get(name).unwrap_or(&Value::Null))?);
            }
        }
    }
    Ok(Some(filled))
}

/// A JSON value with its places filled. A text that is one placeholder becomes the argument with
/// its own type, and goes where the argument was not given.
fn fill_value(value: &Value, arguments: &Map<String, Value>) -> Result<Option<Value>, Misfit> {
    match value {
        Value::String(text) => match pieces(text)[..] {
            [Piece::Place(name)] => Ok(arguments.get(name).cloned()),
            _ => Ok(fill_text(text, arguments)?.map(Value::String)),
        },
        Value::Array(items) => {
            let mut filled = Vec::with_capacity(items.len());
            for item in items {
                filled.extend(fill_value(item, arguments)?);
            }
            Ok(Some(Value::Array(filled)))
        }
        Value::Object(entries) => {
            let mut filled = Map::new();
            for (key, item) in entries {
                if let Some(item) = fill_value(item, arguments)? {
                    filled.insert(key.clone(), item);
                }
            }
            Ok(Some(Value::Object(filled)))
        }
        other => Ok(Some(other.clone())),
    }
}

fn each_text(value: &Value, note: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => note(text),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, note)),
        Value::Object(entries) => entries.values().for_each(|item| each_text(item, note)),
        _ => {}
    }
}

fn keys_have_places(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(keys_have_places),
        Value::Object(entries) => entries.iter().any(|(key, item)| has_place(key) || keys_have_places(item)),
        _ => false,
    }
}

/// The methods that a tool may use.
pub(super) fn method(name: &str) -> Result<Method, ToolError> {
    match name.to_ascii_uppercase().as_str() {
        "GET" => Ok(Method::GET),
        "HEAD" => Ok(Method::HEAD),
        "POST" => Ok(Method::POST),
        "PUT" => Ok(Method::PUT),
        "PATCH" => Ok(Method::PATCH),
        "DELETE" => Ok(Method::DELETE),
        _ => Err(ToolError::Unsupported(format!("the method {name}"))),
    }
}

#[cfg(test)]
mod tests;
