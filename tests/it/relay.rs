//! A wire to Postgres that can be cut and stalled: TCP in the middle, blind to messages.

use sqlx::postgres::PgConnectOptions;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the wire does just now.
#[derive(Debug, Clone, Default)]
struct State {
    /// Nothing passes, sockets stay open: the other side seems to be thinking.
    stalled: bool,
    /// Connections opened before this one's number stay stalled for ever.
    half_open_before: u64,
    /// Connections opened before this one's number are cut.
    cut_before: u64,
    /// New connections are closed at once.
    refusing: bool,
    /// What happens when a client says something.
    trap: Option<Trap>,
    target: (String, u16),
}

#[derive(Debug, Clone)]
struct Trap {
    words: Vec<u8>,
    /// How often it snaps.
    times: u32,
    /// Stall the whole wire instead of cutting the one connection.
    stall: bool,
}

/// The wire; it goes when the test does.
pub struct Relay {
    pub port: u16,
    state: Arc<watch::Sender<State>>,
    opened: Arc<AtomicU64>,
    cuts: Arc<AtomicU64>,
    listening: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// A wire to where these options lead.
    pub async fn to(options: &PgConnectOptions) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(watch::channel(State { target: target(options), ..State::default() }).0);
        let opened = Arc::new(AtomicU64::new(0));
        let cuts = Arc::new(AtomicU64::new(0));
        let (wire, count, cut) = (state.clone(), opened.clone(), cuts.clone());
        let listening = tokio::spawn(async move {
            // Ends the connections when the relay goes.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, SeqCst);
                let State { refusing, target, .. } = wire.borrow().clone();
                if refusing {
                    continue;
                }
                let Ok(server) = TcpStream::connect((target.0.as_str(), target.1)).await else { continue };
                connections.spawn(pass(client, server, number, wire.clone(), cut.clone()));
            }
        });
        Ok(Self { port, state, opened, cuts, listening })
    }

    /// The same options over this wire.
    pub fn options(&self, options: &PgConnectOptions) -> PgConnectOptions {
        options.clone().host("127.0.0.1").port(self.port)
    }

    /// The same address over this wire.
    pub fn address(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).expect("an address");
        url.set_host(Some("127.0.0.1")).expect("it has a host");
        url.set_port(Some(self.port)).expect("it has a port");
        url.into()
    }

    fn now(&self) -> u64 {
        self.opened.load(SeqCst)
    }

    /// Cuts every connection there is.
    pub fn cut(&self) {
        let before = self.now();
        self.state.send_modify(|state| state.cut_before = before);
    }

    /// Cuts every connection there is and lets no new one in, until told otherwise.
    pub fn refuse(&self, refusing: bool) {
        self.state.send_modify(|state| state.refusing = refusing);
        if refusing {
            self.cut();
        }
    }

    /// Nothing passes on any connection, until told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.state.send_modify(|state| state.stalled = stalled);
    }

    /// Nothing passes any more on the connections there are; new ones work.
    pub fn half_open(&self) {
        let before = self.now();
        self.state.send_modify(|state| state.half_open_before = before);
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, options: &PgConnectOptions) {
        self.state.send_modify(|state| state.target = target(options));
    }

    /// Connections whose client says `words` are cut when the server has heard it and before
    /// its answer comes: the first `times` of them.
    pub fn cut_after(&self, words: &[u8], times: u32) {
        let trap = Trap { words: words.to_owned(), times, stall: false };
        self.state.send_modify(|state| state.trap = Some(trap));
    }

    /// Once a client says `words` and the server has heard it, nothing passes any more.
    pub fn stall_after(&self, words: &[u8]) {
        let trap = Trap { words: words.to_owned(), times: 1, stall: true };
        self.state.send_modify(|state| state.trap = Some(trap));
    }

    /// Waits until nothing passes.
    pub async fn until_stalled(&self) {
        self.state.subscribe().wait_for(|state| state.stalled).await.expect("the relay holds the sender");
    }

    /// How many connections `cut_after` has cut.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn pass(
    client: TcpStream,
    server: TcpStream,
    number: u64,
    state: Arc<watch::Sender<State>>,
    cuts: Arc<AtomicU64>,
) {
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut watched = state.subscribe();
    let wire = Wire { number, state: &state, mute: AtomicBool::new(false), cuts: &cuts };
    tokio::select! {
        () = wire.asked(from_client, to_server) => {}
        () = wire.answered(from_server, to_client) => {}
        _ = watched.wait_for(|state| number < state.cut_before) => {}
    }
}

/// The trap, if these words set it off.
fn snap(state: &watch::Sender<State>, words: &[u8]) -> Option<Trap> {
    let mut snapped = None;
    state.send_if_modified(|state| {
        let trap = state.trap.take_if(|trap| words.windows(trap.words.len()).any(|w| w == trap.words));
        let Some(mut trap) = trap else { return false };
        snapped = Some(trap.clone());
        state.stalled |= trap.stall;
        trap.times -= 1;
        if trap.times > 0 {
            state.trap = Some(trap);
        }
        true
    });
    snapped
}

fn target(options: &PgConnectOptions) -> (String, u16) {
    (options.get_host().to_owned(), options.get_port())
}

/// One connection.
struct Wire<'a> {
    number: u64,
    state: &'a watch::Sender<State>,
    /// The answer is not to be heard.
    mute: AtomicBool,
    cuts: &'a AtomicU64,
}

impl Wire<'_> {
    async fn open(&self) {
        let open = |state: &State| !state.stalled && self.number >= state.half_open_before;
        // The sender lives in the relay: waiting cannot fail while this task lives.
        self.state.subscribe().wait_for(open).await.ok();
    }

    async fn asked(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            self.open().await;
            let words = &buffer[..read];
            let cut = snap(self.state, words).is_some_and(|trap| !trap.stall);
            if cut {
                self.mute.store(true, SeqCst);
            }
            if to.write_all(words).await.is_err() {
                return;
            }
            if cut {
                // The server hears it and does it; nobody hears the server.
                self.cuts.fetch_add(1, SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
        }
        // A server behind a dead wire does not learn that its client went away.
        self.open().await;
    }

    async fn answered(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            self.open().await;
            if self.mute.load(SeqCst) {
                return std::future::pending().await;
            }
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }
}
