//! The storm: minutes of random faults while jobs and attachments flow in.
//!
//! Workers are killed, frozen and stopped, connections cut, Postgres itself stopped without a
//! word and started on what is left. In the end every job that was acknowledged to its asker is
//! done, its effect is there once, and no invariant is broken.

use super::seed;
use crate::kit::checks::violations;
use crate::kit::process::{Process, send};
use crate::kit::proxy::{Act, Proxy};
use crate::kit::server::Server;
use crate::kit::worker::{self, EFFECTS};
use crate::world::{World, deps};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

const WORKERS: usize = 3;
/// After the last fault, until nothing is left to do.
const PATIENCE: Duration = Duration::from_mins(3);

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Freeze,
    Terminate,
    CutConnections,
    /// One connection is cut while the server's answer is on its way.
    LoseAnswer,
    /// One connection is mute for a while, in both directions.
    Stall,
    KillBackend,
    StopPostgres,
}

/// Each as often as it stands here.
const FAULTS: [Fault; 21] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::Freeze,
    Fault::Freeze,
    Fault::Freeze,
    Fault::Freeze,
    Fault::Terminate,
    Fault::Terminate,
    Fault::CutConnections,
    Fault::CutConnections,
    Fault::LoseAnswer,
    Fault::LoseAnswer,
    Fault::LoseAnswer,
    Fault::Stall,
    Fault::Stall,
    Fault::KillBackend,
    Fault::StopPostgres,
    Fault::StopPostgres,
];

/// What was asked for, and acknowledged.
#[derive(Default)]
struct Asked {
    strikes: std::sync::Mutex<Vec<i64>>,
    attachments: AtomicI64,
    over: AtomicBool,
}

struct Storm {
    server: Server,
    proxy: Arc<Proxy>,
    world: Arc<World>,
    folder: tempfile::TempDir,
    workers: Vec<Process>,
    started: usize,
    random: StdRng,
    struck: BTreeMap<Fault, usize>,
}

impl Storm {
    async fn new(seed: u64) -> anyhow::Result<Self> {
        let deps = deps().ok_or_else(|| anyhow::anyhow!("`make deps` first"))?;
        let server = Server::start(&deps).await?;
        // All go by way of the proxy: the server's port changes with each start.
        let proxy = Arc::new(Proxy::start(server.at()?).await?);
        let admin = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(10))
            .connect(&proxy.address(server.url())?)
            .await?;
        gristmill::MIGRATOR.run(&admin).await?;
        admin.execute(EFFECTS).await?;
        let world = Arc::new(World::new(admin).await?);
        worker::registry().publish(&world.ctx.db).await?;
        let mut storm = Self {
            server,
            proxy,
            world,
            folder: tempfile::tempdir()?,
            workers: Vec::new(),
            started: 0,
            random: StdRng::seed_from_u64(seed),
            struck: BTreeMap::new(),
        };
        for n in 0..WORKERS {
            let worker = storm.start(n)?;
            storm.workers.push(worker);
        }
        Ok(storm)
    }

    /// Starts the `n`-th worker: sometimes where its predecessor left its files, sometimes elsewhere.
    fn start(&mut self, n: usize) -> anyhow::Result<Process> {
        self.started += 1;
        let place = if self.random.random_bool(0.5) { n } else { self.started + WORKERS };
        let objects = &self.world.ctx.settings.objects;
        let settings = [
            ("GRISTMILL__DATABASE__MAX_CONNECTIONS", "6".to_owned()),
            ("GRISTMILL__SCHEDULES__LEAD", "false".to_owned()),
            (
                "GRISTMILL__EMBEDDED__DATA_DIR",
                self.folder.path().join(place.to_string()).display().to_string(),
            ),
            ("GRISTMILL__OBJECTS__ENDPOINT", objects.endpoint.clone()),
            ("GRISTMILL__OBJECTS__ACCESS_KEY", "key".into()),
            ("GRISTMILL__OBJECTS__SECRET_KEY", "secret".into()),
            ("GRISTMILL__QUEUE__LEASE_SECONDS", "1.5".into()),
            ("GRISTMILL__QUEUE__POLL_MS", "50".into()),
            ("GRISTMILL__QUEUE__BACKOFF_SECONDS", "0.1".into()),
            ("GRISTMILL__QUEUE__BACKOFF_CEILING_SECONDS", "2".into()),
            ("GRISTMILL__QUEUE__GRACE_SECONDS", "0.5".into()),
            ("GRISTMILL__CHUNK__SIZE", "32".into()),
            ("GRISTMILL__LOG__FILTER", "gristmill=warn".into()),
        ];
        worker::start(
            &self.proxy.address(self.server.url())?,
            &self.folder.path().join("workers.log"),
            &settings,
        )
    }

    /// As whoever runs a service does: what has ended is started again.
    fn supervise(&mut self) -> anyhow::Result<()> {
        for n in 0..WORKERS {
            if self.workers[n].ended().is_some() {
                self.workers[n] = self.start(n)?;
            }
        }
        Ok(())
    }

    async fn strike(&mut self) -> anyhow::Result<()> {
        let fault = FAULTS[self.random.random_range(0..FAULTS.len())];
        let n = self.random.random_range(0..WORKERS);
        match fault {
            Fault::Kill => self.workers[n].kill(),
            Fault::Freeze => {
                // Longer than a lease as often as not.
                let long = Duration::from_millis(self.random.random_range(200..4000));
                self.workers[n].signal(libc::SIGSTOP);
                tokio::time::sleep(long).await;
                self.workers[n].signal(libc::SIGCONT);
            }
            Fault::Terminate => self.workers[n].signal(libc::SIGTERM),
            Fault::CutConnections => self.proxy.cut_all(),
            Fault::LoseAnswer => self.proxy.arm_ahead(self.random.random_range(1..200), Act::CutBefore),
            Fault::Stall => {
                let long = Duration::from_millis(self.random.random_range(500..4000));
                self.proxy.arm_ahead(self.random.random_range(1..200), Act::Stall(long));
            }
            Fault::KillBackend => {
                let backend = "SELECT pid FROM pg_stat_activity WHERE application_name = 'gristmill' ORDER BY random() LIMIT 1";
                // The server ends all the other sessions too, and recovers.
                if let Ok(backend) = sqlx::query_scalar::<_, i32>(backend).fetch_one(&self.world.admin).await
                {
                    send(backend as u32, libc::SIGKILL);
                }
            }
            Fault::StopPostgres => {
                self.server.crash().await?;
                self.proxy.redirect(self.server.at()?);
            }
        }
        *self.struck.entry(fault).or_default() += 1;
        Ok(())
    }

    /// Calm weather until nothing is left to do.
    async fn rest(&mut self) -> anyhow::Result<()> {
        let left = "SELECT count(*) FROM gristmill.jobs WHERE finished_at IS NULL AND state <> 'PARKED'
                    AND kind IN ('strike', 'fetch', 'scan', 'extract', 'embed', 'forget')";
        let began = Instant::now();
        loop {
            self.supervise()?;
            // A connection that a fault left behind fails once.
            match sqlx::query_scalar::<_, i64>(left).fetch_one(&self.world.admin).await {
                Ok(0) => return Ok(()),
                _ if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(200)).await,
                other => anyhow::bail!(
                    "{other:?} jobs are left after {PATIENCE:?}\n{}",
                    self.workers[0].last_words()
                ),
            }
        }
    }
}

/// Asks for jobs until the storm is over; only what was acknowledged counts as asked.
async fn ask_for_strikes(world: Arc<World>, asked: Arc<Asked>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut n = 0;
    while !asked.over.load(Ordering::Relaxed) {
        let batch: Vec<(i64, u64)> = (0..random.random_range(1..12))
            .map(|_| {
                n += 1;
                (n, random.random_range(0..600))
            })
            .collect();
        if enqueue(&world.admin, &world, &batch).await.is_ok() {
            let mut strikes = asked.strikes.lock().expect("nobody panics with it");
            strikes.extend(batch.iter().map(|(n, _)| n));
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..450))).await;
    }
}

async fn enqueue(db: &PgPool, world: &World, batch: &[(i64, u64)]) -> anyhow::Result<()> {
    let mut tx = gristmill::store::begin(db).await?;
    for (n, ms) in batch {
        // So many attempts that the storm cannot use them up.
        sqlx::query(
            "SELECT gristmill.enqueue('strike', jsonb_build_object('n', $1::bigint, 'ms', $2::bigint),
                                      workspace => $3, max_attempts => 1000)",
        )
        .bind(n)
        .bind(*ms as i64)
        .bind(world.workspace.0)
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn ask_for_attachments(world: Arc<World>, asked: Arc<Asked>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    while !asked.over.load(Ordering::Relaxed) {
        // Some bytes come twice: the second attachment shares what the first left.
        let lot = random.random_range(0..400);
        let sack = format!("Lot {lot}: grain from the upper field, weighed at the gate.\n\n");
        let text = sack.repeat(random.random_range(1..12));
        if world.upload(&format!("{:x}.txt", random.next_u32()), text.as_bytes()).await.is_ok() {
            asked.attachments.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(500..2500))).await;
    }
}

/// What the storm left, line by line: asked, done, lost, doubled.
struct Ruins {
    strikes: [i64; 4],
    attachments: [i64; 4],
    again: i64,
    dead: i64,
    violations: Vec<String>,
}

impl Ruins {
    async fn look(world: &World, asked: &Asked) -> anyhow::Result<Self> {
        let acknowledged = asked.strikes.lock().expect("nobody panics with it").clone();
        let missing = "SELECT count(*) FROM unnest($1::bigint[]) AS a (n)
                       WHERE NOT EXISTS (SELECT FROM public.effects e WHERE e.n = a.n)";
        let lost: i64 = sqlx::query_scalar(missing).bind(&acknowledged).fetch_one(&world.admin).await?;
        let done = world
            .count("SELECT count(*) FROM gristmill.jobs WHERE kind = 'strike' AND state = 'DONE'")
            .await?;
        let doubled = world.count("SELECT count(*) - count(DISTINCT n) FROM public.effects").await?;
        let uploaded = asked.attachments.load(Ordering::Relaxed);
        let ready = world.count("SELECT count(*) FROM gristmill.attachments WHERE status = 'READY'").await?;
        let twice = "SELECT count(*) - count(DISTINCT subject_id) FROM gristmill.events WHERE type = 'attachment.ready'";
        let again = "SELECT coalesce(sum(attempts - 1), 0)::int8 FROM gristmill.jobs WHERE state = 'DONE' AND attempts > 1";
        Ok(Self {
            strikes: [acknowledged.len() as i64, done, lost, doubled],
            attachments: [uploaded, ready, (uploaded - ready).max(0), world.count(twice).await?],
            again: world.count(again).await?,
            dead: world.count("SELECT count(*) FROM gristmill.jobs WHERE state = 'DEAD'").await?,
            violations: violations(&mut *world.admin.acquire().await?).await?,
        })
    }

    fn print(&self) {
        println!("{:<12} {:>9} {:>9} {:>9} {:>9}", "", "asked", "done", "lost", "doubled");
        for (name, [asked, done, lost, doubled]) in
            [("strikes", self.strikes), ("attachments", self.attachments)]
        {
            println!("{name:<12} {asked:>9} {done:>9} {lost:>9} {doubled:>9}");
        }
        println!("attempts beyond the first: {}, dead letters: {}", self.again, self.dead);
        println!("invariants broken: {}", self.violations.len());
        self.violations.iter().for_each(|violation| println!("  {violation}"));
    }

    fn harmless(&self) -> bool {
        let kept = |[asked, done, lost, doubled]: [i64; 4]| done >= asked && lost == 0 && doubled == 0;
        kept(self.strikes) && kept(self.attachments) && self.dead == 0 && self.violations.is_empty()
    }
}

async fn weather(seed: u64, long: Duration) -> anyhow::Result<Ruins> {
    let mut storm = Storm::new(seed).await?;
    let asked = Arc::new(Asked::default());
    let mut askers = tokio::task::JoinSet::new();
    askers.spawn(ask_for_strikes(storm.world.clone(), asked.clone(), seed + 1));
    askers.spawn(ask_for_attachments(storm.world.clone(), asked.clone(), seed + 2));
    let began = Instant::now();
    while began.elapsed() < long {
        let pause = Duration::from_millis(storm.random.random_range(300..2000));
        tokio::time::sleep(pause).await;
        storm.strike().await?;
        storm.supervise()?;
    }
    asked.over.store(true, Ordering::Relaxed);
    while askers.join_next().await.is_some() {}
    storm.rest().await?;
    let ruins = Ruins::look(&storm.world, &asked).await?;
    println!("{} workers started; struck: {:?}", storm.started, storm.struck);
    ruins.print();
    for worker in &mut storm.workers {
        worker.stop(PATIENCE).await?;
    }
    Ok(ruins)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: `make chaos`"]
async fn a_storm_of_random_faults_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let minutes =
        std::env::var("GRISTMILL_CHAOS_MINUTES").ok().and_then(|minutes| minutes.parse::<f64>().ok());
    let minutes = minutes.unwrap_or(10.0);
    let seed = seed().unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("storm of {minutes} min, seed {seed}");
    let ruins = weather(seed, Duration::from_secs_f64(minutes * 60.0)).await?;
    assert!(ruins.harmless(), "seed {seed}: see the table");
    assert!(ruins.again > 0, "seed {seed}: no fault struck a job at work");
    Ok(())
}
