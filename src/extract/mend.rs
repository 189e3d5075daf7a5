//! The one gate between what a parser says and what is stored: every byte of extracted
//! text passes here, so the database never sees a NUL, a control or a broken encoding.
//!
//! Line ends become `\n`; C1 controls, which are Windows-1252 bytes read as Latin-1 in all
//! but forged files, become the characters that were meant; the other controls, byte order
//! marks and noncharacters go. Mending mended text changes nothing.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// How much of the beginning is kept in memory, to tell the language by.
const SAMPLE_BYTES: usize = 32 * 1024;

/// A text file being written: mended, counted, hashed and cut at the ceiling.
pub(super) struct Gate {
    out: BufWriter<File>,
    hash: Sha256,
    ceiling: u64,
    kept_bytes: u64,
    kept_chars: u64,
    /// Bytes offered after mending, beyond the ceiling too.
    seen_bytes: u64,
    after_cr: bool,
    blank: bool,
    trailing_newlines: u8,
    sample: String,
    scratch: String,
}

/// What went through a gate.
pub(super) struct Sealed {
    pub bytes: u64,
    pub chars: u64,
    pub sha256: String,
    pub seen_bytes: u64,
    /// True if nothing but white space went through.
    pub blank: bool,
    pub sample: String,
}

impl Gate {
    pub(super) fn new(out: File, ceiling: u64) -> Self {
        Self {
            out: BufWriter::with_capacity(64 * 1024, out),
            hash: Sha256::new(),
            ceiling,
            kept_bytes: 0,
            kept_chars: 0,
            seen_bytes: 0,
            after_cr: false,
            blank: true,
            trailing_newlines: 2,
            sample: String::new(),
            scratch: String::new(),
        }
    }

    /// Where the next byte will lie.
    pub(super) fn offset(&self) -> u64 {
        self.kept_bytes
    }

    /// Writes `text`, mended.
    pub(super) fn push(&mut self, text: &str) -> io::Result<()> {
        if !self.after_cr && text.bytes().all(is_plain) {
            return self.write(text);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        for c in text.chars() {
            if !(self.after_cr && c == '\n') {
                scratch.extend(mended(c));
            }
            self.after_cr = c == '\r';
        }
        let written = self.write(&scratch);
        self.scratch = scratch;
        written
    }

    /// Writes a line of ours: with nothing else the text is still blank.
    pub(super) fn heading(&mut self, line: &str) -> io::Result<()> {
        let blank = self.blank;
        self.push(line)?;
        self.blank = blank;
        Ok(())
    }

    /// Sets the next text off by an empty line, if anything stands before it.
    pub(super) fn paragraph(&mut self) -> io::Result<()> {
        match self.trailing_newlines {
            0 => self.write("\n\n"),
            1 => self.write("\n"),
            _ => Ok(()),
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.blank = self.blank && text.trim().is_empty();
        let newlines = text.bytes().rev().take(2).take_while(|b| *b == b'\n').count() as u8;
        self.trailing_newlines = if usize::from(newlines) == text.len() {
            (self.trailing_newlines + newlines).min(2)
        } else {
            newlines
        };
        // Once a text was cut nothing more is kept, however short.
        let room = if self.seen_bytes > self.kept_bytes { 0 } else { self.ceiling - self.kept_bytes };
        self.seen_bytes += text.len() as u64;
        let kept = &text[..text.floor_char_boundary(usize::try_from(room).unwrap_or(usize::MAX))];
        if kept.is_empty() {
            return Ok(());
        }
        let free = SAMPLE_BYTES.saturating_sub(self.sample.len());
        self.sample.push_str(&kept[..kept.floor_char_boundary(free)]);
        self.hash.update(kept.as_bytes());
        self.kept_bytes += kept.len() as u64;
        self.kept_chars += kept.chars().count() as u64;
        self.out.write_all(kept.as_bytes())
    }

    pub(super) fn seal(mut self) -> io::Result<Sealed> {
        self.out.flush()?;
        Ok(Sealed {
            bytes: self.kept_bytes,
            chars: self.kept_chars,
            sha256: hex::encode(self.hash.finalize()),
            seen_bytes: self.seen_bytes,
            blank: self.blank,
            sample: self.sample,
        })
    }
}

/// Bytes that surely need no mending. 0xC2 begins the C1 controls, 0xEF the byte order mark
/// and the noncharacters; text with those takes the slower way.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | 0x20..=0x7E | 0x80..=0xC1 | 0xC3..=0xE1 | 0xE3..=0xEE | 0xF0..)
}

fn mended(c: char) -> Option<char> {
    match c {
        '\r' | '\u{B}' | '\u{C}' | '\u{2028}' | '\u{2029}' => Some('\n'),
        '\t' | '\n' | ' '..='~' => Some(c),
        '\u{80}'..='\u{9F}' => meant_by_c1(c),
        '\0'..='\u{1F}' | '\u{7F}' | '\u{FEFF}' | '\u{FDD0}'..='\u{FDEF}' => None,
        c if u32::from(c) & 0xFFFE == 0xFFFE => None,
        c => Some(c),
    }
}

fn meant_by_c1(c: char) -> Option<char> {
    let byte = [u8::try_from(u32::from(c)).ok()?];
    let (text, _) = encoding_rs::WINDOWS_1252.decode_without_bom_handling(&byte);
    // The five bytes that Windows-1252 leaves open come back as the control itself.
    text.chars().next().filter(|meant| *meant != c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn through(pieces: &[&str], ceiling: u64) -> (String, Sealed) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut gate = Gate::new(file.reopen().unwrap(), ceiling);
        for piece in pieces {
            gate.push(piece).unwrap();
        }
        let sealed = gate.seal().unwrap();
        (std::fs::read_to_string(file.path()).unwrap(), sealed)
    }

    #[test]
    fn nul_controls_and_marks_go_and_line_ends_agree() {
        let (text, sealed) = through(&["\u{FEFF}a\0b\r", "\nc\rd\u{7}\u{FFFE}\n"], 100);
        assert_eq!(text, "ab\nc\nd\n");
        assert_eq!(sealed.bytes, 7);
        assert_eq!(sealed.sha256, hex::encode(Sha256::digest(text)));
    }

    #[test]
    fn a_c1_control_becomes_the_character_that_was_meant() {
        assert_eq!(through(&["it\u{92}s 15\u{80}\u{81}"], 100).0, "it’s 15€");
    }

    #[test]
    fn the_ceiling_cuts_between_characters_and_the_rest_is_counted() {
        let (text, sealed) = through(&["äää", "a"], 5);
        assert_eq!((text.as_str(), sealed.bytes, sealed.chars, sealed.seen_bytes), ("ää", 4, 2, 7));
    }

    #[test]
    fn white_space_alone_is_blank() {
        assert!(through(&[" \n\u{A0}\t"], 100).1.blank);
        assert!(!through(&[" \n", "x"], 100).1.blank);
    }

    proptest! {
        #[test]
        fn mending_mended_text_changes_nothing(pieces in proptest::collection::vec(any::<String>(), 0..6)) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (once, sealed) = through(&pieces, 1 << 20);
            let (twice, again) = through(&[&once], 1 << 20);
            prop_assert_eq!(&once, &twice);
            prop_assert_eq!(sealed.sha256, again.sha256);
            prop_assert!(!once.contains(['\0', '\r']));
        }
    }
}
