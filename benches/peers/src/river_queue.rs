//! River for Rust, tuned: 500 workers, a fetch cooldown of 1 ms and a poll of 20 ms.

use crate::figures::{Asked, Figures, Meter, beat};
use crate::{Order, Task};
use riverqueue::migrate::PostgresMigrator;
use riverqueue::sqlx::PgPool;
use riverqueue::sqlx::postgres::PgPoolOptions;
use riverqueue::{BoxError, Client, Job, JobArgs, QueueConfig, WorkContext, WorkOutcome, Workers};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

const WORKERS: usize = 500;
const CONNECTIONS: u32 = 16;

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "noop")]
struct Noop {
    asked: Asked,
}

fn noop(number: usize) -> Noop {
    Noop { asked: Asked::now(number) }
}

pub async fn measure(order: &Order) -> anyhow::Result<Figures> {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&order.url).await?;
    PostgresMigrator::new(pool.clone()).migrate_up().await?;
    let expected = match order.task {
        Task::Latency => (order.rate * order.seconds) as usize,
        Task::Drain | Task::Enqueue => order.jobs,
    };
    let meter = Arc::new(Meter::new(expected));
    let mut workers = Workers::new();
    let counted = meter.clone();
    workers.add_fn(move |_: WorkContext, job: Job<Noop>| {
        let meter = counted.clone();
        async move {
            meter.begin(job.args.asked.micros);
            Ok::<_, BoxError>(WorkOutcome::Complete)
        }
    })?;
    let queue = QueueConfig::new(WORKERS).with_fetch_poll_interval(Duration::from_millis(20));
    let client = Client::builder(pool.clone())
        .workers(workers)
        .queue("default", queue)
        .fetch_cooldown(Duration::from_millis(1))
        .build()?;
    match order.task {
        Task::Enqueue => {
            let start = Instant::now();
            let mut producers = tokio::task::JoinSet::new();
            for _ in 0..order.producers {
                let (client, share) = (client.clone(), order.jobs / order.producers);
                producers.spawn(async move {
                    for number in 0..share {
                        client.insert(noop(number)).await?;
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
        Task::Drain => {
            let start = Instant::now();
            for slice in (0..order.jobs).collect::<Vec<_>>().chunks(1000) {
                client.insert_many(slice.iter().map(|n| noop(*n)).collect::<Vec<_>>()).await?;
            }
            let bulk = order.jobs as f64 / start.elapsed().as_secs_f64();
            riverqueue::sqlx::query("VACUUM ANALYZE").execute(&pool).await?;
            let start = Instant::now();
            let mut running = client.start()?;
            let limit = Duration::from_secs(order.limit_seconds);
            let figures = meter.drained(start, limit, || unfinished(&pool)).await?;
            running.stop().await.ok();
            Ok(Figures { bulk_per_second: Some(bulk), ..figures })
        }
        Task::Latency => {
            let mut running = client.start()?;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let mut ticks = beat(order.rate);
            for number in 0..expected {
                ticks.tick().await;
                let client = client.clone();
                tokio::spawn(async move { client.insert(noop(number)).await.map(drop) });
            }
            let figures = meter.timed().await;
            running.stop().await.ok();
            Ok(figures)
        }
    }
}

async fn unfinished(pool: &PgPool) -> anyhow::Result<bool> {
    let left = "SELECT EXISTS (SELECT FROM river_job WHERE state <> 'completed')";
    Ok(riverqueue::sqlx::query_scalar(left).fetch_one(pool).await?)
}
