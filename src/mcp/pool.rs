//! The sessions of one process: opened when they are needed, shared by the calls of one key,
//! replaced when they died, ended when nobody used them for a while.

use super::child::{self, Nursery};
use super::error::{Deadline, McpError};
use super::session::{Patience, Session};
use super::start::{self, Means};
use super::{Answer, Call, Heard, Listing, Server, SessionKey};
use crate::config::Mcp;
use crate::domain::ToolOutput;
use crate::guard::Guard;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// After the first failed start, doubled for each one after it.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_mins(2);
/// Before a task is asked for again whose server could not be asked.
const AGAIN: Duration = Duration::from_secs(2);
/// A server that lived so long is not blamed for the starts before.
const SOUND: Duration = Duration::from_mins(1);

/// The session pool.
#[derive(Debug, Clone)]
pub struct Clients {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    means: Means,
    slots: Mutex<HashMap<SessionKey, Arc<Slot>>>,
    children: Arc<AtomicUsize>,
    closing: CancellationToken,
    reaper: AtomicBool,
}

/// The place of one key's session.
#[derive(Debug)]
struct Slot {
    held: tokio::sync::Mutex<Held>,
    users: AtomicUsize,
    used: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct Held {
    session: Option<(Server, Arc<Session>, Option<Seat>)>,
    failures: u32,
    not_before: Option<Instant>,
    last: String,
}

/// A place among the children that may run at once.
#[derive(Debug)]
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A slot in use: it is not reaped.
struct Lease(Arc<Slot>);

impl Drop for Lease {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Clients {
    /// An empty pool. What a worker that was killed left running is ended first.
    pub fn new(settings: &Mcp, guard: &Guard) -> anyhow::Result<Self> {
        child::end_orphans();
        let connect = Duration::from_secs_f64(settings.connect_seconds);
        let means = Means {
            settings: settings.clone(),
            guard: guard.clone(),
            http: guard.client(connect, None)?,
            nursery: Nursery::open()?,
        };
        let pool = Pool {
            means,
            slots: Mutex::default(),
            children: Arc::default(),
            closing: CancellationToken::new(),
            reaper: AtomicBool::new(false),
        };
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Calls a tool and waits for its result; a task is polled to its end.
    pub async fn call(
        &self,
        key: &SessionKey,
        server: &Server,
        call: &Call,
        heard: mpsc::Sender<Heard>,
        stop: &CancellationToken,
    ) -> Result<ToolOutput, McpError> {
        let until = Instant::now() + call.total;
        let task = match self.start(key, server, call, heard, stop).await? {
            Answer::Done(output) => return Ok(output),
            Answer::Task(task) => task,
        };
        let (id, mut pause) = (task.id, task.poll_after);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))) => {}
                () = stop.cancelled() => {
                    self.cancel_task(key, server, &id).await.ok();
                    return Err(McpError::Stopped { sent: true });
                }
            }
            if Instant::now() >= until {
                self.cancel_task(key, server, &id).await.ok();
                return Err(McpError::Timeout { which: Deadline::Total, after: call.total, sent: true });
            }
            match self.poll_task(key, server, &id).await {
                Ok(Answer::Done(output)) => return Ok(output),
                Ok(Answer::Task(task)) => pause = task.poll_after,
                // The task goes on while its server cannot be asked.
                Err(error) if error.is_transient() && !self.pool.closing.is_cancelled() => {
                    pause = error.retry_after().unwrap_or(AGAIN);
                }
                Err(error) => return Err(error.of_accepted(Some(&id))),
            }
        }
    }

    /// Calls a tool: its result, or the task that the server made of it, for whoever polls.
    pub async fn start(
        &self,
        key: &SessionKey,
        server: &Server,
        call: &Call,
        heard: mpsc::Sender<Heard>,
        stop: &CancellationToken,
    ) -> Result<Answer, McpError> {
        let (session, _lease) = tokio::select! {
            session = self.session(key, server) => session?,
            () = stop.cancelled() => return Err(McpError::Stopped { sent: false }),
        };
        session.call(call, heard, stop).await
    }

    /// Asks once how a task stands, over whichever session.
    pub async fn poll_task(&self, key: &SessionKey, server: &Server, id: &str) -> Result<Answer, McpError> {
        let (session, _lease) = self.session(key, server).await?;
        session.poll(id, self.pool.patience(), &CancellationToken::new()).await
    }

    /// Asks the server to give a task up.
    pub async fn cancel_task(&self, key: &SessionKey, server: &Server, id: &str) -> Result<(), McpError> {
        let (session, _lease) = self.session(key, server).await?;
        session.cancel_task(id, self.pool.patience()).await
    }

    /// What the server offers, asked anew.
    pub async fn list(&self, key: &SessionKey, server: &Server) -> Result<Listing, McpError> {
        let (session, _lease) = self.session(key, server).await?;
        session.list(self.pool.patience()).await
    }

    /// The contents of a resource that a result linked to.
    pub async fn read_resource(
        &self,
        key: &SessionKey,
        server: &Server,
        uri: &str,
    ) -> Result<Vec<Value>, McpError> {
        let (session, _lease) = self.session(key, server).await?;
        session.read_resource(uri, self.pool.patience()).await
    }

    /// Whose servers said since the last time this was asked that their tools changed.
    pub fn changed(&self) -> Vec<SessionKey> {
        let slots = self.pool.slots();
        let changed = slots.iter().filter(|(_, slot)| slot.asks(Session::take_changed));
        changed.map(|(key, _)| key.clone()).collect()
    }

    /// Sessions that are open.
    pub fn open_sessions(&self) -> usize {
        self.pool.slots().values().filter(|slot| slot.asks(Session::is_open)).count()
    }

    /// Ends every session and opens none any more. Returns when no child is left.
    pub async fn close(&self) {
        self.close_within(child::GRACE).await;
    }

    /// The same in a hurry: children that do not go in so long are killed.
    pub async fn close_within(&self, grace: Duration) {
        self.pool.closing.cancel();
        let slots: Vec<_> = self.pool.slots().drain().map(|(_, slot)| slot).collect();
        let ends = slots.iter().map(|slot| async {
            let session = slot.held.lock().await.session.take();
            if let Some((_, session, _seat)) = session {
                session.close_within(grace).await;
            }
        });
        futures::future::join_all(ends).await;
    }

    /// The open session of a key, or a new one.
    async fn session(&self, key: &SessionKey, server: &Server) -> Result<(Arc<Session>, Lease), McpError> {
        if self.pool.closing.is_cancelled() {
            return Err(McpError::Closing);
        }
        self.reap_from_now_on();
        let lease = self.pool.lease(key);
        let mut held = lease.0.held.lock().await;
        if let Some((with, session, _)) = &held.session {
            if session.is_open() && with == server {
                let session = Arc::clone(session);
                drop(held);
                return Ok((session, lease));
            }
        }
        if let Some((_, old, seat)) = held.session.take() {
            let died = !old.is_open();
            if died && old.is_child() && old.opened.elapsed() < SOUND {
                held.failed("it died soon after its start".into());
            } else {
                held.failures = 0;
            }
            old.close().await;
            drop(seat);
        }
        held.may_start()?;
        let seat = match server {
            Server::Stdio(_) => Some(self.pool.seat().await?),
            Server::StreamableHttp(_) | Server::Sse(_) => None,
        };
        let started = tokio::select! {
            started = start::start(&self.pool.means, server) => started,
            () = self.pool.closing.cancelled() => Err(McpError::Closing),
        };
        let session = match started {
            Ok(started) => Arc::new(Session::new(started)),
            Err(error) => {
                if error.is_transient() {
                    held.failed(error.to_string());
                }
                return Err(error);
            }
        };
        held.session = Some((server.clone(), Arc::clone(&session), seat));
        drop(held);
        Ok((session, lease))
    }

    /// One task a pool looks for what nobody uses.
    fn reap_from_now_on(&self) {
        if self.pool.reaper.swap(true, Ordering::SeqCst) {
            return;
        }
        let pool = Arc::downgrade(&self.pool);
        let idle = Duration::from_secs_f64(self.pool.means.settings.idle_seconds);
        let closing = self.pool.closing.clone();
        tokio::spawn(async move {
            let pause = (idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(10));
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = closing.cancelled() => return,
                }
                let Some(pool) = Weak::upgrade(&pool) else { return };
                pool.reap(idle).await;
            }
        });
    }
}

impl Held {
    fn failed(&mut self, why: String) {
        self.failures += 1;
        let pause = BACKOFF.saturating_mul(1 << (self.failures - 1).min(16)).min(BACKOFF_MOST);
        self.not_before = Some(Instant::now() + pause);
        self.last = why;
    }

    fn may_start(&self) -> Result<(), McpError> {
        let wait = self.not_before.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
        if wait.is_zero() {
            return Ok(());
        }
        Err(McpError::BackingOff { failures: self.failures, wait, last: self.last.clone() })
    }
}

impl Pool {
    fn slots(&self) -> MutexGuard<'_, HashMap<SessionKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For what is not a call of a tool.
    fn patience(&self) -> Patience {
        let total = Duration::from_secs_f64(self.means.settings.request_seconds);
        Patience { idle: total, total }
    }

    fn lease(&self, key: &SessionKey) -> Lease {
        let mut slots = self.slots();
        let slot = slots.entry(key.clone()).or_insert_with(|| {
            Arc::new(Slot {
                held: tokio::sync::Mutex::default(),
                users: AtomicUsize::new(0),
                used: Mutex::new(Instant::now()),
            })
        });
        // Under the lock of all slots, so that the reaper sees it.
        slot.users.fetch_add(1, Ordering::SeqCst);
        Lease(Arc::clone(slot))
    }

    /// Room for one more child, if need be that of one nobody uses.
    async fn seat(&self) -> Result<Seat, McpError> {
        let limit = self.means.settings.max_children;
        loop {
            let taken = self
                .children
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < limit).then_some(n + 1));
            if taken.is_ok() {
                return Ok(Seat(Arc::clone(&self.children)));
            }
            let idle: Vec<_> = self
                .slots()
                .values()
                .filter(|slot| slot.users.load(Ordering::SeqCst) == 0)
                .cloned()
                .collect();
            let mut idle: Vec<_> = idle.into_iter().map(|slot| (slot.last_used(), slot)).collect();
            idle.sort_by_key(|(used, _)| *used);
            let mut ended = false;
            for (_, slot) in idle {
                if slot.end_child().await {
                    ended = true;
                    break;
                }
            }
            if !ended {
                return Err(McpError::Full { limit });
            }
        }
    }

    async fn reap(&self, idle: Duration) {
        let old: Vec<_> = {
            let mut slots = self.slots();
            let unused = |slot: &Arc<Slot>| {
                slot.users.load(Ordering::SeqCst) == 0 && slot.last_used().elapsed() >= idle
            };
            slots.extract_if(|_, slot| unused(slot)).map(|(_, slot)| slot).collect()
        };
        for slot in old {
            let session = slot.held.lock().await.session.take();
            if let Some((_, session, _seat)) = session {
                session.close().await;
            }
        }
    }
}

impl Slot {
    /// What its session says, if it has one and it is not just being opened or closed.
    fn asks(&self, question: impl Fn(&Session) -> bool) -> bool {
        let held = self.held.try_lock();
        held.is_ok_and(|held| held.session.as_ref().is_some_and(|(_, session, _)| question(session)))
    }

    fn last_used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the child of a slot that nobody uses.
    async fn end_child(&self) -> bool {
        let Ok(mut held) = self.held.try_lock() else { return false };
        let child = held.session.as_ref().is_some_and(|(_, session, _)| session.is_child());
        if !child || self.users.load(Ordering::SeqCst) > 0 {
            return false;
        }
        if let Some((_, session, _seat)) = held.session.take() {
            session.close().await;
        }
        true
    }
}
