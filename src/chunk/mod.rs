//! Text to pieces: cuts an extracted text into chunks that the embedding model reads whole.
//!
//! After `extract`, before `embed`. The splitter (crate text-splitter) keeps to headings,
//! paragraphs, sentences and syntax trees, but is quadratic on text without breaks and wants
//! all of it in memory; so it is given one window after the other. A window's last chunk is
//! thrown away and the next window begins where it began: borders of windows leave no mark,
//! overlap included. Structure that began before the window (a code fence, a function) is
//! not known inside it; files shorter than a window are seen whole.
//!
//! Sizes count what the model reads: a chunk's own tokens and the special ones around it.

mod measure;
mod plan;

pub use plan::{PlanError, decode_plan, encode_plan};

use crate::config;
use crate::domain::{Span, Syntax};
use measure::{Meter, Ruler, Seen};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use text_splitter::{ChunkConfig, CodeSplitter, MarkdownSplitter, TextSplitter};
use tokenizers::Tokenizer;

/// The largest window, and the smallest. Small windows keep unbroken text cheap.
const LARGEST_WINDOW: usize = 64 * 1024;
const SMALLEST_WINDOW: usize = 8 * 1024;
/// What the structured splitters are given at least: dozens of chunks. Their work grows faster
/// than the text, so more would slow a large file down and change next to nothing in it.
const STRUCTURED_WINDOW: usize = 16 * 1024;
/// Bytes of a plain window for each token of a chunk: room for about eight chunks of prose.
const WINDOW_BYTES_PER_TOKEN: usize = 32;
/// Text whose lines are longer than this on average is taken for text without structure.
const LONG_LINE_BYTES: usize = 1024;
/// Text nested deeper than this is split as plain text.
const DEEPEST_NESTING: usize = 120;
/// A window ends at a blank if one stands in its last bytes.
const BLANK_REACH: usize = 1024;
/// A single character can be this many tokens; a smaller chunk could not hold it.
const LEAST_TOKENS: usize = 16;
/// The chunk size where neither settings nor model ask for less.
const DEFAULT_TOKENS: usize = 512;

/// Why a text was not cut into chunks.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("cannot read the text")]
    Read(#[from] std::io::Error),
    #[error("the text is not UTF-8 at byte {at}")]
    NotUtf8 { at: u64 },
    #[error("chunks of {size} tokens are too small: {least} is the least")]
    TooSmall { size: usize, least: usize },
    #[error("an overlap of {overlap} tokens leaves nothing new in chunks of {size}")]
    Overlap { size: usize, overlap: usize },
    #[error("the tokenizer refused the text: {0}")]
    Tokenizer(tokenizers::Error),
    #[error("a grammar does not fit the syntax library")]
    Grammar(#[from] text_splitter::CodeSplitterError),
}

/// The size and overlap of chunks, in tokens: what the settings say, but never more than the
/// model reads. A size of 0 is min(512, what the model reads), an overlap of 0 an eighth.
pub fn sizes(settings: &config::Chunk, model_max_tokens: usize) -> (usize, usize) {
    let wanted = if settings.size == 0 { DEFAULT_TOKENS } else { settings.size };
    let size = wanted.min(model_max_tokens);
    let overlap = if settings.overlap == 0 { size / 8 } else { settings.overlap };
    (size, overlap)
}

/// Cuts texts into chunks of one size, counted by one model's tokenizer.
pub struct Chunker {
    meter: Meter,
    /// Tokens of a chunk without the special ones around it.
    content: usize,
    overlap: usize,
}

impl Chunker {
    /// A chunker whose chunks are at most `size` tokens, special ones included, of which
    /// neighbours share about `overlap`. The tokenizer's own truncation and padding are ignored.
    pub fn new(tokenizer: Tokenizer, size: usize, overlap: usize) -> Result<Self, ChunkError> {
        let meter = Meter::new(tokenizer)?;
        let least = LEAST_TOKENS + meter.specials;
        if size < least {
            return Err(ChunkError::TooSmall { size, least });
        }
        let content = size - meter.specials;
        if overlap >= content {
            return Err(ChunkError::Overlap { size, overlap });
        }
        Ok(Self { meter, content, overlap })
    }

    /// The chunks of a text file, in order, as byte ranges of the whole text. Reads one window
    /// at a time. Blocks: belongs on a blocking thread.
    pub fn plan(&self, text: &Path, syntax: Syntax) -> Result<Vec<Span>, ChunkError> {
        self.plan_from(&mut std::fs::File::open(text)?, syntax)
    }

    /// The chunks of a text in memory: the same as of a file that holds it.
    pub fn plan_str(&self, text: &str, syntax: Syntax) -> Result<Vec<Span>, ChunkError> {
        self.plan_from(&mut std::io::Cursor::new(text), syntax)
    }

    fn plan_from(&self, source: &mut (impl Read + Seek), syntax: Syntax) -> Result<Vec<Span>, ChunkError> {
        let mut window = Window::new(self.window_bytes(syntax));
        let mut seen = Seen::default();
        let mut spans = Vec::new();
        let mut at = 0;
        loop {
            let (text, rest_follows) = self.shortened(window.read(source, at)?);
            let mut pieces = self.split(text, syntax, &mut seen)?;
            let mut next = text.len();
            if rest_follows
                && pieces.len() > 1
                && let Some(last) = pieces.pop()
            {
                next = last.start as usize;
            }
            for piece in pieces {
                push(&mut spans, Span { start: at + piece.start, end: at + piece.end, ..piece });
            }
            if !rest_follows {
                return Ok(spans);
            }
            at += next as u64;
        }
    }

    fn window_bytes(&self, syntax: Syntax) -> usize {
        match syntax {
            Syntax::Plain => self.plain_window(),
            _ => self.plain_window().max(STRUCTURED_WINDOW),
        }
    }

    fn plain_window(&self) -> usize {
        (self.content * WINDOW_BYTES_PER_TOKEN).clamp(SMALLEST_WINDOW, LARGEST_WINDOW)
    }

    /// Where there is no structure to keep (minified code, one endless line) a large window
    /// would only cost time.
    fn shortened<'t>(&self, (text, rest_follows): (&'t str, bool)) -> (&'t str, bool) {
        let plain = self.plain_window();
        if text.len() <= plain || has_structure(text) {
            return (text, rest_follows);
        }
        (&text[..text.floor_char_boundary(plain)], true)
    }

    /// The chunks of one window, as byte ranges of the window.
    fn split(&self, text: &str, syntax: Syntax, seen: &mut Seen) -> Result<Vec<Span>, ChunkError> {
        // The splitters take seconds to find nothing in a window of blanks.
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let ruler = Ruler::new(&self.meter, text, seen)?;
        let config = ChunkConfig::new(self.content)
            .with_sizer(&ruler)
            .with_overlap(self.overlap)
            .map_err(|_| ChunkError::Overlap { size: self.content, overlap: self.overlap })?;
        let syntax = if has_structure(text) { syntax } else { Syntax::Plain };
        let language = match syntax {
            Syntax::Plain => {
                return self.spans(&ruler, text, TextSplitter::new(config).try_chunk_indices(text));
            }
            Syntax::Markdown => {
                return self.spans(&ruler, text, MarkdownSplitter::new(config).try_chunk_indices(text));
            }
            Syntax::Rust => tree_sitter_rust::LANGUAGE,
            Syntax::Python => tree_sitter_python::LANGUAGE,
            Syntax::Javascript => tree_sitter_javascript::LANGUAGE,
            Syntax::Go => tree_sitter_go::LANGUAGE,
        };
        self.spans(&ruler, text, CodeSplitter::new(language, config)?.try_chunk_indices(text))
    }

    fn spans<'t>(
        &self,
        ruler: &Ruler<'_>,
        text: &str,
        pieces: impl Iterator<Item = Result<(usize, &'t str), ChunkError>>,
    ) -> Result<Vec<Span>, ChunkError> {
        let mut spans = Vec::new();
        for piece in pieces {
            let (start, piece) = piece?;
            self.settle(ruler, text, (start, start + piece.len()), &mut spans)?;
        }
        Ok(spans)
    }

    /// Keeps a piece, without the blanks around it; halves it if the splitter had only a
    /// guess of its size and the guess was too low.
    fn settle(
        &self,
        ruler: &Ruler<'_>,
        text: &str,
        (start, end): (usize, usize),
        spans: &mut Vec<Span>,
    ) -> Result<(), ChunkError> {
        let piece = &text[start..end];
        let start = start + piece.len() - piece.trim_start().len();
        let piece = piece.trim();
        if piece.is_empty() {
            return Ok(());
        }
        let end = start + piece.len();
        let tokens = ruler.tokens(start, end)?;
        let middle = start + halfway(piece);
        if tokens > self.content && ruler.guessed() && middle > start {
            self.settle(ruler, text, (start, middle), spans)?;
            return self.settle(ruler, text, (middle, end), spans);
        }
        let tokens = (tokens + self.meter.specials) as u32;
        spans.push(Span { start: start as u64, end: end as u64, tokens });
        Ok(())
    }
}

/// Whether the structured splitters can make something of a text. They need lines, and their
/// work grows with the square and more of the nesting: a page of opening brackets, or of
/// quotes in lists in quotes, would keep a core busy for minutes.
fn has_structure(text: &str) -> bool {
    let (mut lines, mut depth, mut deepest, mut marks) = (0, 0_usize, 0, Some(0_usize));
    for byte in text.bytes() {
        match byte {
            b'\n' => {
                lines += 1;
                marks = Some(0);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // Marks that nest markdown blocks, until the line's text begins.
        marks = match byte {
            b' ' | b'\t' | b'\r' | b'.' | b'0'..=b'9' => marks,
            b'>' | b'-' | b'*' | b'+' => marks.map(|count| count + 1),
            _ => None,
        };
        // A rule of dashes nests nothing, but seldom is this long.
        deepest = deepest.max(depth).max(marks.unwrap_or(0));
    }
    lines * LONG_LINE_BYTES > text.len() && deepest <= DEEPEST_NESTING
}

/// A place near the middle of `piece` to cut at: a blank if there is one, 0 if there is none
/// at all because it is a single character.
fn halfway(piece: &str) -> usize {
    let middle = piece.floor_char_boundary(piece.len() / 2);
    match piece[..middle].rfind(char::is_whitespace) {
        Some(blank) if blank > middle / 2 => blank,
        _ if middle == 0 => piece.chars().next().map_or(0, char::len_utf8) % piece.len(),
        _ => middle,
    }
}

/// Adds a span unless its neighbour holds it already. Overlap may begin in blanks that are
/// trimmed away, which makes a span that is all of the one before, and more.
fn push(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if span.end <= last.end => {}
        Some(last) if span.start <= last.start => *last = span,
        _ => spans.push(span),
    }
}

/// A stretch of the text in memory, read again and again at growing offsets.
struct Window {
    bytes: Vec<u8>,
    capacity: usize,
}

impl Window {
    fn new(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), capacity }
    }

    /// The text from `at` on, as much as fits, and whether more may follow.
    fn read(&mut self, source: &mut (impl Read + Seek), at: u64) -> Result<(&str, bool), ChunkError> {
        self.bytes.clear();
        source.seek(SeekFrom::Start(at))?;
        source.take(self.capacity as u64).read_to_end(&mut self.bytes)?;
        let rest_follows = self.bytes.len() == self.capacity;
        let text = match std::str::from_utf8(&self.bytes) {
            Ok(text) => text,
            // A character cut by the window's end belongs to the next one.
            Err(e) if e.error_len().is_none() && rest_follows => {
                let (whole, _) = self.bytes.split_at(e.valid_up_to());
                std::str::from_utf8(whole).map_err(|_| ChunkError::NotUtf8 { at })?
            }
            Err(e) => return Err(ChunkError::NotUtf8 { at: at + e.valid_up_to() as u64 }),
        };
        if !rest_follows {
            return Ok((text, false));
        }
        let tail = text.ceil_char_boundary(text.len().saturating_sub(BLANK_REACH));
        let end = text[tail..].rfind([' ', '\n', '\t']).map_or(text.len(), |blank| tail + blank + 1);
        Ok((&text[..end], true))
    }
}

#[cfg(test)]
mod tests;
