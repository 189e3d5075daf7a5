//! The sessions of one process: opened when they are needed, shared by the calls of one key,
//! replaced when they died, ended when nobody used them for a while.

use super::child::{self, Nursery};
use super::error::{Deadline, McpError};
use super::mark;
use super::session::{Patience, Session};
use super::slot::{Lease, Seat, Slot};
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

/// Before a task is asked for again whose server could not be asked.
const AGAIN: Duration = Duration::from_secs(2);

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

impl Clients {
    /// An empty pool. What a worker that was killed left running is ended first.
    pub fn new(settings: &Mcp, guard: &Guard) -> anyhow::Result<Self> {
        mark::end_orphans();
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
    #[expect(clippy::too_many_arguments, reason = "who calls whom with what, who listens, what stops it")]
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
    #[expect(clippy::too_many_arguments, reason = "who calls whom with what, who listens, what stops it")]
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
        futures::future::join_all(slots.iter().map(|slot| slot.end(grace))).await;
    }

    /// The open session of a key, or a new one.
    async fn session(&self, key: &SessionKey, server: &Server) -> Result<(Arc<Session>, Lease), McpError> {
        if self.pool.closing.is_cancelled() {
            return Err(McpError::Closing);
        }
        self.reap_from_now_on();
        let lease = self.pool.lease(key);
        let mut held = lease.0.held.lock().await;
        if let Some(session) = held.open(server).await {
            drop(held);
            return Ok((session, lease));
        }
        held.may_start()?;
        let seat = match server {
            Server::Stdio(_) => Some(self.pool.seat().await?),
            Server::StreamableHttp(_) | Server::Sse(_) => None,
        };
        // Boxed: it would be most of every call's future.
        let starting = Box::pin(start::start(&self.pool.means, server));
        let started = tokio::select! {
            biased;
            () = self.pool.closing.cancelled() => Err(McpError::Closing),
            started = starting => started,
        };
        let session = match started {
            Ok(started) => Arc::new(Session::new(started, seat)),
            Err(error) => {
                if error.is_transient() {
                    held.failed(error.to_string(), Instant::now());
                }
                return Err(error);
            }
        };
        held.session = Some((server.clone(), Arc::clone(&session)));
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
        Lease::of(slots.entry(key.clone()).or_insert_with(|| Arc::new(Slot::new())))
    }

    /// Room for one more child, if need be that of the one that was unused for longest.
    async fn seat(&self) -> Result<Seat, McpError> {
        let limit = self.means.settings.max_children;
        loop {
            if let Some(seat) = Seat::take(&self.children, limit) {
                return Ok(seat);
            }
            let mut unused: Vec<_> = self.slots().values().filter(|slot| slot.is_unused()).cloned().collect();
            unused.sort_by_key(|slot| slot.last_used());
            let mut ended = false;
            for slot in unused {
                ended = slot.end_child().await;
                if ended {
                    break;
                }
            }
            if !ended {
                return Err(McpError::Full { limit });
            }
        }
    }

    async fn reap(&self, idle: Duration) {
        let unused = |slot: &Slot| slot.is_unused() && slot.last_used().elapsed() >= idle;
        let old: Vec<_> = {
            let mut slots = self.slots();
            slots.extract_if(|_, slot| unused(slot)).map(|(_, slot)| slot).collect()
        };
        futures::future::join_all(old.iter().map(|slot| slot.end(child::GRACE))).await;
    }
}
