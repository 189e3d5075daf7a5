//! A Postgres of a test's own, which can be stopped without a word and started on what is left.
//!
//! It writes through to the disk (`fsync` on), as one in service does.

use crate::kit::process::send;
use gristmill::config;
use gristmill::runtime::embedded_pg::EmbeddedPostgres;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running server; it is gone when this is dropped.
pub struct Server {
    settings: config::Embedded,
    running: EmbeddedPostgres,
    folder: tempfile::TempDir,
}

impl Server {
    pub async fn start(deps: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        // A root caller starts Postgres as another user, who must come in.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let settings = config::Embedded { data_dir: folder.path().into(), deps_dir: deps.into() };
        let running = EmbeddedPostgres::start(&settings).await?;
        Ok(Self { settings, running, folder })
    }

    /// The superuser's address; its port changes with each start.
    pub fn url(&self) -> &str {
        &self.running.url
    }

    pub fn at(&self) -> anyhow::Result<SocketAddr> {
        Ok(url::Url::parse(self.url())?.socket_addrs(|| None)?[0])
    }

    fn postmaster(&self) -> Option<u32> {
        let file = self.running.home.join("home/data/postmaster.pid");
        std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
    }

    /// Immediate stop: no checkpoint, no goodbye; then a start, which recovers from the log.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        let postmaster = self.postmaster().ok_or_else(|| anyhow::anyhow!("the server does not run"))?;
        send(postmaster, libc::SIGQUIT);
        let began = Instant::now();
        while Path::new("/proc").join(postmaster.to_string()).exists() {
            anyhow::ensure!(began.elapsed() < PATIENCE, "Postgres outlived its immediate stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.running = EmbeddedPostgres::start(&self.settings).await?;
        anyhow::ensure!(!self.running.reused, "Postgres was never gone");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(postmaster) = self.postmaster() {
            send(postmaster, libc::SIGQUIT);
            let began = Instant::now();
            while Path::new("/proc").join(postmaster.to_string()).exists() && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // Where the server's user could not enter the folder it kept its data elsewhere.
        if !self.running.home.starts_with(self.folder.path()) {
            std::fs::remove_dir_all(&self.running.home).ok();
        }
    }
}
