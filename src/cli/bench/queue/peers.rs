//! Other queues beside ours: built with cargo and installed with npm on demand, each driven by a
//! program of its own in benches/peers. What cannot be brought here is named with the reason.

use crate::cli::bench::queue::figures::Figures;
use crate::cli::bench::queue::ground::Ground;
use crate::cli::bench::queue::task::{Size, Task};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The oldest Node that graphile-worker and pg-boss name.
const NODE: u32 = 22;
/// Brought by npm where Node is older than that.
const NODE_PACKAGE: &str = "22.23.3";

/// A driver that stands ready.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: &'static str,
    pub settings: &'static str,
    program: Vec<PathBuf>,
}

/// A system that is not measured, and why.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Absent {
    pub name: &'static str,
    pub reason: String,
}

type Named = (&'static str, &'static str);
const RUST: [Named; 3] = [
    ("riverqueue tuned", "Rust; 500 workers, fetch cooldown 1 ms, poll 20 ms"),
    ("apalis-postgres", "as it comes: batch 10, poll 100 ms (latency: LISTEN, poll 1 s)"),
    ("apalis-postgres tuned", "2 workers, batch 500, poll 20 ms, no lock events"),
];
const NODE_SCRIPTS: [(Named, &str); 3] = [
    (("graphile-worker tuned", "24 at once, local queue 500, batched completion"), "graphile-worker.mjs"),
    (("pg-boss", "2 workers, batch 1000, poll 0.5 s (latency: LISTEN, batch 50)"), "pg-boss.mjs"),
    (("pg-boss tuned", "the same, fetching on while batches are full"), "pg-boss.mjs"),
];

/// Every driver that could be built or installed, the others with their reasons, and the folder
/// the installed ones live in.
pub async fn prepare(folder: &Path) -> anyhow::Result<(Vec<Peer>, Vec<Absent>, tempfile::TempDir)> {
    anyhow::ensure!(
        folder.join("Cargo.toml").is_file(),
        "{} holds no drivers: give the path to benches/peers of Gristmill's source",
        folder.display()
    );
    let installed = tempfile::tempdir()?;
    let (mut peers, mut absent) = (Vec::new(), Vec::new());
    match build(folder).await {
        Ok(program) => {
            peers.extend(RUST.map(|(name, settings)| Peer {
                name,
                settings,
                program: vec![program.clone()],
            }));
        }
        Err(error) => {
            absent.extend(RUST.map(|(name, _)| Absent { name, reason: format!("{error:#}") }));
        }
    }
    match install(folder, installed.path()).await {
        Ok(node) => peers.extend(NODE_SCRIPTS.map(|((name, settings), script)| Peer {
            name,
            settings,
            program: vec![node.clone(), installed.path().join(script)],
        })),
        Err(error) => {
            absent.extend(NODE_SCRIPTS.map(|((name, _), _)| Absent { name, reason: format!("{error:#}") }));
        }
    }
    Ok((peers, absent, installed))
}

/// Builds the Rust drivers, optimised, and answers with the program.
async fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    eprintln!("building the Rust peers in {} (some minutes the first time)", folder.display());
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--locked", "--message-format=json-render-diagnostics"])
        .current_dir(folder)
        // With an address at hand sqlx would check apalis's own queries against our database.
        .env_remove("DATABASE_URL")
        .env("SQLX_OFFLINE", "true");
    let told = output(&mut cargo, None, Duration::from_mins(30)).await.context("cargo build")?;
    told.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no program")
}

/// Installs the Node drivers into `place` and answers with the Node to run them.
async fn install(folder: &Path, place: &Path) -> anyhow::Result<PathBuf> {
    let told = output(Command::new("node").arg("--version"), None, Duration::from_secs(20))
        .await
        .context("Node is not here")?;
    let major = told.trim().trim_start_matches('v').split('.').next().and_then(|v| v.parse::<u32>().ok());
    for file in ["package.json", "package-lock.json", "drive.mjs", "graphile-worker.mjs", "pg-boss.mjs"] {
        std::fs::copy(folder.join(file), place.join(file)).with_context(|| format!("no {file}"))?;
    }
    eprintln!("installing the Node peers into {}", place.display());
    let quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    let mut npm = Command::new("npm");
    npm.arg("ci").args(quiet).current_dir(place);
    output(&mut npm, None, Duration::from_mins(10)).await.context("npm ci")?;
    if major.is_some_and(|major| major >= NODE) {
        return Ok("node".into());
    }
    let package = format!("node-{}-{}", system(), machine());
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save"])
        .args(quiet)
        .arg(format!("{package}@{NODE_PACKAGE}"))
        .current_dir(place);
    output(&mut npm, None, Duration::from_mins(10))
        .await
        .with_context(|| format!("Node {} is too old, and {NODE} could not be installed", told.trim()))?;
    Ok(place.join("node_modules").join(package).join("bin/node"))
}

fn system() -> &'static str {
    if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS }
}

fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Peer {
    /// Hands one order to the driver and reads its figures.
    pub async fn measure(&self, ground: &Ground, task: Task, size: &Size) -> anyhow::Result<Figures> {
        let (rate, seconds) = match task {
            Task::Latency { rate, seconds } => (rate, seconds),
            Task::Drain | Task::Enqueue => (0, 0),
        };
        let order = serde_json::json!({
            "system": self.name,
            "task": task.name(),
            // Not an argument: those can be read by every user of the machine.
            "url": ground.url.as_str(),
            "jobs": if task == Task::Enqueue { size.singles } else { size.jobs },
            "rate": rate,
            "seconds": seconds,
            "producers": size.producers,
            "limit_seconds": size.limit_seconds,
        });
        let patience = Duration::from_secs(2 * size.limit_seconds + seconds + 120);
        let mut driver = Command::new(&self.program[0]);
        driver.args(&self.program[1..]);
        let told = output(&mut driver, Some(format!("{order}\n")), patience).await?;
        let line = told.lines().last().context("the driver told nothing")?;
        serde_json::from_str(line).with_context(|| format!("the driver told {line:?}"))
    }
}

/// Runs a program to its end and gives what it printed; its last words are the error.
async fn output(command: &mut Command, input: Option<String>, patience: Duration) -> anyhow::Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| name.clone())?;
    if let Some(mut stdin) = child.stdin.take()
        && let Some(input) = input
    {
        stdin.write_all(input.as_bytes()).await?;
    }
    let ended = tokio::time::timeout(patience, child.wait_with_output())
        .await
        .with_context(|| format!("{name} took longer than {patience:?}"))??;
    if !ended.status.success() {
        let words = String::from_utf8_lossy(&ended.stderr);
        let words: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
        anyhow::bail!("{name}: {}: {}", ended.status, words[words.len().saturating_sub(4)..].join(" / "));
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}
