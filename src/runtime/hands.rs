//! The jobs in this process's hands: what the keeper renews, and how each is told to stop.
//!
//! A job is held from its claim until its end is written; a place (permit) is held as long,
//! so the claim loop never takes more than can begin at once.

use crate::domain::JobId;
use crate::queue::Lease;
use crate::queue::desk::Claimed;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A claimed job in hand.
#[derive(Debug)]
pub struct Held {
    pub job: Claimed,
    /// Fires when the job must stop.
    pub stop: CancellationToken,
}

/// The jobs in hand and the places left.
#[derive(Debug)]
pub struct Hands {
    held: Mutex<HashMap<JobId, (Lease, CancellationToken)>>,
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

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, (Lease, CancellationToken)>> {
        // The map is valid after any panic: each change is one call.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes claimed jobs in hand.
    pub fn hold(&self, jobs: Vec<Claimed>) -> Vec<Held> {
        let mut map = self.map();
        let held = jobs.into_iter().map(|job| {
            let stop = CancellationToken::new();
            let before = map.insert(job.lease.job, (job.lease, stop.clone()));
            if let Some((_, lost)) = before {
                // Lapsed, and claimed by us again while the old attempt is still at it: that one
                // ends now, and its place is free, for its release will find another epoch.
                lost.cancel();
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
            if map.get(&lease.job).is_some_and(|(held, _)| held.epoch == lease.epoch) {
                map.remove(&lease.job);
                free += 1;
            }
        }
        drop(map);
        self.places.add_permits(free);
    }

    pub fn leases(&self) -> Vec<Lease> {
        self.map().values().map(|(lease, _)| *lease).collect()
    }

    /// Tells one job to stop.
    pub fn stop(&self, lease: Lease) {
        if let Some((held, token)) = self.map().get(&lease.job)
            && held.epoch == lease.epoch
        {
            token.cancel();
        }
    }

    /// Tells every job to stop.
    pub fn stop_all(&self) {
        for (_, token) in self.map().values() {
            token.cancel();
        }
    }

    pub fn count(&self) -> usize {
        self.map().len()
    }

    pub fn is_empty(&self) -> bool {
        self.map().is_empty()
    }
}
