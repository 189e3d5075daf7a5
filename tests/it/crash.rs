//! Worker processes that are killed, stopped or frozen while they embed: another goes on where
//! they stopped, and what they still try to write changes nothing.
//!
//! The processes are real, with the real model; without `make deps` these tests say so and pass.

use crate::world::{World, address, deps};
use chrono::{DateTime, TimeDelta, Utc};
use gristmill::chunk::{self, Chunker};
use gristmill::config;
use gristmill::domain::{AttachmentId, Syntax};
use sqlx::PgPool;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_secs(2);
/// Until a dead worker's job is at work again, at most: three leases.
const DELAY: TimeDelta = TimeDelta::seconds(3 * LEASE.as_secs() as i64);
const CHUNK: usize = 128;
/// `embed.checkpoint`: what a crash may embed again at most.
const CHECKPOINT: usize = 64;
/// For what takes as long as the machine is busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// A `gristmill worker` of its own; killed when the test is done with it, however it ends.
struct Worker {
    process: Child,
    log: PathBuf,
}

impl Worker {
    fn signal(&self, signal: i32) {
        // SAFETY: a plain system call; the process is our child and was not waited for.
        unsafe { libc::kill(self.process.id() as libc::pid_t, signal) };
    }

    fn kill(&mut self) {
        self.process.kill().expect("it is our child");
        self.process.wait().expect("it is our child");
    }

    /// How many chunks it gave to the model, by its own log.
    fn embedded(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let chunks = lines.filter(|line| line["fields"]["message"] == "embedding");
        chunks.filter_map(|line| line["fields"]["chunks"].as_u64()).sum::<u64>() as usize
    }

    /// What it said, for the message of a test that fails.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A document on its way, and what its chunks must be in the end.
struct Scene {
    world: World,
    document: AttachmentId,
    chunks: Vec<String>,
    folder: tempfile::TempDir,
    deps: PathBuf,
    workers: std::cell::Cell<u32>,
}

impl Scene {
    async fn new(db: PgPool) -> anyhow::Result<Option<Self>> {
        let Some(deps) = deps() else { return Ok(None) };
        let text: String = (0..840)
            .map(|n| format!("Lot {n}: {} sacks of grain number {} came up the creek. ", n * 7 % 31, n * n))
            .collect::<Vec<_>>()
            .join("The miller wrote it into the book, and the boatman signed.\n\n");
        let world = World::new(db).await?;
        let document = world.upload("lots.txt", text.as_bytes()).await?;
        // What a run without faults would make of it.
        let tokenizer = tokenizers::Tokenizer::from_file(deps.join("model/tokenizer.json"));
        let mut tokenizer = tokenizer.map_err(|error| anyhow::anyhow!(error))?;
        tokenizer.with_truncation(None).map_err(|error| anyhow::anyhow!(error))?.with_padding(None);
        let (size, overlap) = chunk::sizes(&config::Chunk { size: CHUNK, overlap: 0 }, 256);
        let spans = Chunker::new(tokenizer, size, overlap)?.plan_str(&text, Syntax::Plain)?;
        let chunks: Vec<_> =
            spans.iter().map(|span| text[span.start as usize..span.end as usize].to_owned()).collect();
        assert!((180..260).contains(&chunks.len()), "{} chunks", chunks.len());
        let folder = tempfile::tempdir()?;
        Ok(Some(Self { world, document, chunks, folder, deps, workers: 0.into() }))
    }

    /// Starts a worker process on the test's own database and store.
    fn start(&self, data: &str) -> anyhow::Result<Worker> {
        self.workers.set(self.workers.get() + 1);
        let log = self.folder.path().join(format!("{}.log", self.workers.get()));
        let process = Command::new(env!("CARGO_BIN_EXE_gristmill"))
            .arg("worker")
            .env("DATABASE_URL", address(&self.world.admin))
            .env("GRISTMILL__DATABASE__MAX_CONNECTIONS", "8")
            .env("GRISTMILL__EMBEDDED__DATA_DIR", self.folder.path().join(data))
            .env("GRISTMILL__EMBEDDED__DEPS_DIR", &self.deps)
            .env("GRISTMILL__OBJECTS__ENDPOINT", &self.world.ctx.settings.objects.endpoint)
            .env("GRISTMILL__OBJECTS__ACCESS_KEY", "key")
            .env("GRISTMILL__OBJECTS__SECRET_KEY", "secret")
            .env("GRISTMILL__QUEUE__LEASE_SECONDS", LEASE.as_secs().to_string())
            .env("GRISTMILL__QUEUE__POLL_MS", "50")
            .env("GRISTMILL__QUEUE__BACKOFF_SECONDS", "0.1")
            .env("GRISTMILL__QUEUE__GRACE_SECONDS", "0.3")
            .env("GRISTMILL__CHUNK__SIZE", CHUNK.to_string())
            .env("GRISTMILL__LOG__FILTER", "gristmill=debug")
            .env("GRISTMILL__LOG__FORMAT", "json")
            .env("GRISTMILL__SCHEDULES__LEAD", "false")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Worker { process, log })
    }

    async fn until_half_embedded(&self, worker: &Worker) -> anyhow::Result<()> {
        let half = "SELECT coalesce(max(done), 0) >= 50 FROM gristmill.generations";
        let waited = self.world.within(PATIENCE, "50 chunks were stored", half).await;
        anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", worker.said());
        let finished = "SELECT count(*) FROM gristmill.generations WHERE finished_at IS NOT NULL";
        anyhow::ensure!(self.world.count(finished).await? == 0, "too quick for this test");
        Ok(())
    }

    async fn until_at_work(&self, worker: &Worker) -> anyhow::Result<()> {
        let own =
            "SELECT EXISTS (SELECT FROM gristmill.jobs WHERE state = 'RUNNING' AND starts_with(worker, $1))";
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let name = format!("{}-", worker.process.id());
            if sqlx::query_scalar(own).bind(name).fetch_one(&self.world.admin).await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::bail!("it took no job\n{}", worker.said())
    }

    async fn until_ready(&self, worker: &Worker) -> anyhow::Result<()> {
        let ready = "SELECT bool_and(status IN ('READY', 'FAILED')) FROM gristmill.attachments";
        let waited = self.world.within(PATIENCE, "the document was ready", ready).await;
        anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", worker.said());
        Ok(())
    }

    async fn now(&self) -> anyhow::Result<DateTime<Utc>> {
        Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.world.admin).await?)
    }

    /// State, attempts and time of the last claim of the embed job.
    async fn job(&self) -> anyhow::Result<(String, i16, DateTime<Utc>)> {
        let sql = "SELECT state::text, attempts, started_at FROM gristmill.jobs WHERE kind = 'embed'";
        Ok(sqlx::query_as(sql).fetch_one(&self.world.admin).await?)
    }

    /// Each chunk once, in order, as in a run without faults; and searchable.
    async fn check_chunks(&self) -> anyhow::Result<()> {
        let ended = self.world.ended(self.document).await?;
        assert_eq!(ended, ("READY".into(), "-".into(), "INDEXED".into()));
        let stored = self.world.chunks(self.document).await?;
        let ords: Vec<_> = stored.iter().map(|chunk| chunk.0 as usize).collect();
        assert_eq!(ords, (0..self.chunks.len()).collect::<Vec<_>>());
        let contents: Vec<_> = stored.into_iter().map(|chunk| chunk.1).collect();
        assert_eq!(contents, self.chunks);
        let most =
            "SELECT max(n) FROM (SELECT count(*) AS n FROM gristmill.generations GROUP BY resource_id) g";
        assert_eq!(self.world.count(most).await?, 1);
        let standing = self.world.standing(self.document).await?;
        assert_eq!(standing.done as usize, self.chunks.len(), "counted once");
        Ok(())
    }

    fn check_repeated(&self, workers: &[&Worker]) {
        let sum: usize = workers.iter().map(|worker| worker.embedded()).sum();
        let n = self.chunks.len();
        eprintln!("{n} chunks, {sum} embedded");
        assert!((n..=n + CHECKPOINT).contains(&sum), "{sum} chunks were embedded, there are {n}");
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_killed_while_it_embeds_and_started_again_goes_on_where_it_stopped(
    db: PgPool,
) -> anyhow::Result<()> {
    let Some(scene) = Scene::new(db).await? else { return Ok(()) };
    let mut killed = scene.start("data")?;
    scene.until_half_embedded(&killed).await?;
    let at = scene.now().await?;
    killed.kill();
    let again = scene.start("data")?;
    scene.until_ready(&again).await?;

    scene.check_chunks().await?;
    scene.check_repeated(&[&killed, &again]);
    let (state, attempts, claimed) = scene.job().await?;
    assert_eq!((state.as_str(), attempts), ("DONE", 2));
    assert!(claimed - at <= DELAY, "claimed {} after the kill", claimed - at);
    let room = scene.folder.path().join("data/spool").join(killed.process.id().to_string());
    assert!(!room.exists(), "the dead worker's files lie about");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_of_another_name_takes_over_from_a_dead_one(db: PgPool) -> anyhow::Result<()> {
    let Some(scene) = Scene::new(db).await? else { return Ok(()) };
    let mut killed = scene.start("data")?;
    scene.until_half_embedded(&killed).await?;
    let at = scene.now().await?;
    killed.kill();
    tokio::time::sleep(LEASE).await;
    let stuck = "SELECT state::text FROM gristmill.jobs WHERE kind = 'embed'";
    assert_eq!(scene.world.words(stuck).await?, ["RUNNING"], "nobody is there to notice");
    let other = scene.start("elsewhere")?;
    scene.until_ready(&other).await?;

    scene.check_chunks().await?;
    scene.check_repeated(&[&killed, &other]);
    let (state, attempts, claimed) = scene.job().await?;
    assert_eq!((state.as_str(), attempts), ("DONE", 2));
    assert!(claimed - at <= DELAY, "claimed {} after the kill", claimed - at);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_told_to_stop_hands_its_job_back_and_another_goes_on(db: PgPool) -> anyhow::Result<()> {
    let Some(scene) = Scene::new(db).await? else { return Ok(()) };
    let mut stopped = scene.start("data")?;
    scene.until_half_embedded(&stopped).await?;
    stopped.signal(libc::SIGTERM);
    let told = Instant::now();
    let code = loop {
        if let Some(code) = stopped.process.try_wait()? {
            break code;
        }
        assert!(told.elapsed() < Duration::from_secs(5), "{}", stopped.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(code.success(), "{code}: {}", stopped.said());
    let (state, attempts, _) = scene.job().await?;
    assert_eq!((state.as_str(), attempts), ("SCHEDULED", 0), "at once, and no attempt is spent");

    let next = scene.start("data")?;
    scene.until_ready(&next).await?;
    scene.check_chunks().await?;
    scene.check_repeated(&[&stopped, &next]);
    assert_eq!(scene.job().await?.1, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_frozen_worker_that_wakes_up_changes_nothing(db: PgPool) -> anyhow::Result<()> {
    let Some(scene) = Scene::new(db).await? else { return Ok(()) };
    let frozen = scene.start("data")?;
    scene.until_half_embedded(&frozen).await?;
    frozen.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    // So late that it is at work when the first wakes up.
    tokio::time::sleep(LEASE * 5 / 2).await;
    let other = scene.start("elsewhere")?;
    let taken = "SELECT attempts = 2 AND state = 'RUNNING' FROM gristmill.jobs WHERE kind = 'embed'";
    let waited = scene.world.within(PATIENCE, "it was taken over", taken).await;
    anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", other.said());
    tokio::time::sleep((3 * LEASE).saturating_sub(stopped.elapsed())).await;
    let (state, _, claimed) = scene.job().await?;
    frozen.signal(libc::SIGCONT);
    scene.until_ready(&other).await?;
    // The one that woke up has nothing left to do, and lives.
    scene
        .world
        .within(
            PATIENCE,
            "no job is at work",
            "SELECT count(*) = 0 FROM gristmill.jobs WHERE state = 'RUNNING'",
        )
        .await?;
    // Which of these depends on where it stood when it froze.
    let signs = ["the lease was lost", "cancelled on request", "will be tried again"];
    let gave_in = async {
        while !signs.iter().any(|sign| frozen.said().contains(sign)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let noticed = tokio::time::timeout(PATIENCE, gave_in).await;
    anyhow::ensure!(noticed.is_ok(), "the frozen worker never noticed\n{}", frozen.said());

    assert_eq!(state, "RUNNING", "both were at work at once");
    scene.check_chunks().await?;
    let (state, attempts, last) = scene.job().await?;
    assert_eq!((state.as_str(), attempts), ("DONE", 2));
    assert_eq!(last, claimed, "taken over once, and never taken back");
    let mut frozen = frozen;
    assert!(frozen.process.try_wait()?.is_none(), "{}", frozen.said());
    Ok(())
}

/// At whatever step: each start dies a little later than the one before.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn workers_that_die_at_any_moment_lose_and_double_nothing(db: PgPool) -> anyhow::Result<()> {
    let Some(scene) = Scene::new(db).await? else { return Ok(()) };
    let world = &scene.world;
    let mut small = Vec::new();
    for n in 0..6 {
        let text = format!("<h1>Notice {n}</h1><p>Lot {n} is sold to the bakery.</p>");
        small.push(world.upload(&format!("{n}.html"), text.as_bytes()).await?);
    }
    for moment in [0, 60, 150, 300, 600_u64] {
        let mut worker = scene.start("data")?;
        // Jobs have five attempts; here they are to die more often.
        world.change("UPDATE gristmill.jobs SET max_attempts = 100 WHERE finished_at IS NULL").await?;
        scene.until_at_work(&worker).await?;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        worker.kill();
    }
    let last = scene.start("data")?;
    scene.until_ready(&last).await?;

    scene.check_chunks().await?;
    for id in small {
        assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()));
        assert_eq!(world.chunks(id).await?.len(), 1);
    }
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 7);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state <> 'DONE'").await?, 0);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs").await?, 4 * 7, "one of each kind for each");
    let ready = "SELECT count(*) FROM gristmill.events WHERE type = 'attachment.ready'";
    assert_eq!(world.count(ready).await?, 7, "told once each");
    let started = "SELECT count(*) FROM gristmill.jobs WHERE attempts > 1";
    assert!(world.count(started).await? > 0, "no worker died with a job in hand");
    Ok(())
}
