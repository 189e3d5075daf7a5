//! Servers over stdio that misbehave: an error in time, no process left, memory bounded.

use super::{alive, call, clients, deaf, hostile, key, plain, resident, settings, words};
use gristmill::mcp::{Clients, Deadline, Ending, McpError};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Whatever a server does, its error comes within its deadline and this.
const BOUND: Duration = Duration::from_secs(5);

struct Room {
    _folder: tempfile::TempDir,
    pids: PathBuf,
}

fn room() -> Room {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    Room { _folder: folder, pids }
}

/// One call of one misbehaving server: its error, how long it took, and nothing left of it.
async fn fails(mode: &str, tool: &gristmill::mcp::Call, deadline: Duration) -> McpError {
    let room = room();
    let clients = clients(&settings());
    let began = Instant::now();
    let error = clients
        .call(&key(), &hostile(mode, &room.pids), tool, deaf(), &CancellationToken::new())
        .await
        .expect_err("a server that misbehaves has no answer");
    assert!(began.elapsed() < deadline + BOUND, "{mode}: {:?}, {error}", began.elapsed());
    gone(&clients, &room.pids).await;
    error
}

async fn gone(clients: &Clients, pids: &std::path::Path) {
    let began = Instant::now();
    clients.close().await;
    assert!(began.elapsed() < BOUND, "closing took {:?}", began.elapsed());
    // What was killed by mark is collected by its own parent, which may take a moment.
    for _ in 0..100 {
        if alive(pids).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still alive: {:?}", alive(pids));
}

const INITIALISE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reply_to_initialize_the_start_ends_in_time() {
    let error = fails("no_initialize", &plain("echo"), INITIALISE).await;
    assert!(matches!(error, McpError::StartTimeout { .. }), "{error:?}");
    assert!(!error.was_sent() && error.is_transient());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_reads_is_given_up() {
    let error = fails("never_reads", &plain("echo"), INITIALISE).await;
    assert!(matches!(error, McpError::StartTimeout { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_with_another_id_is_none() {
    let error = fails("wrong_initialize_id", &plain("echo"), INITIALISE).await;
    assert!(matches!(error, McpError::Start(Ending::Junk { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_before_the_handshake_names_status_and_last_words() {
    let error = fails("exit_0", &plain("echo"), Duration::ZERO).await;
    assert!(error.to_string().contains("exit status 0"), "{error}");
    assert!(!error.was_sent());
    let error = fails("exit_4", &plain("echo"), Duration::ZERO).await;
    assert!(error.to_string().contains("exit status 4"), "{error}");
    assert!(error.to_string().ends_with("cannot go on"), "{error}");
    assert!(error.to_string().len() < 2000, "the rest of what it said is dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_during_a_call_names_status_and_last_words() {
    let error = fails("honest", &plain("die"), Duration::ZERO).await;
    assert!(matches!(&error, McpError::Ended { ending: Ending::Exited { .. }, sent: true }), "{error:?}");
    assert!(error.to_string().contains("exit status 7"), "{error}");
    assert!(error.to_string().contains("the disk is on fire"), "{error}");
    assert!(error.was_sent(), "it may have acted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_answer_ends_at_its_idle_deadline() {
    let error = fails("honest", &plain("hang"), Duration::from_secs(3)).await;
    assert!(matches!(error, McpError::Timeout { which: Deadline::Idle, sent: true, .. }), "{error:?}");
    let error = fails("honest", &plain("wrong_id"), Duration::from_secs(3)).await;
    assert!(matches!(error, McpError::Timeout { .. }), "{error:?}");
    let error = fails("honest", &plain("deaf"), Duration::from_secs(3)).await;
    assert!(matches!(error, McpError::Timeout { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_64_mib_ends_the_session_with_what_came_before_it() {
    let before = resident();
    let error = fails("honest", &call("line", json!({ "bytes": 64 << 20 })), Duration::ZERO).await;
    let grown = resident().saturating_sub(before);
    let McpError::Oversize { limit, before } = &error else { panic!("{error:?}") };
    assert_eq!(*limit, 4 << 20);
    let kept: Vec<_> = before.content.iter().map(|block| block["text"].as_str().unwrap()).collect();
    assert_eq!(kept[..2], ["so far so good", "nearly there"]);
    assert!(kept[2].starts_with("xxxx") && kept[2].len() <= 16 * 1024);
    assert!(grown <= 32 << 20, "grown by {grown} bytes");
    assert!(error.was_sent() && !error.is_transient());
}

/// The negative control of the limit: a line as large passes where the limit allows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_below_the_limit_arrives_whole() {
    let room = room();
    let clients = clients(&settings());
    let large = call("big", json!({ "bytes": 3 << 20 }));
    let server = hostile("honest", &room.pids);
    let output = clients.call(&key(), &server, &large, deaf(), &CancellationToken::new()).await.unwrap();
    assert_eq!(words(&output).len(), 3 << 20);
    gone(&clients, &room.pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_output_is_cut_off_wherever_it_comes() {
    let before = resident();
    let error = fails("line_at_once", &plain("echo"), INITIALISE).await;
    assert!(matches!(error, McpError::Start(Ending::Oversize { .. })), "{error:?}");
    let error = fails("only_junk", &plain("echo"), INITIALISE).await;
    assert!(matches!(error, McpError::Start(Ending::Junk { .. })), "{error:?}");
    for tool in ["flood", "flood_progress"] {
        let error = fails("honest", &plain(tool), Duration::from_secs(15)).await;
        let McpError::Oversize { limit, before } = &error else { panic!("{tool}: {error:?}") };
        assert_eq!(*limit, 8 << 20);
        assert!(!before.content.is_empty());
    }
    let grown = resident().saturating_sub(before);
    assert!(grown <= 32 << 20, "grown by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asked_for_ends_the_session_by_itself() {
    let room = room();
    let clients = clients(&settings());
    clients.list(&key(), &hostile("floods_unasked", &room.pids)).await.unwrap_err();
    for _ in 0..500 {
        if alive(&room.pids).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it floods on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_read_although_its_server_is_gone() {
    let room = room();
    for _ in 0..10 {
        let clients = clients(&settings());
        let server = hostile("honest", &room.pids);
        let asked = plain("answer_and_exit");
        let output = clients.call(&key(), &server, &asked, deaf(), &CancellationToken::new()).await.unwrap();
        assert_eq!(words(&output), "my last words");
        gone(&clients, &room.pids).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_before_the_first_message_are_passed_over() {
    let room = room();
    let clients = clients(&settings());
    let server = hostile("junk", &room.pids);
    let said = call("echo", json!({ "n": 1 }));
    let output = clients.call(&key(), &server, &said, deaf(), &CancellationToken::new()).await.unwrap();
    assert_eq!(words(&output), r#"{"n": 1}"#);
    gone(&clients, &room.pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_sigterm_is_killed() {
    let room = room();
    let clients = clients(&settings());
    let server = hostile("ignores_sigterm", &room.pids);
    clients.call(&key(), &server, &plain("echo"), deaf(), &CancellationToken::new()).await.unwrap();
    assert_eq!(alive(&room.pids).len(), 1);
    gone(&clients, &room.pids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_started_goes_with_it() {
    for mode in ["forks", "forks_away"] {
        let room = room();
        let clients = clients(&settings());
        let server = hostile(mode, &room.pids);
        clients.call(&key(), &server, &plain("echo"), deaf(), &CancellationToken::new()).await.unwrap();
        assert_eq!(alive(&room.pids).len(), 2, "{mode}: server and grandchild");
        gone(&clients, &room.pids).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_started_goes_with_it_when_it_dies_by_itself() {
    for mode in ["forks", "forks_away"] {
        let error = fails(mode, &plain("die"), Duration::ZERO).await;
        assert!(matches!(error, McpError::Ended { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_not_know_the_newest_handshake_are_asked_the_old_way() {
    for mode in ["silent_about_discover", "dies_of_discover"] {
        let room = room();
        let clients = clients(&settings());
        let server = hostile(mode, &room.pids);
        clients.call(&key(), &server, &plain("echo"), deaf(), &CancellationToken::new()).await.unwrap();
        let listing = clients.list(&key(), &server).await.unwrap();
        assert_eq!(listing.protocol_version, "2025-06-18");
        gone(&clients, &room.pids).await;
    }
}
