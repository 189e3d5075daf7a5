//! What every side of `gristmill bench queue` counts, and the meter it counts with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// The figures of one task of one system; the drivers in benches/peers tell theirs in this form.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Figures {
    /// Enqueued one by one by several callers, without a notification.
    pub single_per_second: Option<f64>,
    /// The same with a notification each.
    pub notified_per_second: Option<f64>,
    /// Enqueued a thousand at a time.
    pub bulk_per_second: Option<f64>,
    /// Worked off and written down as done.
    pub drain_per_second: Option<f64>,
    /// So many had begun when the drain took too long.
    pub cut_off_after: Option<usize>,
    /// From the call that enqueues to the start of the job, one by one.
    pub latencies_ms: Option<Vec<f64>>,
}

/// The payload of a job that is measured: when it was asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Asked {
    pub micros: i64,
}

impl Asked {
    pub fn now() -> Self {
        Self { micros: micros() }
    }

    pub fn payloads(count: usize) -> Vec<Value> {
        (0..count).map(|_| Self::now().payload()).collect()
    }

    pub fn payload(self) -> Value {
        serde_json::json!({ "micros": self.micros })
    }
}

fn micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

/// Counts jobs as they begin, and wakes whoever waits for the last.
pub struct Meter {
    expected: AtomicUsize,
    begun: AtomicUsize,
    all: Notify,
    latencies: Mutex<Vec<f64>>,
}

impl Meter {
    pub const fn new() -> Self {
        Self {
            expected: AtomicUsize::new(usize::MAX),
            begun: AtomicUsize::new(0),
            all: Notify::const_new(),
            latencies: Mutex::new(Vec::new()),
        }
    }

    /// Begins anew.
    pub fn expect(&self, jobs: usize) {
        self.begun.store(0, Ordering::SeqCst);
        self.expected.store(jobs, Ordering::SeqCst);
        *self.latencies.lock().unwrap_or_else(PoisonError::into_inner) = Vec::with_capacity(jobs);
    }

    pub fn begin(&self, asked: Asked) {
        let waited = (micros() - asked.micros) as f64 / 1000.0;
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(waited);
        if self.begun.fetch_add(1, Ordering::SeqCst) + 1 == self.expected.load(Ordering::SeqCst) {
            self.all.notify_one();
        }
    }

    /// Waits until the last job has begun; false when `limit` went by first.
    pub async fn all(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.all.notified()).await.is_ok()
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub fn latencies(&self) -> Vec<f64> {
        std::mem::take(&mut self.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Jobs a second since `start`.
pub fn per_second(jobs: usize, start: Instant) -> f64 {
    jobs as f64 / start.elapsed().as_secs_f64()
}

/// The value below which `share` of the samples lie.
pub fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied()
}

/// The middle one; of an even number the lower.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().max(1).div_ceil(2) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_one_of_the_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[3.0, 1.0]), Some(1.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn percentiles_reach_from_the_least_to_the_greatest() {
        let samples: Vec<f64> = (0..101).map(f64::from).rev().collect();
        assert_eq!(percentile(&samples, 0.0), Some(0.0));
        assert_eq!(percentile(&samples, 0.5), Some(50.0));
        assert_eq!(percentile(&samples, 0.99), Some(99.0));
        assert_eq!(percentile(&samples, 1.0), Some(100.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[tokio::test]
    async fn a_meter_tells_when_the_last_job_has_begun_and_not_before() {
        let meter = Meter::new();
        meter.expect(2);
        meter.begin(Asked::now());
        assert!(!meter.all(Duration::from_millis(10)).await);
        meter.begin(Asked::now());
        assert!(meter.all(Duration::from_secs(5)).await);
        assert_eq!(meter.latencies().len(), 2);
    }
}
