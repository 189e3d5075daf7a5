//! Databases of a test that needs many: each a copy of one that is migrated already.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool};
use std::str::FromStr;

/// A migrated database nobody is connected to, and the copies made of it.
pub struct Template {
    server: PgConnectOptions,
    name: String,
}

impl Template {
    /// Migrates a new database on the server of `DATABASE_URL`.
    pub async fn new() -> anyhow::Result<Self> {
        let server = PgConnectOptions::from_str(&std::env::var("DATABASE_URL")?)?;
        let template = Self { server, name: format!("chaos_{}", uuid::Uuid::now_v7().simple()) };
        template.run(format!("CREATE DATABASE {}", template.name)).await?;
        let mut connection = template.server.clone().database(&template.name).connect().await?;
        gristmill::MIGRATOR.run(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        Ok(template)
    }

    /// A copy for one run, seen as its owner.
    pub async fn copy(&self, n: usize) -> anyhow::Result<PgPool> {
        let name = format!("{}_{n}", self.name);
        self.run(format!("CREATE DATABASE {name} TEMPLATE {}", self.name)).await?;
        let options = self.server.clone().database(&name);
        Ok(PgPoolOptions::new().max_connections(4).connect_with(options).await?)
    }

    /// Drops a copy, whoever is still connected.
    pub async fn drop_copy(&self, copy: &PgPool) -> anyhow::Result<()> {
        let name = copy.connect_options().get_database().map(str::to_owned);
        copy.close().await;
        self.run(format!("DROP DATABASE {} WITH (FORCE)", name.unwrap_or_default())).await
    }

    pub async fn remove(self) -> anyhow::Result<()> {
        self.run(format!("DROP DATABASE {} WITH (FORCE)", self.name)).await
    }

    async fn run(&self, statement: String) -> anyhow::Result<()> {
        let mut connection: PgConnection = self.server.connect().await?;
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        Ok(())
    }
}
