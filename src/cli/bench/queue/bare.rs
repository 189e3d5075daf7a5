//! The ceiling: a lean table and two bare SKIP LOCKED loops, with no leases, no fence, no tenants
//! and no runtime. For latency one loop that LISTENs.

use crate::cli::bench::queue::figures::{Asked, Figures, Meter, per_second};
use crate::cli::bench::queue::ground::Ground;
use crate::cli::bench::queue::task::{Size, Task};
use crate::store::bench;
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const LOOPS: usize = 2;
const BATCH: i32 = 200;
const SLICE: usize = 1000;

/// One task of the bare loop.
pub async fn measure(ground: &Ground, task: Task, size: &Size) -> anyhow::Result<Figures> {
    let db = ground.pool().await?;
    bench::lay_lean_table(&db).await?;
    let figures = match task {
        Task::Enqueue => Figures {
            single_per_second: Some(produce(&db, size, false).await?),
            notified_per_second: Some(produce(&db, size, true).await?),
            ..Figures::default()
        },
        Task::Drain => drain(&db, size).await?,
        Task::Latency { rate, seconds } => latency(&db, rate, (rate * seconds) as usize).await?,
    };
    db.close().await;
    Ok(figures)
}

async fn produce(db: &PgPool, size: &Size, notify: bool) -> anyhow::Result<f64> {
    let share = size.singles / size.producers;
    let start = Instant::now();
    let mut producers = JoinSet::new();
    for _ in 0..size.producers {
        let db = db.clone();
        producers.spawn(async move {
            for _ in 0..share {
                bench::lean_put(&db, &Asked::now().payload(), notify).await?;
            }
            anyhow::Ok(())
        });
    }
    for produced in producers.join_all().await {
        produced?;
    }
    Ok(per_second(share * size.producers, start))
}

async fn drain(db: &PgPool, size: &Size) -> anyhow::Result<Figures> {
    let start = Instant::now();
    for slice in Asked::payloads(size.jobs).chunks(SLICE) {
        bench::lean_fill(db, slice).await?;
    }
    let bulk = per_second(size.jobs, start);
    bench::vacuum_analyze(db).await?;
    let start = Instant::now();
    let mut loops = JoinSet::new();
    for number in 0..LOOPS {
        let (db, by) = (db.clone(), format!("bare-{number}"));
        loops.spawn(async move {
            let mut done = 0;
            loop {
                let rows = bench::lean_claim(&db, &by, BATCH).await?;
                if rows.is_empty() {
                    return anyhow::Ok(done);
                }
                let mut ids = Vec::with_capacity(rows.len());
                for (id, payload) in rows {
                    // The payload is read, as a worker would.
                    serde_json::from_value::<Asked>(payload)?;
                    ids.push(id);
                }
                bench::lean_acknowledge(&db, &by, &ids).await?;
                done += ids.len();
            }
        });
    }
    let mut done = 0;
    for share in loops.join_all().await {
        done += share?;
    }
    anyhow::ensure!(done == size.jobs, "the bare loop did {done} of {} jobs", size.jobs);
    let rate = per_second(done, start);
    Ok(Figures { bulk_per_second: Some(bulk), drain_per_second: Some(rate), ..Figures::default() })
}

async fn latency(db: &PgPool, rate: u64, expected: usize) -> anyhow::Result<Figures> {
    let meter = Arc::new(Meter::new());
    meter.expect(expected);
    let mut listener = PgListener::connect_with(db).await?;
    listener.listen("lean").await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(answer(db.clone(), listener, meter.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)));
    for _ in 0..expected {
        ticks.tick().await;
        let db = db.clone();
        tasks.spawn(async move { Ok(bench::lean_put(&db, &Asked::now().payload(), true).await?) });
    }
    meter.all(Duration::from_secs(30)).await;
    tasks.shutdown().await;
    Ok(Figures { latencies_ms: Some(meter.latencies()), ..Figures::default() })
}

/// Claims whenever there is something to claim; acknowledges beside it.
async fn answer(db: PgPool, mut listener: PgListener, meter: Arc<Meter>) -> anyhow::Result<()> {
    let mut acknowledging = JoinSet::new();
    loop {
        let rows = bench::lean_claim(&db, "bare", BATCH).await?;
        if rows.is_empty() {
            tokio::time::timeout(Duration::from_secs(1), listener.recv()).await.ok();
            continue;
        }
        let mut ids = Vec::with_capacity(rows.len());
        for (id, payload) in rows {
            meter.begin(serde_json::from_value(payload)?);
            ids.push(id);
        }
        let db = db.clone();
        acknowledging.spawn(async move { bench::lean_acknowledge(&db, "bare", &ids).await });
        while acknowledging.try_join_next().is_some() {}
    }
}
