//! The jobs in this process's hands: what the keeper renews, and how each is told to stop.
//!
//! A job is held from its claim until its end is written; a place (permit) is held as long,
//! so the claim loop never takes more than can begin at once.

use crate::domain::JobId;
use crate::queue::Lease;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

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

    /// Takes a claimed job in hand and gives the token that stops it.
    pub fn hold(&self, lease: Lease) -> CancellationToken {
        let token = CancellationToken::new();
        let before = self.map().insert(lease.job, (lease, token.clone()));
        if let Some((_, lost)) = before {
            // Lapsed, and claimed by us again while the old attempt is still at it: that one
            // ends now, and its place is free, for its release will find another epoch.
            lost.cancel();
            self.places.add_permits(1);
        }
        token
    }

    /// The stop token of a job in hand.
    pub fn token(&self, job: JobId) -> CancellationToken {
        self.map().get(&job).map(|(_, token)| token.clone()).unwrap_or_default()
    }

    /// Lets a job go and frees its place.
    pub fn release(&self, lease: Lease) {
        let mut map = self.map();
        if map.get(&lease.job).is_some_and(|(held, _)| held.epoch == lease.epoch) {
            map.remove(&lease.job);
            self.places.add_permits(1);
        }
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
