//! Workers that are killed at each step of a call: at every answer of the database, and while the
//! server acts. What has effects is executed at most once, in every run.
//!
//! `GRISTMILL_TEST_POINTS=all` goes through all points; without it a sample of them.

use super::Chat;
use super::bank::{Bank, Manner, sum};
use super::effects::world;
use crate::kit::checks::violations;
use crate::kit::process::{Process, send};
use crate::kit::proxy::{Act, Proxy};
use crate::kit::worker;
use crate::world::{World, address};
use gristmill::runtime::{Worker, every_kind};
use sqlx::PgPool;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
/// Points of the sample for each server and effect.
const SAMPLE: usize = 4;

struct Scene<'a> {
    chat: Chat<'a>,
    bank: Bank,
    folder: tempfile::TempDir,
    runs: std::cell::Cell<usize>,
}

/// What one run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    call: Uuid,
    state: String,
    executions: u32,
    /// What was hit; nothing where the run had fewer messages.
    hit: Option<String>,
    messages: usize,
}

impl<'a> Scene<'a> {
    async fn new(world: &'a World) -> anyhow::Result<Self> {
        let (chat, bank) = (Chat::new(world).await?, Bank::open().await?);
        Ok(Self { chat, bank, folder: tempfile::tempdir()?, runs: 0.into() })
    }

    /// A worker process by way of the proxy.
    fn start(&self, proxy: &Proxy) -> anyhow::Result<Process> {
        let world = self.chat.world;
        let n = self.runs.get();
        self.runs.set(n + 1);
        let log = self.folder.path().join(format!("{n}.log"));
        let objects = &world.ctx.settings.objects;
        worker::start(
            &proxy.address(&address(&world.admin))?,
            &log,
            &[
                ("GRISTMILL__DATABASE__MAX_CONNECTIONS", "4".into()),
                ("GRISTMILL__EMBEDDED__DATA_DIR", self.folder.path().join("data").display().to_string()),
                ("GRISTMILL__OBJECTS__ENDPOINT", objects.endpoint.clone()),
                ("GRISTMILL__OBJECTS__ACCESS_KEY", "key".into()),
                ("GRISTMILL__OBJECTS__SECRET_KEY", "secret".into()),
                ("GRISTMILL__FETCH__ALLOW", "127.0.0.0/8".into()),
                ("GRISTMILL__SCHEDULES__LEAD", "false".into()),
                ("GRISTMILL__QUEUE__LEASE_SECONDS", "1".into()),
                ("GRISTMILL__QUEUE__POLL_MS", "20".into()),
                ("GRISTMILL__QUEUE__BACKOFF_SECONDS", "0.05".into()),
            ],
        )
    }

    /// One call, whose worker dies at the `n`-th message, or once the server has acted.
    async fn run(&self, tool: &str, death: Option<usize>) -> anyhow::Result<Run> {
        let world = self.chat.world;
        let server = url::Url::parse(&address(&world.admin))?.socket_addrs(|| Some(5432))?[0];
        let proxy = Proxy::start(server).await?;
        let message = self.chat.ask().await?;
        let call = self.chat.call_of(message, "a", tool, sum()).await?;
        let mut process = self.start(&proxy)?;
        let id = process.id();
        if let Some(n) = death {
            proxy.arm(n, Act::Run(Box::new(move || send(id, libc::SIGKILL))));
        }
        let over = self.over(call);
        tokio::select! {
            () = proxy.until_fired() => {}
            over = over => over?,
            // Killed between what was sent and what was answered.
            () = self.acted(call), if death.is_none() => {}
        }
        process.kill();
        let survivor = Worker::start(&world.ctx, every_kind)?;
        let rested = self.over(call).await;
        survivor.stop().await;
        rested?;
        let (state, _) = self.chat.state(call).await?;
        let executions = self.bank.executions(call);
        Ok(Run { call, state, executions, hit: proxy.fired(), messages: proxy.trace().len() })
    }

    async fn acted(&self, call: Uuid) {
        while self.bank.executions(call) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until the call is finished and nobody works on it.
    async fn over(&self, call: Uuid) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        let sql = "SELECT c.finished_at IS NOT NULL AND NOT EXISTS (
                       SELECT FROM gristmill.jobs j WHERE j.unique_key = c.id::text
                         AND j.state IN ('WAITING', 'SCHEDULED', 'RUNNING'))
                   FROM gristmill.tool_calls c WHERE c.id = $1";
        while began.elapsed() < PATIENCE {
            if sqlx::query_scalar(sql).bind(call).fetch_one(&self.chat.world.admin).await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("{PATIENCE:?} went by before call {call} ended")
    }
}

/// All points or a sample, spread over the whole way.
fn points(messages: usize) -> Vec<usize> {
    let all = std::env::var("GRISTMILL_TEST_POINTS").is_ok_and(|points| points == "all");
    if all {
        return (1..=messages).collect();
    }
    (0..SAMPLE).map(|n| 1 + n * messages.saturating_sub(1) / (SAMPLE - 1)).collect()
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_has_effects_is_executed_at_most_once_wherever_its_worker_dies(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let scene = Scene::new(&world).await?;
    let mut table: BTreeMap<(String, String), (usize, u32, u32)> = BTreeMap::new();
    let mut runs = Vec::new();
    for (manner, effect) in [
        (Manner::Answers, "effectful"),
        (Manner::Drops, "effectful"),
        (Manner::Slow, "effectful"),
        (Manner::Answers, "idempotent"),
        (Manner::Slow, "read"),
    ] {
        let tool = scene.bank.tool(&scene.chat, manner, effect).await?;
        let deaths = if manner == Manner::Slow {
            vec![None]
        } else {
            // Never reached: a run to its end, which counts the messages.
            let whole = scene.run(&tool, Some(usize::MAX)).await?;
            let messages = whole.messages;
            runs.push((tool.clone(), whole));
            points(messages).into_iter().map(Some).collect()
        };
        for death in deaths {
            let run = scene.run(&tool, death).await?;
            let most = if effect == "effectful" { 1 } else { u32::MAX };
            assert!(run.executions <= most, "{tool}, killed at {death:?}: {run:?}");
            match run.state.as_str() {
                "OK" => assert!(run.executions >= 1 && manner != Manner::Drops, "{tool}, {death:?}: {run:?}"),
                "UNKNOWN" => assert_eq!(effect, "effectful", "{death:?}: {run:?}"),
                other => panic!("{tool}, killed at {death:?}: {other} {run:?}"),
            }
            runs.push((tool.clone(), run));
        }
    }
    for (tool, run) in &runs {
        let row = table.entry((tool.clone(), run.state.clone())).or_default();
        *row = (row.0 + 1, row.1.max(run.executions), row.2 + run.executions);
    }
    let calls: Vec<_> = runs.iter().map(|(_, run)| run.call).collect();
    assert_eq!(scene.bank.strangers(&calls), 0);
    println!("{:<24} {:<8} {:>4} {:>18} {:>10}", "tool", "outcome", "runs", "executions at most", "in all");
    for ((tool, state), (n, most, all)) in &table {
        println!("{tool:<24} {state:<8} {n:>4} {most:>18} {all:>10}");
    }
    let unknown = runs.iter().filter(|(_, run)| run.state == "UNKNOWN" && run.hit.is_some()).count();
    assert!(unknown > 0, "no worker died at work");
    let broken = violations(&mut *world.admin.acquire().await?).await?;
    // Parked calls rest until a person's word.
    assert_eq!(broken, Vec::<String>::new());
    Ok(())
}

/// The negative control: an effectful tool that is taken for a harmless one is executed twice.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn control_a_tool_that_counts_as_harmless_is_executed_again_after_a_crash(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = world(db).await?;
    let scene = Scene::new(&world).await?;
    let tool = scene.bank.tool(&scene.chat, Manner::Slow, "idempotent").await?;
    let run = scene.run(&tool, None).await?;
    assert_eq!((run.state.as_str(), run.executions), ("OK", 2));
    Ok(())
}
