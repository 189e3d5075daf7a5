//! An S3 server in this process over a folder: for `gristmill up`, the demo and the tests.
//!
//! It is `s3s-fs`: signatures, ranges, multipart and etags are real. It does not look at
//! If-Match on GET, keeps no versions and knows one user; in production stands another server.

use anyhow::Context;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::path::Path;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A running server; dropped, it stops at once.
#[derive(Debug)]
pub struct EmbeddedS3 {
    /// `http://127.0.0.1:port`, for path-style addresses.
    pub endpoint: String,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl EmbeddedS3 {
    /// Serves the folder `root` (made if absent) on a free port of 127.0.0.1.
    pub async fn start(root: &Path, access_key: &str, secret_key: &str) -> anyhow::Result<Self> {
        tokio::fs::create_dir_all(root).await.with_context(|| format!("cannot make {}", root.display()))?;
        let folder = s3s_fs::FileSystem::new(root)
            .map_err(|e| anyhow::anyhow!("cannot serve {}: {e:?}", root.display()))?;
        let mut service = S3ServiceBuilder::new(folder);
        service.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no free port")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, service.build(), stop.clone()));
        Ok(Self { endpoint, stop, server })
    }

    /// Stops the server and waits until its connections are gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // An error here is a panic of the server, which has ended then as well.
        let _ = (&mut self.server).await;
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match socket {
            Ok((socket, _)) => {
                let service = service.clone();
                connections.spawn(async move {
                    let answered = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                    if let Err(error) = answered {
                        tracing::debug!("embedded S3: connection ended: {error}");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: a pause lets some come back.
                tracing::warn!("embedded S3: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    connections.shutdown().await;
}
