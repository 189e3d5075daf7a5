//! Servers over HTTP that misbehave or ask for more: bounded, never followed, told apart.

use super::{call, clients, deaf, key, plain, resident, settings, words};
use gristmill::guard::{Guard, Refusal};
use gristmill::mcp::{Answer, Clients, Endpoint, McpError, Server};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// One request as a server got it.
#[derive(Debug, Clone, Default)]
struct Asked {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Value,
}

/// What a server does with a request.
enum Act {
    Json(u16, Vec<(&'static str, String)>, Value),
    /// A status with headers and no body.
    Bare(u16, Vec<(&'static str, String)>),
    /// Events as they are, and then the end of the connection.
    Events(Vec<String>),
    /// An event of so many bytes.
    LargeEvent(usize),
    /// A body of so many bytes.
    LargeBody(usize),
    /// Closes without a word.
    HangUp,
    /// Answers after a while.
    Late(Duration, Value),
}

/// A server that counts connections, keeps requests, and does what it was made to do.
struct Served {
    url: String,
    connections: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Served {
    async fn start(act: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let served = Self { url, connections: Arc::default(), asked: Arc::default() };
        let (connections, asked, act) =
            (Arc::clone(&served.connections), Arc::clone(&served.asked), Arc::new(act));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, act) = (Arc::clone(&asked), Arc::clone(&act));
                tokio::spawn(async move { converse(connection, &asked, &*act).await });
            }
        });
        served
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { url: self.url.parse().unwrap(), headers: HeaderMap::default() }
    }

    fn server(&self) -> Server {
        Server::StreamableHttp(self.endpoint())
    }

    fn calls(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.body["method"] == "tools/call").cloned().collect()
    }
}

async fn converse(connection: TcpStream, asked: &Mutex<Vec<Asked>>, act: &(dyn Fn(&Asked) -> Act + Sync)) {
    let mut connection = BufReader::new(connection);
    while let Some(request) = read(&mut connection).await {
        asked.lock().unwrap().push(request.clone());
        let act = act(&request);
        if write(&mut connection, act).await.is_none() {
            return;
        }
    }
}

async fn read(connection: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    connection.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut request = Asked { method: words.next()?, path: words.next()?, ..Asked::default() };
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        request.headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = request.headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    request.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

/// `None` when the connection is over.
async fn write(connection: &mut BufReader<TcpStream>, act: Act) -> Option<()> {
    let head = |status: u16, headers: &[(&str, String)]| {
        let lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("HTTP/1.1 {status} Words\r\n{}", lines.concat())
    };
    let stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    match act {
        Act::Late(pause, body) => {
            tokio::time::sleep(pause).await;
            Box::pin(write(connection, Act::Json(200, vec![], body))).await
        }
        Act::Json(status, headers, body) => {
            let body = body.to_string();
            let length = body.len();
            let head = head(status, &headers);
            let answer =
                format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
            connection.write_all(answer.as_bytes()).await.ok()
        }
        Act::Bare(status, headers) => {
            let answer = format!("{}Content-Length: 0\r\n\r\n", head(status, &headers));
            connection.write_all(answer.as_bytes()).await.ok()
        }
        Act::Events(events) => {
            connection.write_all(stream.as_bytes()).await.ok()?;
            for event in events {
                connection.write_all(format!("{event}\n\n").as_bytes()).await.ok()?;
            }
            connection.shutdown().await.ok();
            None
        }
        Act::LargeEvent(bytes) => {
            connection.write_all(format!("{stream}data: ").as_bytes()).await.ok()?;
            pour(connection, bytes).await
        }
        Act::LargeBody(bytes) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n"
            );
            connection.write_all(head.as_bytes()).await.ok()?;
            pour(connection, bytes).await
        }
        Act::HangUp => None,
    }
}

async fn pour(connection: &mut BufReader<TcpStream>, bytes: usize) -> Option<()> {
    let some = vec![b'x'; 65536];
    for _ in 0..bytes / some.len() {
        connection.write_all(&some).await.ok()?;
    }
    None
}

fn result(asked: &Asked, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": asked.body["id"], "result": result })
}

fn text(words: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": words }] })
}

/// The handshake of a server of 2025; what comes after it is up to the caller.
fn handshake(asked: &Asked) -> Option<Act> {
    let info = json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} },
                       "serverInfo": { "name": "made up", "version": "1" } });
    match (asked.method.as_str(), asked.body["method"].as_str()) {
        ("GET" | "DELETE", _) => Some(Act::Bare(405, vec![])),
        (_, Some("server/discover")) => Some(Act::Bare(400, vec![])),
        (_, Some("initialize")) => {
            Some(Act::Json(200, vec![("Mcp-Session-Id", "s-1".into())], result(asked, &info)))
        }
        (_, Some(method)) if method.starts_with("notifications/") => Some(Act::Bare(202, vec![])),
        _ => None,
    }
}

async fn asks(served: &Served, tool: &str) -> Result<gristmill::domain::ToolOutput, McpError> {
    let clients = clients(&settings());
    let ended = clients.call(&key(), &served.server(), &plain(tool), deaf(), &CancellationToken::new()).await;
    clients.close().await;
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_refused_by_default_and_never_connected_to() {
    let served = Served::start(|asked| Act::Json(200, vec![], result(asked, &json!({})))).await;
    let strict = Clients::new(&settings(), &Guard::new(&[])).unwrap();
    for server in [served.server(), Server::Sse(served.endpoint())] {
        let error = strict.list(&key(), &server).await.unwrap_err();
        assert!(matches!(error, McpError::Refused(Refusal::Address { .. })), "{error:?}");
        assert!(!error.was_sent() && !error.is_transient());
    }
    let mut named = served.endpoint();
    named.url.set_host(Some("localhost")).unwrap();
    let error = strict.list(&key(), &Server::StreamableHttp(named)).await.unwrap_err();
    assert!(matches!(error, McpError::Refused(Refusal::Address { .. })), "{error:?}");
    assert_eq!(served.connections.load(Ordering::SeqCst), 0);
    strict.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let decoy = Served::start(|asked| Act::Json(200, vec![], result(asked, &json!({})))).await;
    let to = decoy.url.clone();
    let at_once = Served::start(move |_| Act::Bare(307, vec![("Location", to.clone())])).await;
    let error = asks(&at_once, "echo").await.unwrap_err();
    assert!(matches!(error, McpError::Redirected { status: 307, sent: false }), "{error:?}");
    let to = decoy.url.clone();
    let later = Served::start(move |asked| {
        handshake(asked).unwrap_or_else(|| Act::Bare(308, vec![("Location", to.clone())]))
    })
    .await;
    let error = asks(&later, "echo").await.unwrap_err();
    assert!(matches!(error, McpError::Redirected { status: 308, sent: true }), "{error:?}");
    let to = decoy.url.clone();
    let legacy = Served::start(move |_| Act::Bare(302, vec![("Location", to.clone())])).await;
    let clients = clients(&settings());
    let error = clients.list(&key(), &Server::Sse(legacy.endpoint())).await.unwrap_err();
    assert!(matches!(error, McpError::Redirected { status: 302, .. }), "{error:?}");
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0, "the decoy was connected to");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_transport_posts_only_to_its_own_origin() {
    let decoy = Served::start(|asked| Act::Json(200, vec![], result(asked, &json!({})))).await;
    let event = format!("event: endpoint\ndata: {}", decoy.url);
    let served = Served::start(move |_| Act::Events(vec![event.clone()])).await;
    let clients = clients(&settings());
    let error = clients.list(&key(), &Server::Sse(served.endpoint())).await.unwrap_err();
    assert!(matches!(error, McpError::Refused(_)), "{error:?}");
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_or_a_body_of_64_mib_is_cut_off() {
    for act in [|| Act::LargeEvent(64 << 20), || Act::LargeBody(64 << 20)] {
        let served = Served::start(move |asked| handshake(asked).unwrap_or_else(act)).await;
        let before = resident();
        let began = Instant::now();
        let error = asks(&served, "echo").await.unwrap_err();
        let grown = resident().saturating_sub(before);
        assert!(matches!(error, McpError::Oversize { limit: 0x40_0000, .. }), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(grown <= 32 << 20, "grown by {grown} bytes");
    }
    // And as the first thing it says, over both transports.
    let served = Served::start(|_| Act::LargeEvent(64 << 20)).await;
    let clients = clients(&settings());
    for server in [served.server(), Server::Sse(served.endpoint())] {
        let error = clients.list(&key(), &server).await.unwrap_err();
        assert!(matches!(error, McpError::Start(_)), "{error:?}");
    }
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_a_credential_says_so_with_its_challenge() {
    let challenge = r#"Bearer resource_metadata="https://a.example/.well-known/x", scope="read""#;
    for status in [401, 403] {
        let served =
            Served::start(move |_| Act::Bare(status, vec![("WWW-Authenticate", challenge.into())])).await;
        let error = asks(&served, "echo").await.unwrap_err();
        let McpError::NeedsAuth { status: told, challenge: Some(asked) } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*told, asked.as_str()), (status, challenge));
        assert!(!error.was_sent() && !error.is_transient());
    }
    // During a session, and without a challenge.
    let served = Served::start(|asked| handshake(asked).unwrap_or(Act::Bare(401, vec![]))).await;
    let error = asks(&served, "echo").await.unwrap_err();
    assert!(matches!(error, McpError::NeedsAuth { status: 401, challenge: None }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_go_with_every_request_and_into_no_log() {
    let served = Served::start(|asked| {
        handshake(asked).unwrap_or_else(|| Act::Json(200, vec![], result(asked, &text("yes"))))
    })
    .await;
    let mut endpoint = served.endpoint();
    endpoint.headers.insert("authorization", HeaderValue::from_static("Bearer hunter2"));
    endpoint.url.set_query(Some("key=hunter2"));
    assert!(!format!("{endpoint:?}").contains("hunter2"));
    let clients = clients(&settings());
    let with_secrets = Server::StreamableHttp(endpoint);
    let output =
        clients.call(&key(), &with_secrets, &plain("echo"), deaf(), &CancellationToken::new()).await.unwrap();
    assert_eq!(words(&output), "yes");
    assert!(!format!("{clients:?}").contains("hunter2"));
    clients.close().await;
    let asked = served.asked.lock().unwrap();
    assert!(asked.iter().any(|asked| asked.method == "DELETE"), "the session is ended");
    for asked in asked.iter() {
        assert_eq!(asked.headers["authorization"], "Bearer hunter2", "{} {}", asked.method, asked.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_is_opened_again_and_the_call_sent_once_more() {
    let lost = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&lost);
    let served = Served::start(move |asked| {
        handshake(asked).unwrap_or_else(|| {
            if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                Act::Bare(404, vec![])
            } else {
                Act::Json(200, vec![], result(asked, &text("again")))
            }
        })
    })
    .await;
    assert_eq!(words(&asks(&served, "echo").await.unwrap()), "again");
    assert_eq!(served.calls().len(), 2);
    let asked = served.asked.lock().unwrap();
    assert_eq!(asked.iter().filter(|asked| asked.body["method"] == "initialize").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_leaves_the_outcome_open() {
    let served = Served::start(|asked| handshake(asked).unwrap_or(Act::HangUp)).await;
    let error = asks(&served, "echo").await.unwrap_err();
    assert!(error.was_sent(), "it may have acted: {error:?}");
    assert_eq!(served.calls().len(), 1, "and nothing is sent twice");
    let served =
        Served::start(|asked| handshake(asked).unwrap_or(Act::Events(vec![": nothing".into()]))).await;
    let error = asks(&served, "echo").await.unwrap_err();
    assert!(error.was_sent(), "{error:?}");
    assert_eq!(served.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_was_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let clients = clients(&settings());
    let server = Server::StreamableHttp(Endpoint { url, headers: HeaderMap::default() });
    let error = clients.list(&key(), &server).await.unwrap_err();
    assert!(matches!(error, McpError::Unreachable(_)), "{error:?}");
    assert!(!error.was_sent() && error.is_transient());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_left_alone_for_as_long_as_it_asks() {
    let busy = |asked: &Asked| handshake(asked).unwrap_or(Act::Bare(429, vec![("Retry-After", "17".into())]));
    let error = asks(&Served::start(busy).await, "echo").await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
    assert!(error.is_transient() && !error.was_sent());
    let broken = |asked: &Asked| handshake(asked).unwrap_or(Act::Bare(503, vec![]));
    let error = asks(&Served::start(broken).await, "echo").await.unwrap_err();
    assert!(matches!(error, McpError::Status { status: 503, .. }), "{error:?}");
    assert!(error.is_transient() && error.was_sent(), "what a 503 means for the call is not known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_400_about_the_session_is_a_lost_session_too() {
    let lost = AtomicUsize::new(0);
    let served = Served::start(move |asked| {
        handshake(asked).unwrap_or_else(|| {
            if lost.fetch_add(1, Ordering::SeqCst) == 0 {
                let error = json!({ "code": -32000, "message": "Bad Request: No valid session ID provided" });
                Act::Json(400, vec![], json!({ "jsonrpc": "2.0", "id": null, "error": error }))
            } else {
                Act::Json(200, vec![], result(asked, &text("again")))
            }
        })
    })
    .await;
    assert_eq!(words(&asks(&served, "echo").await.unwrap()), "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_headers_are_another_session_and_calls_at_work_keep_theirs() {
    let served = Served::start(|asked| {
        handshake(asked).unwrap_or_else(|| {
            let of = asked.headers["authorization"].clone();
            if asked.body["params"]["name"] == "slow" {
                return Act::Late(Duration::from_secs(1), result(asked, &text(&of)));
            }
            Act::Json(200, vec![], result(asked, &text(&of)))
        })
    })
    .await;
    let with = |token: &'static str| {
        let mut endpoint = served.endpoint();
        endpoint.headers.insert("authorization", HeaderValue::from_static(token));
        Server::StreamableHttp(endpoint)
    };
    let (clients, key, never) = (clients(&settings()), key(), CancellationToken::new());
    let (old, new, slow, quick) = (with("old"), with("new"), plain("slow"), plain("quick"));
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        clients.call(&key, &new, &quick, deaf(), &never).await.unwrap()
    };
    let (slow, quick) = tokio::join!(clients.call(&key, &old, &slow, deaf(), &never), later);
    assert_eq!(words(&quick), "new");
    assert_eq!(words(&slow.unwrap()), "old");
    clients.close().await;
}

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
        discovery(asked).unwrap_or_else(|| match asked.body["method"].as_str() {
            Some("subscriptions/listen") => {
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
            }
            _ => {
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
async fn mill(finish: impl Fn(usize, &Asked) -> Act + Send + Sync + 'static) -> Served {
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

fn poll(asked: &Asked, more: &Value) -> Act {
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
