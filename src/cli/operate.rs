//! The commands of everyday: run, migrate, ingest, forget, enqueue, look.

use crate::cli::house::House;
use crate::cli::{ingest, watch};
use crate::domain::{AttachmentId, WorkspaceId};
use crate::runtime::{Stopped, Worker, every_kind};
use crate::store::{jobs, tenants};
use anyhow::Context as _;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Works until a signal: the first lets jobs finish, the second hands them back at once.
pub async fn up(house: &House, migrate: bool) -> anyhow::Result<ExitCode> {
    if migrate {
        house.migrate().await?;
    }
    let ctx = house.context().await?;
    let worker = Worker::start(&ctx, every_kind)?;
    let (database, objects) = (database(house), house.settings.objects.endpoint.clone());
    let stopped = worker.until_told(move || tracing::info!(database, objects, "working")).await?;
    // Jobs have ended or are handed back: nobody waits for an answer of these any more.
    ctx.mcp.close_within(std::time::Duration::from_millis(500)).await;
    match stopped {
        Stopped::InOrder => Ok(ExitCode::SUCCESS),
        Stopped::InHaste => Ok(ExitCode::FAILURE),
    }
}

/// The database without its password.
pub fn database(house: &House) -> String {
    use secrecy::ExposeSecret;
    let url = house.settings.database.url.as_ref().map(|url| url.expose_secret().to_owned());
    url.and_then(|url| url::Url::parse(&url).ok())
        .map(|url| format!("{}:{}{}", url.host_str().unwrap_or("-"), url.port().unwrap_or(5432), url.path()))
        .unwrap_or_default()
}

/// Runs the migrations and says how many were new.
pub async fn migrate(house: &House) -> anyhow::Result<ExitCode> {
    match house.migrate().await? {
        0 => println!("the schema is up to date"),
        n => println!("{n} migrations applied"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whose data a command works on.
#[derive(Debug, Clone, Args)]
pub struct Tenant {
    /// The workspace, by the id the chat layer knows it by; made when it is new.
    #[arg(long, default_value = "default")]
    pub workspace: String,
}

impl Tenant {
    pub async fn find(&self, house: &House) -> anyhow::Result<WorkspaceId> {
        // The list of workspaces is the owner's: the worker's role sees one at a time.
        let db = house.owner().await?;
        let workspace = tenants::ensure_workspace(&mut *db.acquire().await?, &self.workspace).await?;
        db.close().await;
        Ok(workspace)
    }
}

/// Arguments of `ingest`.
#[derive(Debug, Args)]
pub struct Ingest {
    /// Files, folders or http(s) URLs.
    #[arg(required = true)]
    what: Vec<String>,
    #[command(flatten)]
    tenant: Tenant,
    /// The knowledge base they belong to; made when it is new.
    #[arg(long, value_name = "NAME")]
    knowledge_base: Option<String>,
    /// Queue and return; a worker that runs elsewhere does the work.
    #[arg(long)]
    no_wait: bool,
}

impl Ingest {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let workspace = self.tenant.find(house).await?;
        let ctx = house.context().await?;
        let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
        let knowledge_base = match &self.knowledge_base {
            Some(name) => Some(tenants::ensure_knowledge_base(&mut tx, workspace, name).await?),
            None => None,
        };
        tx.commit().await?;
        let into = ingest::Into { workspace, knowledge_base };
        let mut ids = Vec::new();
        for what in &self.what {
            if what.starts_with("http://") || what.starts_with("https://") {
                ids.push(ingest::url(&ctx, into, what).await?);
                continue;
            }
            for file in ingest::files_below(&[PathBuf::from(what)])? {
                ids.push(ingest::file(&ctx, into, &file).await?);
            }
        }
        if self.no_wait {
            for id in ids {
                println!("{id}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let worker = Worker::start(&ctx, every_kind)?;
        let ended = watch::until_final(&ctx, workspace, &ids).await;
        worker.stop().await;
        let ended = ended?;
        println!("{}", watch::table(&ended));
        for standing in &ended {
            println!("{}  {}", standing.id, standing.name.as_deref().unwrap_or("-"));
        }
        let failed = ended.iter().filter(|s| matches!(s.status.as_str(), "FAILED" | "QUARANTINED")).count();
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }
}

/// Arguments of `forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// Attachment ids.
    #[arg(required = true)]
    attachments: Vec<AttachmentId>,
    #[command(flatten)]
    tenant: Tenant,
}

impl Forget {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let workspace = self.tenant.find(house).await?;
        let ctx = house.context().await?;
        let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
        let mut queued = Vec::new();
        for id in self.attachments {
            let forget = crate::jobs::Forget::Attachment(id);
            queued.push(crate::queue::enqueue(&mut tx, workspace, &forget).await?.job());
        }
        tx.commit().await?;
        let worker = Worker::start(&ctx, every_kind)?;
        let ended = jobs::until_over(&ctx.db, &queued).await;
        worker.stop().await;
        println!("{}", crate::cli::jobs::table(&ended?));
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `enqueue`.
#[derive(Debug, Args)]
pub struct Enqueue {
    /// The kind of job: fetch, scan, extract, embed, forget.
    kind: String,
    /// Its payload, a JSON object.
    payload: String,
    #[command(flatten)]
    tenant: Tenant,
    /// Jobs of one kind and key are one until it is over.
    #[arg(long)]
    key: Option<String>,
}

impl Enqueue {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let payload = serde_json::from_str(&self.payload).context("the payload is no JSON")?;
        let workspace = self.tenant.find(house).await?;
        let db = crate::store::connect(&house.settings.database).await?;
        every_kind().publish(&db).await?;
        let queued = jobs::enqueue_raw(&db, workspace, &self.kind, &payload, self.key.as_deref()).await;
        let (job, new) = queued.map_err(crate::queue::EnqueueError::from)?;
        println!("{job}{}", if new { "" } else { " (it was there already)" });
        Ok(ExitCode::SUCCESS)
    }
}
