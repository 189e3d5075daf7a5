//! Worker processes for tests, with a kind that misbehaves on order.
//!
//! The program itself has no such kind, so the test binary runs itself again: [`works`] is the
//! child, and does nothing unless [`Child::start`] started it. Each start and each effect is a
//! row in the tenant's events (`start:NAME`, `effect:NAME`).

use crate::world::{World, program};
use gristmill::config::Config;
use gristmill::context::Context;
use gristmill::domain::{JobId, WorkspaceId};
use gristmill::job::{Done, Job, JobError, Turn, Why};
use gristmill::queue::{Payload, enqueue};
use gristmill::runtime::{self, Registry, Worker};
use gristmill::store::Tx;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Set for the child alone.
const MARK: &str = "GRISTMILL_TEST_CHILD";

/// A job that does what it is told to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Deed {
    pub name: String,
    #[serde(default)]
    pub act: Act,
    #[serde(default)]
    pub key: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub enum Act {
    /// Marks its start and its effect.
    #[default]
    Mark,
    /// Writes nothing at all: for many.
    Noop,
    /// Sleeps between start and effect, and can be stopped there.
    Sleep {
        ms: u64,
    },
    /// Blocks its thread between start and effect: nothing can stop it.
    Block {
        ms: u64,
    },
    /// Ends the whole process.
    Abort,
    Panic,
    /// Fails with this reason.
    Fail {
        reason: String,
    },
    /// Fails with words that Postgres does not store.
    FailWithNul,
    /// Asks for a wait longer than any interval.
    WaitForEver,
}

impl Deed {
    pub fn new(name: impl Into<String>, act: Act) -> Self {
        Self { name: name.into(), act, key: None }
    }
}

impl Payload for Deed {
    const KIND: &'static str = "deed";

    fn key(&self) -> Option<String> {
        self.key.clone()
    }
}

impl Job for Deed {
    const TIMEOUT: Duration = Duration::from_mins(2);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        if matches!(self.act, Act::Noop) {
            return Ok(turn.nothing_to_write());
        }
        let mut started = turn.begin(ctx).await?;
        mark(&mut started, turn.workspace(), &format!("start:{}", self.name)).await?;
        started.commit().await?;
        match &self.act {
            Act::Mark | Act::Noop => {}
            Act::Sleep { ms } => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Act::Block { ms } => std::thread::sleep(Duration::from_millis(*ms)),
            Act::Abort => std::process::abort(),
            Act::Panic => panic!("kaboom"),
            Act::FailWithNul => return Err(JobError::transient(anyhow::anyhow!("zero\0: here"))),
            Act::WaitForEver => {
                return Err(JobError::Wait { delay: Duration::MAX, reason: "of \0".into() });
            }
            Act::Fail { reason } => return Err(JobError::transient(anyhow::anyhow!(reason.clone()))),
        }
        let mut tx = turn.begin(ctx).await?;
        mark(&mut tx, turn.workspace(), &format!("effect:{}", self.name)).await?;
        turn.finish(tx).await
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        let workspace: uuid::Uuid =
            sqlx::query_scalar("SELECT gristmill.current_workspace()").fetch_one(&mut **tx).await?;
        mark(tx, WorkspaceId(workspace), &format!("gave_up:{}:{}", self.name, why.code)).await
    }
}

async fn mark(tx: &mut Tx, workspace: WorkspaceId, text: &str) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body)
         VALUES ($1, 'test.mark', $2, $1, '{}')",
    )
    .bind(workspace.0)
    .bind(text)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub fn registry() -> Registry {
    Registry::default().with::<Deed>()
}

impl World {
    /// Queues a deed.
    pub async fn order(&self, deed: &Deed) -> anyhow::Result<JobId> {
        if self.count("SELECT count(*) FROM gristmill.kinds WHERE kind = 'deed'").await? == 0 {
            registry().publish(&self.admin).await?;
        }
        let mut tx = self.admin.begin().await?;
        let queued = enqueue(&mut tx, self.workspace, deed).await?;
        tx.commit().await?;
        Ok(queued.job())
    }

    /// How often a deed left this mark.
    pub async fn marks(&self, text: &str) -> anyhow::Result<i64> {
        let sql = "SELECT count(*) FROM gristmill.events WHERE type = 'test.mark' AND subject = $1";
        Ok(sqlx::query_scalar(sql).bind(text).fetch_one(&self.admin).await?)
    }
}

/// A worker process that knows deeds; killed when the test is done with it, however it ends.
pub struct Child {
    pub process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts a worker on this database with short leases; `settings` are `GRISTMILL__…` pairs.
    /// Its log lies in `folder`.
    pub fn start(url: &str, folder: &std::path::Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let log = folder.join(format!("{}.log", uuid::Uuid::now_v7()));
        let process = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "--nocapture", "child::works"])
            .env(MARK, "1")
            .env("DATABASE_URL", url)
            .env("GRISTMILL__DATABASE__MAX_CONNECTIONS", "6")
            .env("GRISTMILL__EMBEDDED__DATA_DIR", folder.join("data"))
            .env("GRISTMILL__QUEUE__LEASE_SECONDS", "1.5")
            .env("GRISTMILL__QUEUE__POLL_MS", "20")
            .env("GRISTMILL__QUEUE__BACKOFF_SECONDS", "0.05")
            .env("GRISTMILL__QUEUE__GRACE_SECONDS", "1")
            .env("GRISTMILL__LOG__FILTER", "gristmill=debug,sqlx=warn")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Self { process, log })
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the process is our child and was not waited for.
        unsafe { libc::kill(self.process.id() as libc::pid_t, signal) };
    }

    /// Waits for its end; with what it said when it does not come.
    pub async fn ended(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(began.elapsed() < patience, "still alive after {patience:?}\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// What it said, for the message of a test that fails.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Not a test: the worker process that [`Child::start`] runs.
#[test]
#[ignore = "the child of other tests"]
fn works() {
    if std::env::var(MARK).is_err() {
        return;
    }
    let settings = Config::load(None).unwrap();
    tracing_subscriber::fmt()
        .with_env_filter(&settings.log.filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let ended = runtime::block_on(async {
        let db: PgPool = gristmill::store::connect(&settings.database).await?;
        let embedder = gristmill::embed::Embedder::hashing(64);
        let ctx = Arc::new(Context::with(settings, program(), db, embedder)?);
        Worker::start(&ctx, registry)?.until_told(|| ()).await
    });
    std::process::exit(match ended {
        Ok(runtime::Stopped::InOrder) => 0,
        Ok(runtime::Stopped::InHaste) => 1,
        Err(error) => {
            eprintln!("child: {error:#}");
            2
        }
    });
}
