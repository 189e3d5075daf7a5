//! What a call means while the server behaves: sessions, deadlines, notifications, refusals.

use super::{alive, call, clients, deaf, hostile, key, plain, settings, words};
use gristmill::mcp::{Clients, Heard, McpError, Server, SessionKey};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

async fn ask(clients: &Clients, key: &SessionKey, server: &Server, tool: &str) -> String {
    let output = clients.call(key, server, &plain(tool), deaf(), &CancellationToken::new()).await.unwrap();
    words(&output).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_key_share_a_session_and_those_of_another_never_do() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let clients = clients(&settings());
    let server = hostile("honest", &pids);
    let mine = key();
    let first = ask(&clients, &mine, &server, "pid").await;
    assert_eq!(ask(&clients, &mine, &server, "pid").await, first);
    let with_credential = SessionKey { credential: Some((Uuid::now_v7(), 1)), ..mine.clone() };
    let with_newer =
        SessionKey { credential: with_credential.credential.map(|(id, _)| (id, 2)), ..mine.clone() };
    let of_another = SessionKey { workspace: key().workspace, ..mine.clone() };
    let mut seen = vec![first];
    for key in [&with_credential, &with_newer, &of_another] {
        seen.push(ask(&clients, key, &server, "pid").await);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4, "a session of its own each");
    clients.close().await;
    assert!(alive(&pids).is_empty());
    assert!(matches!(clients.list(&mine, &server).await, Err(McpError::Closing)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_sees_nothing_of_the_workers_environment() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let environment: Value =
        serde_json::from_str(&ask(&clients, &key(), &server, "environment").await).unwrap();
    let mut names: Vec<_> = environment.as_object().unwrap().keys().map(String::as_str).collect();
    names.retain(|name| *name != "LC_CTYPE");
    names.sort_unstable();
    let ours = ["COLOUR", "GRISTMILL_MCP_SERVER", "GRISTMILL_MCP_WORKER", "HOME", "LANG", "PATH", "TMPDIR"];
    assert_eq!(names, ours);
    assert_eq!(environment["COLOUR"], "blue");
    assert!(std::path::Path::new(environment["HOME"].as_str().unwrap()).is_dir());
    clients.close().await;
    assert!(!std::path::Path::new(environment["HOME"].as_str().unwrap()).exists(), "its home goes with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_idempotency_key_go_with_the_call() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let mut asked = plain("meta");
    asked.idempotency_key = Some("once".into());
    let output = clients.call(&key(), &server, &asked, deaf(), &CancellationToken::new()).await.unwrap();
    let meta: Value = serde_json::from_str(words(&output)).unwrap();
    assert_eq!(meta["gristmill/callId"], asked.call_id.to_string());
    assert_eq!(meta["gristmill/idempotencyKey"], "once");
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_extends_the_idle_deadline_and_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let (heard, mut ears) = mpsc::channel(100);
    let mut work = call("work", json!({ "steps": 8, "pause": 0.4 }));
    work.idle = Duration::from_secs(1);
    let output = clients.call(&key(), &server, &work, heard, &CancellationToken::new()).await.unwrap();
    assert_eq!(words(&output), "done");
    let mut steps = 0;
    while let Some(said) = ears.recv().await {
        assert!(matches!(said, Heard::Progress { message: Some(_), .. }), "{said:?}");
        steps += 1;
    }
    assert_eq!(steps, 8);
    // The negative control: without progress the same time is too long.
    let mut silent = plain("hang");
    silent.idle = Duration::from_secs(1);
    let error = clients.call(&key(), &server, &silent, deaf(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, McpError::Timeout { .. }));
    // And the absolute deadline is not extended by anything.
    work.total = Duration::from_secs(2);
    let error = clients.call(&key(), &server, &work, deaf(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, McpError::Timeout { which: gristmill::mcp::Deadline::Total, .. }), "{error:?}");
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_reaches_the_server_and_the_session_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let key = key();
    let before = ask(&clients, &key, &server, "pid").await;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stopping.cancel();
    });
    let error = clients.call(&key, &server, &plain("hang"), deaf(), &stop).await.unwrap_err();
    assert!(matches!(error, McpError::Stopped { sent: true }), "{error:?}");
    // A future that is dropped is a stop too.
    let (hang, never) = (plain("hang"), CancellationToken::new());
    let dropped = clients.call(&key, &server, &hang, deaf(), &never);
    tokio::time::timeout(Duration::from_millis(300), dropped).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cancelled: Vec<Value> =
        serde_json::from_str(&ask(&clients, &key, &server, "cancelled").await).unwrap();
    assert_eq!(cancelled.len(), 2, "{cancelled:?}");
    assert_eq!(ask(&clients, &key, &server, "pid").await, before);
    // One that is stopped before it is asked never leaves.
    let error = clients.call(&key, &server, &plain("echo"), deaf(), &stop).await.unwrap_err();
    assert!(!error.was_sent());
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_elicitation_and_roots_are_refused_and_a_ping_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let answers: Value = serde_json::from_str(&ask(&clients, &key(), &server, "sampling").await).unwrap();
    let refused = -32601;
    assert_eq!(answers, json!({ "mine-1": refused, "mine-2": refused, "mine-3": refused, "mine-4": "ok" }));
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_odd_content_are_told_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let key = key();
    let error =
        clients.call(&key, &server, &plain("error"), deaf(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(&error, McpError::Answered { code: -32602, message } if message == "no such thing"));
    let odd =
        clients.call(&key, &server, &plain("odd_content"), deaf(), &CancellationToken::new()).await.unwrap();
    assert_eq!(odd.content, [json!({ "type": "hologram", "data": "?" })]);
    assert_eq!(odd.structured_content, Some(json!({ "n": 1 })));
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_list_is_heard_and_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let key = key();
    let (heard, mut ears) = mpsc::channel(10);
    clients.call(&key, &server, &plain("change"), heard, &CancellationToken::new()).await.unwrap();
    assert_eq!(ears.recv().await, Some(Heard::ListChanged));
    assert_eq!(clients.changed(), [key]);
    assert!(clients.changed().is_empty());
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_session_is_replaced_after_a_pause_that_grows() {
    let folder = tempfile::tempdir().unwrap();
    let clients = clients(&settings());
    let server = hostile("honest", &folder.path().join("pids"));
    let key = key();
    let die = clients.call(&key, &server, &plain("die"), deaf(), &CancellationToken::new()).await;
    assert!(die.unwrap_err().was_sent());
    let waits =
        clients.call(&key, &server, &plain("echo"), deaf(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(waits, McpError::BackingOff { failures: 1, .. }), "{waits:?}");
    assert!(!waits.was_sent() && waits.is_transient());
    tokio::time::sleep(waits.retry_after().unwrap()).await;
    ask(&clients, &key, &server, "pid").await;
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_end_and_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let mut few = settings();
    few.max_children = 2;
    few.idle_seconds = 600.0;
    let busy = clients(&few);
    let server = hostile("honest", &pids);
    for _ in 0..4 {
        ask(&busy, &key(), &server, "pid").await;
    }
    assert_eq!(alive(&pids).len(), 2, "the least recently used made room");
    let hung = (key(), key());
    let (a, b) = (plain("hang"), plain("hang"));
    let stop = CancellationToken::new();
    let (one, two) =
        (busy.call(&hung.0, &server, &a, deaf(), &stop), busy.call(&hung.1, &server, &b, deaf(), &stop));
    let third = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        busy.list(&key(), &server).await
    };
    let (_, _, third) = tokio::join!(one, two, third);
    assert!(matches!(third, Err(McpError::Full { limit: 2 })), "{third:?}");
    busy.close().await;

    let mut short = settings();
    short.idle_seconds = 0.3;
    let idle = clients(&short);
    ask(&idle, &key(), &server, "pid").await;
    assert_eq!(alive(&pids).len(), 1);
    for _ in 0..100 {
        if alive(&pids).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("an idle child lives on");
}
