//! Messages as lines over the pipes of a child.
//!
//! Unlike rmcp's own reader, a line that is too long ends the session, since what it answered
//! is lost; a server that speaks of other things than MCP is given up after a while; and one
//! that says nothing to `server/discover`, which older ones do not know, is told for it that it
//! has no such method, so that rmcp goes on with `initialize` over the same pipes.

use super::child::{Keeper, Pipes, glimpse};
use super::error::Ending;
use super::wire::{For, Wire};
use rmcp::RoleClient;
use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, ErrorCode, ErrorData, JsonRpcMessage, RequestId,
    ServerJsonRpcMessage, ServerNotification,
};
use rmcp::transport::Transport;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// An older server has so long to say that it does not know `server/discover`.
const DISCOVER: Duration = Duration::from_secs(2);
/// Lines in a row, and bytes of them, that are not MCP.
const JUNK_LINES: usize = 1000;
const JUNK_BYTES: usize = 1024 * 1024;
const BUFFER: usize = 64 * 1024;

/// The transport that rmcp drives.
pub(super) struct Stdio {
    reader: BufReader<ChildStdout>,
    line: Vec<u8>,
    longest: usize,
    ready: VecDeque<ServerJsonRpcMessage>,
    junk: (usize, usize),
    probe: Option<(RequestId, Instant)>,
    /// The probe that was answered here: the server's own answer comes too late.
    given_up: Option<RequestId>,
    writer: Arc<Mutex<Option<ChildStdin>>>,
    keeper: Arc<Keeper>,
    wire: Arc<Wire>,
}

impl Stdio {
    /// Over the pipes of a child whose lines are `longest` bytes at most.
    pub fn new(pipes: Pipes, longest: usize, wire: &Arc<Wire>) -> (Self, Arc<Keeper>) {
        let keeper = Arc::new(pipes.keeper);
        let transport = Self {
            reader: BufReader::with_capacity(BUFFER, pipes.stdout),
            line: Vec::new(),
            longest,
            ready: VecDeque::new(),
            junk: (0, 0),
            probe: None,
            given_up: None,
            writer: Arc::new(Mutex::new(Some(pipes.stdin))),
            keeper: Arc::clone(&keeper),
            wire: Arc::clone(wire),
        };
        (transport, keeper)
    }

    /// Reads up to the end of a line into `self.line`; `false` at the end of the stream.
    ///
    /// Losing this future loses nothing: what was taken from the pipe lies in `self.line`.
    async fn read_line(&mut self) -> io::Result<bool> {
        loop {
            let some = self.reader.fill_buf().await?;
            if some.is_empty() {
                return Ok(false);
            }
            let end = memchr::memchr(b'\n', some);
            let taken = end.map_or(some.len(), |at| at + 1);
            let room = (self.longest + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&some[..taken.min(room)]);
            self.reader.consume(taken);
            if end.is_some() || self.line.len() > self.longest {
                return Ok(true);
            }
        }
    }

    /// A line, or the news that there is none any more.
    async fn next_line(&mut self) -> bool {
        match self.read_line().await {
            Ok(true) if self.line.len() > self.longest => {
                let head = String::from_utf8_lossy(&self.line[..self.line.len().min(16 * 1024)]).into_owned();
                self.wire.end(Ending::Oversize { limit: self.longest, head });
                false
            }
            Ok(more) => more,
            Err(e) => {
                self.wire.end(Ending::Broken(e.to_string()));
                false
            }
        }
    }

    /// Takes the messages out of the line; a batch has several.
    fn take(&mut self) -> Result<(), Ending> {
        let bytes = self.line.len();
        let line = self.line.trim_ascii();
        let parsed = match line.first() {
            None => Ok(Vec::new()),
            Some(b'[') => serde_json::from_slice(line),
            Some(_) => serde_json::from_slice(line).map(|message| vec![message]),
        };
        let outcome = if let Ok(messages) = parsed {
            self.junk = (0, 0);
            for message in &messages {
                self.wire.charge(&whom(message), bytes);
            }
            self.ready.extend(messages);
            Ok(())
        } else {
            self.junk = (self.junk.0 + 1, self.junk.1 + bytes);
            let too_much = self.junk.0 > JUNK_LINES || self.junk.1 > JUNK_BYTES;
            if too_much { Err(Ending::Junk { head: glimpse(line) }) } else { Ok(()) }
        };
        self.line.clear();
        // A large message must not hold its room for the rest of the session.
        self.line.shrink_to(BUFFER);
        outcome
    }

    /// Says for the server that it does not know the question.
    fn give_up_probe(&mut self) -> Option<ServerJsonRpcMessage> {
        let (id, _) = self.probe.take()?;
        self.given_up = Some(id.clone());
        let unknown = ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "no answer to server/discover", None);
        Some(JsonRpcMessage::error(unknown, Some(id)))
    }

    /// The next message, unless it answers the probe that was given up.
    fn next_ready(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let message = self.ready.pop_front()?;
            let answers = match &message {
                JsonRpcMessage::Response(response) => Some(&response.id),
                JsonRpcMessage::Error(error) => error.id.as_ref(),
                _ => None,
            };
            if answers.is_some() && answers == self.given_up.as_ref() {
                continue;
            }
            if answers.is_some() && answers == self.probe.as_ref().map(|(id, _)| id) {
                self.probe = None;
            }
            return Some(message);
        }
    }
}

/// Whom a message is for.
pub(super) fn whom(message: &ServerJsonRpcMessage) -> For {
    match message {
        JsonRpcMessage::Response(response) => For::Request(response.id.clone()),
        JsonRpcMessage::Error(error) => error.id.clone().map_or(For::All, For::Request),
        JsonRpcMessage::Notification(notification) => match &notification.notification {
            ServerNotification::ProgressNotification(progress) => {
                For::Token(progress.params.progress_token.clone())
            }
            _ => For::All,
        },
        JsonRpcMessage::Request(_) => For::All,
    }
}

/// A request's id, where the message is one.
pub(super) fn request_id(message: &ClientJsonRpcMessage) -> Option<&RequestId> {
    match message {
        JsonRpcMessage::Request(request) => Some(&request.id),
        _ => None,
    }
}

impl Transport<RoleClient> for Stdio {
    type Error = io::Error;

    fn send(
        &mut self,
        message: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        if let JsonRpcMessage::Request(request) = &message
            && matches!(request.request, ClientRequest::DiscoverRequest(_))
        {
            self.probe = Some((request.id.clone(), Instant::now() + DISCOVER));
        }
        let (writer, wire) = (Arc::clone(&self.writer), Arc::clone(&self.wire));
        async move {
            let mut line = serde_json::to_vec(&message)?;
            line.push(b'\n');
            let mut writer = writer.lock().await;
            let Some(pipe) = writer.as_mut() else { return Err(io::ErrorKind::NotConnected.into()) };
            if let Some(id) = request_id(&message) {
                wire.leaves(id);
            }
            pipe.write_all(&line).await?;
            pipe.flush().await
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            if let Some(message) = self.next_ready() {
                return Some(message);
            }
            let more = match self.probe.as_ref().map(|(_, until)| *until) {
                None => self.next_line().await,
                Some(until) => {
                    let Ok(more) = tokio::time::timeout_at(until, self.next_line()).await else {
                        return self.give_up_probe();
                    };
                    more
                }
            };
            if !more {
                return None;
            }
            if let Err(ending) = self.take() {
                self.wire.end(ending);
                return None;
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        // A writer that is stuck keeps the pipe; the signal comes to such a server too.
        if let Ok(mut writer) = self.writer.try_lock() {
            writer.take();
        }
        self.keeper.end();
        Ok(())
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.keeper.end();
    }
}
