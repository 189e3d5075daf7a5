//! E-mail: attachments in base64, decoded and walked like members of an archive.
//!
//! No MIME tree is built: wherever a header says base64, what follows is decoded. That finds
//! parts a parser would miss, and needs no trust in boundaries.

use super::budget::{Halt, Share};
use super::rules::Scope;
use super::unpack::Walker;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

const LONGEST_LINE: u64 = 64 << 10;

/// Looks into every base64 part of the mail, or of all mails of an mbox.
pub(super) fn attachments(walker: &mut Walker<'_>, file: &mut File, depth: u32) -> Result<(), Halt> {
    let mut lines = BufReader::new(file);
    let (mut encoded, mut line) = (false, Vec::new());
    while next_line(&mut lines, &mut line)? {
        if line.to_ascii_lowercase().starts_with(b"content-transfer-encoding:") {
            encoded = memchr::memmem::find(&line.to_ascii_lowercase(), b"base64").is_some();
        } else if encoded && line.trim_ascii().is_empty() {
            encoded = false;
            let mut part = Decoded { lines: &mut lines, ready: Vec::new(), bits: 0, count: 0, ended: false };
            let share = Share { packed: None, counted: true, capped: true };
            walker.member(&mut part, "attachment", share, (depth, Scope::Any))?;
        }
    }
    Ok(())
}

fn next_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    Ok(lines.take(LONGEST_LINE).read_until(b'\n', line)? > 0)
}

/// The bytes of one part: up to a boundary, or the first line that is not base64.
struct Decoded<'a, R> {
    lines: &'a mut R,
    ready: Vec<u8>,
    bits: u32,
    count: u32,
    ended: bool,
}

impl<R: BufRead> Read for Decoded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut line = Vec::new();
        while self.ready.is_empty() && !self.ended {
            self.ended = !next_line(self.lines, &mut line)? || !self.decode(line.trim_ascii());
        }
        let n = self.ready.len().min(into.len());
        into[..n].copy_from_slice(&self.ready[..n]);
        self.ready.drain(..n);
        Ok(n)
    }
}

impl<R> Decoded<'_, R> {
    /// Answers false at the part's end.
    fn decode(&mut self, line: &[u8]) -> bool {
        for &byte in line {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return false,
            };
            self.bits = (self.bits << 6) | u32::from(value);
            self.count += 6;
            if self.count >= 8 {
                self.count -= 8;
                self.ready.push((self.bits >> self.count) as u8);
            }
        }
        true
    }
}
