//! What becomes of servers whose worker is killed.

use super::{alive, clients, deaf, hostile, key, plain, settings};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Set for the child alone: where its server leaves process ids.
const MARK: &str = "GRISTMILL_TEST_MCP_PIDS";

/// The worker that is to be killed, in a process of its own; nothing without its mark.
#[tokio::test(flavor = "multi_thread")]
async fn holds_a_server() {
    let Ok(pids) = std::env::var(MARK) else { return };
    let clients = clients(&settings());
    let server = hostile("forks_away", Path::new(&pids));
    clients.call(&key(), &server, &plain("echo"), deaf(), &CancellationToken::new()).await.unwrap();
    std::fs::write(format!("{pids}.ready"), "").unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
}

async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("ten seconds went by before {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_killed_worker_die_with_it_and_what_they_started_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["mcp::orphans::holds_a_server", "--exact", "--nocapture"])
        .env(MARK, &pids)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = folder.path().join("pids.ready");
    until("the server runs", || ready.exists()).await;
    assert_eq!(alive(&pids).len(), 2, "the server and what it started, out of its group");
    // The negative control: a worker that lives keeps its servers, whoever else starts.
    let beside = clients(&settings());
    assert_eq!(alive(&pids).len(), 2);
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("the server is gone", || alive(&pids).len() <= 1).await;
    drop(beside);
    let _next = clients(&settings());
    until("what it started is gone", || alive(&pids).is_empty()).await;
    let homes = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let of_it = format!(".{}.", worker.id());
    let left = homes.filter(|home| home.file_name().to_string_lossy().contains(&of_it)).count();
    assert_eq!(left, 0, "its servers' homes are removed");
}
