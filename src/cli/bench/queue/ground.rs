//! Databases to measure in: one for each task of each system, all on the configured server.

use crate::store::bench;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use url::Url;

/// Connections of everything that is not the measured worker: callers and looks at the table.
const CONNECTIONS: u32 = 10;

/// The server, and the names of what is made on it.
pub struct Server {
    url: Url,
    prefix: String,
    made: usize,
}

/// An empty database.
pub struct Ground {
    pub url: Url,
}

impl Server {
    pub fn new(url: &str) -> anyhow::Result<Self> {
        // Names no other run on this server has.
        let prefix = format!("gristmill_bench_{:08x}_", rand::random::<u32>());
        Ok(Self { url: Url::parse(url)?, prefix, made: 0 })
    }

    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        PgConnection::connect(self.url.as_str()).await
    }

    /// An empty database on a server that has nothing left to write.
    pub async fn lay(&mut self) -> anyhow::Result<Ground> {
        let mut conn = self.connect().await?;
        self.made += 1;
        let name = format!("{}{}", self.prefix, self.made);
        bench::create_database(&mut conn, &name).await?;
        if let Err(error) = bench::checkpoint(&mut conn).await {
            tracing::debug!(%error, "no checkpoint: not the right to");
        }
        conn.close().await?;
        let mut url = self.url.clone();
        url.set_path(&name);
        Ok(Ground { url })
    }

    /// Drops every database this run made.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let mut conn = self.connect().await?;
        bench::drop_databases(&mut conn, &self.prefix).await?;
        conn.close().await?;
        Ok(())
    }
}

impl Ground {
    /// A pool with the rights of whoever logs in.
    pub async fn pool(&self) -> sqlx::Result<PgPool> {
        PgPoolOptions::new().max_connections(CONNECTIONS).connect(self.url.as_str()).await
    }
}
