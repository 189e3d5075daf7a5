//! The house a command runs in: the configured services, or the embedded ones.
//!
//! Without a database URL a real Postgres is started (or joined) under `embedded.data_dir`;
//! without an S3 endpoint and keys an S3 server in this process serves a folder there.

use crate::config::Config;
use crate::context::Context;
use crate::runtime::embedded_pg::EmbeddedPostgres;
use crate::runtime::embedded_s3::EmbeddedS3;
use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};
use std::sync::Arc;

/// The services, running, and the settings that lead to them.
pub struct House {
    pub settings: Config,
    postgres: Option<EmbeddedPostgres>,
    store: Option<EmbeddedS3>,
}

impl House {
    /// Starts what is not configured; the schema is brought up to date when Postgres is ours.
    pub async fn open(settings: Config) -> anyhow::Result<Self> {
        let (house, faults) = Self::open_what_can(settings).await;
        match faults.into_iter().next() {
            None => Ok(house),
            Some((_, fault)) => {
                house.close().await?;
                Err(fault)
            }
        }
    }

    /// [`House::open`] for one who wants to know what does not start: by name, and why.
    pub async fn open_what_can(settings: Config) -> (Self, Vec<(&'static str, anyhow::Error)>) {
        let mut house = Self::bare(settings);
        let mut faults = Vec::new();
        if let Err(fault) = house.start_postgres().await {
            faults.push(("database", fault));
        }
        if let Err(fault) = house.start_store().await {
            faults.push(("objects", fault));
        }
        if house.postgres.is_some()
            && let Err(fault) = house.migrate().await
        {
            faults.push(("schema", fault));
        }
        (house, faults)
    }

    async fn start_postgres(&mut self) -> anyhow::Result<()> {
        if self.settings.database.url.is_none() {
            let server = EmbeddedPostgres::start(&self.settings.embedded).await?;
            self.settings.database.url = Some(SecretString::from(server.url.clone()));
            let seal = &mut self.settings.seal;
            if seal.keys.is_empty() && seal.file.as_os_str().is_empty() {
                seal.file = self.settings.embedded.data_dir.join("seal.key");
            }
            self.postgres = Some(server);
        }
        Ok(())
    }

    async fn start_store(&mut self) -> anyhow::Result<()> {
        let objects = &mut self.settings.objects;
        if objects.endpoint.is_empty() && objects.access_key.is_none() {
            // The server listens on this machine alone; each process has keys of its own.
            let (access, secret) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
            let folder = self.settings.embedded.data_dir.join("objects");
            let server = EmbeddedS3::start(&folder, &access, &secret).await?;
            objects.endpoint.clone_from(&server.endpoint);
            objects.access_key = Some(SecretString::from(access));
            objects.secret_key = Some(SecretString::from(secret));
            self.store = Some(server);
        }
        Ok(())
    }

    /// Whether this process serves the objects itself.
    pub fn has_own_store(&self) -> bool {
        self.store.is_some()
    }

    /// Nothing but the settings, for a command that needs no services of ours.
    pub fn bare(settings: Config) -> Self {
        Self { settings, postgres: None, store: None }
    }

    /// Brings the schema up to date as the role that logs in; several at once are safe.
    pub async fn migrate(&self) -> anyhow::Result<usize> {
        let db = self.owner().await?;
        let before = applied(&db).await;
        crate::MIGRATOR.run(&db).await?;
        crate::runtime::every_kind().publish(&db).await?;
        self.offer(&db).await?;
        let after = applied(&db).await;
        db.close().await;
        Ok(after - before)
    }

    /// Makes the settings' MCP servers the catalogue's, which the worker's role may not.
    async fn offer(&self, db: &sqlx::PgPool) -> anyhow::Result<()> {
        let servers = &self.settings.mcp.servers;
        crate::catalogue::check(servers)?;
        for name in crate::store::mcp_servers::offer(&mut *db.acquire().await?, servers).await? {
            tracing::warn!(name, "the server of the settings is not offered: an operator's row has its name");
        }
        Ok(())
    }

    /// A connection with the rights of whoever logs in, for what the worker's role may not do.
    pub async fn owner(&self) -> anyhow::Result<sqlx::PgPool> {
        let url = self.settings.database.url.as_ref().context("set DATABASE_URL")?.expose_secret();
        let patience = std::time::Duration::from_secs_f64(self.settings.database.connect_seconds);
        crate::store::reach(&url.parse()?, patience).await?;
        Ok(sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(url).await?)
    }

    /// Opens the handles of jobs.
    pub async fn context(&self) -> anyhow::Result<Arc<Context>> {
        let program = std::env::current_exe().context("this program does not know its own path")?;
        let ctx = Context::open(self.settings.clone(), program).await?;
        crate::runtime::every_kind().publish(&ctx.db).await?;
        if self.store.is_some() {
            ctx.objects.ensure_bucket(&self.settings.objects.bucket).await?;
        }
        Ok(Arc::new(ctx))
    }

    /// Stops what was started here.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Some(store) = self.store {
            store.stop().await;
        }
        if let Some(postgres) = self.postgres {
            postgres.stop().await?;
        }
        Ok(())
    }
}

async fn applied(db: &sqlx::PgPool) -> usize {
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM gristmill._sqlx_migrations WHERE success");
    // Before the first migration there is no ledger.
    count.fetch_one(db).await.unwrap_or_default() as usize
}
