//! How everything that a server started is found, wherever it went: by a mark in its environment,
//! which children inherit.
//!
//! Accepted race: a descendant that cleared its environment and left the group is not found, and
//! one that is forked between the last look at /proc and the end lives on until the next start.

use tempfile::TempDir;
use uuid::Uuid;

/// Names who started a process: `namespace.pid.start time`.
const OWNER: &str = "GRISTMILL_MCP_WORKER";
/// Names the one server that a process belongs to.
const SERVER: &str = "GRISTMILL_MCP_SERVER";

/// Begins the names of the servers' homes.
const HOME: &str = "gristmill-mcp-";

/// The mark of one server.
#[derive(Debug)]
pub(super) struct Mark(String);

impl Mark {
    pub fn new() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// What the server's environment must hold.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [(OWNER, owner(std::process::id()).unwrap_or_default()), (SERVER, self.0.clone())]
    }

    /// Kills every process that bears it.
    pub async fn sweep(&self) {
        let line = format!("{SERVER}={}", self.0);
        let bears = move |environment: &[u8]| environment.split(|b| *b == 0).any(|l| l == line.as_bytes());
        tokio::task::spawn_blocking(move || kill_where(bears)).await.ok();
    }
}

fn kill_where(wanted: impl Fn(&[u8]) -> bool) {
    // One that was forked during the first look is found by the second.
    for _ in 0..3 {
        let mut any = false;
        for (pid, environment) in processes() {
            if pid.cast_unsigned() != std::process::id() && wanted(&environment) {
                any = true;
                // SAFETY: kill touches no memory. Between the look and the kill the id could
                // pass to another process only if all ids went round in these microseconds.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        if !any {
            return;
        }
    }
}

/// Every process whose environment can be read, but those that are only waiting to be collected.
fn processes() -> impl Iterator<Item = (i32, Vec<u8>)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        (!environment.is_empty()).then_some((pid, environment))
    })
}

/// Ends what a worker that was killed left behind, and removes its servers' homes.
pub(super) fn end_orphans() {
    let prefix = format!("{OWNER}=");
    kill_where(|environment| {
        let owner = environment.split(|b| *b == 0).find_map(|line| line.strip_prefix(prefix.as_bytes()));
        owner.and_then(|owner| std::str::from_utf8(owner).ok()).is_some_and(is_dead)
    });
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(HOME)?.split('-').next());
        if owner.is_some_and(is_dead) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Whether this owner is surely gone. Of one in another container nothing can be told from here.
fn is_dead(owner: &str) -> bool {
    let mut parts = owner.split('.');
    let here = parts.next() == namespace().as_deref();
    let pid = parts.next().and_then(|pid| pid.parse().ok());
    here && pid.is_some_and(|pid| self::owner(pid).as_deref() != Some(owner))
}

/// A private folder for one server, named for its worker.
pub(super) fn home() -> std::io::Result<TempDir> {
    let owner = owner(std::process::id()).unwrap_or_default();
    tempfile::Builder::new().prefix(&format!("{HOME}{owner}-")).tempdir()
}

/// A process by its id and the time it started at, which together never come again.
fn owner(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets and spaces too; fields are counted after it.
    let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{}.{pid}.{started}", namespace()?))
}

/// In which process ids mean what they mean here.
fn namespace() -> Option<String> {
    let link = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(link.to_str()?.chars().filter(char::is_ascii_digit).collect())
}
