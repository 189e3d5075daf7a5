//! Gemini's `generateContent` with the tool `googleSearch`.
//!
//! Shapes: ai.google.dev, "Grounding with Google Search" and the reference of `GroundingMetadata`.
//! Segments of an answer are told in bytes of one part of it.

use super::answer::{Answer, Citation};
use super::error::GroundError;
use super::{Question, Told, Wish, secret};
use crate::config::WebSearch;
use reqwest::header::HeaderMap;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

pub(super) fn wish(question: &Question<'_>, settings: &WebSearch) -> Result<Wish, GroundError> {
    // The name may come as `models/…`, as the provider lists it.
    let model = question.model.trim_start_matches("models/");
    if model.contains(['/', ':']) {
        return Err(GroundError::Model);
    }
    let mut headers = HeaderMap::new();
    headers.insert("x-goog-api-key", secret(question.key.expose_secret())?);
    let mut body = json!({
        "contents": [{ "role": "user", "parts": [{ "text": question.query }] }],
        "tools": [{ "googleSearch": {} }],
        "generationConfig": { "maxOutputTokens": settings.max_tokens },
    });
    if let Some((latitude, longitude)) = question.place.and_then(|place| place.latitude_longitude) {
        let place = json!({ "latitude": latitude, "longitude": longitude });
        body["toolConfig"] = json!({ "retrievalConfig": { "latLng": place } });
    }
    Ok(Wish { path: format!("models/{model}:generateContent"), headers, body })
}

/// A part of the answer: its text, and the characters before it.
struct Part<'a> {
    text: &'a str,
    before: usize,
}

impl Part<'_> {
    /// A byte of the part as a character of the answer.
    fn char_at(&self, byte: usize) -> usize {
        let mut byte = byte.min(self.text.len());
        while !self.text.is_char_boundary(byte) {
            byte -= 1;
        }
        self.before + self.text[..byte].chars().count()
    }
}

pub(super) fn read(told: &Value, mut answer: Answer) -> Option<Told> {
    let usage = told.get("usageMetadata");
    let count = |name: &str| usage.and_then(|usage| usage[name].as_u64()).unwrap_or(0);
    answer.usage.input_tokens += count("promptTokenCount") + count("toolUsePromptTokenCount");
    answer.usage.cached_tokens += count("cachedContentTokenCount");
    // Thoughts are charged as output.
    answer.usage.output_tokens += count("candidatesTokenCount") + count("thoughtsTokenCount");
    let Some(candidate) = told["candidates"].get(0) else {
        // A refused prompt has no candidate.
        return told.get("promptFeedback").map(|_| Told::Done(answer));
    };
    let mut parts = Vec::new();
    for part in candidate["content"]["parts"].as_array().into_iter().flatten() {
        let is_thought = part["thought"] == json!(true);
        let text = part["text"].as_str().filter(|_| !is_thought).unwrap_or_default();
        parts.push(Part { text, before: answer.chars() });
        answer.answer.push_str(text);
    }
    let finish = candidate["finishReason"].as_str().unwrap_or("STOP");
    answer.truncated = finish != "STOP";
    let grounding = &candidate["groundingMetadata"];
    for query in grounding["webSearchQueries"].as_array().into_iter().flatten() {
        answer.searched(query.as_str());
    }
    // One grounded answer is charged as one search, or by query on newer models.
    answer.usage.searches += answer.queries.len() as u64;
    answer.suggestions_html = grounding["searchEntryPoint"]["renderedContent"].as_str().map(str::to_owned);
    cite(grounding, &parts, &mut answer);
    Some(Told::Done(answer))
}

fn cite(grounding: &Value, parts: &[Part<'_>], answer: &mut Answer) {
    let web = |index: usize| &grounding["groundingChunks"][index]["web"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut cited = Vec::new();
    for support in grounding["groundingSupports"].as_array().into_iter().flatten() {
        let segment = &support["segment"];
        let number = |name: &str| segment[name].as_u64().unwrap_or(0) as usize;
        let part = parts.get(number("partIndex"));
        for index in support["groundingChunkIndices"].as_array().into_iter().flatten() {
            let Some(index) = index.as_u64().map(|index| index as usize) else { continue };
            cited.push(index);
            answer.cite(Citation {
                title: text(&web(index)["title"]),
                url: text(&web(index)["uri"]),
                quote: None,
                start: part.map(|part| part.char_at(number("startIndex"))),
                end: part.map(|part| part.char_at(number("endIndex"))),
            });
        }
    }
    // Sources that no part of the answer names.
    let chunks = grounding["groundingChunks"].as_array().map_or(0, Vec::len);
    for index in (0..chunks).filter(|index| !cited.contains(index)) {
        let (title, url) = (text(&web(index)["title"]), text(&web(index)["uri"]));
        answer.cite(Citation { title, url, ..Citation::default() });
    }
}
