//! Helper programs (OCR, page rendering) run with limits and see one file.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a program the way the worker does, with a second of computing time.
fn run(program: &str, arguments: &[&str], source: &Path, folder: &Path) -> Output {
    let task = serde_json::json!({ "Run": {
        "program": program,
        "arguments": arguments,
        "source": source,
        "folder": folder,
        "limits": { "memory_bytes": 256 << 20, "cpu_seconds": 1, "file_bytes": 1 << 20 },
    }});
    let child = env!("CARGO_BIN_EXE_gristmill");
    Command::new(child).arg("extract-child").arg(task.to_string()).env_clear().output().unwrap()
}

#[test]
fn a_helper_reads_its_file_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (source, secret) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(source.path(), "a picture").unwrap();
    std::fs::write(secret.path(), "a secret").unwrap();
    let cat = |file: &Path| run("/bin/cat", &[file.to_str().unwrap()], source.path(), folder.path());
    assert_eq!(cat(source.path()).stdout, b"a picture");
    let refused = cat(secret.path());
    // On a kernel without Landlock the child says so.
    let is_confined = !String::from_utf8_lossy(&refused.stderr).contains("not enforced");
    assert!(!is_confined || refused.stdout.is_empty(), "{refused:?}");
}

#[test]
fn a_helper_that_computes_too_long_is_stopped_by_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let ending = run("/bin/sh", &["-c", "while :; do :; done"], folder.path(), folder.path());
    assert_eq!(ending.status.signal(), Some(libc::SIGXCPU), "{ending:?}");
}

#[test]
fn a_helper_cannot_fill_the_disk_nor_start_programs() {
    let folder = tempfile::tempdir().unwrap();
    let ending =
        run("/bin/dd", &["if=/dev/zero", "of=big", "bs=65536", "count=64"], folder.path(), folder.path());
    assert!(!ending.status.success());
    assert!(std::fs::metadata(folder.path().join("big")).map_or(0, |file| file.len()) <= 1 << 20);
    let ending = run("/bin/sh", &["-c", "/bin/ls; echo forked"], folder.path(), folder.path());
    assert!(!String::from_utf8_lossy(&ending.stdout).contains("big"), "{ending:?}");
}

#[test]
fn without_a_task_the_subcommand_only_complains() {
    let ending = Command::new(env!("CARGO_BIN_EXE_gristmill")).arg("extract-child").output().unwrap();
    assert!(!ending.status.success() && ending.stdout.is_empty(), "{ending:?}");
}
