//! The life of a child process: limits, two open files, the jail, one document, the answer.
//!
//! A child lives for one document, so nothing a parser leaves behind meets the next one.

use super::Hint;
use super::draft::Draft;
use super::jail;
use super::jail::Enforced;
use super::jail::Reach;
use super::reader;
use super::wire::{Answer, EXIT_ANSWERED, EXIT_NOT_BEGUN, EXIT_PANICKED, Reading, Refusal, Task};
use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// Parsers recurse as deep as a document nests; the main thread's 8 MiB are soon used up.
const STACK_BYTES: usize = 64 * 1024 * 1024;
const PARENT_WATCH: Duration = Duration::from_millis(500);

/// The body of the hidden subcommand `gristmill extract-child TASK`.
pub fn child_main() -> ExitCode {
    let task = std::env::args().nth(2).and_then(|task| serde_json::from_str(&task).ok());
    let exit = match task {
        Some(Task::Run { program, arguments, source, folder, limits }) => {
            let reach = Reach::Program { read: source, write: folder.clone() };
            jail::limit(&limits).and_then(|()| become_program(&program, &arguments, &folder, &reach))
        }
        Some(Task::Read { source, into, hint, max_text_bytes, limits }) => jail::limit(&limits)
            .and_then(|()| Ok((File::open(&source)?, File::options().write(true).open(&into)?)))
            .and_then(|(source, into)| read(source, into, hint, max_text_bytes)),
        None => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "this subcommand is run by gristmill itself"))
        }
    };
    match exit {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("not begun: {e}");
            ExitCode::from(EXIT_NOT_BEGUN)
        }
    }
}

fn become_program(
    program: &std::path::Path,
    arguments: &[String],
    folder: &std::path::Path,
    reach: &Reach,
) -> io::Result<u8> {
    use std::os::unix::process::CommandExt;
    die_with_parent();
    jail::enter(reach);
    // Only comes back if it failed.
    Err(std::process::Command::new(program).args(arguments).current_dir(folder).exec())
}

fn read(source: File, into: File, hint: Hint, max_text_bytes: u64) -> io::Result<u8> {
    let enforced = jail::enter(&Reach::Nothing);
    watch_parent()?;
    let reader = std::thread::Builder::new()
        .name("reader".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || document(source, into, &hint, max_text_bytes))?;
    match reader.join() {
        Ok(result) => answer(enforced, result),
        Err(_) => Ok(EXIT_PANICKED),
    }
}

fn document(mut source: File, into: File, hint: &Hint, max_text_bytes: u64) -> Result<Reading, Refusal> {
    let mut draft = Draft::new(into, max_text_bytes);
    let shape = reader::read(&mut source, hint, &mut draft)?;
    draft.finish(shape)
}

fn answer(enforced: Enforced, result: Result<Reading, Refusal>) -> io::Result<u8> {
    serde_json::to_writer(io::stdout().lock(), &Answer { enforced, result })?;
    Ok(EXIT_ANSWERED)
}

/// Ends this process soon after the worker that asked for it is gone.
///
/// Not by `PR_SET_PDEATHSIG`, which watches the parent's *thread*: the child would be killed
/// when a thread of the worker's pool retires.
fn watch_parent() -> io::Result<()> {
    let parent = std::os::unix::process::parent_id();
    std::thread::Builder::new().name("watch".to_owned()).stack_size(64 * 1024).spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(PARENT_WATCH);
        }
        std::process::exit(i32::from(EXIT_NOT_BEGUN));
    })?;
    Ok(())
}

/// A helper program cannot watch, so the kernel does; its worst case is one page read again.
#[cfg(target_os = "linux")]
fn die_with_parent() {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal number and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() {}
