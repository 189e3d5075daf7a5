//! One operation of an OpenAPI document: where each argument goes, and in which style.

use super::error::ToolError;
use super::openapi::Document;
use super::place::{Misfit, Request, Slashes, encode, may_set, no_dots, part, scalar};
use super::template::method;
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use url::Url;

const METHODS: [&str; 6] = ["get", "head", "post", "put", "patch", "delete"];
/// OpenAPI's own rule: header parameters of these names are ignored.
const IGNORED_HEADERS: [&str; 3] = ["accept", "content-type", "authorization"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    Query,
    Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Simple,
    Label,
    Matrix,
    Form,
    SpaceDelimited,
    PipeDelimited,
    DeepObject,
    /// A parameter with `content`: its value as JSON.
    Json,
}

#[derive(Debug, Clone)]
struct Parameter {
    /// What the model calls it.
    argument: String,
    name: String,
    place: Place,
    style: Style,
    explode: bool,
}

/// An operation, ready to be filled in.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub method: Method,
    path: String,
    parameters: Vec<Parameter>,
    /// The argument that is the body.
    body: Option<String>,
    pub slashes: BTreeMap<String, Slashes>,
    pub server: Option<String>,
    pub description: String,
    pub schema: Value,
}

/// How an operation is named: by its id, or by method and path.
#[derive(Debug, Clone, Copy)]
pub(super) enum Name<'a> {
    Id(&'a str),
    Route(&'a str, &'a str),
}

impl Operation {
    /// Finds and reads an operation.
    pub(super) fn read(document: &Document, name: Name) -> Result<Self, ToolError> {
        let (verb, path, item, operation) = find(document, name)?;
        let mut reading = Reading::default();
        for parameter in all_parameters(document, item, operation)? {
            reading.parameter(document, parameter)?;
        }
        reading.body(document, operation)?;
        let described = ["description", "summary"].iter().find_map(|key| operation[*key].as_str());
        Ok(Self {
            method: method(verb)?,
            path: path.to_owned(),
            schema: document.object(reading.properties, &reading.required)?,
            parameters: reading.parameters,
            body: reading.body,
            slashes: BTreeMap::new(),
            server: server(document.root(), item, operation),
            description: described.unwrap_or_default().to_owned(),
        })
    }

    /// The request with the arguments in their places.
    pub(super) fn fill(&self, base: &Url, arguments: &Map<String, Value>) -> Result<Request, Misfit> {
        let mut request = Request::new(self.method.clone(), base);
        let mut path = self.path.clone();
        for parameter in &self.parameters {
            let Some(value) = arguments.get(&parameter.argument).filter(|value| !value.is_null()) else {
                continue;
            };
            match parameter.place {
                Place::Path => {
                    let slashes = self.slashes.get(&parameter.argument).copied().unwrap_or_default();
                    let filled = parameter.in_path(value, slashes)?;
                    path = path.replace(&format!("{{{}}}", parameter.name), &filled);
                }
                Place::Query => parameter.in_query(value, &mut request)?,
                Place::Header => request.header(&parameter.name, &parameter.in_header(value)?)?,
            }
        }
        if path.contains(['{', '}']) {
            return Err(Misfit::Astray);
        }
        no_dots(&path)?;
        request.path(&path)?;
        request.body = self.body.as_ref().and_then(|name| arguments.get(name)).cloned();
        Ok(request)
    }
}

type Found<'a> = (&'a str, &'a str, &'a Value, &'a Value);

fn find<'a>(document: &'a Document, name: Name) -> Result<Found<'a>, ToolError> {
    let paths = document.root()["paths"].as_object();
    for (path, item) in paths.into_iter().flatten() {
        let item = document.resolve(item)?;
        for verb in METHODS {
            let Some(operation) = item.get(verb) else { continue };
            let is_it = match name {
                Name::Id(id) => operation["operationId"].as_str() == Some(id),
                Name::Route(method, route) => method.eq_ignore_ascii_case(verb) && route == path,
            };
            if is_it {
                return Ok((verb, path, item, operation));
            }
        }
    }
    Err(ToolError::NoOperation(match name {
        Name::Id(id) => id.to_owned(),
        Name::Route(method, path) => format!("{method} {path}"),
    }))
}

/// The path's parameters, each yielding to the operation's own of the same name and place.
fn all_parameters<'a>(
    document: &'a Document,
    item: &'a Value,
    operation: &'a Value,
) -> Result<Vec<&'a Value>, ToolError> {
    let mut all: Vec<&Value> = Vec::new();
    for list in [item, operation] {
        for parameter in list["parameters"].as_array().into_iter().flatten() {
            let parameter = document.resolve(parameter)?;
            all.retain(|known| known["name"] != parameter["name"] || known["in"] != parameter["in"]);
            all.push(parameter);
        }
    }
    Ok(all)
}

fn server(root: &Value, item: &Value, operation: &Value) -> Option<String> {
    let server = [operation, item, root].iter().find_map(|place| place["servers"].get(0))?;
    let mut url = server["url"].as_str()?.to_owned();
    for (name, variable) in server["variables"].as_object().into_iter().flatten() {
        url = url.replace(&format!("{{{name}}}"), variable["default"].as_str().unwrap_or_default());
    }
    Some(url)
}

/// What reading an operation has found so far.
#[derive(Default)]
struct Reading {
    parameters: Vec<Parameter>,
    properties: Vec<(String, Value)>,
    required: Vec<String>,
    names: BTreeSet<String>,
    body: Option<String>,
}

impl Reading {
    fn parameter(&mut self, document: &Document, parameter: &Value) -> Result<(), ToolError> {
        let name = parameter["name"].as_str().ok_or(ToolError::Missing { key: "name" })?;
        let required = parameter["required"] == json!(true);
        let place = match parameter["in"].as_str().unwrap_or_default() {
            "path" => Place::Path,
            "query" => Place::Query,
            "header" if IGNORED_HEADERS.iter().any(|known| name.eq_ignore_ascii_case(known)) => return Ok(()),
            "header" if may_set(name) => Place::Header,
            other if required => return Err(ToolError::Unsupported(format!("the {other} parameter {name}"))),
            _ => return Ok(()),
        };
        let by_content = parameter["content"].as_object().and_then(|content| content.values().next());
        let style = match by_content {
            Some(_) => Style::Json,
            None => style(place, parameter["style"].as_str())?,
        };
        let explode = parameter["explode"].as_bool().unwrap_or(style == Style::Form);
        let mut schema = by_content.unwrap_or(parameter).get("schema").cloned().unwrap_or(json!({}));
        let argument = self.argument(name, place);
        if let (Some(text), Some(object)) = (parameter["description"].as_str(), schema.as_object_mut()) {
            // A schema that is a reference has no room for siblings in 3.0.
            if !object.contains_key("$ref") {
                object.entry("description").or_insert_with(|| text.into());
            }
        }
        document.resolve(&schema)?;
        if required || place == Place::Path {
            self.required.push(argument.clone());
        }
        self.properties.push((argument.clone(), schema));
        self.parameters.push(Parameter { argument, name: name.to_owned(), place, style, explode });
        Ok(())
    }

    /// The parameter's own name, with its place before it where that is taken.
    fn argument(&mut self, name: &str, place: Place) -> String {
        let place = match place {
            Place::Path => "path",
            Place::Query => "query",
            Place::Header => "header",
        };
        let mut argument = name.to_owned();
        while !self.names.insert(argument.clone()) {
            argument = format!("{place}_{argument}");
        }
        argument
    }

    fn body(&mut self, document: &Document, operation: &Value) -> Result<(), ToolError> {
        let Some(body) = operation.get("requestBody") else { return Ok(()) };
        let body = document.resolve(body)?;
        let required = body["required"] == json!(true);
        let json = body["content"].as_object().into_iter().flatten().find(|(kind, _)| is_json(kind));
        let Some((_, media)) = json else {
            let unsupported = || ToolError::Unsupported("a body that is not JSON".to_owned());
            return if required { Err(unsupported()) } else { Ok(()) };
        };
        let argument = if self.names.contains("body") { "request_body" } else { "body" }.to_owned();
        if required {
            self.required.push(argument.clone());
        }
        self.properties.push((argument.clone(), media.get("schema").cloned().unwrap_or(json!({}))));
        self.body = Some(argument);
        Ok(())
    }
}

/// Whether a media type is JSON, by itself or by its suffix.
pub(super) fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind == "text/json" || kind.ends_with("+json")
}

fn style(place: Place, named: Option<&str>) -> Result<Style, ToolError> {
    match (place, named) {
        (Place::Path | Place::Header, None | Some("simple")) => Ok(Style::Simple),
        (Place::Path, Some("label")) => Ok(Style::Label),
        (Place::Path, Some("matrix")) => Ok(Style::Matrix),
        (Place::Query, None | Some("form")) => Ok(Style::Form),
        (Place::Query, Some("spaceDelimited")) => Ok(Style::SpaceDelimited),
        (Place::Query, Some("pipeDelimited")) => Ok(Style::PipeDelimited),
        (Place::Query, Some("deepObject")) => Ok(Style::DeepObject),
        (_, Some(other)) => Err(ToolError::Unsupported(format!("the style {other}"))),
    }
}

/// A value as the styles see it.
enum Shape {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<(String, String)>),
}

impl Parameter {
    fn shape(&self, value: &Value) -> Result<Shape, Misfit> {
        let name = &self.argument;
        match value {
            value if self.style == Style::Json => Ok(Shape::One(value.to_string())),
            Value::Array(items) => {
                items.iter().map(|item| scalar(name, item)).collect::<Result<_, _>>().map(Shape::Many)
            }
            Value::Object(entries) => entries
                .iter()
                .map(|(key, item)| Ok((key.clone(), scalar(name, item)?)))
                .collect::<Result<_, _>>()
                .map(Shape::Pairs),
            one => scalar(name, one).map(Shape::One),
        }
    }

    fn in_path(&self, value: &Value, slashes: Slashes) -> Result<String, Misfit> {
        let part = |text: &str| part(&self.argument, text, slashes);
        let name = encode(&self.name);
        let (before, between) = match (self.style, self.explode) {
            (Style::Label, true) => (".".to_owned(), "."),
            (Style::Label, false) => (".".to_owned(), ","),
            (Style::Matrix, _) => (format!(";{name}="), ","),
            _ => (String::new(), ","),
        };
        let spread = self.style == Style::Matrix && self.explode;
        match self.shape(value)? {
            Shape::One(text) => Ok(before + &part(&text)?),
            Shape::Many(items) if items.is_empty() => Err(Misfit::Empty(self.argument.clone())),
            Shape::Many(items) => {
                let items: Vec<_> = items.iter().map(|item| part(item)).collect::<Result<_, _>>()?;
                Ok(before.clone() + &items.join(if spread { &before } else { between }))
            }
            Shape::Pairs(pairs) => {
                let mut texts = Vec::new();
                for (key, item) in pairs {
                    let glue = if self.explode { "=" } else { "," };
                    texts.push(format!("{}{glue}{}", part(&key)?, part(&item)?));
                }
                if texts.is_empty() {
                    return Err(Misfit::Empty(self.argument.clone()));
                }
                Ok(if spread { format!(";{}", texts.join(";")) } else { before + &texts.join(between) })
            }
        }
    }

    fn in_query(&self, value: &Value, request: &mut Request) -> Result<(), Misfit> {
        let between = match self.style {
            Style::SpaceDelimited => "%20",
            Style::PipeDelimited => "%7C",
            _ => ",",
        };
        match self.shape(value)? {
            Shape::One(text) => request.query(&self.name, &text),
            Shape::Many(items) if self.explode => {
                for item in items {
                    request.query(&self.name, &item);
                }
            }
            Shape::Many(items) => request.query_list(&self.name, &items, between),
            Shape::Pairs(pairs) if self.style == Style::DeepObject => {
                for (key, item) in pairs {
                    request.query(&format!("{}[{key}]", self.name), &item);
                }
            }
            Shape::Pairs(pairs) if self.explode => {
                for (key, item) in pairs {
                    request.query(&key, &item);
                }
            }
            Shape::Pairs(pairs) => {
                let flat: Vec<_> = pairs.into_iter().flat_map(|(key, item)| [key, item]).collect();
                request.query_list(&self.name, &flat, between);
            }
        }
        Ok(())
    }

    fn in_header(&self, value: &Value) -> Result<String, Misfit> {
        Ok(match self.shape(value)? {
            Shape::One(text) => text,
            Shape::Many(items) => items.join(","),
            Shape::Pairs(pairs) => {
                let glue = if self.explode { "=" } else { "," };
                pairs.iter().map(|(key, item)| format!("{key}{glue}{item}")).collect::<Vec<_>>().join(",")
            }
        })
    }
}

#[cfg(test)]
mod tests;
