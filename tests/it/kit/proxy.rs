//! A TCP proxy for Postgres that understands where messages begin and end.
//!
//! It counts the messages that answer *work* and acts at the N-th. What counts, so that the
//! same work gives the same count on every run:
//! - from the first claim that brings a job on; connecting, logging in and preparing never;
//! - answers to statements that are executed, not to their preparation, since a pooled
//!   connection may know a statement already or not;
//! - of these `DataRow`, `CommandComplete`, `ReadyForQuery` and errors: the others tell a worker
//!   nothing it could act on, so a cut there is the cut before the next;
//! - of a claim, what comes from its first job on: an idle look at the queue brings none;
//! - not what goes on beside the work by the clock: renewing, rescuing, listening, telling
//!   who is there ([`BESIDE_THE_WORK`]); nor what a fresh connection asks about types.
//!
//! What is left may still differ by a message or two between runs, where two tasks of the
//! worker talk at once; the label of a point says what was really hit.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, RwLock};

/// Statements that run by the clock or for the connection, not for a job.
const BESIDE_THE_WORK: [&str; 14] = [
    "pg_type",
    "publish_kind",
    "_sqlx_migrations",
    "gristmill.renew",
    "gristmill.rescue",
    "LISTEN",
    "SET ROLE",
    "gristmill.kinds",
    "gristmill.workers",
    "gristmill.report_worker",
    "statement_timestamp()",
    "advisory",
    "gristmill.schedules",
    "DISCARD",
];
/// Messages that are kept by name.
const TRACED: usize = 10_000;
const CLAIM: &str = "gristmill.claim(";

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// What to do at the message.
pub enum Act {
    /// The server said it; the worker never hears it.
    CutBefore,
    /// The worker hears it, and then nothing more.
    CutAfter,
    /// Nothing passes on this connection, in neither direction, for so long: it comes late, or
    /// the connection is half-open.
    Stall(Duration),
    /// Runs this, then cuts before.
    Run(Box<dyn FnOnce() + Send>),
}

/// A running proxy; it ends when it is dropped.
pub struct Proxy {
    at: SocketAddr,
    wires: Arc<Wires>,
    accepting: tokio::task::JoinHandle<()>,
}

/// What all connections share.
struct Wires {
    ledger: Mutex<Ledger>,
    cut_all: Notify,
    fired: Notify,
}

struct Ledger {
    upstream: SocketAddr,
    /// Whether a claim has brought a job yet.
    working: bool,
    armed: Option<(usize, Act)>,
    counted: usize,
    /// The first of them: what each answers, and its type.
    trace: Vec<String>,
    fired: Option<String>,
}

impl Wires {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let at = listener.local_addr()?;
        let ledger =
            Ledger { upstream, working: false, armed: None, counted: 0, trace: Vec::new(), fired: None };
        let wires =
            Arc::new(Wires { ledger: Mutex::new(ledger), cut_all: Notify::new(), fired: Notify::new() });
        let shared = wires.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // A connection that ends in an error ends: that is what this is for.
                let shared = shared.clone();
                connections.spawn(async move { serve(client, &shared).await.ok() });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { at, wires, accepting })
    }

    /// The same database, by way of this proxy.
    pub fn address(&self, of: &str) -> anyhow::Result<String> {
        let mut url = url::Url::parse(of)?;
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(self.at.port())).map_err(|()| anyhow::anyhow!("{of} takes no port"))?;
        Ok(url.into())
    }

    /// Acts once, at the `n`-th counted message (the first is 1).
    pub fn arm(&self, n: usize, act: Act) {
        self.wires.ledger().armed = Some((n, act));
    }

    /// Acts once, at the `n`-th counted message from now on.
    pub fn arm_ahead(&self, n: usize, act: Act) {
        let mut ledger = self.wires.ledger();
        ledger.armed = Some((ledger.counted + n, act));
    }

    /// What was counted, in order.
    pub fn trace(&self) -> Vec<String> {
        self.wires.ledger().trace.clone()
    }

    /// What the act hit, once it did.
    pub fn fired(&self) -> Option<String> {
        self.wires.ledger().fired.clone()
    }

    /// Waits until the act was done.
    pub async fn until_fired(&self) {
        loop {
            let told = self.wires.fired.notified();
            if self.fired().is_some() {
                return;
            }
            tokio::select! { () = told => {}, () = tokio::time::sleep(Duration::from_millis(50)) => {} }
        }
    }

    /// New connections go there from now on.
    pub fn redirect(&self, upstream: SocketAddr) {
        self.wires.ledger().upstream = upstream;
    }

    /// Cuts every connection there is.
    pub fn cut_all(&self) {
        self.wires.cut_all.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut client: TcpStream, wires: &Wires) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let hello = loop {
        let length = client.read_u32().await?;
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        client.read_exact(&mut body).await?;
        let code = u32::from_be_bytes(body[..4].try_into().expect("a startup message has a code"));
        if code == SSL_REQUEST || code == GSS_REQUEST {
            // No encryption: the proxy could not read it.
            client.write_all(b"N").await?;
            continue;
        }
        break [&length.to_be_bytes()[..], &body].concat();
    };
    let upstream = wires.ledger().upstream;
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    server.write_all(&hello).await?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (talk, still) = (Mutex::new(Talk::default()), RwLock::new(()));
    tokio::select! {
        done = ask(from_client, to_server, &talk, &still) => done,
        done = answer(from_server, to_client, wires, &talk, &still) => done,
        () = wires.cut_all.notified() => Ok(()),
    }
}

/// What was asked on one connection and not answered yet.
#[derive(Default)]
struct Talk {
    prepared: HashMap<Vec<u8>, String>,
    exchanges: VecDeque<Exchange>,
}

/// Everything between two `ReadyForQuery`.
#[derive(Default)]
struct Exchange {
    sql: String,
    executes: bool,
    /// Its Sync was sent.
    closed: bool,
    /// An answer of a claim holds a job.
    rows: bool,
}

impl Talk {
    fn asked(&mut self, kind: u8, body: &[u8]) {
        let mut words = body.split(|byte| *byte == 0);
        let first = words.next().unwrap_or_default();
        if kind == b'Q' {
            let sql = String::from_utf8_lossy(first).into_owned();
            self.exchanges.push_back(Exchange { sql, executes: true, closed: true, rows: false });
            return;
        }
        if !matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C' | b'S') {
            return;
        }
        if self.exchanges.back().is_none_or(|last| last.closed) {
            self.exchanges.push_back(Exchange::default());
        }
        let Some(last) = self.exchanges.back_mut() else { return };
        let second = words.next().unwrap_or_default();
        match kind {
            b'P' => {
                self.prepared.insert(first.to_vec(), String::from_utf8_lossy(second).into_owned());
            }
            b'B' => last.sql = self.prepared.get(second).cloned().unwrap_or_default(),
            b'E' => last.executes = true,
            b'S' => last.closed = true,
            _ => {}
        }
    }

    /// The label of a message of the server, if it counts; and whether it brings a job.
    fn answered(&mut self, kind: u8, body: &[u8]) -> Option<(String, bool)> {
        let current = self.exchanges.front_mut()?;
        let claim = current.sql.contains(CLAIM);
        // A row whose first column, the job's id, is not NULL (length -1).
        current.rows |= kind == b'D' && body.get(2..6).is_some_and(|length| length != [0xff; 4]);
        let counts = current.executes
            && matches!(kind, b'D' | b'C' | b'Z' | b'E')
            && !BESIDE_THE_WORK.iter().any(|word| current.sql.contains(word))
            && (!claim || current.rows);
        let label = counts.then(|| (label(&current.sql, kind), claim));
        if kind == b'Z' {
            self.exchanges.pop_front();
        }
        label
    }
}

fn label(sql: &str, kind: u8) -> String {
    let sql = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let sql = if sql.contains(CLAIM) { CLAIM.to_owned() } else { sql };
    let name = match kind {
        b'D' => "DataRow",
        b'C' => "CommandComplete",
        b'Z' => "ReadyForQuery",
        _ => "ErrorResponse",
    };
    format!("{name} of {}", sql.chars().take(70).collect::<String>())
}

async fn message(from: &mut OwnedReadHalf) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = from.read_u8().await?;
    let length = from.read_u32().await?;
    let mut body = vec![0; (length as usize).saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}

async fn pass(to: &mut OwnedWriteHalf, kind: u8, body: &[u8]) -> std::io::Result<()> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    to.write_all(&[&[kind], &length[..], body].concat()).await
}

async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    talk: &Mutex<Talk>,
    still: &RwLock<()>,
) -> std::io::Result<()> {
    loop {
        let (kind, body) = message(&mut from).await?;
        let _moving = still.read().await;
        talk.lock().unwrap_or_else(PoisonError::into_inner).asked(kind, &body);
        pass(&mut to, kind, &body).await?;
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    wires: &Wires,
    talk: &Mutex<Talk>,
    still: &RwLock<()>,
) -> std::io::Result<()> {
    loop {
        let (kind, body) = message(&mut from).await?;
        let label = talk.lock().unwrap_or_else(PoisonError::into_inner).answered(kind, &body);
        match label.and_then(|(label, job)| wires.count(label, job)) {
            None => {}
            Some(Act::CutBefore) => return Ok(()),
            Some(Act::CutAfter) => return pass(&mut to, kind, &body).await,
            Some(Act::Stall(long)) => {
                let _still = still.write().await;
                tokio::time::sleep(long).await;
            }
            Some(Act::Run(deed)) => {
                deed();
                return Ok(());
            }
        }
        pass(&mut to, kind, &body).await?;
    }
}

impl Wires {
    /// Counts one message, and gives the act if it is its turn.
    fn count(&self, label: String, job: bool) -> Option<Act> {
        let mut ledger = self.ledger();
        ledger.working |= job;
        if !ledger.working {
            return None;
        }
        ledger.counted += 1;
        let n = ledger.counted;
        if n <= TRACED {
            ledger.trace.push(label.clone());
        }
        let (_, act) = ledger.armed.take_if(|(at, _)| *at == n)?;
        ledger.fired = Some(label);
        self.fired.notify_waiters();
        Some(act)
    }
}
