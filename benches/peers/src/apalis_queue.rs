//! apalis-postgres: as it comes (batches of 10, a poll every 100 ms), and tuned (two workers,
//! batches of 500, a poll every 20 ms, no lock events). For latency it listens, and polls each
//! second: with its interval poll alone some starts wait for the 30 s heartbeat.

use crate::figures::{Asked, Figures, Meter, beat};
use crate::{Order, System, Task};
use apalis::layers::WorkerBuilderExt;
use apalis::prelude::{BoxDynError, Data, TaskSink, WorkerBuilder, WorkerContext};
use apalis_core::backend::ext::BackendExt;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use sqlx::postgres::PgPoolOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONNECTIONS: u32 = 16;
const QUEUE: &str = "noop";
/// More than are ever at work at once: apalis is not held back.
const UNBOUNDED: usize = 10_000;

pub async fn measure(order: &Order) -> anyhow::Result<Figures> {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&order.url).await?;
    PostgresStorage::setup(&pool).await?;
    match order.task {
        Task::Enqueue => single(&pool, order).await,
        Task::Drain => drain(&pool, order).await,
        Task::Latency => latency(&pool, order).await,
    }
}

fn storage(pool: &PgPool) -> PostgresStorage<Asked> {
    PostgresStorage::<Asked>::new(pool).with_config(Config::default().queue(QUEUE))
}

async fn work(asked: Asked, meter: Data<Arc<Meter>>) -> Result<(), BoxDynError> {
    meter.begin(asked.micros);
    Ok(())
}

async fn single(pool: &PgPool, order: &Order) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let mut producers = tokio::task::JoinSet::new();
    for _ in 0..order.producers {
        let (pool, share) = (pool.clone(), order.jobs / order.producers);
        producers.spawn(async move {
            let mut storage = storage(&pool);
            for number in 0..share {
                storage.push(Asked::now(number)).await.map_err(|e| anyhow::anyhow!("{e}"))?;
            }
            anyhow::Ok(())
        });
    }
    for produced in producers.join_all().await {
        produced?;
    }
    let rate = order.jobs as f64 / start.elapsed().as_secs_f64();
    Ok(Figures { single_per_second: Some(rate), ..Figures::default() })
}

async fn drain(pool: &PgPool, order: &Order) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let mut sink = storage(pool);
    for slice in (0..order.jobs).collect::<Vec<_>>().chunks(1000) {
        let slice = slice.iter().map(|n| Asked::now(*n)).collect();
        sink.push_bulk(slice).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    }
    let bulk = order.jobs as f64 / start.elapsed().as_secs_f64();
    sqlx::query("VACUUM ANALYZE").execute(pool).await?;
    let meter = Arc::new(Meter::new(order.jobs));
    let tuned = order.system == System::ApalisTuned;
    let (workers, poll) = if tuned { (2, 20) } else { (1, 100) };
    let start = Instant::now();
    let mut running = Vec::new();
    for worker in 0..workers {
        let mut config = Config::default().queue(QUEUE);
        if tuned {
            config = config.batch_size(500).lock_tasks(false);
        }
        let context = WorkerContext::new(&format!("{QUEUE}-{worker}-{}", std::process::id()));
        let backend = PostgresStorage::<Asked>::new(pool)
            .with_config(config)
            .poll_with_interval(Duration::from_millis(poll));
        let builder = WorkerBuilder::new(&context).backend(backend).data(meter.clone());
        let shell = builder.concurrency(UNBOUNDED).build(work);
        tokio::spawn(async move { shell.run().await.map_err(|error| eprintln!("apalis: {error}")) });
        running.push(context);
    }
    let figures = meter.drained(start, Duration::from_secs(order.limit_seconds), || unfinished(pool)).await?;
    for worker in running {
        worker.stop().ok();
    }
    Ok(Figures { bulk_per_second: Some(bulk), ..figures })
}

async fn latency(pool: &PgPool, order: &Order) -> anyhow::Result<Figures> {
    let expected = (order.rate * order.seconds) as usize;
    let meter = Arc::new(Meter::new(expected));
    let context = WorkerContext::new(&format!("{QUEUE}-{}", std::process::id()));
    let backend = storage(pool).with_pubsub().poll_with_interval(Duration::from_secs(1));
    let builder = WorkerBuilder::new(&context).backend(backend).data(meter.clone());
    let shell = builder.concurrency(UNBOUNDED).build(work);
    tokio::spawn(async move { shell.run().await.map_err(|error| eprintln!("apalis: {error}")) });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut ticks = beat(order.rate);
    for number in 0..expected {
        ticks.tick().await;
        let pool = pool.clone();
        tokio::spawn(async move { storage(&pool).push(Asked::now(number)).await.is_ok() });
    }
    let figures = meter.timed().await;
    context.stop().ok();
    Ok(figures)
}

async fn unfinished(pool: &PgPool) -> anyhow::Result<bool> {
    let left = "SELECT EXISTS (SELECT FROM apalis.jobs WHERE status <> 'Done')";
    Ok(sqlx::query_scalar(left).fetch_one(pool).await?)
}
