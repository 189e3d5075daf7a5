//! A server that is a program: started bare, limited, watched, and ended with all that it started.
//!
//! The child leads a process group of its own, dies when the worker dies, and carries a mark in
//! its environment that everything below it inherits: what left the group is found by the mark.

use super::error::Ending;
use super::mark::{self, Mark};
use super::wire::{Wire, head};
use super::{McpError, Program};
use crate::config::Mcp;
use secrecy::ExposeSecret;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

/// Of standard error, so much is kept.
const TAIL_BYTES: usize = 8 * 1024;
/// How long a child may take to end after SIGTERM, if nobody is in a hurry.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long one that closed its output may take to say with what status it ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Both ends of a running server.
pub(super) struct Pipes {
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub keeper: Keeper,
}

/// The child's life: dropping it ends the child and everything below it.
#[derive(Debug)]
pub(super) struct Keeper {
    end: CancellationToken,
    gone: CancellationToken,
    grace: Arc<Mutex<Duration>>,
    tail: Arc<Mutex<Vec<u8>>>,
}

impl Keeper {
    /// Asks for the end; [`Keeper::gone`] tells when it came.
    pub fn end(&self) {
        self.end.cancel();
    }

    /// Asks for the end, and kills what does not go in so long.
    pub fn end_within(&self, grace: Duration) {
        *self.grace.lock().unwrap_or_else(PoisonError::into_inner) = grace;
        self.end.cancel();
    }

    /// Cancelled when no process of this server is left.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// What the server last wrote to its standard error.
    pub fn tail(&self) -> Tail {
        Tail(Arc::clone(&self.tail))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// The end of a server's standard error.
#[derive(Debug, Clone)]
pub(super) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        let from = text.len().saturating_sub(1024);
        text[text.ceil_char_boundary(from)..].trim().to_owned()
    }
}

/// A thread that starts children and outlives them.
///
/// The kernel sends a child its parent-death signal when the *thread* that forked it ends, and
/// those of the runtime may end at any time.
#[derive(Debug)]
pub(super) struct Nursery {
    orders: mpsc::Sender<Order>,
}

struct Order {
    command: Command,
    reply: tokio::sync::oneshot::Sender<io::Result<tokio::process::Child>>,
    runtime: tokio::runtime::Handle,
}

impl Nursery {
    pub fn open() -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new().name("mcp-nursery".into()).spawn(move || {
            for mut order in inbox {
                let _within = order.runtime.enter();
                let child = order.command.spawn();
                // Whoever asked may have gone; its child goes with it.
                order.reply.send(child).ok();
            }
        })?;
        Ok(Self { orders })
    }

    async fn spawn(&self, mut command: Command) -> io::Result<tokio::process::Child> {
        command.kill_on_drop(true);
        let (reply, answer) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        self.orders.send(Order { command, reply, runtime }).map_err(|_| io::ErrorKind::BrokenPipe)?;
        answer.await.map_err(|_| io::ErrorKind::BrokenPipe)?
    }
}

/// Starts a server's program.
pub(super) async fn start(
    nursery: &Nursery,
    program: &Program,
    limits: &Mcp,
    wire: &Arc<Wire>,
) -> Result<Pipes, McpError> {
    if !program.command.is_absolute() {
        return Err(McpError::Spawn(io::Error::new(io::ErrorKind::InvalidInput, "its path is not absolute")));
    }
    let home = mark::home().map_err(McpError::Spawn)?;
    let mark = Mark::new();
    let command = bare(program, limits, (home.path(), &mark));
    let mut child = nursery.spawn(command).await.map_err(McpError::Spawn)?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(McpError::Spawn(io::ErrorKind::BrokenPipe.into()));
    };
    let keeper = Keeper {
        end: CancellationToken::new(),
        gone: CancellationToken::new(),
        grace: Arc::new(Mutex::new(GRACE)),
        tail: Arc::default(),
    };
    tokio::spawn(drain(stderr, Arc::clone(&keeper.tail)));
    let watch = Watch {
        child,
        mark,
        wire: Arc::clone(wire),
        tail: keeper.tail(),
        end: keeper.end.clone(),
        grace: Arc::clone(&keeper.grace),
        gone: keeper.gone.clone().drop_guard(),
        home,
    };
    tokio::spawn(watch.until_gone());
    Ok(Pipes { stdin, stdout, keeper })
}

/// The command with nothing of the worker's environment and with its limits.
fn bare(program: &Program, limits: &Mcp, (home, mark): (&Path, &Mark)) -> Command {
    let mut command = Command::new(&program.command);
    command
        .args(&program.arguments)
        .env_clear()
        .env("PATH", path(&program.command, &limits.path))
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("LANG", "C.UTF-8")
        .current_dir(home);
    for (name, value) in &program.env {
        command.env(name, value.expose_secret());
    }
    command
        .envs(mark.variables())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let rules = rules(limits);
    let parent = std::process::id();
    // SAFETY: between fork and exec only calls that are safe there, on numbers made before.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The worker may have died before it asked for the signal.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
            for (resource, most) in rules {
                resource.set(most.min(resource.get_hard()?), most.min(resource.get_hard()?))?;
            }
            Ok(())
        });
    }
    command
}

/// What a server may use up. Its address space is not limited, for JavaScript engines reserve far
/// more of it than they use; what it can write to is.
fn rules(limits: &Mcp) -> [(rlimit::Resource, u64); 4] {
    [
        (rlimit::Resource::CORE, 0),
        (rlimit::Resource::DATA, limits.child_memory_bytes),
        (rlimit::Resource::FSIZE, limits.child_file_bytes),
        (rlimit::Resource::NOFILE, limits.child_open_files),
    ]
}

/// The program's own folder first: what `npx` or `uvx` start lies beside them.
fn path(command: &Path, path: &str) -> String {
    match command.parent() {
        Some(beside) => format!("{}:{path}", beside.display()),
        None => path.to_owned(),
    }
}

/// Reads standard error to its end; the last bytes are kept.
async fn drain(mut stderr: ChildStderr, tail: Arc<Mutex<Vec<u8>>>) {
    let mut some = [0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut some).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&some[..n]);
        let over = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..over);
    }
}

struct Watch {
    child: tokio::process::Child,
    mark: Mark,
    wire: Arc<Wire>,
    tail: Tail,
    end: CancellationToken,
    grace: Arc<Mutex<Duration>>,
    gone: tokio_util::sync::DropGuard,
    home: tempfile::TempDir,
}

impl Watch {
    /// Waits for the child's own end or for the order, then leaves nothing of it.
    async fn until_gone(mut self) {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group {
            self.wait_or_order(group).await;
            // SAFETY: kill touches no memory. The leader is not collected yet, so its id, which
            // is also its group's, cannot have passed to another process.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        self.mark.sweep().await;
        let status = self.child.wait().await;
        // Its last words may still be on their way through the pipe.
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.wire.end(Ending::Exited {
            status: status.map_or("an unknown status".into(), words),
            tail: self.tail.text(),
        });
        drop(self.home);
        drop(self.gone);
    }

    async fn wait_or_order(&mut self, group: i32) {
        let mut tick = tokio::time::interval(Duration::from_millis(25));
        let ordered = loop {
            tokio::select! {
                () = self.end.cancelled() => break tokio::time::Instant::now(),
                _ = tick.tick() => if has_exited(group) { return },
            }
        };
        while ordered.elapsed() < LAST_WORDS {
            if has_exited(group) {
                return;
            }
            tick.tick().await;
        }
        // SAFETY: kill touches no memory, and the leader is not collected yet.
        unsafe { libc::kill(-group, libc::SIGTERM) };
        let grace = || *self.grace.lock().unwrap_or_else(PoisonError::into_inner);
        while ordered.elapsed() < LAST_WORDS + grace() && !has_exited(group) {
            tick.tick().await;
        }
    }
}

/// Whether the child has ended, without collecting it.
fn has_exited(pid: i32) -> bool {
    // SAFETY: siginfo is plain numbers, for which zeros are valid, and waitid fills it.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        let answer = libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, flags);
        answer != 0 || info.si_pid() == pid
    }
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

/// The absolute path of a program: itself, or the first of that name in `path`.
pub fn resolve(command: &str, path: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return Path::new(command).is_absolute().then(|| command.into());
    }
    path.split(':').map(|folder| Path::new(folder).join(command)).find(|file| file.is_file())
}

/// Enough of a text to recognise it by.
pub(super) fn glimpse(bytes: &[u8]) -> String {
    head(&String::from_utf8_lossy(bytes), 200).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_its_absolute_path_or_the_first_of_its_name() {
        assert_eq!(resolve("sh", "/nowhere:/bin:/usr/bin"), Some("/bin/sh".into()));
        assert_eq!(resolve("/opt/x", "/bin"), Some("/opt/x".into()));
        assert_eq!(resolve("./x", "/bin"), None);
        assert_eq!(resolve("no-such-program", "/bin:/usr/bin"), None);
    }
}
