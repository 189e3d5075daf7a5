//! What a transport and the calls over it tell each other beside the messages: why it ended,
//! which requests left, how much came for whom, and what was heard on the way.
//!
//! rmcp's own channel between the two carries messages alone, and says of an end only that it
//! came. It also names a request only after it went off, so a call listens before it has a name,
//! and progress that is faster than the name waits among the strays.

use super::Heard;
use super::error::Ending;
use rmcp::model::{ProgressToken, RequestId};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Of what was heard, so much is kept for the case that the answer is too large.
const KEPT_BYTES: usize = 64 * 1024;
/// Progress and log messages of one call that are passed on.
const HEARD_AT_MOST: usize = 1000;
/// Of one such message, so much.
const HEARD_BYTES: usize = 16 * 1024;
/// Notifications that wait for the call they belong to.
const STRAYS: usize = 16;

/// Whom received bytes are for.
#[derive(Debug, Clone)]
pub(super) enum For {
    Request(RequestId),
    Token(ProgressToken),
    /// Everybody who waits: it cannot be told.
    All,
}

/// The shared side of one session.
#[derive(Debug)]
pub(super) struct Wire {
    inner: Mutex<Inner>,
    /// Cancelled when the session is over.
    pub ended: CancellationToken,
    /// Cancelled when it was ended from here: what the server still says is not read any more.
    pub cut: CancellationToken,
    /// Bytes that one call, and the session beside its calls, may receive.
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    ending: Option<(Ending, Instant)>,
    left: HashSet<RequestId>,
    /// Who listens, by the order they came in.
    waiting: HashMap<u64, Waiting>,
    came: u64,
    ids: HashMap<RequestId, u64>,
    tokens: HashMap<ProgressToken, u64>,
    strays: VecDeque<(ProgressToken, Heard)>,
    stray_bytes: usize,
    changed: bool,
}

#[derive(Debug)]
struct Waiting {
    name: Option<(RequestId, ProgressToken)>,
    bytes: usize,
    heard: mpsc::Sender<Heard>,
    passed: usize,
    kept: Vec<String>,
    kept_bytes: usize,
    signs: Signs,
}

/// How a waiting call learns of things.
#[derive(Debug, Clone, Default)]
pub(super) struct Signs {
    pub progress: Arc<Notify>,
    pub too_much: CancellationToken,
}

impl Wire {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            ended: CancellationToken::new(),
            cut: CancellationToken::new(),
            limit,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is complete before anything could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The session is over, and why; the first reason counts.
    pub fn end(&self, ending: Ending) {
        if !matches!(ending, Ending::Exited { .. } | Ending::Closed | Ending::Broken(_)) {
            self.cut.cancel();
        }
        self.lock().ending.get_or_insert_with(|| (ending, Instant::now()));
        self.ended.cancel();
    }

    /// When it was over.
    pub fn ended_at(&self) -> Option<Instant> {
        self.lock().ending.as_ref().map(|(_, at)| *at)
    }

    /// Why it is over, waiting a while for whoever knows.
    pub async fn ending(&self, patience: Duration) -> Ending {
        tokio::time::timeout(patience, self.ended.cancelled()).await.ok();
        self.lock().ending.as_ref().map_or(Ending::Closed, |(ending, _)| ending.clone())
    }

    /// From now on the server may have seen this request.
    pub fn leaves(&self, id: &RequestId) {
        self.lock().left.insert(id.clone());
    }

    /// It turned out that the request did not leave, or was refused unread.
    pub fn came_back(&self, id: &RequestId) {
        self.lock().left.remove(id);
    }

    pub fn has_left(&self, id: &RequestId) -> bool {
        self.lock().left.contains(id)
    }

    /// Starts to listen for a request that is about to be sent.
    pub fn listen(&self, heard: mpsc::Sender<Heard>) -> (u64, Signs) {
        let signs = Signs::default();
        let waiting = Waiting {
            name: None,
            bytes: 0,
            heard,
            passed: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            signs: signs.clone(),
        };
        let mut inner = self.lock();
        inner.came += 1;
        let place = inner.came;
        inner.waiting.insert(place, waiting);
        (place, signs)
    }

    /// Now the request has a name, and what came under it is its own.
    pub fn name(&self, place: u64, id: &RequestId, token: &ProgressToken) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let Some(waiting) = inner.waiting.get_mut(&place) else { return };
        waiting.name = Some((id.clone(), token.clone()));
        inner.ids.insert(id.clone(), place);
        inner.tokens.insert(token.clone(), place);
        for (of, heard) in std::mem::take(&mut inner.strays) {
            if of == *token { waiting.hear(heard) } else { inner.strays.push_back((of, heard)) }
        }
    }

    /// Stops to listen; what was heard and kept, as content blocks.
    pub fn done(&self, place: u64) -> Vec<Value> {
        let mut inner = self.lock();
        let Some(waiting) = inner.waiting.remove(&place) else { return Vec::new() };
        if let Some((id, token)) = &waiting.name {
            inner.left.remove(id);
            inner.ids.remove(id);
            inner.tokens.remove(token);
        }
        inner.stray_bytes = 0;
        waiting.kept.into_iter().map(|text| json!({ "type": "text", "text": text })).collect()
    }

    /// Counts received bytes, and says stop to whom they are too many for.
    pub fn charge(&self, whom: &For, bytes: usize) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let place = match whom {
            For::Request(id) => inner.ids.get(id),
            For::Token(token) => inner.tokens.get(token),
            For::All => None,
        };
        let mut found = false;
        match place.and_then(|place| inner.waiting.get_mut(place)) {
            Some(waiting) => {
                found = true;
                waiting.charge(bytes, self.limit);
            }
            None if matches!(whom, For::All) => {
                for waiting in inner.waiting.values_mut() {
                    found = true;
                    waiting.charge(bytes, self.limit);
                }
            }
            None => {}
        }
        if !found {
            inner.stray_bytes += bytes;
            if inner.stray_bytes > self.limit {
                drop(guard);
                self.end(Ending::Flood { limit: self.limit });
            }
        }
    }

    /// Passes on progress of the request with this token.
    pub fn progress(&self, token: &ProgressToken, heard: Heard) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        match inner.tokens.get(token).and_then(|place| inner.waiting.get_mut(place)) {
            Some(waiting) => {
                waiting.signs.progress.notify_one();
                waiting.hear(heard);
            }
            None if inner.strays.len() < STRAYS => inner.strays.push_back((token.clone(), heard.cut())),
            None => {}
        }
    }

    /// Passes on what concerns every call that waits.
    pub fn tell_all(&self, heard: &Heard) {
        let mut inner = self.lock();
        inner.changed |= matches!(heard, Heard::ListChanged);
        for waiting in inner.waiting.values_mut() {
            waiting.hear(heard.clone());
        }
    }

    /// Whether the list of tools changed since the last time this was asked.
    pub fn take_changed(&self) -> bool {
        std::mem::take(&mut self.lock().changed)
    }
}

impl Waiting {
    fn charge(&mut self, bytes: usize, limit: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limit {
            self.signs.too_much.cancel();
        }
    }

    fn hear(&mut self, heard: Heard) {
        let heard = heard.cut();
        if let Some(text) = heard.text()
            && self.kept_bytes + text.len() <= KEPT_BYTES
        {
            self.kept_bytes += text.len();
            self.kept.push(text);
        }
        if self.passed < HEARD_AT_MOST && self.heard.try_send(heard).is_ok() {
            self.passed += 1;
        }
    }
}

impl Heard {
    /// What a person would read of it.
    fn text(&self) -> Option<String> {
        match self {
            Self::Progress { message, .. } => message.clone(),
            Self::Log { data, .. } => Some(data.as_str().map_or_else(|| data.to_string(), str::to_owned)),
            Self::ListChanged => None,
        }
    }

    /// With no more text than is passed on.
    fn cut(self) -> Self {
        match self {
            Self::Progress { progress, total, message } => {
                Self::Progress { progress, total, message: message.map(|m| head(&m, HEARD_BYTES).to_owned()) }
            }
            Self::Log { level, logger, data } => {
                let text = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
                let data = if text.len() > HEARD_BYTES { head(&text, HEARD_BYTES).into() } else { data };
                Self::Log { level, logger: logger.map(|l| head(&l, 256).to_owned()), data }
            }
            Self::ListChanged => self,
        }
    }
}

/// The first `bytes` of a text, or one less where that would cut a character.
pub(super) fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rmcp::model::NumberOrString;

    fn id(n: i64) -> RequestId {
        NumberOrString::Number(n)
    }

    fn token(n: i64) -> ProgressToken {
        ProgressToken(NumberOrString::Number(n))
    }

    fn step(n: f64) -> Heard {
        Heard::Progress { progress: n, total: None, message: Some("a step".into()) }
    }

    #[test]
    fn progress_that_overtakes_the_name_of_its_call_is_not_lost() {
        let wire = Wire::new(100);
        let (heard, mut ears) = mpsc::channel(10);
        let (place, _) = wire.listen(heard);
        wire.progress(&token(7), step(1.0));
        wire.progress(&token(8), step(9.0));
        wire.name(place, &id(3), &token(7));
        wire.progress(&token(7), step(2.0));
        assert_eq!(ears.try_recv(), Ok(step(1.0)));
        assert_eq!(ears.try_recv(), Ok(step(2.0)));
        assert!(ears.try_recv().is_err(), "the other one is somebody else's");
    }

    #[test]
    fn bytes_count_for_whom_they_are() {
        let wire = Wire::new(100);
        let [(one, mine), (two, other)] = [1, 2].map(|n| {
            let (place, signs) = wire.listen(mpsc::channel(1).0);
            wire.name(place, &id(n), &token(n));
            (place, signs)
        });
        wire.charge(&For::Request(id(1)), 100);
        assert!(!mine.too_much.is_cancelled());
        wire.charge(&For::Token(token(1)), 1);
        assert!(mine.too_much.is_cancelled() && !other.too_much.is_cancelled());
        wire.charge(&For::All, 101);
        assert!(other.too_much.is_cancelled() && !wire.ended.is_cancelled());
        wire.done(one);
        wire.done(two);
        wire.charge(&For::Request(id(1)), 100);
        assert!(!wire.ended.is_cancelled());
        wire.charge(&For::All, 1);
        assert!(wire.ended.is_cancelled(), "too much that nobody waits for");
    }

    #[test]
    fn a_full_channel_drops_what_is_heard_and_never_waits() {
        let wire = Wire::new(100);
        let (heard, mut ears) = mpsc::channel(2);
        let (place, _) = wire.listen(heard);
        for _ in 0..5 {
            wire.tell_all(&Heard::Log { level: "info".into(), logger: None, data: "said".into() });
        }
        assert!(ears.try_recv().is_ok() && ears.try_recv().is_ok() && ears.try_recv().is_err());
        assert_eq!(wire.done(place).len(), 5, "what came before an error is kept all the same");
    }
}
