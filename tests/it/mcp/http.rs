//! Servers over HTTP that misbehave or ask for more: bounded, never followed, told apart.

use super::served::{Act, Asked, Served, asks, handshake, result, text};
use super::{clients, deaf, key, plain, resident, settings, words};
use gristmill::guard::{Guard, Refusal};
use gristmill::mcp::{Clients, Endpoint, McpError, Server};
use http::{HeaderMap, HeaderValue};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_under_its_own_id_is_not_posted_again_and_a_500_leaves_the_outcome_open() {
    for (status, open) in [(400, false), (404, false), (500, true)] {
        let served = Served::start(move |asked| {
            handshake(asked).unwrap_or_else(|| {
                let error = json!({ "code": -32000, "message": "paid, but the session could not be closed" });
                let body = json!({ "jsonrpc": "2.0", "id": asked.body["id"], "error": error });
                Act::Json(status, vec![], body)
            })
        })
        .await;
        let error = asks(&served, "echo").await.unwrap_err();
        assert_eq!(served.calls().len(), 1, "{status}: {error:?}");
        let unknown = matches!(error, McpError::Status { sent: true, .. });
        assert!(error.was_sent() && unknown == open, "{status}: {error:?}");
    }
}
