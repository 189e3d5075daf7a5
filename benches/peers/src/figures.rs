//! What every driver counts, and how it is told.

use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// The figures of one order; those of other tasks stay away.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub single_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulk_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_off_after: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latencies_ms: Option<Vec<f64>>,
}

/// The payload of every job: its number and when it was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asked {
    pub number: i64,
    pub micros: i64,
}

impl Asked {
    pub fn now(number: usize) -> Self {
        Self { number: number as i64, micros: micros() }
    }
}

fn micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

/// Counts jobs as they start, and wakes whoever waits for the last.
#[derive(Debug)]
pub struct Meter {
    expected: usize,
    begun: AtomicUsize,
    all: Notify,
    latencies: Mutex<Vec<f64>>,
}

impl Meter {
    pub fn new(expected: usize) -> Self {
        Self { expected, begun: AtomicUsize::new(0), all: Notify::new(), latencies: Mutex::default() }
    }

    pub fn begin(&self, asked_micros: i64) {
        let waited = (micros() - asked_micros) as f64 / 1000.0;
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(waited);
        if self.begun.fetch_add(1, Ordering::SeqCst) + 1 == self.expected {
            self.all.notify_one();
        }
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub fn latencies(&self) -> Vec<f64> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The figures of a drain that began at `start`: until every job has begun and `left`
    /// finds none that is not written down as done.
    pub async fn drained<L, F>(&self, start: Instant, limit: Duration, left: L) -> anyhow::Result<Figures>
    where
        L: Fn() -> F,
        F: Future<Output = anyhow::Result<bool>>,
    {
        let rest = limit.saturating_sub(start.elapsed());
        if tokio::time::timeout(rest, self.all.notified()).await.is_err() {
            let begun = self.begun();
            return Ok(Figures {
                drain_per_second: Some(begun as f64 / start.elapsed().as_secs_f64()),
                cut_off_after: Some(begun),
                ..Figures::default()
            });
        }
        while left().await? {
            anyhow::ensure!(start.elapsed() < limit * 2, "all jobs began, but not all were written as done");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let rate = self.expected as f64 / start.elapsed().as_secs_f64();
        Ok(Figures { drain_per_second: Some(rate), ..Figures::default() })
    }

    /// The figures of a latency run, once every job has begun or 30 s went by.
    pub async fn timed(&self) -> Figures {
        tokio::time::timeout(Duration::from_secs(30), self.all.notified()).await.ok();
        Figures { latencies_ms: Some(self.latencies()), ..Figures::default() }
    }
}

/// A ticker that asks `rate` times a second.
pub fn beat(rate: u64) -> tokio::time::Interval {
    tokio::time::interval(Duration::from_micros(1_000_000 / rate.max(1)))
}
