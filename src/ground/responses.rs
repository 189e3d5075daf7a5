//! The Responses interface with the tool `web_search`: OpenAI's, and xAI's for Grok.
//!
//! Shapes: OpenAI's guide "Web search" and the reference of `responses`; docs.x.ai, "Search tools".
//! xAI answers requests with the older `search_parameters` with status 410.

use super::answer::{Answer, Citation};
use super::error::GroundError;
use super::{Place, Question, Told, Wish, approximate, secret};
use crate::config::WebSearch;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

pub(super) fn openai(question: &Question<'_>, settings: &WebSearch) -> Result<Wish, GroundError> {
    let mut tool = json!({ "type": "web_search" });
    if let Some(place) = approximate(question.place) {
        tool["user_location"] = place;
    }
    let body = json!({
        "model": question.model,
        "input": question.query,
        "tools": [tool],
        "max_tool_calls": settings.max_searches,
        "max_output_tokens": settings.max_tokens,
        "include": ["web_search_call.action.sources"],
        "store": false,
    });
    Ok(Wish { path: "responses".to_owned(), headers: bearer(question)?, body })
}

pub(super) fn grok(question: &Question<'_>, settings: &WebSearch) -> Result<Wish, GroundError> {
    let mut input = vec![json!({ "role": "user", "content": question.query })];
    // Its search takes no place, so the model is told in words.
    if let Some(words) = question.place.and_then(in_words) {
        input.insert(0, json!({ "role": "system", "content": words }));
    }
    let body = json!({
        "model": question.model,
        "input": input,
        "tools": [{ "type": "web_search" }],
        "max_output_tokens": settings.max_tokens,
        "store": false,
    });
    Ok(Wish { path: "responses".to_owned(), headers: bearer(question)?, body })
}

fn bearer(question: &Question<'_>) -> Result<HeaderMap, GroundError> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, secret(&format!("Bearer {}", question.key.expose_secret()))?);
    Ok(headers)
}

fn in_words(place: &Place) -> Option<String> {
    let named: Vec<_> = [&place.city, &place.region, &place.country].into_iter().flatten().cloned().collect();
    let at = place
        .latitude_longitude
        .map(|(latitude, longitude)| format!("latitude {latitude}, longitude {longitude}"));
    let known: Vec<_> = named.into_iter().chain(at).collect();
    (!known.is_empty()).then(|| format!("The user is near: {}.", known.join(", ")))
}

pub(super) fn read(told: &Value, mut answer: Answer) -> Option<Told> {
    let output = told["output"].as_array()?;
    for item in output {
        match item["type"].as_str() {
            Some("web_search_call") => {
                let action = &item["action"];
                answer.usage.searches += u64::from(action["type"].as_str().unwrap_or("search") == "search");
                answer.searched(action["query"].as_str());
                for query in action["queries"].as_array().into_iter().flatten() {
                    answer.searched(query.as_str());
                }
            }
            Some("message") => {
                for part in item["content"].as_array().into_iter().flatten() {
                    message(part, &mut answer);
                }
            }
            _ => {}
        }
    }
    // Grok lists all it has seen; what no annotation names stands after the others.
    for url in told["citations"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !answer.citations.iter().any(|known| known.url == url) {
            answer.cite(Citation { url: url.to_owned(), ..Citation::default() });
        }
    }
    let usage = &told["usage"];
    answer.usage.input_tokens += usage["input_tokens"].as_u64().unwrap_or(0);
    answer.usage.output_tokens += usage["output_tokens"].as_u64().unwrap_or(0);
    answer.usage.cached_tokens += usage["input_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    answer.truncated = told["status"].as_str().is_some_and(|status| status != "completed");
    Some(Told::Done(answer))
}

fn message(part: &Value, answer: &mut Answer) {
    let before = answer.chars();
    match part["type"].as_str() {
        Some("output_text") => answer.answer.push_str(part["text"].as_str().unwrap_or_default()),
        Some("refusal") => answer.answer.push_str(part["refusal"].as_str().unwrap_or_default()),
        _ => return,
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for note in part["annotations"].as_array().into_iter().flatten() {
        if note["type"].as_str() != Some("url_citation") {
            continue;
        }
        let place = |name: &str| note[name].as_u64().map(|index| before + index as usize);
        answer.cite(Citation {
            title: text(&note["title"]),
            url: text(&note["url"]),
            quote: None,
            start: place("start_index"),
            end: place("end_index"),
        });
    }
}
