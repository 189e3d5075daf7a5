//! A world for one test: its own database, a tenant, and the worker's handles.

use gristmill::config::Config;
use gristmill::context::Context;
use gristmill::domain::{JobId, WorkspaceId};
use gristmill::runtime::embedded_s3::EmbeddedS3;
use gristmill::runtime::{Registry, Worker};
use sqlx::{PgPool, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Quick leases and back-offs, so that a test of hours takes a second.
pub fn settings() -> Config {
    let mut settings = Config::load(None).expect("the defaults are valid");
    settings.queue.lease_seconds = 1.0;
    settings.queue.poll_ms = 20;
    settings.queue.backoff_seconds = 0.05;
    settings.queue.grace_seconds = 5.0;
    settings
}

pub struct World {
    pub ctx: Arc<Context>,
    pub workspace: WorkspaceId,
    /// The owner's pool: sees every tenant.
    pub admin: PgPool,
    _folder: tempfile::TempDir,
    _store: EmbeddedS3,
}

/// The binary that runs extraction children.
pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_gristmill").into()
}

/// The address of the test's own database, for programs.
pub fn address(db: &PgPool) -> String {
    let url = std::env::var("DATABASE_URL").expect("sqlx's tests have it");
    let mut url = url::Url::parse(&url).expect("sqlx connected with it");
    url.set_path(db.connect_options().get_database().expect("each test has its own"));
    url.into()
}

/// What `make deps` brings: the model and ONNX Runtime.
pub fn deps() -> Option<PathBuf> {
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps");
    let there = deps.join("model/model.onnx").is_file() && deps.join("onnxruntime").is_dir();
    if !there {
        eprintln!("skipped: no embedding model here (`make deps` brings it)");
    }
    there.then_some(deps)
}

impl World {
    pub async fn new(admin: PgPool) -> anyhow::Result<Self> {
        Self::with(admin, settings()).await
    }

    pub async fn with(admin: PgPool, mut settings: Config) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = EmbeddedS3::start(&folder.path().join("objects"), "key", "secret").await?;
        settings.embedded.data_dir = folder.path().to_owned();
        settings.objects.endpoint.clone_from(&store.endpoint);
        settings.objects.access_key = Some("key".into());
        settings.objects.secret_key = Some("secret".into());
        let options = (*admin.connect_options()).clone();
        let db = gristmill::store::pool(options, &settings.database.role, 8).await?;
        let mut conn = admin.acquire().await?;
        let workspace = gristmill::store::tenants::ensure_workspace(&mut conn, "acme").await?;
        let embedder = gristmill::embed::Embedder::hashing(64);
        let ctx = Context::with(settings, program(), db, embedder)?;
        ctx.objects.ensure_bucket(&ctx.settings.objects.bucket).await?;
        gristmill::runtime::every_kind().publish(&ctx.db).await?;
        Ok(Self { ctx: Arc::new(ctx), workspace, admin, _folder: folder, _store: store })
    }

    /// As if every worker had been started anew, with other settings.
    pub fn restart(&mut self, change: impl FnOnce(&mut Config)) -> anyhow::Result<()> {
        let mut settings = self.ctx.settings.clone();
        change(&mut settings);
        let embedder = gristmill::embed::Embedder::hashing(64);
        self.ctx = Arc::new(Context::with(settings, program(), self.ctx.db.clone(), embedder)?);
        Ok(())
    }

    /// Works until no job is due, running, or scheduled, then stops and checks for leaks.
    pub async fn work(&self, registry: impl Fn() -> Registry) -> anyhow::Result<()> {
        let worker = Worker::start(&self.ctx, registry)?;
        let quiet = self
            .until(
                "no job is left",
                "SELECT count(*) = 0 FROM gristmill.jobs WHERE state IN ('WAITING', 'SCHEDULED', 'RUNNING')",
            )
            .await;
        worker.stop().await;
        quiet
    }

    /// Waits until the owner's query answers true.
    pub async fn until(&self, what: &str, sql: &'static str) -> anyhow::Result<()> {
        self.within(Duration::from_secs(30), what, sql).await
    }

    pub async fn within(&self, patience: Duration, what: &str, sql: &'static str) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < patience {
            if sqlx::query_scalar::<_, bool>(sql).fetch_one(&self.admin).await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("{patience:?} went by before {what}")
    }

    /// State, attempts and reason of a job.
    pub async fn job(&self, id: JobId) -> anyhow::Result<(String, i16, Option<String>)> {
        let row = sqlx::query("SELECT state::text, attempts, reason FROM gristmill.jobs WHERE id = $1")
            .bind(id.0)
            .fetch_one(&self.admin)
            .await?;
        Ok((row.get(0), row.get(1), row.get(2)))
    }

    pub async fn count(&self, sql: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&self.admin).await?)
    }
}
