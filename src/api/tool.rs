//! A tool's row, read: what it sends, where, and what it takes.

use super::body::Pick;
use super::error::ToolError;
use super::openapi::Document;
use super::operation::{Name, Operation};
use super::place::{Misfit, Request, Slashes};
use super::schema;
use super::template::{Template, method};
use jsonschema::Validator;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

/// The keys of `custom_config` that describe a request; others are somebody else's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    openapi: Option<Value>,
    operation_id: Option<String>,
    method: Option<String>,
    path: Option<String>,
    #[serde(default)]
    slashes: BTreeMap<String, Slashes>,
    request: Option<Template>,
    #[serde(default)]
    pick: Pick,
}

#[derive(Debug, Clone)]
enum Kind {
    Operation(Box<Operation>),
    Template(Box<Template>),
}

/// An API tool, ready to be called.
#[derive(Debug, Clone)]
pub struct Tool {
    kind: Kind,
    base: Url,
    schema: Value,
    validator: Arc<Validator>,
    pub(super) pick: Pick,
}

impl Tool {
    /// Reads a tool's `custom_config`, `endpoint` and `input_schema`.
    ///
    /// The endpoint is where requests go; without one, the document's first server is. An
    /// operation's schema comes from its document; a template's is the row's own, or, where that
    /// names no properties, one property for each placeholder.
    pub fn read(config: &Value, endpoint: Option<&str>, input_schema: &Value) -> Result<Self, ToolError> {
        let settings = Settings::deserialize(config)?;
        let (kind, server, schema) = match (settings.request, settings.openapi) {
            (Some(template), _) => {
                template.check()?;
                let has_own = input_schema["properties"].as_object().is_some_and(|own| !own.is_empty());
                let schema = if has_own { input_schema.clone() } else { template.schema() };
                // What the schema does not name could be anything.
                if let Some(name) =
                    template.places().iter().find(|name| schema["properties"].get(name).is_none())
                {
                    return Err(ToolError::Undeclared(name.clone()));
                }
                (Kind::Template(Box::new(template)), None, schema)
            }
            (None, Some(document)) => {
                let name = match (&settings.operation_id, &settings.method, &settings.path) {
                    (Some(id), _, _) => Name::Id(id),
                    (None, Some(method), Some(path)) => Name::Route(method, path),
                    _ => return Err(ToolError::Missing { key: "operationId" }),
                };
                let mut operation = Operation::read(&Document::read(&document)?, name)?;
                operation.slashes = settings.slashes;
                let (server, schema) = (operation.server.clone(), operation.schema.clone());
                (Kind::Operation(Box::new(operation)), server, schema)
            }
            (None, None) => return Err(ToolError::Missing { key: "request" }),
        };
        let server = endpoint.map(str::to_owned).or(server).ok_or(ToolError::Missing { key: "endpoint" })?;
        let base = base(&server)?;
        Ok(Self { validator: Arc::new(schema::compile(&schema)?), kind, base, schema, pick: settings.pick })
    }

    /// What a model is shown of the arguments.
    pub fn input_schema(&self) -> &Value {
        &self.schema
    }

    /// What the document says of the operation; empty for a template.
    pub fn description(&self) -> &str {
        match &self.kind {
            Kind::Operation(operation) => &operation.description,
            Kind::Template(_) => "",
        }
    }

    /// Whose method says what a call does to the server.
    pub fn method(&self) -> Method {
        match &self.kind {
            Kind::Operation(operation) => operation.method.clone(),
            // It was read when the tool was.
            Kind::Template(template) => method(&template.method).unwrap_or(Method::POST),
        }
    }

    /// Where its requests go: what a credential must have been saved for.
    pub fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    pub(super) async fn judge(&self, arguments: &Map<String, Value>) -> Result<(), String> {
        schema::judge(&self.validator, arguments).await
    }

    pub(super) fn fill(&self, arguments: &Map<String, Value>) -> Result<Request, Misfit> {
        match &self.kind {
            Kind::Operation(operation) => operation.fill(&self.base, arguments),
            Kind::Template(template) => template.fill(&self.base, arguments),
        }
    }
}

fn base(server: &str) -> Result<Url, ToolError> {
    let no_address = || ToolError::Endpoint(server.to_owned());
    let url = Url::parse(server).map_err(|_| no_address())?;
    let fits = matches!(url.scheme(), "http" | "https")
        && url.query().is_none()
        && url.username().is_empty()
        && !server.contains(['{', '}']);
    if fits && url.password().is_none() { Ok(url) } else { Err(no_address()) }
}
