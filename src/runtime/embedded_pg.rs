//! A Postgres of our own, for `gristmill up` and the demo: nothing to install, data in a folder.
//!
//! Before it stands `make deps`, which brings the server in one executable; after it the
//! migrations, for which its superuser is handed out. Postgres refuses to run as root, so a
//! root caller starts it as `nobody`. Several processes may share one server: each holds a
//! lock while it uses it, and the last to let go stops it. A process that is killed leaves
//! the server running; the next one finds and uses it.

use crate::config;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

const NOBODY: u32 = 65534;
const INSTANCE: &str = "gristmill";
const SUPERUSER: &str = "postgres";
const DATABASE: &str = "gristmill";
/// How long a start waits for the rests of a killed server to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the server is started with. `fsync` is named because the launcher turns it off otherwise.
const OPTIONS: [(&str, &str); 8] = [
    ("fsync", "on"),
    ("listen_addresses", "127.0.0.1"),
    // A socket's path may be 107 bytes long; a data folder's often is longer.
    ("unix_socket_directories", ""),
    ("max_connections", "200"),
    ("shared_buffers", "128MB"),
    ("work_mem", "16MB"),
    // Building an HNSW index in memory needs about 2 kB a chunk of 384 dimensions.
    ("maintenance_work_mem", "256MB"),
    ("max_wal_size", "2GB"),
];

/// Why the embedded Postgres did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedPgError {
    #[error("{} is missing: run `make deps`, or set DATABASE_URL to use a Postgres of yours", .0.display())]
    Missing(PathBuf),
    #[error("the embedded Postgres did not {action} (status {status:?}); its last words, in {}:\n{words}", log.display())]
    Refused { action: &'static str, status: Option<i32>, log: PathBuf, words: String },
    #[error("the embedded Postgres runs, but its launcher told something unexpected")]
    Unreadable(#[from] serde_json::Error),
    #[error("{}", path.display())]
    File { path: PathBuf, source: std::io::Error },
}

/// A running server, and a share in keeping it so.
pub struct EmbeddedPostgres {
    /// The superuser's address, password included: for migrations, not for logs.
    pub url: String,
    /// Whether it was running before; then nothing was started.
    pub reused: bool,
    /// Where it keeps everything; outside `data_dir` when its user could not go there.
    pub home: PathBuf,
    launcher: Launcher,
    in_use: File,
}

impl EmbeddedPostgres {
    /// Starts the server of `data_dir`, or joins the one that already runs for it.
    pub async fn start(settings: &config::Embedded) -> anyhow::Result<Self> {
        Self::start_with(settings, &[]).await
    }

    /// The same with server settings of the caller's, which win over ours.
    pub async fn start_with(settings: &config::Embedded, extra: &[(&str, &str)]) -> anyhow::Result<Self> {
        let launcher = Launcher::prepare(settings)?;
        let in_use = open_lock(&launcher.base.join("in-use.lock"))?;
        let _starting = exclusive(launcher.base.join("start.lock")).await?;
        let (url, reused) = match launcher.running_url().await? {
            Some(url) => (url, true),
            None => (launcher.start(extra).await?, false),
        };
        in_use.lock_shared().map_err(at(&launcher.base))?;
        Ok(Self { url, reused, home: launcher.base.clone(), launcher, in_use })
    }

    /// Lets go of the server, and stops it unless another process still uses it.
    pub async fn stop(self) -> anyhow::Result<()> {
        let _starting = exclusive(self.launcher.base.join("start.lock")).await?;
        drop(self.in_use);
        let in_use = open_lock(&self.launcher.base.join("in-use.lock"))?;
        if in_use.try_lock().is_err() {
            return Ok(());
        }
        self.launcher.run("stop", &["--name", INSTANCE, "--timeout", "30"]).await?;
        Ok(())
    }
}

/// The `pg0` executable with the folders and the user it runs with.
struct Launcher {
    executable: PathBuf,
    /// Locks and the password: the caller's.
    base: PathBuf,
    /// The server's own: unpacked program, data and log.
    home: PathBuf,
    password: String,
    as_nobody: bool,
}

#[derive(serde::Deserialize)]
struct Info {
    running: bool,
    uri: Option<String>,
}

impl Launcher {
    fn prepare(settings: &config::Embedded) -> Result<Self, EmbeddedPgError> {
        let packed = absolute(&settings.deps_dir.join("pg0/pg0"))?;
        if !packed.is_file() {
            return Err(EmbeddedPgError::Missing(packed));
        }
        // SAFETY: geteuid reads one number of this process and cannot fail.
        let as_nobody = unsafe { libc::geteuid() } == 0;
        let base = place(&absolute(&settings.data_dir)?, as_nobody)?;
        let home = base.join("home");
        make_folder(&home, 0o700)?;
        if as_nobody {
            std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).map_err(at(&home))?;
        }
        let executable = if as_nobody && !open_to_all(&packed) { lend(&packed, &base)? } else { packed };
        let password = password(&base.join("superuser-password"))?;
        Ok(Self { executable, base, home, password, as_nobody })
    }

    /// The address of the running server, once it really answers.
    async fn running_url(&self) -> anyhow::Result<Option<String>> {
        let told = self.run("info", &["--name", INSTANCE, "--output", "json"]).await?;
        let info: Info = serde_json::from_str(&told).map_err(EmbeddedPgError::from)?;
        let Some(url) = info.uri.filter(|_| info.running) else { return Ok(None) };
        Ok(answers(&url).await.then_some(url))
    }

    async fn start(&self, extra: &[(&str, &str)]) -> anyhow::Result<String> {
        let data = self.home.join("data");
        let data_dir = data.display().to_string();
        let options: Vec<String> = OPTIONS
            .iter()
            .filter(|(key, _)| extra.iter().all(|(other, _)| other != key))
            .chain(extra)
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let began = Instant::now();
        loop {
            remove_stale_pid(&data.join("postmaster.pid"));
            let port = free_port()?.to_string();
            let mut arguments = vec!["--name", INSTANCE, "--port", &port, "--data-dir", &data_dir];
            arguments.extend(["--username", SUPERUSER, "--password", &self.password, "--database", DATABASE]);
            arguments.extend(options.iter().flat_map(|option| ["--config", option]));
            match self.run("start", &arguments).await {
                Ok(_) => {
                    return Ok(format!(
                        "postgresql://{SUPERUSER}:{}@127.0.0.1:{port}/{DATABASE}",
                        self.password
                    ));
                }
                // A killed server's children need a moment to notice; the port may be snatched.
                Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(300)).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs one of the launcher's commands and returns what it printed.
    ///
    /// Its output goes through files: the server inherits them, so a pipe would never end.
    async fn run(&self, action: &'static str, arguments: &[&str]) -> Result<String, EmbeddedPgError> {
        let (out, log) = (self.base.join(format!("{action}.out")), self.base.join(format!("{action}.log")));
        let mut command = Command::new(&self.executable);
        command
            .arg(action)
            .args(arguments)
            .env_clear()
            .env("HOME", &self.home)
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", if cfg!(target_os = "linux") { "C.UTF-8" } else { "en_US.UTF-8" })
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(private_file(&out)?)
            .stderr(private_file(&log)?)
            // Ctrl-C in a terminal reaches the whole group: the server must outlive our own stop.
            .process_group(0);
        if self.as_nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        let status = command.status().await.map_err(at(&self.executable))?;
        let printed = fs::read_to_string(&out).map_err(at(&out))?;
        fs::remove_file(&out).map_err(at(&out))?;
        if status.success() {
            return Ok(printed);
        }
        let words = tail(&fs::read_to_string(&log).unwrap_or_default());
        Err(EmbeddedPgError::Refused { action, status: status.code(), log, words })
    }
}

/// The folder for everything: in `data_dir`, or, when `nobody` could not get there, in a place
/// of the system that is told apart by the path it stands for.
fn place(data_dir: &Path, as_nobody: bool) -> Result<PathBuf, EmbeddedPgError> {
    let wanted = data_dir.join("postgres");
    make_folder(&wanted, 0o755)?;
    if !as_nobody || open_to_all(&wanted) {
        return Ok(wanted);
    }
    let name = hex::encode(Sha256::digest(wanted.as_os_str().as_encoded_bytes()));
    let mut root = PathBuf::from("/var/lib");
    if !root.is_dir() {
        root = std::env::temp_dir();
    }
    let instead = root.join("gristmill").join(&name[..12]);
    make_folder(&instead, 0o755)?;
    tracing::warn!(
        wanted = %wanted.display(),
        instead = %instead.display(),
        "Postgres may not run as root, and its user cannot enter the data folder: it keeps its data elsewhere"
    );
    Ok(instead)
}

/// Whether every user may pass through all folders down to `path`, and enter or run it.
fn open_to_all(path: &Path) -> bool {
    path.ancestors().all(|part| fs::metadata(part).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}

/// A copy of the launcher where its user can reach it.
fn lend(packed: &Path, base: &Path) -> Result<PathBuf, EmbeddedPgError> {
    let copy = base.join("pg0");
    let size = |path: &Path| fs::metadata(path).map(|m| m.len()).ok();
    if size(packed) != size(&copy) {
        let half = base.join("pg0.part");
        fs::copy(packed, &half).map_err(at(&half))?;
        fs::set_permissions(&half, fs::Permissions::from_mode(0o755)).map_err(at(&half))?;
        fs::rename(&half, &copy).map_err(at(&copy))?;
    }
    Ok(copy)
}

/// The superuser's password: made once, readable by its owner alone.
fn password(path: &Path) -> Result<String, EmbeddedPgError> {
    match fs::read_to_string(path) {
        Ok(known) if !known.is_empty() => Ok(known),
        _ => {
            let fresh = hex::encode(rand::random::<[u8; 24]>());
            private_file(path)?.write_all(fresh.as_bytes()).map_err(at(path))?;
            Ok(fresh)
        }
    }
}

/// Removes a pid file whose number now belongs to another program, as after a restarted
/// container: Postgres would wait for that program to end.
fn remove_stale_pid(path: &Path) {
    let pid = fs::read_to_string(path).ok().and_then(|text| text.lines().next()?.parse::<u32>().ok());
    let program = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    if program.is_some_and(|name| !name.starts_with("postgres")) {
        fs::remove_file(path).ok();
    }
}

async fn answers(url: &str) -> bool {
    match tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(url)).await {
        Ok(Ok(connection)) => connection.close().await.is_ok(),
        _ => false,
    }
}

fn free_port() -> Result<u16, EmbeddedPgError> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0));
    listener.and_then(|l| l.local_addr()).map(|a| a.port()).map_err(at(Path::new("127.0.0.1:0")))
}

async fn exclusive(path: PathBuf) -> Result<File, EmbeddedPgError> {
    let file = open_lock(&path)?;
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(std::io::Error::other).flatten().map_err(at(&path))
}

fn open_lock(path: &Path) -> Result<File, EmbeddedPgError> {
    File::options().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(at(path))
}

fn private_file(path: &Path) -> Result<File, EmbeddedPgError> {
    File::options().create(true).truncate(true).write(true).mode(0o600).open(path).map_err(at(path))
}

fn make_folder(path: &Path, mode: u32) -> Result<(), EmbeddedPgError> {
    fs::create_dir_all(path).map_err(at(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))
}

fn absolute(path: &Path) -> Result<PathBuf, EmbeddedPgError> {
    std::path::absolute(path).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> EmbeddedPgError {
    let path = path.to_owned();
    move |source| EmbeddedPgError::File { path, source }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[cfg(test)]
#[path = "embedded_pg_tests.rs"]
mod tests;
