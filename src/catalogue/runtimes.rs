//! What servers of the catalogue are written for: node and python, as they are on this host.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Longer than an interpreter takes to tell its version on a busy host.
const PATIENCE: Duration = Duration::from_secs(10);

/// A runtime, or that it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// `node` or `python`.
    pub name: &'static str,
    pub path: Option<PathBuf>,
    pub version: Option<String>,
}

/// Looks for both in the folders of `path`.
pub async fn look(path: &str) -> [Runtime; 2] {
    let node = ask("node", "node", path, &["-p", "process.version + ' ' + process.execPath"]);
    let python = ["-c", "import sys; print('v' + sys.version.split()[0], sys.executable)"];
    let python = ask("python", "python3", path, &python);
    let (node, python) = tokio::join!(node, python);
    [node, python]
}

/// Asks the program itself where it is: what lies in the path may be a shim that looks for it.
async fn ask(name: &'static str, program: &str, path: &str, arguments: &[&str]) -> Runtime {
    let missing = Runtime { name, path: None, version: None };
    let Some(file) = find(program, path) else { return missing };
    let mut command = Command::new(&file);
    command.args(arguments).env("PATH", path).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(PATIENCE, command.output()).await else { return missing };
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().split_once(' ') {
        Some((version, itself)) if output.status.success() => {
            let path = if itself.is_empty() { file } else { itself.into() };
            Runtime { name, path: Some(path), version: Some(version.trim_start_matches('v').to_owned()) }
        }
        _ => missing,
    }
}

/// The runtime that a command is written for, by its name.
pub fn wanted(command: &str) -> Option<&'static str> {
    match Path::new(command).file_name()?.to_str()? {
        "node" | "nodejs" | "npx" | "npm" | "pnpm" => Some("node"),
        "uvx" | "uv" | "pipx" => Some("python"),
        name if name.starts_with("python") => Some("python"),
        _ => None,
    }
}

/// Where a command lies: itself, or the first of its name in `path`.
pub fn find(command: &str, path: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return Some(PathBuf::from(command)).filter(|file| file.is_file());
    }
    path.split(':').map(|folder| Path::new(folder).join(command)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runtime_tells_its_version_and_its_own_path_and_a_missing_one_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().to_str().unwrap();
        assert!(look(empty).await.iter().all(|runtime| runtime.path.is_none() && runtime.version.is_none()));
        let path = "/usr/local/bin:/usr/bin:/bin";
        for runtime in look(path).await {
            let program = if runtime.name == "python" { "python3" } else { "node" };
            let installed = find(program, path).is_some();
            assert_eq!(runtime.version.is_some(), installed, "{runtime:?}");
            assert!(runtime.path.is_none_or(|path| path.is_absolute()));
        }
    }

    #[test]
    fn commands_tell_what_they_are_written_for() {
        let all = ["npx", "/usr/bin/uvx", "python3.12", "/opt/server"].map(wanted);
        assert_eq!(all, [Some("node"), Some("python"), Some("python"), None]);
    }
}
