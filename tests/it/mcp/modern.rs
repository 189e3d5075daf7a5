//! What came with the protocol of 2026: tasks, input asked for within a call, subscriptions.

use super::served::{Act, Asked, Served, asks, result, text};
use super::{call, clients, deaf, key, plain, settings, words};
use gristmill::mcp::{Answer, McpError};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a server of 2026 says first.
fn discovery(asked: &Asked) -> Option<Act> {
    let found = json!({
        "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private", "resultType": "complete",
        "capabilities": { "tools": { "listChanged": true }, "extensions": { "io.modelcontextprotocol/tasks": {} } },
    });
    match asked.body["method"].as_str() {
        Some("server/discover") => Some(Act::Json(200, vec![], result(asked, &found))),
        Some(method) if method.starts_with("notifications/") => Some(Act::Bare(202, vec![])),
        None => Some(Act::Bare(405, vec![])),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_from_a_person_is_declined_and_from_a_model_refused() {
    let served = Served::start(|asked| {
        discovery(asked).unwrap_or_else(|| {
            let params = &asked.body["params"];
            let want = |method: &str, params: Value| {
                json!({ "resultType": "input_required", "requestState": "s-1",
                        "inputRequests": { "q": { "method": method, "params": params } } })
            };
            let answer = if params["name"] == "ask_model" {
                let message = json!({ "role": "user", "content": { "type": "text", "text": "hi" } });
                want("sampling/createMessage", json!({ "messages": [message], "maxTokens": 5 }))
            } else if params["inputResponses"].is_null() {
                let schema = json!({ "type": "object", "properties": {} });
                want("elicitation/create", json!({ "message": "sure?", "requestedSchema": schema }))
            } else {
                text(&json!([params["requestState"], params["inputResponses"]]).to_string())
            };
            Act::Json(200, vec![], result(asked, &answer))
        })
    })
    .await;
    let output = asks(&served, "ask_person").await.unwrap();
    assert_eq!(words(&output), r#"["s-1",{"q":{"action":"decline"}}]"#);
    let error = asks(&served, "ask_model").await.unwrap_err();
    assert!(matches!(error, McpError::WantsInput), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_2026_is_asked_to_tell_of_changed_tools() {
    let served = Served::start(|asked| {
        discovery(asked).unwrap_or_else(|| {
            if asked.body["method"] == "subscriptions/listen" {
                let meta = json!({ "io.modelcontextprotocol/subscriptionId": asked.body["id"] });
                let said = |method: &str, mut params: Value| {
                    params["_meta"] = meta.clone();
                    format!("data: {}", json!({ "jsonrpc": "2.0", "method": method, "params": params }))
                };
                let filter = json!({ "notifications": { "toolsListChanged": true } });
                Act::Events(vec![
                    said("notifications/subscriptions/acknowledged", filter),
                    said("notifications/tools/list_changed", json!({})),
                ])
            } else {
                let none =
                    json!({ "tools": [], "ttlMs": 0, "cacheScope": "private", "resultType": "complete" });
                Act::Json(200, vec![], result(asked, &none))
            }
        })
    })
    .await;
    let (clients, key) = (clients(&settings()), key());
    let listing = clients.list(&key, &served.server()).await.unwrap();
    assert_eq!(listing.protocol_version, "2026-07-28");
    for _ in 0..200 {
        if clients.changed() == [key.clone()] {
            clients.close().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the change was not heard: {:?}", served.asked.lock().unwrap());
}

/// A server of 2026 that makes a task of the call; `finish` says what a poll gets, by its number.
pub async fn mill(finish: impl Fn(usize, &Asked) -> Act + Send + Sync + 'static) -> Served {
    let polls = AtomicUsize::new(0);
    Served::start(move |asked| {
        discovery(asked).unwrap_or_else(|| match asked.body["method"].as_str() {
            Some("tools/call") => {
                let more = json!({ "resultType": "task", "status": "working", "statusMessage": "milling" });
                Act::Json(200, vec![], result(asked, &task(&more)))
            }
            Some("tasks/get") => finish(polls.fetch_add(1, Ordering::SeqCst), asked),
            _ => Act::Json(200, vec![], result(asked, &json!({ "resultType": "complete" }))),
        })
    })
    .await
}

fn task(more: &Value) -> Value {
    let mut task = json!({ "taskId": "t-1", "createdAt": "2026-11-22T00:00:00Z", "ttlMs": 60000,
                           "lastUpdatedAt": "2026-11-22T00:00:00Z", "pollIntervalMs": 150 });
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    task
}

pub fn poll(asked: &Asked, more: &Value) -> Act {
    let mut task = task(more);
    task["resultType"] = "complete".into();
    Act::Json(200, vec![], result(asked, &task))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_polled_by_whoever_has_its_id() {
    let served = mill(|n, asked| match n {
        0 | 1 => poll(asked, &json!({ "status": "working" })),
        _ => poll(asked, &json!({ "status": "completed", "result": text("flour") })),
    })
    .await;
    let first = clients(&settings());
    let never = CancellationToken::new();
    let answer = first.start(&key(), &served.server(), &plain("mill"), deaf(), &never).await.unwrap();
    let Answer::Task(task) = answer else { panic!("{answer:?}") };
    assert_eq!((task.id.as_str(), task.poll_after), ("t-1", Duration::from_millis(150)));
    assert_eq!(task.message.as_deref(), Some("milling"));
    first.close().await;
    let second = clients(&settings());
    let polled = second.poll_task(&key(), &served.server(), "t-1").await.unwrap();
    assert!(matches!(polled, Answer::Task(_)));
    // The plain call does all of this by itself.
    let output =
        second.call(&key(), &served.server(), &call("mill", json!({})), deaf(), &never).await.unwrap();
    assert_eq!(words(&output), "flour");
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_asked_for_was_sent_all_the_same() {
    // Away for a while: the call waits for it.
    let served = mill(|n, asked| match n {
        0 => Act::HangUp,
        1 => Act::Bare(503, vec![("Retry-After", "0".into())]),
        _ => poll(asked, &json!({ "status": "completed", "result": text("flour") })),
    })
    .await;
    assert_eq!(words(&asks(&served, "mill").await.unwrap()), "flour");
    // Out of reach for good: the outcome is open, and the id goes with the error.
    let served = mill(|_, _| Act::Bare(401, vec![])).await;
    let error = asks(&served, "mill").await.unwrap_err();
    assert!(matches!(&error, McpError::Lost { task: Some(id), .. } if id == "t-1"), "{error:?}");
    assert!(error.was_sent());
    // The server's own word on it is final.
    let failed = json!({ "status": "failed", "error": { "code": -32603, "message": "no grain" } });
    let served = mill(move |_, asked| poll(asked, &failed)).await;
    let error = asks(&served, "mill").await.unwrap_err();
    assert!(matches!(&error, McpError::Task { status: "failed", message: Some(m) } if m == "no grain"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_ends_before_its_task_cancels_it() {
    let served = mill(|_, asked| poll(asked, &json!({ "status": "working" }))).await;
    let clients = clients(&settings());
    let mut short = plain("mill");
    short.total = Duration::from_secs(1);
    let never = CancellationToken::new();
    let error = clients.call(&key(), &served.server(), &short, deaf(), &never).await.unwrap_err();
    assert!(matches!(error, McpError::Timeout { sent: true, .. }), "{error:?}");
    let asked = served.asked.lock().unwrap().clone();
    assert!(asked.iter().any(|asked| asked.body["method"] == "tasks/cancel"));
    clients.close().await;
}
