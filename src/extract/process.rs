//! One child process from the parent's side: started bare, listened to, waited for, killed.

use super::wire::Task;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// Facts name every page: ten thousand of them with long labels still fit.
const OUTPUT_BYTES: u64 = 16 * 1024 * 1024;
const COMPLAINT_BYTES: u64 = 16 * 1024;

/// How a child came to its end.
#[derive(Debug)]
pub(super) enum Ending {
    Exit { code: i32, output: Vec<u8>, complaint: String },
    Signal { signal: i32, complaint: String },
    TimedOut,
    TalkedTooMuch,
}

impl std::fmt::Display for Ending {
    /// Says nothing of what the child said: it may quote the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit { code, .. } => write!(f, "exit {code}"),
            Self::Signal { signal, .. } => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::TalkedTooMuch => f.write_str("talked too much"),
        }
    }
}

/// Runs `program extract-child TASK` to its end, `wall` at most.
pub(super) async fn run(program: &Path, task: &Task, wall: Duration) -> io::Result<Ending> {
    let mut command = Command::new(program);
    command
        .arg(super::CHILD)
        .arg(serde_json::to_string(task)?)
        .env_clear()
        // Each malloc arena takes 64 MiB of the address space that is limited.
        .env("MALLOC_ARENA_MAX", "1")
        .env("OMP_THREAD_LIMIT", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let listening = tokio::time::timeout(wall, listen(&mut child)).await;
    let Ok(heard) = listening else {
        kill(&mut child).await?;
        return Ok(Ending::TimedOut);
    };
    let (output, complaint) = heard?;
    if output.len() as u64 > OUTPUT_BYTES {
        kill(&mut child).await?;
        return Ok(Ending::TalkedTooMuch);
    }
    let status = child.wait().await?;
    let complaint = String::from_utf8_lossy(&complaint).into_owned();
    Ok(match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(code), _) => Ending::Exit { code, output, complaint },
        (None, signal) => Ending::Signal { signal: signal.unwrap_or_default(), complaint },
    })
}

/// Reads both streams to their ends; of the second only the beginning is kept.
async fn listen(child: &mut Child) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let hear_output = async {
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_BYTES + 1).read_to_end(&mut output).await?;
        }
        io::Result::Ok(())
    };
    let hear_complaint = async {
        if let Some(mut stderr) = stderr {
            (&mut stderr).take(COMPLAINT_BYTES).read_to_end(&mut complaint).await?;
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
        }
        io::Result::Ok(())
    };
    tokio::try_join!(hear_output, hear_complaint)?;
    Ok((output, complaint))
}

/// What all children that ended have used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Of the largest one. The kernel starts a child's count at the size of its parent, so
    /// this means something only while the parent is small.
    pub peak_rss_bytes: u64,
}

/// Counts the children that this process has waited for, for measurements.
pub fn children_usage() -> Usage {
    // SAFETY: rusage is plain numbers, for which zeros are valid, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Usage {
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_rss_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
    }
}

/// Kills the child's whole group and collects it.
async fn kill(child: &mut Child) -> io::Result<()> {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // SAFETY: kill touches no memory. The child is not yet collected, so its id, which is
        // also its group's, cannot have passed to another process.
        unsafe { libc::kill(-id, libc::SIGKILL) };
    }
    child.kill().await
}
