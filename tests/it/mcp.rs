//! The MCP client against servers that misbehave, and against real ones.

mod calls;
mod hostile;
mod http;
pub mod modern;
mod orphans;
mod real;
pub mod served;

use gristmill::config::{Config, Mcp};
use gristmill::domain::WorkspaceId;
use gristmill::guard::Guard;
use gristmill::mcp::{Call, Clients, Heard, Program, Server, SessionKey};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Short deadlines, and nothing but this machine within reach.
fn settings() -> Mcp {
    let mut settings = Config::load(None).expect("the defaults are valid").mcp;
    settings.initialise_seconds = 4.0;
    settings.request_seconds = 5.0;
    settings
}

fn clients(settings: &Mcp) -> Clients {
    Clients::new(settings, &Guard::new(&["127.0.0.0/8".parse().unwrap()])).unwrap()
}

fn key() -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::now_v7()), server: Uuid::now_v7(), credential: None }
}

/// Python itself, not a shim that would look for it; every machine that builds this has one.
pub fn python() -> PathBuf {
    let print = ["-c", "import sys; print(sys.executable)"];
    let said = std::process::Command::new("python3").args(print).output().expect("these tests need python3");
    String::from_utf8(said.stdout).unwrap().trim().into()
}

/// Our own server that misbehaves; it leaves process ids in `pids`.
fn hostile(mode: &str, pids: &Path) -> Server {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/mcp/hostile.py");
    Server::Stdio(Program {
        command: python(),
        arguments: vec![script.into(), mode.into(), pids.display().to_string()],
        env: vec![("COLOUR".into(), "blue".into())],
    })
}

fn call(tool: &str, arguments: Value) -> Call {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    Call {
        tool: tool.into(),
        arguments,
        call_id: Uuid::now_v7(),
        idempotency_key: None,
        idle: Duration::from_secs(3),
        total: Duration::from_secs(20),
    }
}

fn plain(tool: &str) -> Call {
    call(tool, Value::Object(Map::new()))
}

fn deaf() -> mpsc::Sender<Heard> {
    mpsc::channel(1).0
}

/// The text of a result's first block.
fn words(output: &gristmill::domain::ToolOutput) -> &str {
    output.content[0]["text"].as_str().unwrap()
}

/// Processes that left their ids in this file and still run.
fn alive(pids: &Path) -> Vec<u32> {
    let pids = std::fs::read_to_string(pids).unwrap_or_default();
    let running = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    };
    pids.lines().filter_map(|line| line.parse().ok()).filter(running).collect()
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
