//! API tools against live servers on loopback: what is sent, to whom, and what becomes of the answer.

use crate::wire::{Recorder, answer, json as json_answer};
use gristmill::api::{Api, ApiError, Call, Tool};
use gristmill::config::Config;
use gristmill::domain::{Credential, Saved, ToolOutput};
use gristmill::guard::{Guard, Refusal};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Allows 127.0.0.1 alone, so a decoy on 127.0.0.2 is out of bounds.
fn api() -> Api {
    with_limits(|_| {})
}

fn with_limits(change: impl FnOnce(&mut gristmill::config::Api)) -> Api {
    let mut settings = Config::load(None).unwrap().api;
    settings.total_seconds = 2;
    change(&mut settings);
    Api::new(&settings, Guard::new(&["127.0.0.1/32".parse().unwrap()])).unwrap()
}

fn get(endpoint: &str) -> Tool {
    template(endpoint, json!({ "method": "GET", "path": "/" }))
}

#[expect(clippy::needless_pass_by_value, reason = "so that each json! stands bare")]
fn template(endpoint: &str, request: Value) -> Tool {
    Tool::read(&json!({ "request": request }), Some(endpoint), &json!({})).unwrap()
}

fn secret(text: &str) -> SecretString {
    SecretString::from(text)
}

async fn call(api: &Api, tool: &Tool, arguments: Value) -> Result<ToolOutput, ApiError> {
    let arguments = arguments.as_object().unwrap();
    api.call(&Call { tool, arguments, saved: None, idempotency_key: None }).await
}

async fn call_as(
    api: &Api,
    tool: &Tool,
    credential: &Credential,
    origin: &str,
) -> Result<ToolOutput, ApiError> {
    let saved = Some(Saved { credential, origin });
    api.call(&Call { tool, arguments: &serde_json::Map::new(), saved, idempotency_key: None }).await
}

fn text(output: &ToolOutput) -> String {
    output.content.iter().map(|block| block["text"].as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_template_s_request_arrives_as_it_was_meant() {
    let server =
        Recorder::start("127.0.0.1", vec![("/v1/items/a%20b", json_answer("200 OK", &json!({ "id": 1 })))])
            .await;
    let tool = template(
        &server.url("/v1"),
        json!({ "method": "PUT", "path": "/items/{{id}}", "query": { "q": "{{q}}" }, "headers": { "X-Trace": "{{t}}" },
                "body": { "n": "{{n}}" } }),
    );
    let arguments = json!({ "id": "a b", "q": "x&y", "t": "trace", "n": 3 });
    let arguments = arguments.as_object().unwrap();
    let call = Call { tool: &tool, arguments, saved: None, idempotency_key: Some("key-1") };
    let output = api().call(&call).await.unwrap();
    assert_eq!(output.structured_content, Some(json!({ "id": 1 })));
    assert!(!output.is_error);
    let heard = &server.heard()[0];
    assert_eq!(heard.line, "PUT /v1/items/a%20b?q=x%26y HTTP/1.1");
    assert_eq!(heard.header("x-trace"), Some("trace"));
    assert_eq!(heard.header("idempotency-key"), Some("key-1"));
    assert_eq!(heard.header("content-type"), Some("application/json"));
    assert_eq!(heard.json(), json!({ "n": 3 }));
}

#[tokio::test]
async fn an_operation_s_request_goes_to_its_server_or_to_the_operator_s() {
    let server =
        Recorder::start("127.0.0.1", vec![("/v2/pets/7", json_answer("200 OK", &json!([1, 2])))]).await;
    let document = format!(
        "openapi: 3.1.0\nservers: [{{url: '{}'}}]\npaths:\n  /pets/{{id}}:\n    get:\n      operationId: pet\n      \
         parameters: [{{name: id, in: path, required: true, schema: {{type: integer}}}}]\n",
        server.url("/v2")
    );
    let config = json!({ "McpType": "API", "openapi": document, "operationId": "pet" });
    let tool = Tool::read(&config, None, &json!({ "type": "object" })).unwrap();
    assert_eq!(tool.origin(), server.url(""));
    let output = call(&api(), &tool, json!({ "id": 7 })).await.unwrap();
    assert_eq!(output.structured_content, Some(json!({ "result": [1, 2] })));
    let wrong = call(&api(), &tool, json!({ "id": "seven" })).await.unwrap();
    assert!(
        wrong.is_error && text(&wrong).contains("/id: \"seven\" is not of type \"integer\""),
        "{wrong:?}"
    );
    assert_eq!(server.heard().len(), 1, "wrong arguments are sent nowhere");
    let elsewhere = Tool::read(&config, Some("https://other.example/v3"), &json!({})).unwrap();
    assert_eq!(elsewhere.origin(), "https://other.example");
}

#[tokio::test]
async fn each_kind_of_credential_is_sent_in_its_own_way() {
    let server = Recorder::start("127.0.0.1", vec![("/", json_answer("200 OK", &json!({})))]).await;
    let tool = get(&server.url(""));
    let oauth = Credential::Oauth {
        access_token: secret("access-1"),
        refresh_token: Some(secret("refresh-1")),
        client_id: "c".into(),
        client_secret: None,
        token_url: "https://t.example".into(),
        scope: None,
        resource: None,
    };
    for (credential, name, value) in [
        (Credential::Header { name: "X-Key".into(), value: secret("k1") }, "x-key", "k1"),
        (Credential::Bearer { token: secret("t1") }, "authorization", "Bearer t1"),
        (
            Credential::Basic { username: "u".into(), password: secret("p:w") },
            "authorization",
            "Basic dTpwOnc=",
        ),
        (oauth, "authorization", "Bearer access-1"),
    ] {
        call_as(&api(), &tool, &credential, &server.url("")).await.unwrap();
        assert_eq!(server.heard().last().unwrap().header(name), Some(value), "{credential:?}");
    }
    let query = Credential::Query { name: "api_key".into(), value: secret("a&b") };
    call_as(&api(), &tool, &query, &server.url("/ignored")).await.unwrap();
    assert_eq!(server.heard().last().unwrap().line, "GET /?api_key=a%26b HTTP/1.1");
    let unexchanged = Credential::ClientCredentials {
        client_id: "c".into(),
        client_secret: secret("s"),
        token_url: "https://t.example".into(),
        scope: None,
    };
    let wrong = call_as(&api(), &tool, &unexchanged, &server.url("")).await.unwrap_err();
    assert!(matches!(wrong, ApiError::Credential(_)) && !wrong.was_sent() && !wrong.is_transient());
    assert_eq!(server.heard().len(), 5);
}

#[tokio::test]
async fn a_credential_is_refused_for_another_origin_before_any_connection() {
    let decoy = Recorder::start("127.0.0.1", vec![("/", json_answer("200 OK", &json!({})))]).await;
    let credential = Credential::Bearer { token: secret("canary-token") };
    let port = decoy.port;
    for saved_for in [
        "https://api.example".to_owned(),
        format!("https://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{}", port ^ 1),
        format!("http://localhost:{port}"),
        "http://127.0.0.1".to_owned(),
        String::new(),
        "data:x".to_owned(),
    ] {
        let wrong = call_as(&api(), &get(&decoy.url("")), &credential, &saved_for).await.unwrap_err();
        assert!(matches!(wrong, ApiError::Origin { .. }), "{saved_for}: {wrong:?}");
        assert!(!wrong.was_sent() && !wrong.is_transient());
        assert!(!format!("{wrong} {wrong:?}").contains("canary"));
    }
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
    call_as(&api(), &get(&decoy.url("")), &credential, &decoy.url("")).await.unwrap();
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 1, "the right origin still passes");
}

fn to(location: &str) -> Vec<u8> {
    answer("302 Found", &format!("location: {location}\r\n"), "")
}

#[tokio::test]
async fn redirects_to_a_decoy_give_it_no_connection() {
    let decoy = Recorder::start("127.0.0.2", vec![("/", json_answer("200 OK", &json!({})))]).await;
    let port = decoy.port;
    let front = Recorder::start(
        "127.0.0.1",
        vec![
            ("/direct/", to(&format!("http://127.0.0.2:{port}/"))),
            ("/hop/", to("/direct/")),
            ("/hophop/", to("/hop/")),
            ("/mapped/", to(&format!("http://[::ffff:127.0.0.2]:{port}/"))),
            ("/odd/", to(&format!("http://0x7f000002:{port}/"))),
            ("/slashes/", to(&format!("//127.0.0.2:{port}/"))),
            ("/login/", to(&format!("http://u:p@127.0.0.1:{port}/"))),
            ("/file/", to("file:///etc/passwd")),
            ("/nowhere/", answer("302 Found", "", "")),
        ],
    )
    .await;
    for path in ["direct", "hop", "hophop", "mapped", "odd", "slashes", "login", "file", "nowhere"] {
        let tool = get(&front.url(&format!("/{path}")));
        let wrong = call(&api(), &tool, json!({})).await.unwrap_err();
        assert!(matches!(wrong, ApiError::Refused { sent: true, .. }), "{path}: {wrong:?}");
        assert!(wrong.was_sent() && !wrong.is_transient());
    }
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
    // The control: where the settings open its network, the decoy is reached over the same hops.
    let open = Guard::new(&["127.0.0.0/8".parse().unwrap()]);
    let open = Api::new(&Config::load(None).unwrap().api, open).unwrap();
    call(&open, &get(&front.url("/hophop")), json!({})).await.unwrap();
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn with_empty_settings_loopback_gets_no_connection() {
    let decoy = Recorder::start("127.0.0.1", vec![("/", json_answer("200 OK", &json!({})))]).await;
    let closed = Api::new(&Config::load(None).unwrap().api, Guard::new(&[])).unwrap();
    for host in ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let tool = get(&format!("http://{host}:{}", decoy.port));
        let wrong = call(&closed, &tool, json!({})).await.unwrap_err();
        let refused = matches!(wrong, ApiError::Refused { reason: Refusal::Address { .. }, sent: false });
        assert!(refused && !wrong.was_sent(), "{host}: {wrong:?}");
    }
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_credential_is_carried_over_no_redirect() {
    let other = Recorder::start("127.0.0.1", vec![("/", json_answer("200 OK", &json!({})))]).await;
    let here = Recorder::start(
        "127.0.0.1",
        vec![
            ("/", to("/next")),
            ("/next", json_answer("200 OK", &json!({}))),
            ("/away/", to(&other.url("/"))),
        ],
    )
    .await;
    let credential = Credential::Bearer { token: secret("canary-token") };
    for path in ["", "/away"] {
        let output = call_as(&api(), &get(&here.url(path)), &credential, &here.url("")).await.unwrap();
        assert!(output.is_error && text(&output).contains("follows no redirect"), "{output:?}");
    }
    assert_eq!(here.heard().len(), 2);
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);
    // Without a credential the same redirect is followed, and headers stay behind at a new origin.
    let tool = template(
        &here.url(""),
        json!({ "method": "GET", "path": "/away/", "headers": { "X-Own": "secret-ish" } }),
    );
    call(&api(), &tool, json!({})).await.unwrap();
    assert_eq!(other.heard()[0].header("x-own"), None);
}

#[tokio::test]
async fn a_request_that_changes_something_is_not_sent_elsewhere() {
    let other = Recorder::start("127.0.0.1", vec![("/", json_answer("200 OK", &json!({})))]).await;
    let temporary = |to: &str| answer("307 Temporary Redirect", &format!("location: {to}\r\n"), "");
    let here = Recorder::start(
        "127.0.0.1",
        vec![
            ("/same", temporary("/end")),
            ("/end", json_answer("200 OK", &json!({}))),
            ("/away", temporary(&other.url("/"))),
            ("/found", to("/end")),
        ],
    )
    .await;
    let post =
        |path: &str| template(&here.url(""), json!({ "method": "POST", "path": path, "body": { "a": 1 } }));
    assert!(!call(&api(), &post("/same"), json!({})).await.unwrap().is_error);
    assert_eq!(here.heard()[1].json(), json!({ "a": 1 }));
    for path in ["/away", "/found"] {
        let output = call(&api(), &post(path), json!({})).await.unwrap();
        assert!(output.is_error && text(&output).contains("not followed for POST"), "{path}: {output:?}");
    }
    assert_eq!((here.heard().len(), other.connections.load(Ordering::SeqCst)), (4, 0));
}

#[tokio::test]
async fn an_answer_is_read_by_its_status_and_type() {
    let typed = |kind: &str, body: &[u8]| answer("200 OK", &format!("content-type: {kind}\r\n"), body);
    let problem = "content-type: application/problem+json\r\n";
    let server = Recorder::start(
        "127.0.0.1",
        vec![
            ("/text/", typed("text/plain; charset=iso-8859-1", b"caf\xe9")),
            ("/xml/", typed("application/xml", b"<a/>")),
            ("/png/", typed("image/png", b"\x89PNG")),
            ("/none/", answer("204 No Content", "", "")),
            ("/untyped/", answer("200 OK", "", "plain")),
            ("/badjson/", typed("application/json", b"{oops")),
            ("/404/", answer("404 Not Found", problem, "{\"title\":\"no such pet\"}")),
            ("/500/", answer("500 Oops", "content-type: text/plain\r\n", "broken")),
            ("/429/", answer("429 Slow", "", "")),
        ],
    )
    .await;
    for (path, is_error, told) in [
        ("text", false, "café"),
        ("xml", false, "<a/>"),
        ("png", false, "Status 200 OK. The answer is image/png (4 bytes), which is not shown."),
        ("none", false, "Status 204 No Content, no content."),
        ("untyped", false, "plain"),
        ("badjson", false, "{oops"),
        ("404", true, "Status 404 Not Found.\n{\"title\":\"no such pet\"}"),
        ("500", true, "Status 500 Internal Server Error.\nbroken"),
        ("429", true, "Status 429 Too Many Requests.\nStatus 429 Too Many Requests, no content."),
    ] {
        let output = call(&api(), &get(&server.url(&format!("/{path}"))), json!({})).await.unwrap();
        assert_eq!((output.is_error, text(&output).as_str()), (is_error, told), "{path}");
    }
    let output = call(&api(), &get(&server.url("/404")), json!({})).await.unwrap();
    assert_eq!(output.structured_content, Some(json!({ "title": "no such pet" })));
}

#[tokio::test]
async fn pointers_pick_parts_of_an_answer() {
    let body = json!({ "data": { "items": [{ "id": 1 }, { "id": 2 }] }, "noise": "x".repeat(100) });
    let server = Recorder::start("127.0.0.1", vec![("/", json_answer("200 OK", &body))]).await;
    for (pick, expected) in [
        (json!("/data/items/1"), json!({ "id": 2 })),
        (json!("/data/items"), json!({ "result": [{ "id": 1 }, { "id": 2 }] })),
        (json!(["/data/items/0/id", "/nope"]), json!({ "/data/items/0/id": 1, "/nope": null })),
    ] {
        let config = json!({ "request": { "method": "GET", "path": "/" }, "pick": pick });
        let tool = Tool::read(&config, Some(&server.url("")), &json!({})).unwrap();
        let output = call(&api(), &tool, json!({})).await.unwrap();
        assert_eq!(output.structured_content, Some(expected), "{pick}");
    }
    let config = json!({ "request": { "method": "GET", "path": "/" }, "pick": "/nope" });
    let tool = Tool::read(&config, Some(&server.url("")), &json!({})).unwrap();
    let output = call(&api(), &tool, json!({})).await.unwrap();
    assert_eq!(text(&output), "The answer has nothing at \"/nope\".");
}

#[tokio::test]
async fn a_server_that_asks_to_wait_is_believed_within_reason() {
    let put_off = |status: &str, wait: &str| answer(status, &format!("retry-after: {wait}\r\n"), "");
    let server = Recorder::start(
        "127.0.0.1",
        vec![
            ("/429/", put_off("429 Slow", "7")),
            ("/503/", put_off("503 Busy", "999999")),
            ("/date/", put_off("503 Busy", "Wed, 21 Oct 2015 07:28:00 GMT")),
        ],
    )
    .await;
    for (path, wait) in
        [("429", Duration::from_secs(7)), ("503", Duration::from_hours(1)), ("date", Duration::ZERO)]
    {
        let wrong = call(&api(), &get(&server.url(&format!("/{path}"))), json!({})).await.unwrap_err();
        assert_eq!(wrong.retry_after(), Some(wait), "{path}: {wrong:?}");
        assert!(wrong.is_transient() && wrong.was_sent());
    }
}

/// What stands before a server says 503 after the server had the request, too.
#[tokio::test]
async fn a_503_to_a_request_that_changes_something_is_an_answer_and_not_sent_again() {
    let busy = |status: &str| answer(status, "retry-after: 7\r\n", "");
    let server =
        Recorder::start("127.0.0.1", vec![("/503", busy("503 Busy")), ("/429", busy("429 Slow"))]).await;
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let tool = |path: &str| template(&server.url(""), json!({ "method": method, "path": path }));
        let output = call(&api(), &tool("/503"), json!({})).await.unwrap();
        assert!(output.is_error && text(&output).contains("503"), "{method}: {output:?}");
        let wrong = call(&api(), &tool("/429"), json!({})).await.unwrap_err();
        assert_eq!(wrong.retry_after(), Some(Duration::from_secs(7)), "{method}: {wrong:?}");
    }
    assert_eq!(server.heard().len(), 8);
}

#[tokio::test]
async fn a_redirect_elsewhere_gets_neither_headers_nor_body() {
    let there = Recorder::start("127.0.0.1", vec![("/there", json_answer("200 OK", &json!({})))]).await;
    let here = Recorder::start("127.0.0.1", vec![("/a", to(&there.url("/there")))]).await;
    let request =
        json!({ "method": "GET", "path": "/a", "headers": { "x-a": "canary" }, "body": { "a": "canary" } });
    call(&api(), &template(&here.url(""), request), json!({})).await.unwrap();
    assert_eq!(here.heard()[0].json(), json!({ "a": "canary" }));
    assert!(!format!("{:?}", there.heard()[0]).contains("canary"));
    assert!(there.heard()[0].body.is_empty());
}

#[tokio::test]
async fn whether_a_call_was_sent_is_told_truly() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let wrong = call(&api(), &get(&format!("http://127.0.0.1:{free}")), json!({})).await.unwrap_err();
    assert!(
        matches!(wrong, ApiError::Unreachable(_)) && !wrong.was_sent() && wrong.is_transient(),
        "{wrong:?}"
    );
    // Accepts, reads, and closes without a word.
    let mut cut = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n".to_vec();
    cut.extend(b"half");
    let server = Recorder::start("127.0.0.1", vec![("/silent/", Vec::new()), ("/cut/", cut)]).await;
    let wrong = call(&api(), &get(&server.url("/silent")), json!({})).await.unwrap_err();
    assert!(matches!(wrong, ApiError::Lost(_)) && wrong.was_sent() && wrong.is_transient(), "{wrong:?}");
    let wrong = call(&api(), &get(&server.url("/cut")), json!({})).await.unwrap_err();
    assert!(
        matches!(wrong, ApiError::Cut { at: 4 }) && wrong.was_sent() && wrong.is_transient(),
        "{wrong:?}"
    );
    let wrong = call(&api(), &get(&server.url("/hangs")), json!({})).await.unwrap_err();
    assert!(matches!(wrong, ApiError::Timeout { sent: true }) && wrong.is_transient(), "{wrong:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_not_kept() {
    let long = vec![b'x'; 100_001];
    let mut endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/plain\r\n\r\n".to_vec();
    endless.extend(&long);
    let server =
        Recorder::start("127.0.0.1", vec![("/told/", answer("200 OK", "", &long)), ("/untold/", endless)])
            .await;
    let small = with_limits(|limits| limits.max_bytes = 100_000);
    for path in ["told", "untold"] {
        let output = call(&small, &get(&server.url(&format!("/{path}"))), json!({})).await.unwrap();
        assert!(output.is_error && text(&output).contains("more than 100000 bytes"), "{path}: {output:?}");
    }
}

#[tokio::test]
async fn a_secret_that_is_echoed_reaches_nobody() {
    let body = json!({ "error": "bad key canary-secret-1", "query": "/?api_key=canary-secret-1" });
    let server = Recorder::start("127.0.0.1", vec![("/", json_answer("401 No", &body))]).await;
    let credential = Credential::Query { name: "api_key".into(), value: secret("canary-secret-1") };
    let output = call_as(&api(), &get(&server.url("")), &credential, &server.url("")).await.unwrap();
    assert!(output.is_error && !format!("{output:?}").contains("canary"), "{output:?}");
    assert!(text(&output).contains("bad key [secret]"));
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let nobody = format!("http://127.0.0.1:{free}");
    let wrong = call_as(&api(), &get(&nobody), &credential, &nobody).await.unwrap_err();
    assert!(!format!("{wrong} {wrong:?}").contains("canary"), "{wrong:?}");
}

#[tokio::test]
async fn a_secret_is_masked_however_it_is_spelled() {
    let basic = Credential::Basic { username: "me".into(), password: secret("canary pass/word\"1") };
    let pair = "bWU6Y2FuYXJ5IHBhc3Mvd29yZCIx";
    let spellings = [
        pair.to_owned(),
        "canary%20pass%2Fword%221".to_owned(),
        "canary+pass%2Fword%221".to_owned(),
        "canary pass/word\\\"1".to_owned(),
    ];
    for spelling in spellings {
        let server = Recorder::start(
            "127.0.0.1",
            vec![("/", answer("401 No", "content-type: text/plain\r\n", &spelling))],
        )
        .await;
        let output = call_as(&api(), &get(&server.url("")), &basic, &server.url("")).await.unwrap();
        assert!(
            text(&output).contains("[secret]") || format!("{output:?}").contains("[secret]"),
            "{output:?}"
        );
        assert!(!format!("{output:?}").contains("canary") && !format!("{output:?}").contains(pair));
    }
    let escaped = r#"{ "\u0063anary-secret-1": "\u0063anary-secret-1" }"#;
    let server = Recorder::start(
        "127.0.0.1",
        vec![("/", answer("200 OK", "content-type: application/json\r\n", escaped))],
    )
    .await;
    let bearer = Credential::Bearer { token: secret("canary-secret-1") };
    let output = call_as(&api(), &get(&server.url("")), &bearer, &server.url("")).await.unwrap();
    assert_eq!(output.structured_content, Some(json!({ "[secret]": "[secret]" })));
}

#[test]
fn endpoints_that_are_none_are_refused_when_the_tool_is_read() {
    let config = json!({ "request": { "method": "GET", "path": "/" } });
    for endpoint in ["ftp://x", "file:///etc", "https://u:p@x", "x", "https://x/?key=1", "https://{{host}}/"]
    {
        assert!(Tool::read(&config, Some(endpoint), &json!({})).is_err(), "{endpoint}");
    }
    assert!(Tool::read(&config, None, &json!({})).is_err());
    assert!(Tool::read(&json!({}), Some("https://x"), &json!({})).is_err());
    let remote = json!({ "properties": { "a": { "$ref": "https://evil.example/x.json" } } });
    assert!(Tool::read(&config, Some("https://x"), &remote).is_err(), "no schema is fetched");
}
