//! An answer as a tool's output: JSON stays structured, text stays text, anything else is named.

use super::auth::{mask, mask_value};
use super::error::ApiError;
use super::operation::is_json;
use crate::domain::{Saved, ToolOutput};
use encoding_rs::{Encoding, UTF_8};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Longest wait that a server's Retry-After is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// JSON pointers to the parts of an answer that are kept; none keeps all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Pick {
    One(String),
    Many(Vec<String>),
    #[default]
    All,
}

/// An answer that was read.
pub(super) struct Answer {
    status: StatusCode,
    content_type: String,
    bytes: Vec<u8>,
    /// The answer was longer, and is not kept.
    over: Option<u64>,
}

/// How long the server asks us to wait, where it puts the call off.
///
/// A 429 says that nothing was done. A 503 does not: what stands before a server says it too,
/// after the server had the request. It asks to come back only where asking changes nothing.
pub(super) fn is_put_off(method: &Method, status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let is_put_off =
        status == StatusCode::TOO_MANY_REQUESTS || (reads && status == StatusCode::SERVICE_UNAVAILABLE);
    if !is_put_off {
        return None;
    }
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = chrono::DateTime::parse_from_rfc2822(value).ok()?;
        date.signed_duration_since(chrono::Utc::now()).to_std().unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

impl Answer {
    /// Reads no more than `limit` bytes.
    pub(super) async fn read(mut response: Response, limit: u64) -> Result<Self, ApiError> {
        let content_type = response.headers().get(CONTENT_TYPE);
        let mut answer = Self {
            status: response.status(),
            content_type: content_type
                .map_or(String::new(), |v| String::from_utf8_lossy(v.as_bytes()).into()),
            bytes: Vec::new(),
            over: None,
        };
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) if answer.bytes.len() as u64 + bytes.len() as u64 > limit => {
                    answer.over = Some(limit);
                    return Ok(answer);
                }
                Ok(Some(bytes)) => answer.bytes.extend_from_slice(&bytes),
                Ok(None) => return Ok(answer),
                Err(error) if error.is_timeout() => return Err(ApiError::Timeout { sent: true }),
                Err(_) => return Err(ApiError::Cut { at: answer.bytes.len() as u64 }),
            }
        }
    }

    /// What the model reads.
    pub(super) fn output(&self, pick: &Pick, saved: Option<&Saved<'_>>) -> ToolOutput {
        let failed = !self.status.is_success();
        if let Some(limit) = self.over {
            return ToolOutput::error(format!(
                "Status {}. The answer has more than {limit} bytes and was not kept.",
                self.status.as_u16()
            ));
        }
        let mut output = match self.text() {
            _ if self.bytes.is_empty() => ToolOutput::text(format!("Status {}, no content.", self.status)),
            None => ToolOutput::text(format!(
                "Status {}. The answer is {} ({} bytes), which is not shown.",
                self.status,
                if self.content_type.is_empty() { "of no named type" } else { &self.content_type },
                self.bytes.len()
            )),
            Some(text) => {
                let text = match saved {
                    Some(saved) => mask(saved, text),
                    None => text,
                };
                let mut value: Option<Value> =
                    is_json(&self.content_type).then(|| serde_json::from_str(&text).ok()).flatten();
                if let (Some(saved), Some(value)) = (saved, &mut value) {
                    // JSON may spell a secret with escapes.
                    mask_value(saved, value);
                }
                match value {
                    Some(value) => structured(value, pick, failed),
                    None => ToolOutput::text(text),
                }
            }
        };
        if failed {
            output.is_error = true;
            output.content.insert(0, json!({ "type": "text", "text": format!("Status {}.", self.status) }));
        }
        output
    }

    fn text(&self) -> Option<String> {
        let kind = self.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_text = kind.starts_with("text/")
            || is_json(&kind)
            || kind.ends_with("+xml")
            || matches!(
                kind.as_str(),
                "application/xml"
                    | "application/x-www-form-urlencoded"
                    | "application/javascript"
                    | "application/yaml"
                    | "application/x-ndjson"
                    | "application/jsonl"
            );
        if !is_text {
            // A server that names no type may still have sent a text.
            return kind.is_empty().then(|| String::from_utf8(self.bytes.clone()).ok()).flatten();
        }
        let charset = self.content_type.split(';').find_map(|part| part.trim().strip_prefix("charset="));
        let encoding = charset.and_then(|name| Encoding::for_label(name.trim_matches('"').as_bytes()));
        Some(encoding.unwrap_or(UTF_8).decode(&self.bytes).0.into_owned())
    }
}

/// JSON, or the parts of it that were asked for. An error is shown whole.
fn structured(value: Value, pick: &Pick, failed: bool) -> ToolOutput {
    let missing = |pointer: &str| format!("The answer has nothing at {pointer:?}.");
    let picked = match pick {
        _ if failed => value,
        Pick::All => value,
        Pick::One(pointer) => match value.pointer(pointer) {
            Some(part) => part.clone(),
            None => return ToolOutput { structured_content: None, ..ToolOutput::text(missing(pointer)) },
        },
        Pick::Many(pointers) => pointers
            .iter()
            .map(|pointer| (pointer.clone(), value.pointer(pointer).cloned().unwrap_or(Value::Null)))
            .collect::<Map<_, _>>()
            .into(),
    };
    let text = picked.to_string();
    // MCP's structured content is an object.
    let structured = if picked.is_object() { picked } else { json!({ "result": picked }) };
    ToolOutput { structured_content: Some(structured), ..ToolOutput::text(text) }
}
