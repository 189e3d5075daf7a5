//! Anthropic's Messages with the server tool `web_search_20250305`.
//!
//! Shapes: platform.claude.com, "Web search tool". The answer comes in pieces, each with the
//! citations it rests on; a long turn pauses and goes on when its own words are sent back.

use super::answer::{Answer, Citation};
use super::error::GroundError;
use super::{Question, Told, Wish, approximate, secret};
use crate::config::WebSearch;
use reqwest::header::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

const VERSION: &str = "2023-06-01";

pub(super) fn wish(question: &Question<'_>, settings: &WebSearch) -> Result<Wish, GroundError> {
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", secret(question.key.expose_secret())?);
    headers.insert("anthropic-version", HeaderValue::from_static(VERSION));
    let mut tool =
        json!({ "type": "web_search_20250305", "name": "web_search", "max_uses": settings.max_searches });
    if let Some(place) = approximate(question.place) {
        tool["user_location"] = place;
    }
    let body = json!({
        "model": question.model,
        "max_tokens": settings.max_tokens,
        "messages": [{ "role": "user", "content": question.query }],
        "tools": [tool],
    });
    Ok(Wish { path: "messages".to_owned(), headers, body })
}

pub(super) fn read(told: &Value, mut answer: Answer, asked: &Value) -> Option<Told> {
    let content = told["content"].as_array()?;
    for block in content {
        match block["type"].as_str() {
            Some("text") => text(block, &mut answer),
            Some("server_tool_use") => answer.searched(block["input"]["query"].as_str()),
            _ => {}
        }
    }
    let usage = &told["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap_or(0);
    // The cache's tokens are not among `input_tokens` here, and are with the other providers.
    let cached = count("cache_read_input_tokens");
    answer.usage.input_tokens += count("input_tokens") + count("cache_creation_input_tokens") + cached;
    answer.usage.cached_tokens += cached;
    answer.usage.output_tokens += count("output_tokens");
    answer.usage.searches += usage["server_tool_use"]["web_search_requests"].as_u64().unwrap_or(0);
    match told["stop_reason"].as_str() {
        Some("pause_turn") => {
            let mut body = asked.clone();
            body["messages"].as_array_mut()?.push(json!({ "role": "assistant", "content": content }));
            Some(Told::GoOn { body, so_far: answer })
        }
        Some("end_turn" | "stop_sequence") => Some(Told::Done(answer)),
        _ => {
            answer.truncated = true;
            Some(Told::Done(answer))
        }
    }
}

fn text(block: &Value, answer: &mut Answer) {
    let start = answer.chars();
    answer.answer.push_str(block["text"].as_str().unwrap_or_default());
    let end = answer.chars();
    for note in block["citations"].as_array().into_iter().flatten() {
        let text = |name: &str| note[name].as_str().unwrap_or_default().to_owned();
        if note["type"].as_str() == Some("web_search_result_location") {
            answer.cite(Citation {
                title: text("title"),
                url: text("url"),
                quote: note["cited_text"].as_str().map(str::to_owned),
                start: Some(start),
                end: Some(end),
            });
        }
    }
}
