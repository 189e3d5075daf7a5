//! The jobs in this process's hands: what the keeper renews, and how each is told to stop.
//!
//! A job is held from its claim until its end is written; a place (permit) is held as long,
//! so the claim loop never takes more than can begin at once.

use crate::domain::JobId;
use crate::queue::Lease;
use crate::queue::desk::Claimed;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A claimed job in hand.
#[derive(Debug)]
pub struct Held {
    pub job: Claimed,
    /// Fires when the job must stop.
    pub stop: CancellationToken,
}

/// How a job is held.
#[derive(Debug)]
struct Grip {
    lease: Lease,
    stop: CancellationToken,
    /// When its attempt must be over, once it has begun.
    ends_by: Option<Instant>,
}

/// The jobs in hand and the places left.
#[derive(Debug)]
pub struct Hands {
    held: Mutex<HashMap<JobId, Grip>>,
    pub(super) places: Arc<Semaphore>,
    /// Fires once: no more claims.
    pub(super) closing: CancellationToken,
}

impl Hands {
    pub fn new(places: usize) -> Self {
        Self {
            held: Mutex::default(),
            places: Arc::new(Semaphore::new(places)),
            closing: CancellationToken::new(),
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Grip>> {
        // The map is valid after any panic: each change is one call.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes claimed jobs in hand.
    pub fn hold(&self, jobs: Vec<Claimed>) -> Vec<Held> {
        let mut map = self.map();
        let held = jobs.into_iter().map(|job| {
            let stop = CancellationToken::new();
            let grip = Grip { lease: job.lease, stop: stop.clone(), ends_by: None };
            if let Some(before) = map.insert(job.lease.job, grip) {
                // Lapsed, and claimed by us again while the old attempt is still at it: that one
                // ends now, and its place is free, for its release will find another epoch.
                before.stop.cancel();
                self.places.add_permits(1);
            }
            Held { job, stop }
        });
        held.collect()
    }

    /// Lets jobs go and frees their places.
    pub fn release(&self, leases: impl IntoIterator<Item = Lease>) {
        let mut map = self.map();
        let mut free = 0;
        for lease in leases {
            if map.get(&lease.job).is_some_and(|grip| grip.lease.epoch == lease.epoch) {
                map.remove(&lease.job);
                free += 1;
            }
        }
        drop(map);
        self.places.add_permits(free);
    }

    pub fn leases(&self) -> Vec<Lease> {
        self.map().values().map(|grip| grip.lease).collect()
    }

    /// The leases to be kept: not those of attempts that should be over. One that blocks its
    /// thread never meets its own time limit; so somebody else may have the job.
    pub fn leases_to_keep(&self) -> Vec<Lease> {
        let now = Instant::now();
        let kept = |grip: &&Grip| grip.ends_by.is_none_or(|by| now < by);
        self.map().values().filter(kept).map(|grip| grip.lease).collect()
    }

    /// Notes when the attempt must be over.
    pub fn ends_by(&self, lease: Lease, by: Instant) {
        if let Some(grip) = self.map().get_mut(&lease.job)
            && grip.lease.epoch == lease.epoch
        {
            grip.ends_by = Some(by);
        }
    }

    /// Tells one job to stop.
    pub fn stop(&self, lease: Lease) {
        if let Some(grip) = self.map().get(&lease.job)
            && grip.lease.epoch == lease.epoch
        {
            grip.stop.cancel();
        }
    }

    /// Tells every job to stop.
    pub fn stop_all(&self) {
        for grip in self.map().values() {
            grip.stop.cancel();
        }
    }

    pub fn count(&self) -> usize {
        self.map().len()
    }

    pub fn is_empty(&self) -> bool {
        self.map().is_empty()
    }
}
