//! The way to a server: over a socket of our own to an address that the guard admitted.
//!
//! The database driver would look a name up itself, so a second answer could lead elsewhere, and
//! a server could send more than there is memory for. So it is given a Unix socket, behind which
//! the bytes go to the admitted address and are counted; the name stays the driver's, for TLS.

use super::error::SqlError;
use crate::guard::{Guard, Refusal};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

/// A socket that leads to one server, for as long as this lives.
pub(super) struct Relay {
    folder: TempDir,
    port: u16,
    overran: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

/// The addresses of a host that may be reached.
pub(super) async fn admitted(guard: &Guard, host: &str, port: u16) -> Result<Vec<SocketAddr>, SqlError> {
    let found = tokio::net::lookup_host((host, port)).await;
    let mut refusal = None;
    let mut kept = Vec::new();
    for address in found.map_err(|_| SqlError::Lookup(host.to_owned()))? {
        match guard.admit(host, address.ip()) {
            Ok(()) => kept.push(address),
            Err(reason) => refusal = Some(reason),
        }
    }
    match refusal {
        _ if !kept.is_empty() => Ok(kept),
        Some(reason) => Err(SqlError::Refused { reason }),
        None => Err(SqlError::Refused { reason: Refusal::NoHost }),
    }
}

/// How far a relay goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub connect: Duration,
    /// Bytes that the server may send over one connection.
    pub bytes: u64,
}

impl Relay {
    /// Listens under the name that Postgres' driver looks for; MySQL's takes any.
    pub(super) fn open(addresses: Vec<SocketAddr>, port: u16, limits: Limits) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gm").tempdir()?;
        let listener = UnixListener::bind(socket(folder.path(), port))?;
        let overran = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&overran);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (addresses, told) = (addresses.clone(), Arc::clone(&told));
                connections.spawn(async move {
                    // Either end's failure is seen by the driver as a lost connection.
                    let ended = carry(near, &addresses, limits).await;
                    if ended.is_err_and(|error| error.kind() == io::ErrorKind::FileTooLarge) {
                        told.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        Ok(Self { folder, port, overran, _task: AbortOnDropHandle::new(task) })
    }

    /// Whether a connection was cut because the server sent more than is taken in.
    pub(super) fn overran(&self) -> bool {
        self.overran.load(Ordering::Relaxed)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn socket(&self) -> PathBuf {
        socket(self.folder.path(), self.port)
    }
}

fn socket(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}

async fn carry(near: UnixStream, addresses: &[SocketAddr], limits: Limits) -> io::Result<()> {
    let far = tokio::time::timeout(limits.connect, TcpStream::connect(addresses)).await??;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // One end closing closes both: a driver that went away must not keep the server's session.
    tokio::select! {
        done = pass(near_in, far_out, u64::MAX) => done,
        done = pass(far_in, near_out, limits.bytes) => done,
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut into: impl AsyncWrite + Unpin,
    mut left: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        left = left.checked_sub(n as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        into.write_all(&buffer[..n]).await?;
    }
}
