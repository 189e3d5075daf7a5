//! Cut-at-N: one attachment goes its way once for every message that answers its work, and at
//! that message the connection or the worker dies.
//!
//! At rest the database must hold what a run without faults leaves, and no invariant may be broken.

use super::seed;
use crate::kit::checks::violations;
use crate::kit::database::Template;
use crate::kit::dump;
use crate::kit::process::{Process, send};
use crate::kit::proxy::{Act, Proxy};
use crate::world::{World, address, deps};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// For what takes as long as the machine is busy.
const PATIENCE: Duration = Duration::from_mins(1);
/// Runs side by side: they mostly wait for leases.
const AT_ONCE: usize = 4;
/// Points of the sample that runs with all tests.
const SAMPLE: usize = 10;
const SEED: u64 = 2026;

/// Three paragraphs, each a chunk and a batch of its own.
const TEXT: &str = "The upper stone is the runner; it turns over the bed stone and grinds what is poured into its eye.\n\n\
The miller writes every sack into the book: whose grain it was, what it weighed, and what the mill kept of it.\n\n\
At high water the wheel is stopped, the gate is closed, and nobody may open it before the boatman has gone by.\n";

/// What happens at the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mode {
    /// The connection is cut, the worker never hears the answer.
    CutBefore,
    /// The worker hears the answer, then the connection is cut.
    CutAfter,
    /// The worker is killed; another one, with a folder of its own, takes over.
    Kill,
    /// The worker is killed and started again at once, same name, same folder.
    KillAndRestart,
}

const MODES: [Mode; 4] = [Mode::CutBefore, Mode::CutAfter, Mode::Kill, Mode::KillAndRestart];

/// What one run left.
struct Outcome {
    dump: Vec<String>,
    violations: Vec<String>,
    /// Every message that counted.
    trace: Vec<String>,
    /// What was hit; nothing when the run had fewer messages.
    hit: Option<String>,
    /// Attempts beyond the first, over all jobs.
    again: i64,
}

/// One attachment, one database, one proxy; workers come and go.
struct Scene {
    world: World,
    proxy: Proxy,
    folder: tempfile::TempDir,
    deps: PathBuf,
    workers: AtomicU32,
}

impl Scene {
    async fn new(db: PgPool, deps: &Path) -> anyhow::Result<Self> {
        let server = url::Url::parse(&address(&db))?;
        let server = server.socket_addrs(|| Some(5432))?[0];
        let world = World::new(db).await?;
        world.upload("notes.txt", TEXT.as_bytes()).await?;
        let (proxy, folder) = (Proxy::start(server).await?, tempfile::tempdir()?);
        Ok(Self { world, proxy, folder, deps: deps.to_owned(), workers: 0.into() })
    }

    fn start(&self, data: &str) -> anyhow::Result<Process> {
        let n = self.workers.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gristmill"));
        command
            .arg("worker")
            .env("DATABASE_URL", self.proxy.address(&address(&self.world.admin))?)
            .env("GRISTMILL__DATABASE__MAX_CONNECTIONS", "6")
            .env("GRISTMILL__EMBEDDED__DATA_DIR", self.folder.path().join(data))
            .env("GRISTMILL__EMBEDDED__DEPS_DIR", &self.deps)
            .env("GRISTMILL__OBJECTS__ENDPOINT", &self.world.ctx.settings.objects.endpoint)
            .env("GRISTMILL__OBJECTS__ACCESS_KEY", "key")
            .env("GRISTMILL__OBJECTS__SECRET_KEY", "secret")
            .env("GRISTMILL__SCHEDULES__LEAD", "false")
            .env("GRISTMILL__QUEUE__LEASE_SECONDS", "1")
            .env("GRISTMILL__QUEUE__POLL_MS", "20")
            .env("GRISTMILL__QUEUE__BACKOFF_SECONDS", "0.05")
            .env("GRISTMILL__CHUNK__SIZE", "32")
            // One chunk a batch, so that a vector does not depend on what a fault left to embed.
            .env("GRISTMILL__EMBED__CHECKPOINT", "4")
            .env("GRISTMILL__EMBED__SESSIONS", "1")
            .env("GRISTMILL__LOG__FILTER", "gristmill=debug");
        Ok(Process::start(&mut command, &self.folder.path().join(format!("{n}.log")))?)
    }

    /// What lies in the bucket.
    async fn keys(&self) -> anyhow::Result<Vec<String>> {
        let objects = &self.world.ctx.objects;
        let bucket = &self.world.ctx.settings.objects.bucket;
        let listed = objects.list(bucket, &objects.tenant_key(self.world.workspace, "")).await?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }

    /// Waits until nothing is left to do.
    async fn rest(&self, worker: &mut Process) -> anyhow::Result<()> {
        let quiet = "SELECT NOT EXISTS (SELECT FROM gristmill.jobs
                         WHERE finished_at IS NULL AND state <> 'PARKED' AND kind IN ('fetch', 'scan', 'extract', 'embed', 'forget'))
                     AND (SELECT bool_and(status IN ('READY', 'FAILED', 'QUARANTINED')) FROM gristmill.attachments)";
        let waited = self.world.within(PATIENCE, "nothing was left to do", quiet).await;
        anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", worker.last_words());
        anyhow::ensure!(worker.ended().is_none(), "the worker ended\n{}", worker.last_words());
        Ok(())
    }

    /// The whole run: to its end through the fault.
    async fn run(&self, fault: Option<(usize, Mode)>) -> anyhow::Result<Outcome> {
        let mut worker = self.start("one")?;
        if let Some((n, mode)) = fault {
            let process = worker.id();
            let kill = Box::new(move || send(process, libc::SIGKILL));
            self.proxy.arm(
                n,
                match mode {
                    Mode::CutBefore => Act::CutBefore,
                    Mode::CutAfter => Act::CutAfter,
                    Mode::Kill | Mode::KillAndRestart => Act::Run(kill),
                },
            );
            if matches!(mode, Mode::Kill | Mode::KillAndRestart) {
                tokio::select! {
                    () = self.proxy.until_fired() => {}
                    // Fewer messages than that: it came to rest.
                    rested = self.world.within(PATIENCE, "it was ready", "SELECT bool_and(status = 'READY') FROM gristmill.attachments") => rested?,
                }
                // The answer to the last commit comes after what it committed can be seen.
                let late = tokio::time::timeout(Duration::from_millis(300), self.proxy.until_fired());
                if late.await.is_ok() {
                    worker.kill();
                    worker = self.start(data_of(fault))?;
                }
            }
        }
        self.rest(&mut worker).await?;
        // One that was started for nothing may still be on its way up, deaf to signals.
        while !worker.said().contains("working") {
            anyhow::ensure!(worker.ended().is_none(), "the worker ended\n{}", worker.last_words());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let status = worker.stop(PATIENCE).await?;
        anyhow::ensure!(status.success(), "{status}\n{}", worker.last_words());
        let again =
            "SELECT coalesce(sum(attempts - 1), 0)::int8 FROM gristmill.jobs WHERE finished_at IS NOT NULL";
        let mut owner = self.world.admin.acquire().await?;
        let mut dump = dump::lines(&mut owner).await?;
        let keys = self.keys().await?;
        dump.extend(objects(&keys));
        let mut violations = violations(&mut owner).await?;
        let named: Vec<String> =
            sqlx::query_scalar("SELECT key FROM gristmill.extractions").fetch_all(&mut *owner).await?;
        violations
            .extend(named.iter().filter(|key| !keys.contains(key)).map(|key| format!("INV1: {key} is gone")));
        let spool = self.folder.path().join(data_of(fault)).join("spool");
        violations.extend(files_below(&spool).map(|file| format!("INV11: {file} is left")));
        Ok(Outcome {
            dump,
            violations,
            trace: self.proxy.trace(),
            hit: self.proxy.fired(),
            again: self.world.count(again).await?,
        })
    }
}

/// The folder of the worker that is there in the end.
fn data_of(fault: Option<(usize, Mode)>) -> &'static str {
    if matches!(fault, Some((_, Mode::Kill))) { "two" } else { "one" }
}

/// The bucket's part of the dump. A text that an attempt stored and died is no difference: it
/// looks like the one that counts, and sweeping it up is the work of `tidy`.
fn objects(keys: &[String]) -> std::collections::BTreeSet<String> {
    keys.iter().map(|key| format!("object: {}", dump::masked(&dump::without_attempt(key)))).collect()
}

/// The files in the rooms of a spool: none, once no job is at work.
fn files_below(spool: &Path) -> impl Iterator<Item = String> {
    let rooms = std::fs::read_dir(spool).into_iter().flatten().flatten();
    let files = rooms.flat_map(|room| std::fs::read_dir(room.path()).into_iter().flatten().flatten());
    files.map(|file| file.path().display().to_string())
}

/// One run on a copy of its own, which is gone afterwards.
async fn run_on_a_copy(
    template: &Template,
    n: usize,
    deps: &Path,
    fault: Option<(usize, Mode)>,
) -> anyhow::Result<Outcome> {
    let db = template.copy(n).await?;
    let outcome = async { Scene::new(db.clone(), deps).await?.run(fault).await }.await;
    template.drop_copy(&db).await?;
    outcome
}

/// A fault, and what it did.
struct Struck {
    point: usize,
    mode: Mode,
    /// The message; nothing when the run was over before it came.
    hit: Option<String>,
    again: i64,
    /// What it left that should not be there; or why it came to no end.
    harm: Vec<String>,
}

impl std::fmt::Display for Struck {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { point, mode, .. } = self;
        let hit = self.hit.as_deref().unwrap_or("-");
        write!(out, "point {point}, {mode:?}, at {hit}:\n  {}", self.harm.join("\n  "))
    }
}

/// Runs all these faults, some side by side, and holds each against the run without.
async fn strike(
    template: Template,
    deps: PathBuf,
    faults: Vec<(usize, Mode)>,
) -> anyhow::Result<Vec<Struck>> {
    let calm = run_on_a_copy(&template, 0, &deps, None).await?;
    anyhow::ensure!(calm.violations.is_empty(), "without any fault: {:#?}", calm.violations);
    let (calm, template) = (Arc::new(calm), Arc::new(template));
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = tokio::task::JoinSet::new();
    for (n, (point, mode)) in faults.into_iter().enumerate() {
        let (calm, template, deps, places) = (calm.clone(), template.clone(), deps.clone(), places.clone());
        runs.spawn(async move {
            let _place = places.acquire_owned().await;
            let run = run_on_a_copy(&template, n + 1, &deps, Some((point, mode))).await;
            judge(&calm, (point, mode), run)
        });
    }
    let mut tally = Tally::default();
    while let Some(run) = runs.join_next().await {
        tally.add(run?);
    }
    if let Ok(template) = Arc::try_unwrap(template).map_err(|_| ()) {
        template.remove().await?;
    }
    tally.print();
    let (missed, all) =
        tally.modes.values().fold((0, 0), |(m, a), line| (m + line.unreached, a + line.points));
    anyhow::ensure!(missed * 4 <= all, "{missed} of {all} faults found nothing to strike");
    Ok(tally.harm)
}

fn judge(calm: &Outcome, (point, mode): (usize, Mode), run: anyhow::Result<Outcome>) -> Struck {
    match run {
        Ok(run) => {
            let mut harm = dump::differences(&calm.dump, &run.dump);
            harm.extend(run.violations);
            Struck { point, mode, hit: run.hit, again: run.again, harm }
        }
        Err(error) => {
            let harm = vec![format!("it came to no end: {error:#}")];
            Struck { point, mode, hit: Some("some message".into()), again: 0, harm }
        }
    }
}

/// What the runs of one mode came to.
#[derive(Default)]
struct Line {
    points: usize,
    /// Runs that were over before the message came.
    unreached: usize,
    again: i64,
    differences: usize,
}

#[derive(Default)]
struct Tally {
    modes: std::collections::BTreeMap<Mode, Line>,
    harm: Vec<Struck>,
}

impl Tally {
    fn add(&mut self, struck: Struck) {
        let line = self.modes.entry(struck.mode).or_default();
        line.points += 1;
        line.unreached += usize::from(struck.hit.is_none());
        line.again += struck.again;
        if !struck.harm.is_empty() {
            line.differences += 1;
            println!("{struck}");
            self.harm.push(struck);
        }
    }

    fn print(&self) {
        println!(
            "{:<16} {:>7} {:>10} {:>14} {:>12}",
            "mode", "points", "unreached", "attempts more", "differences"
        );
        for (mode, line) in &self.modes {
            println!(
                "{:<16} {:>7} {:>10} {:>14} {:>12}",
                format!("{mode:?}"),
                line.points,
                line.unreached,
                line.again,
                line.differences
            );
        }
    }
}

/// How many messages a run without faults has.
async fn messages(template: &Template, deps: &Path) -> anyhow::Result<Vec<String>> {
    Ok(run_on_a_copy(template, usize::MAX >> 1, deps, None).await?.trace)
}

fn told(harm: &[Struck]) -> String {
    harm.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_comes_through_faults_at_some_messages_as_if_there_had_been_none() -> anyhow::Result<()>
{
    let Some(deps) = deps() else { return Ok(()) };
    let template = Template::new().await?;
    let trace = messages(&template, &deps).await?;
    let seed = seed().unwrap_or(SEED);
    println!("seed {seed} (GRISTMILL_CHAOS_SEED chooses another), {} messages", trace.len());
    let mut random = StdRng::seed_from_u64(seed);
    let faults = (0..SAMPLE).map(|n| (random.random_range(1..=trace.len()), MODES[n % MODES.len()]));
    let harm = strike(template, deps, faults.collect()).await?;
    assert!(harm.is_empty(), "seed {seed}\n{}", told(&harm));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: `make chaos`"]
async fn an_attachment_comes_through_a_fault_at_every_message_as_if_there_had_been_none() -> anyhow::Result<()>
{
    let deps = deps().ok_or_else(|| anyhow::anyhow!("`make deps` first"))?;
    let began = Instant::now();
    let template = Template::new().await?;
    let trace = messages(&template, &deps).await?;
    println!("{} messages between the first claim and rest:", trace.len());
    for (n, label) in trace.iter().enumerate() {
        println!("{:>4} {label}", n + 1);
    }
    let faults = (1..=trace.len()).flat_map(|point| MODES.map(|mode| (point, mode)));
    let harm = strike(template, deps, faults.collect()).await?;
    println!("{} s", began.elapsed().as_secs());
    assert!(harm.is_empty(), "{}", told(&harm));
    Ok(())
}
