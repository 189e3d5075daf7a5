//! How many tokens a stretch of text is, without tokenizing it again at every question.
//!
//! A splitter asks for the size of hundreds of overlapping stretches. Each window is
//! therefore counted once, word by word, and a question is answered by two prefix sums
//! and the two words that the stretch cuts in half.

use super::ChunkError;
use std::cell::RefCell;
use std::collections::HashMap;
use text_splitter::TryChunkSizer;
use tokenizers::Tokenizer;

/// Words up to so many bytes are remembered; longer ones are mostly seen once.
const REMEMBERED_BYTES: usize = 48;
/// Words remembered at once: a few megabytes at most.
const REMEMBERED_WORDS: usize = 1 << 16;
/// A word without a break is tokenized in blocks of this size.
const BLOCK_BYTES: usize = 2048;
/// An unbroken word longer than this is cut although its tokens may run across the cut.
const UNIT_BYTES: usize = 256;
/// A token stands for at most so many bytes of a word, and so many of blank space. A model
/// reads a base64 line of any length as one unknown token; without this floor such a line
/// would be one chunk.
const WORD_BYTES_PER_TOKEN: usize = 16;
const BLANK_BYTES_PER_TOKEN: usize = 64;

/// The blanks that every tokenizer keeps as a border between words. Other control
/// characters are dropped by some, which glues their neighbours together.
const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\t' | b'\r')
}

/// A tokenizer, and whether the tokens of a text are the sum of the tokens of its words.
pub(super) struct Meter {
    tokenizer: Tokenizer,
    words_are_independent: bool,
    /// Tokens that the model adds around each text, such as `[CLS]` and `[SEP]`.
    pub specials: usize,
}

impl Meter {
    pub fn new(mut tokenizer: Tokenizer) -> Result<Self, ChunkError> {
        tokenizer.with_truncation(None).map_err(ChunkError::Tokenizer)?;
        tokenizer.with_padding(None);
        let specials = tokenizer.encode_fast("", true).map_err(ChunkError::Tokenizer)?.len();
        let words_are_independent = words_are_independent(&tokenizer)?;
        Ok(Self { tokenizer, words_are_independent, specials })
    }

    /// The true number of tokens of `text`, the model's own additions not counted.
    pub fn tokens(&self, text: &str) -> Result<usize, ChunkError> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(ChunkError::Tokenizer)?.len())
    }
}

/// Whether splitting at blanks never changes what the tokenizer makes of either side:
/// its first step after a character-wise normalization is to split there.
fn words_are_independent(tokenizer: &Tokenizer) -> Result<bool, ChunkError> {
    let glued = |token: &tokenizers::AddedToken| token.content.bytes().any(is_blank);
    if tokenizer.get_added_tokens_decoder().values().any(glued) {
        return Ok(false);
    }
    let json = tokenizer.to_string(false).map_err(ChunkError::Tokenizer)?;
    let parts: serde_json::Value =
        serde_json::from_str(&json).map_err(|e| ChunkError::Tokenizer(e.into()))?;
    let normalizers = steps(&parts["normalizer"], "normalizers");
    let splitters = steps(&parts["pre_tokenizer"], "pretokenizers");
    Ok(normalizers.iter().all(|step| {
        matches!(*step, "BertNormalizer" | "Lowercase" | "NFC" | "NFD" | "NFKC" | "NFKD" | "StripAccents")
    }) && splitters
        .first()
        .is_some_and(|step| matches!(*step, "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit")))
}

fn steps<'a>(part: &'a serde_json::Value, list: &str) -> Vec<&'a str> {
    match part["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => {
            part[list].as_array().into_iter().flatten().flat_map(|step| steps(step, list)).collect()
        }
        Some(step) => vec![step],
    }
}

/// Token counts of words seen, kept over the windows of one text.
#[derive(Default)]
pub(super) struct Seen(HashMap<Box<str>, u32>);

impl Seen {
    fn count(&mut self, meter: &Meter, word: &str) -> Result<u32, ChunkError> {
        if let Some(count) = self.0.get(word) {
            return Ok(*count);
        }
        let count = meter.tokens(word)? as u32;
        if word.len() <= REMEMBERED_BYTES {
            if self.0.len() >= REMEMBERED_WORDS {
                self.0.clear();
            }
            self.0.insert(word.into(), count);
        }
        Ok(count)
    }
}

/// Tokens of a stretch, and the size it is charged: at least its tokens, more when blank
/// space or unreadable words make it long.
#[derive(Clone, Copy, Default)]
struct Weight {
    tokens: u32,
    size: u32,
}

impl Weight {
    fn of(tokens: u32, word_bytes: usize, blank_bytes: usize) -> Self {
        let floor = (word_bytes / WORD_BYTES_PER_TOKEN) as u32;
        let blanks = (blank_bytes / BLANK_BYTES_PER_TOKEN) as u32;
        Self { tokens, size: tokens.max(floor) + blanks }
    }
}

impl std::ops::Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { tokens: self.tokens + other.tokens, size: self.size + other.size }
    }
}

/// The counted words of one window.
pub(super) struct Ruler<'a> {
    meter: &'a Meter,
    window: &'a str,
    /// Where each unit begins; a unit is blanks and the word (or part of a word) after them.
    starts: Vec<u32>,
    /// The weight of all units before the one of the same index; one longer than `starts`.
    before: Vec<Weight>,
    /// A word was cut where its tokens may run across: sums are a guess, chunks are recounted.
    guessed: bool,
    seen: RefCell<&'a mut Seen>,
}

impl<'a> Ruler<'a> {
    pub fn new(meter: &'a Meter, window: &'a str, seen: &'a mut Seen) -> Result<Self, ChunkError> {
        let mut ruler = Self {
            meter,
            window,
            starts: Vec::with_capacity(window.len() / 5),
            before: vec![Weight::default()],
            guessed: !meter.words_are_independent,
            seen: RefCell::new(seen),
        };
        let bytes = window.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let word = bytes[at..].iter().position(|b| !is_blank(*b)).map_or(bytes.len(), |n| at + n);
            let end = bytes[word..].iter().position(|b| is_blank(*b)).map_or(bytes.len(), |n| word + n);
            if end - word <= REMEMBERED_BYTES {
                ruler.add(at, end)?;
            } else {
                ruler.add_long(at, word, end)?;
            }
            at = end;
        }
        Ok(ruler)
    }

    /// Tokens of `window[start..end]` as the model counts them, its own additions not included.
    pub fn tokens(&self, start: usize, end: usize) -> Result<usize, ChunkError> {
        if self.guessed {
            return self.meter.tokens(&self.window[start..end]);
        }
        Ok(self.weigh(start, end)?.tokens as usize)
    }

    /// Whether sizes given to the splitter were a guess.
    pub fn guessed(&self) -> bool {
        self.guessed
    }

    fn add(&mut self, start: usize, end: usize) -> Result<(), ChunkError> {
        let weight = self.weigh_piece(start, end)?;
        self.push(start, weight);
        Ok(())
    }

    fn push(&mut self, start: usize, weight: Weight) {
        let sum = self.before.last().copied().unwrap_or_default() + weight;
        self.starts.push(start as u32);
        self.before.push(sum);
    }

    /// Cuts a long word where the tokenizer itself cuts first (punctuation, ideographs), so
    /// that a question never has to tokenize more than a short piece.
    fn add_long(&mut self, start: usize, word: usize, end: usize) -> Result<(), ChunkError> {
        let (mut unit, mut at) = (start, word);
        while at < end {
            let block_end = self.window.floor_char_boundary((at + BLOCK_BYTES).min(end));
            let mut parts = self.first_parts(at, block_end)?;
            if block_end < end {
                if parts.len() > 1 {
                    // The last part goes on behind the block: it begins the next one.
                    parts.pop();
                } else {
                    // Not one cut in the block: its end is as good as any other place.
                    self.guessed = true;
                }
            }
            for (part_end, tokens) in parts {
                self.add_part(unit, at, part_end, tokens)?;
                (unit, at) = (part_end, part_end);
            }
        }
        Ok(())
    }

    /// Where the parts end into which the tokenizer's first step cuts `window[start..end]`,
    /// and how many tokens each is.
    fn first_parts(&self, start: usize, end: usize) -> Result<Vec<(usize, u32)>, ChunkError> {
        let block = &self.window[start..end];
        let encoding = self.meter.tokenizer.encode(block, false).map_err(ChunkError::Tokenizer)?;
        let (words, offsets) = (encoding.get_word_ids(), encoding.get_offsets());
        let mut parts = Vec::new();
        let (mut cut, mut reached, mut tokens) = (0, 0, 0);
        for index in 0..words.len() {
            let begins = offsets[index].0;
            let new_word = index > 0 && words[index] != words[index - 1];
            if new_word && begins > cut && begins >= reached && block.is_char_boundary(begins) {
                parts.push((start + begins, tokens));
                (cut, tokens) = (begins, 0);
            }
            reached = reached.max(offsets[index].1);
            tokens += 1;
        }
        parts.push((end, tokens));
        Ok(parts)
    }

    fn add_part(&mut self, mut unit: usize, word: usize, end: usize, tokens: u32) -> Result<(), ChunkError> {
        if end - word <= UNIT_BYTES {
            self.push(unit, Weight::of(tokens, end - word, word - unit));
            return Ok(());
        }
        self.guessed = true;
        let mut at = word;
        while end - at > UNIT_BYTES {
            let cut = self.window.floor_char_boundary(at + UNIT_BYTES);
            self.add(unit, cut)?;
            (unit, at) = (cut, cut);
        }
        self.add(unit, end)
    }

    /// The weight of a stretch that holds at most one word.
    fn weigh_piece(&self, start: usize, end: usize) -> Result<Weight, ChunkError> {
        let piece = &self.window[start..end];
        let word = piece.trim_matches(|c: char| c.is_ascii() && is_blank(c as u8));
        // Where words depend on the blank before them, one space is part of the word.
        let counted = if self.meter.words_are_independent { word } else { piece };
        let tokens =
            if counted.is_empty() { 0 } else { self.seen.borrow_mut().count(self.meter, counted)? };
        Ok(Weight::of(tokens, word.len(), piece.len() - word.len()))
    }

    fn weigh(&self, start: usize, end: usize) -> Result<Weight, ChunkError> {
        let first = self.starts.partition_point(|s| (*s as usize) < start);
        // The last unit border at or before `end`; the window's own end is one too.
        let last = if end == self.window.len() {
            self.starts.len()
        } else {
            self.starts.partition_point(|s| (*s as usize) <= end).saturating_sub(1)
        };
        let border = |index: usize| self.starts.get(index).map_or(self.window.len(), |s| *s as usize);
        if first > last {
            return self.weigh_piece(start, end);
        }
        let (low, high) = (self.before[first], self.before[last]);
        let body = Weight { tokens: high.tokens - low.tokens, size: high.size - low.size };
        let head = self.weigh_piece(start, border(first))?;
        let tail = self.weigh_piece(border(last), end)?;
        Ok(head + body + tail)
    }
}

impl TryChunkSizer for &Ruler<'_> {
    type Error = ChunkError;

    /// Answers for stretches of the window itself, which is all the splitters ask for.
    fn try_size(&self, chunk: &str) -> Result<usize, ChunkError> {
        let inside = (chunk.as_ptr() as usize).checked_sub(self.window.as_ptr() as usize);
        match inside {
            Some(start) if start + chunk.len() <= self.window.len() => {
                Ok(self.weigh(start, start + chunk.len())?.size as usize)
            }
            _ => self.meter.tokens(chunk),
        }
    }
}
