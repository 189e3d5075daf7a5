//! The operator's catalogue of MCP servers: what a connection of a tenant may start, and how far
//! it may fill it in.
//!
//! Entries come from the settings or are rows of an admin role; either way they are checked when
//! they are offered, and again each time one is used. A tenant gives values of parameters and
//! nothing else: a value takes the place of one whole argument, after it fitted the entry's JSON
//! Schema and our own rules. Nothing here passes a shell, and no name of a variable, no program and
//! no option ever comes from a tenant's row.

mod danger;
pub mod runtimes;
mod values;

use crate::config::{CatalogueServer, EnvValue, Transport};
use crate::domain::origin_of_program;
use secrecy::SecretString;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An entry that is a program: the command line with its `{parameter}` places.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    /// Absolute, or a name that the settings' path leads to.
    pub command: String,
    pub arguments: Vec<String>,
    pub env: BTreeMap<String, EnvValue>,
    /// JSON Schema of what a connection fills in; `{}`: nothing.
    pub parameters: Value,
}

/// A program that may be started.
#[derive(Debug, Clone)]
pub struct Filled {
    pub command: String,
    pub arguments: Vec<String>,
    pub env: Vec<(String, SecretString)>,
}

/// Why an entry or a tenant's values for it are not used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("server {server}: {why}")]
    Entry { server: String, why: String },
    #[error("parameter {name}: {why}")]
    Value { name: String, why: String },
    #[error("the parameters do not fit the server's schema: {0}")]
    Schema(String),
    #[error("the server wants a credential in {variable}, and none is stored")]
    NoCredential { variable: String },
}

impl Entry {
    /// Whether an operator may offer this at all; says what is wrong with it.
    pub fn check(&self) -> Result<(), CatalogueError> {
        let wrong = |why: String| CatalogueError::Entry { server: self.name.clone(), why };
        danger::command(&self.command, &self.arguments).map_err(wrong)?;
        for name in self.env.keys() {
            danger::variable(name).map_err(wrong)?;
        }
        let declared = values::declared(&self.parameters).map_err(wrong)?;
        for argument in &self.arguments {
            match place(argument) {
                Some(name) if !declared.contains_key(name) => {
                    return Err(wrong(format!(
                        "{argument} is a parameter that `parameters` does not declare"
                    )));
                }
                None if declared.keys().any(|name| argument.contains(&format!("{{{name}}}"))) => {
                    return Err(wrong(format!(
                        "a parameter takes a whole argument, not a part of {argument:?}"
                    )));
                }
                _ => {}
            }
        }
        jsonschema::validator_for(&self.parameters)
            .map(drop)
            .map_err(|error| wrong(format!("`parameters` is no JSON Schema: {error}")))
    }

    /// The program with a tenant's values in their places, and the credential in the variables that
    /// carry it.
    pub fn fill(
        &self,
        given: &Map<String, Value>,
        credential: Option<&SecretString>,
    ) -> Result<Filled, CatalogueError> {
        let arguments = self.arguments(given)?;
        let env = self.env.iter().map(|(name, value)| {
            let value = match value {
                EnvValue::Text(text) => SecretString::from(text.clone()),
                EnvValue::Credential { .. } => credential
                    .cloned()
                    .ok_or_else(|| CatalogueError::NoCredential { variable: name.clone() })?,
            };
            Ok((name.clone(), value))
        });
        Ok(Filled { command: self.command.clone(), arguments, env: env.collect::<Result<_, _>>()? })
    }

    /// The place that a credential for it is saved for. A tenant's other value is another place.
    pub fn origin(&self, given: &Map<String, Value>) -> Result<String, CatalogueError> {
        let env = self.env.iter().map(|(name, value)| match value {
            EnvValue::Text(text) => (name.as_str(), Some(text.as_str())),
            EnvValue::Credential { .. } => (name.as_str(), None),
        });
        Ok(origin_of_program(&self.name, &self.command, &self.arguments(given)?, &env.collect()))
    }

    /// The arguments with a tenant's values in their places.
    fn arguments(&self, given: &Map<String, Value>) -> Result<Vec<String>, CatalogueError> {
        self.check()?;
        let values = values::accept(&self.parameters, given)?;
        let arguments = self.arguments.iter().map(|argument| match place(argument) {
            None => Ok(argument.clone()),
            Some(name) => values.get(name).cloned().ok_or_else(|| CatalogueError::Value {
                name: name.to_owned(),
                why: "it is missing".to_owned(),
            }),
        });
        arguments.collect()
    }
}

/// Whether every server of the settings may be offered; the first that may not is named.
pub fn check(servers: &[CatalogueServer]) -> Result<(), CatalogueError> {
    for server in servers {
        let wrong = |why: &str| CatalogueError::Entry { server: server.name.clone(), why: why.to_owned() };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if !(1..=64).contains(&server.name.len()) || !server.name.bytes().all(plain) {
            return Err(wrong("a name is 1 to 64 of letters, digits, _ and -"));
        }
        if servers.iter().filter(|other| other.name == server.name).count() > 1 {
            return Err(wrong("the name stands twice in the catalogue"));
        }
        match (server.transport, &server.command, &server.url) {
            (Transport::Stdio, Some(command), None) => Entry {
                name: server.name.clone(),
                command: command.clone(),
                arguments: server.arguments.clone(),
                env: server.env.clone(),
                parameters: server.parameters.clone(),
            }
            .check()?,
            (Transport::Stdio, ..) => return Err(wrong("a stdio server has a command and no url")),
            (_, None, Some(url)) => {
                let url = url::Url::parse(url).map_err(|_| wrong("its url is none"))?;
                if !matches!(url.scheme(), "http" | "https")
                    || !url.username().is_empty()
                    || url.password().is_some()
                {
                    return Err(wrong("its url is to be http or https, and without a login"));
                }
            }
            _ => return Err(wrong("a server behind an address has a url and no command")),
        }
    }
    Ok(())
}

/// The parameter that this whole argument stands for.
fn place(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix('{')?.strip_suffix('}')?;
    let word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    word.then_some(name)
}

#[cfg(test)]
mod tests;
