//! Grounded search on the wire: what each provider is sent, and what becomes of what it says.
//!
//! The answers are our own, in the shapes that the providers document: ai.google.dev "Grounding
//! with Google Search"; OpenAI's guide "Web search"; platform.claude.com "Web search tool";
//! docs.x.ai "Search tools".

use crate::wire::{Recorder, answer, json as json_answer};
use gristmill::config::{Config, WebSearch};
use gristmill::ground::{Ground, GroundError, Place, Provider, Question};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::Duration;

const KEY: &str = "canary-key-0123456789";
static SECRET: LazyLock<SecretString> = LazyLock::new(|| SecretString::from(KEY));

fn settings(server: &Recorder) -> WebSearch {
    WebSearch {
        gemini_url: server.url("/v1beta"),
        openai_url: server.url("/v1"),
        anthropic_url: server.url("/v1/"),
        grok_url: server.url("/x/v1"),
        total_seconds: 2,
        ..Config::load(None).unwrap().web_search
    }
}

fn place() -> Place {
    Place {
        latitude_longitude: Some((52.52, 13.4)),
        city: Some("Berlin".to_owned()),
        country: Some("DE".to_owned()),
        timezone: Some("Europe/Berlin".to_owned()),
        ..Place::default()
    }
}

fn question(provider: Provider, place: Option<&Place>) -> Question<'_> {
    Question { provider, model: "model-1", query: "Which bridges are closed?", place, key: &SECRET }
}

fn gemini() -> Value {
    json!({
        "candidates": [{
            "content": { "role": "model", "parts": [
                { "text": "Let me look.", "thought": true },
                { "text": "Zwei Brücken. " },
                { "text": "Die älteste ist zu." },
            ] },
            "finishReason": "STOP",
            "groundingMetadata": {
                "webSearchQueries": ["closed bridges", "Brücken gesperrt"],
                "searchEntryPoint": { "renderedContent": "<div>suggestions</div>" },
                "groundingChunks": [
                    { "web": { "uri": "https://a.example/1", "title": "a.example" } },
                    { "web": { "uri": "https://b.example/2", "title": "b.example" } },
                    { "web": { "uri": "https://c.example/3", "title": "c.example" } },
                ],
                "groundingSupports": [
                    { "segment": { "partIndex": 1, "endIndex": 14, "text": "Zwei Brücken." },
                      "groundingChunkIndices": [0, 1], "confidenceScores": [0.9, 0.8] },
                    { "segment": { "partIndex": 2, "startIndex": 4, "endIndex": 12, "text": "älteste" },
                      "groundingChunkIndices": [1] },
                ],
            },
        }],
        "usageMetadata": { "promptTokenCount": 10, "toolUsePromptTokenCount": 90, "candidatesTokenCount": 20,
                           "thoughtsTokenCount": 5, "totalTokenCount": 125 },
    })
}

#[tokio::test]
async fn gemini_is_asked_with_the_user_s_place_and_its_bytes_become_characters() {
    let path = "/v1beta/models/model-1:generateContent";
    let server = Recorder::start("127.0.0.1", vec![(path, json_answer("200 OK", &gemini()))]).await;
    let place = place();
    let ground = Ground::new(&settings(&server)).unwrap();
    let output = ground.search(&question(Provider::Gemini, Some(&place))).await.unwrap();

    let heard = &server.heard()[0];
    assert_eq!(heard.line, format!("POST {path} HTTP/1.1"));
    assert_eq!(heard.header("x-goog-api-key"), Some(KEY));
    let expected = json!({
        "contents": [{ "role": "user", "parts": [{ "text": "Which bridges are closed?" }] }],
        "tools": [{ "googleSearch": {} }],
        "toolConfig": { "retrievalConfig": { "latLng": { "latitude": 52.52, "longitude": 13.4 } } },
        "generationConfig": { "maxOutputTokens": 4096 },
    });
    assert_eq!(heard.json(), expected);

    let told = output.structured_content.unwrap();
    assert_eq!(told["answer"], "Zwei Brücken. Die älteste ist zu.");
    assert_eq!(told["queries"], json!(["closed bridges", "Brücken gesperrt"]));
    let expected = json!([
        { "title": "a.example", "url": "https://a.example/1", "start": 0, "end": 13 },
        { "title": "b.example", "url": "https://b.example/2", "start": 0, "end": 13 },
        { "title": "b.example", "url": "https://b.example/2", "start": 18, "end": 25 },
        { "title": "c.example", "url": "https://c.example/3" },
    ]);
    assert_eq!(told["citations"], expected);
    let usage = json!({ "provider": "gemini", "model": "model-1", "input_tokens": 100, "cached_tokens": 0,
                        "output_tokens": 25, "searches": 2 });
    assert_eq!(told["usage"], usage);
    assert_eq!(told["suggestions_html"], "<div>suggestions</div>");
    let text = output.content[0]["text"].as_str().unwrap();
    assert!(text.ends_with("[3] c.example https://c.example/3") && !output.is_error, "{text}");
}

fn responses() -> Value {
    json!({
        "id": "resp_1", "status": "completed",
        "output": [
            { "type": "reasoning", "summary": [] },
            { "type": "web_search_call", "id": "ws_1", "status": "completed",
              "action": { "type": "search", "query": "closed bridges", "queries": ["closed bridges", "bridge closures"],
                          "sources": [{ "type": "url", "url": "https://a.example/1" }] } },
            { "type": "web_search_call", "id": "ws_2", "status": "completed",
              "action": { "type": "open_page", "url": "https://a.example/1" } },
            { "type": "message", "role": "assistant", "status": "completed", "content": [
                { "type": "output_text", "text": "Zwölf. ", "annotations": [] },
                { "type": "output_text", "text": "One is closed.", "annotations": [
                    { "type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://a.example/1", "title": "Bridges" },
                    { "type": "file_citation", "file_id": "f" } ] } ] },
        ],
        "citations": ["https://a.example/1", "https://seen.example/"],
        "usage": { "input_tokens": 300, "input_tokens_details": { "cached_tokens": 100 }, "output_tokens": 40,
                   "total_tokens": 340 },
    })
}

#[tokio::test]
async fn openai_is_asked_over_responses_with_an_approximate_place() {
    let server =
        Recorder::start("127.0.0.1", vec![("/v1/responses", json_answer("200 OK", &responses()))]).await;
    let place = place();
    let ground = Ground::new(&settings(&server)).unwrap();
    let told = ground.answer(&question(Provider::OpenAi, Some(&place))).await.unwrap();

    let heard = &server.heard()[0];
    assert_eq!(heard.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    let expected = json!({
        "model": "model-1",
        "input": "Which bridges are closed?",
        "tools": [{ "type": "web_search", "user_location": { "type": "approximate", "city": "Berlin", "country": "DE",
                                                            "timezone": "Europe/Berlin" } }],
        "max_tool_calls": 5,
        "max_output_tokens": 4096,
        "include": ["web_search_call.action.sources"],
        "store": false,
    });
    assert_eq!(heard.json(), expected);

    assert_eq!(told.answer, "Zwölf. One is closed.");
    assert_eq!(told.queries, ["closed bridges", "bridge closures"]);
    let first = &told.citations[0];
    assert_eq!((first.title.as_str(), first.start, first.end), ("Bridges", Some(7), Some(10)));
    assert_eq!(
        (told.usage.input_tokens, told.usage.cached_tokens, told.usage.output_tokens, told.usage.searches),
        (300, 100, 40, 1)
    );
}

#[tokio::test]
async fn grok_is_asked_over_responses_and_told_the_place_in_words() {
    let server =
        Recorder::start("127.0.0.1", vec![("/x/v1/responses", json_answer("200 OK", &responses()))]).await;
    let place = place();
    let ground = Ground::new(&settings(&server)).unwrap();
    let told = ground.answer(&question(Provider::Grok, Some(&place))).await.unwrap();
    let body = server.heard()[0].json();
    assert_eq!(body["tools"], json!([{ "type": "web_search" }]));
    assert_eq!(body["search_parameters"], Value::Null);
    let words = json!({ "role": "system", "content": "The user is near: Berlin, DE, latitude 52.52, longitude 13.4." });
    assert_eq!(body["input"], json!([words, { "role": "user", "content": "Which bridges are closed?" }]));
    let urls: Vec<_> = told.citations.iter().map(|citation| citation.url.as_str()).collect();
    assert_eq!(urls, ["https://a.example/1", "https://seen.example/"]);
}

fn search_result() -> Value {
    json!({ "type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [
        { "type": "web_search_result", "url": "https://a.example/1", "title": "Bridges", "encrypted_content": "EqgfCioIARgB" }] })
}

fn paused() -> Value {
    let search = json!({ "type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search",
                       "input": { "query": "closed bridges" } });
    json!({
        "type": "message", "role": "assistant", "stop_reason": "pause_turn",
        "content": [{ "type": "text", "text": "Ich suche: " }, search, search_result()],
        "usage": { "input_tokens": 100, "output_tokens": 10, "server_tool_use": { "web_search_requests": 1 } },
    })
}

fn done() -> Value {
    json!({
        "type": "message", "role": "assistant", "stop_reason": "end_turn",
        "content": [
            { "type": "text", "text": "Zwölf, ", },
            { "type": "text", "text": "one of them closed.", "citations": [
                { "type": "web_search_result_location", "url": "https://a.example/1", "title": "Bridges",
                  "encrypted_index": "Eo8B", "cited_text": "One bridge is closed." }] },
        ],
        "usage": { "input_tokens": 200, "cache_read_input_tokens": 50, "cache_creation_input_tokens": 5, "output_tokens": 20,
                   "server_tool_use": { "web_search_requests": 1 } },
    })
}

#[tokio::test]
async fn anthropic_pauses_and_goes_on_with_its_own_words() {
    let (paused, done) = (paused(), done());
    let path = "/v1/messages";
    let server = Recorder::start(
        "127.0.0.1",
        vec![(path, json_answer("200 OK", &paused)), (path, json_answer("200 OK", &done))],
    )
    .await;
    let place = place();
    let ground = Ground::new(&settings(&server)).unwrap();
    let told = ground.answer(&question(Provider::Anthropic, Some(&place))).await.unwrap();

    let heard = server.heard();
    assert_eq!(heard[0].header("x-api-key"), Some(KEY));
    assert_eq!(heard[0].header("anthropic-version"), Some("2023-06-01"));
    let asked = json!({ "role": "user", "content": "Which bridges are closed?" });
    let expected = json!({
        "model": "model-1", "max_tokens": 4096, "messages": [asked],
        "tools": [{ "type": "web_search_20250305", "name": "web_search", "max_uses": 5,
                    "user_location": { "type": "approximate", "city": "Berlin", "country": "DE", "timezone": "Europe/Berlin" } }],
    });
    assert_eq!(heard[0].json(), expected);
    let again = json!([asked, { "role": "assistant", "content": paused["content"] }]);
    assert_eq!(heard[1].json()["messages"], again, "the provider's words go back untouched");

    assert_eq!(told.answer, "Ich suche: Zwölf, one of them closed.");
    assert_eq!(told.queries, ["closed bridges"]);
    let citation = &told.citations[0];
    assert_eq!(citation.quote.as_deref(), Some("One bridge is closed."));
    assert_eq!((citation.start, citation.end), (Some(18), Some(37)));
    assert_eq!(
        (told.usage.input_tokens, told.usage.cached_tokens, told.usage.output_tokens, told.usage.searches),
        (355, 50, 30, 2)
    );
}

#[tokio::test]
async fn what_was_paid_for_is_kept_when_a_later_turn_fails() {
    let path = "/v1/messages";
    let server = Recorder::start(
        "127.0.0.1",
        vec![(path, json_answer("200 OK", &paused())), (path, json_answer("529 Overloaded", &json!({})))],
    )
    .await;
    let ground = Ground::new(&settings(&server)).unwrap();
    let told = ground.answer(&question(Provider::Anthropic, None)).await.unwrap();
    assert!(told.truncated && told.usage.input_tokens > 0, "{told:?}");
    assert_eq!(server.heard().len(), 2);
}

#[tokio::test]
async fn a_provider_that_pauses_for_ever_is_left_with_what_it_said() {
    let paused =
        json!({ "content": [{ "type": "text", "text": "x" }], "stop_reason": "pause_turn", "usage": {} });
    let server = Recorder::start("127.0.0.1", vec![("/v1/messages", json_answer("200 OK", &paused))]).await;
    let ground = Ground::new(&settings(&server)).unwrap();
    let told = ground.answer(&question(Provider::Anthropic, None)).await.unwrap();
    assert_eq!((told.answer.as_str(), told.truncated, server.heard().len()), ("xxxx", true, 4));
}

#[tokio::test]
async fn cut_refused_and_empty_answers_are_told_as_such() {
    let cut = json!({ "output": [{ "type": "message", "content": [{ "type": "output_text", "text": "half" }] }],
                      "status": "incomplete", "incomplete_details": { "reason": "max_output_tokens" } });
    let blocked =
        json!({ "promptFeedback": { "blockReason": "SAFETY" }, "usageMetadata": { "promptTokenCount": 9 } });
    let server = Recorder::start(
        "127.0.0.1",
        vec![
            ("/v1/responses", json_answer("200 OK", &cut)),
            ("/v1beta/models/model-1:generateContent", json_answer("200 OK", &blocked)),
        ],
    )
    .await;
    let ground = Ground::new(&settings(&server)).unwrap();
    let output = ground.search(&question(Provider::OpenAi, None)).await.unwrap();
    assert!(
        output.content[0]["text"].as_str().unwrap().ends_with("(The answer was cut off.)")
            && !output.is_error
    );
    let output = ground.search(&question(Provider::Gemini, None)).await.unwrap();
    assert!(output.is_error, "{output:?}");
    assert_eq!(
        output.structured_content.unwrap()["usage"]["input_tokens"],
        9,
        "a refused prompt is charged too"
    );
}

#[tokio::test]
async fn a_provider_s_refusals_say_whether_to_come_back() {
    let error = |status: &str, headers: &str, body: Value| {
        answer(status, &format!("content-type: application/json\r\n{headers}"), body.to_string())
    };
    let echo =
        json!({ "error": { "message": format!("Incorrect API key provided: {KEY}"), "type": "invalid" } });
    let retry_info = json!({ "error": { "code": 429, "status": "RESOURCE_EXHAUSTED", "details": [
        { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s" }] } });
    for (status, headers, body, transient, wait) in [
        ("429 Slow", "retry-after: 7\r\n", json!({}), true, Some(Duration::from_secs(7))),
        ("429 Slow", "", retry_info, true, Some(Duration::from_secs(34))),
        ("429 Slow", "", json!({}), true, None),
        ("429 Slow", "retry-after: 1e300\r\n", json!({}), true, None),
        (
            "529 Overloaded",
            "",
            json!({ "type": "error", "error": { "type": "overloaded_error" } }),
            true,
            None,
        ),
        ("503 Busy", "retry-after: 99999\r\n", json!({}), true, Some(Duration::from_hours(1))),
        ("500 Oops", "", json!({}), true, None),
        ("401 No", "", echo.clone(), false, None),
        ("400 Bad", "", echo, false, None),
        ("410 Gone", "", json!({ "error": "Live search is deprecated" }), false, None),
        ("302 Found", "location: http://127.0.0.1:1/\r\n", json!({}), false, None),
    ] {
        let server =
            Recorder::start("127.0.0.1", vec![("/v1/responses", error(status, headers, body))]).await;
        let ground = Ground::new(&settings(&server)).unwrap();
        let wrong = ground.answer(&question(Provider::OpenAi, None)).await.unwrap_err();
        assert_eq!((wrong.is_transient(), wrong.retry_after()), (transient, wait), "{status}: {wrong:?}");
        assert!(wrong.was_sent(), "{status}");
        assert!(!format!("{wrong} {wrong:?}").contains("canary"), "{wrong:?}");
        assert_eq!(server.heard().len(), 1, "nothing is asked twice, and no redirect followed");
    }
}

#[tokio::test]
async fn what_never_left_is_told_from_what_may_have() {
    let odd = vec![
        ("/v1/responses", answer("200 OK", "", "no json")),
        ("/v1beta/models/model-1:generateContent", json_answer("200 OK", &json!({ "unknown": 1 }))),
    ];
    let server = Recorder::start("127.0.0.1", odd).await;
    let ground = Ground::new(&settings(&server)).unwrap();
    for provider in [Provider::OpenAi, Provider::Gemini] {
        let wrong = ground.answer(&question(provider, None)).await.unwrap_err();
        assert!(
            matches!(wrong, GroundError::Shape) && wrong.was_sent() && !wrong.is_transient(),
            "{wrong:?}"
        );
    }
    let wrong = ground.answer(&question(Provider::Anthropic, None)).await.unwrap_err();
    assert!(matches!(wrong, GroundError::Timeout { sent: true }), "{wrong:?}");
    for model in ["", "../../x", "a/b", "m?key=1", "m#x", "m x"] {
        let wrong = ground.answer(&Question { model, ..question(Provider::Gemini, None) }).await.unwrap_err();
        assert!(matches!(wrong, GroundError::Model) && !wrong.was_sent(), "{model}: {wrong:?}");
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = WebSearch { grok_url: format!("http://127.0.0.1:{closed}"), ..settings(&server) };
    let wrong = Ground::new(&nobody).unwrap().answer(&question(Provider::Grok, None)).await.unwrap_err();
    assert!(
        matches!(wrong, GroundError::Unreachable(_)) && !wrong.was_sent() && wrong.is_transient(),
        "{wrong:?}"
    );
    let newline = SecretString::from("canary\nkey");
    let wrong =
        ground.answer(&Question { key: &newline, ..question(Provider::Grok, None) }).await.unwrap_err();
    assert!(matches!(wrong, GroundError::Key) && !format!("{wrong:?}").contains("canary"), "{wrong:?}");
}
