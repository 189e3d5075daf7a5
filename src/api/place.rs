//! A request in the making: each value is set into a place that it cannot leave.

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use std::fmt::Write as _;
use url::Url;

/// Headers that say where a message goes, how it is framed, or who sends it.
const KEPT: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a value does not fit its place; told to the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("`{0}` must not be empty: it is a part of the path")]
    Empty(String),
    #[error("`{0}` must not contain a slash")]
    Slash(String),
    #[error("`{0}` would lead to another path")]
    Dots(String),
    #[error("`{0}` must be a text, a number or a boolean here")]
    NotScalar(String),
    #[error("`{0}` must not contain line breaks or control characters here")]
    Control(String),
    #[error("the arguments would change where the request goes")]
    Astray,
}

/// What becomes of a slash in a part of the path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Slashes {
    #[default]
    Refused,
    /// As `%2F`, so that it stays one segment.
    Encoded,
    /// As it is: the value is several segments.
    Segments,
}

/// A request whose parts all stand in their places.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Value>,
}

impl Request {
    pub(super) fn new(method: Method, base: &Url) -> Self {
        let mut url = base.clone();
        url.set_query(None);
        url.set_fragment(None);
        Self { method, url, headers: HeaderMap::new(), body: None }
    }

    /// Sets the path below the base's own; `path` begins with a slash, its values are encoded.
    pub(super) fn path(&mut self, path: &str) -> Result<(), Misfit> {
        let whole = format!("{}{}", self.url.path().trim_end_matches('/'), literal(path));
        let origin = self.url.origin();
        self.url.set_path(&whole);
        // The URL parser would have folded dots; whatever it changed was not meant.
        if self.url.path() == whole && self.url.origin() == origin { Ok(()) } else { Err(Misfit::Astray) }
    }

    pub(super) fn query(&mut self, name: &str, value: &str) {
        self.query_list(name, &[value.to_owned()], "");
    }

    /// One parameter with several values; `separator` is one of the standard's own.
    pub(super) fn query_list(&mut self, name: &str, values: &[String], separator: &str) {
        let values: Vec<_> = values.iter().map(|value| encode(value)).collect();
        let pair = format!("{}={}", encode(name), values.join(separator));
        let query = match self.url.query() {
            None | Some("") => pair,
            Some(before) => format!("{before}&{pair}"),
        };
        self.url.set_query(Some(&query));
    }

    pub(super) fn header(&mut self, name: &str, value: &str) -> Result<(), Misfit> {
        let named = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Misfit::Control(name.to_owned()))?;
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Misfit::Control(name.to_owned()));
        }
        let value =
            HeaderValue::from_bytes(value.as_bytes()).map_err(|_| Misfit::Control(name.to_owned()))?;
        self.headers.insert(named, value);
        Ok(())
    }
}

/// Whether a tool may set a header of this name.
pub(super) fn may_set(name: &str) -> bool {
    HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| !KEPT.contains(&name.as_str()))
}

/// The text of a value that is not a list or an object; null is the empty text.
pub(super) fn scalar(name: &str, value: &Value) -> Result<String, Misfit> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(yes) => Ok(yes.to_string()),
        Value::Null => Ok(String::new()),
        Value::Array(_) | Value::Object(_) => Err(Misfit::NotScalar(name.to_owned())),
    }
}

/// A value as a part of a path.
pub(super) fn part(name: &str, text: &str, slashes: Slashes) -> Result<String, Misfit> {
    let own = || name.to_owned();
    if text.is_empty() {
        return Err(Misfit::Empty(own()));
    }
    if text.chars().any(char::is_control) {
        return Err(Misfit::Control(own()));
    }
    let slash = |c| matches!(c, '/' | '\\');
    match slashes {
        Slashes::Refused if text.contains(slash) => Err(Misfit::Slash(own())),
        Slashes::Refused | Slashes::Encoded => Ok(encode(text)),
        Slashes::Segments if text.contains('\\') => Err(Misfit::Slash(own())),
        Slashes::Segments => {
            let parts: Vec<_> = text.split('/').map(encode).collect();
            if parts.iter().any(String::is_empty) {
                return Err(Misfit::Empty(own()));
            }
            Ok(parts.join("/"))
        }
    }
}

/// Refuses a finished path with a segment that climbs or stands still, however it is spelled.
pub(super) fn no_dots(path: &str) -> Result<(), Misfit> {
    let dots = |segment: &str| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        plain == "." || plain == ".."
    };
    match path.split(['/', '\\']).find(|segment| dots(segment)) {
        Some(segment) => Err(Misfit::Dots(segment.to_owned())),
        None => Ok(()),
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte.into());
        } else {
            // Writing into a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A path with its own slashes and escapes, and without what no path may hold.
fn literal(path: &str) -> String {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%".contains(c);
    path.chars().fold(String::with_capacity(path.len()), |mut out, c| {
        if is_path(c) {
            out.push(c);
        } else {
            out.push_str(&encode(c.encode_utf8(&mut [0; 4])));
        }
        out
    })
}
