//! The place of one key's session: who uses it, when it may be opened again, and its end.

use super::Server;
use super::error::McpError;
use super::session::Session;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// After the first failed start, doubled for each one after it.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_mins(2);
/// A server that lived so long is not blamed for the starts before.
const SOUND: Duration = Duration::from_mins(1);

/// The place of one key's session.
#[derive(Debug)]
pub(super) struct Slot {
    pub held: tokio::sync::Mutex<Held>,
    pub users: AtomicUsize,
    used: Mutex<Instant>,
}

/// A session, and what became of those before it.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub session: Option<(Server, Arc<Session>)>,
    failures: u32,
    not_before: Option<Instant>,
    last: String,
}

/// A place among the children that may run at once.
#[derive(Debug)]
pub(super) struct Seat(Arc<AtomicUsize>);

impl Seat {
    /// One of `limit`, if there is one.
    pub fn take(among: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let free = |taken| (taken < limit).then_some(taken + 1);
        let taken = among.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free);
        taken.is_ok().then(|| Self(Arc::clone(among)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A slot in use: it is not reaped.
pub(super) struct Lease(pub Arc<Slot>);

impl Lease {
    /// Taken under the lock of all slots, so that the reaper sees it.
    pub fn of(slot: &Arc<Slot>) -> Self {
        slot.users.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(slot))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Held {
    /// The session, if it is open and with this server; one that is not makes way.
    pub async fn open(&mut self, server: &Server) -> Option<Arc<Session>> {
        let (with, session) = self.session.take()?;
        if session.is_open() && with == *server {
            self.session = Some((with, Arc::clone(&session)));
            return Some(session);
        }
        match session.died() {
            Some(at) if session.is_child() && at - session.opened < SOUND => {
                self.failed("it died soon after its start".into(), at);
            }
            _ => self.failures = 0,
        }
        // Calls at work over one that is only outdated keep it until they end.
        if session.died().is_some() || Arc::strong_count(&session) == 1 {
            session.close().await;
        }
        None
    }

    /// Nothing is started for a while, longer after each failure.
    pub fn failed(&mut self, why: String, at: Instant) {
        self.failures += 1;
        let pause = BACKOFF.saturating_mul(1 << (self.failures - 1).min(16)).min(BACKOFF_MOST);
        self.not_before = Some(at + pause);
        self.last = why;
    }

    pub fn may_start(&self) -> Result<(), McpError> {
        let wait = self.not_before.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
        if wait.is_zero() {
            return Ok(());
        }
        Err(McpError::BackingOff { failures: self.failures, wait, last: self.last.clone() })
    }
}

impl Slot {
    pub fn new() -> Self {
        Self {
            held: tokio::sync::Mutex::default(),
            users: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
        }
    }

    pub fn is_unused(&self) -> bool {
        self.users.load(Ordering::SeqCst) == 0
    }

    /// What its session says, if it has one and it is not just being opened or closed.
    pub fn asks(&self, question: impl Fn(&Session) -> bool) -> bool {
        let held = self.held.try_lock();
        held.is_ok_and(|held| held.session.as_ref().is_some_and(|(_, session)| question(session)))
    }

    pub fn last_used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends its session.
    pub async fn end(&self, grace: Duration) {
        let session = self.held.lock().await.session.take();
        if let Some((_, session)) = session {
            session.close_within(grace).await;
        }
    }

    /// Ends its child, if it has one and nobody uses it.
    pub async fn end_child(&self) -> bool {
        let Ok(mut held) = self.held.try_lock() else { return false };
        let child = held.session.as_ref().is_some_and(|(_, session)| session.is_child());
        if !child || !self.is_unused() {
            return false;
        }
        if let Some((_, session)) = held.session.take() {
            session.close().await;
        }
        true
    }
}
