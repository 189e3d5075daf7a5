//! PDF: what its Flate streams hold, inflated within the budget.
//!
//! Streams are found by their keyword, not through the cross-reference table, so broken and
//! appended ones are seen too. Pictures are looked at only at their beginning: pages of a scan
//! inflate to more than any ceiling, honestly.

use super::budget::{Halt, Share};
use super::rules::{Scope, Sieve};
use super::unpack::{PIECE, Walker, feed_all};
use flate2::read::ZlibDecoder;
use memchr::memmem;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

const KEYWORD: &[u8] = b"stream";
/// How far before the keyword its dictionary is searched.
const DICTIONARY: usize = 2 << 10;
/// How much of one picture is looked at, and of all of them together.
const PICTURE_BYTES: u64 = 1 << 20;
const PICTURES_BYTES: u64 = 256 << 20;

/// Where a stream's bytes begin, and what its dictionary says.
struct Found {
    at: u64,
    picture: bool,
}

/// Looks into every Flate stream of the file; its raw bytes count together with them.
pub(super) fn streams(walker: &mut Walker<'_>, file: &mut File) -> Result<(), Halt> {
    let (found, encrypted) = locate(file, walker.budget.max_members())?;
    if encrypted {
        walker.notes.push("pdf_encrypted");
    }
    let mut sieve = walker.rules.sieve();
    feed_all(&mut sieve, file)?;
    let mut pictures = 0;
    for stream in &found {
        if stream.picture && pictures > PICTURES_BYTES {
            walker.notes.push("pdf_pictures");
            continue;
        }
        sieve.next_stream();
        let size = one(walker, file, &mut sieve, stream)?;
        pictures += if stream.picture { size } else { 0 };
        if let Some(name) = sieve.verdict(Scope::Pdf) {
            return Err(Halt::Found(name.to_owned()));
        }
    }
    match sieve.verdict(Scope::Pdf) {
        Some(name) => Err(Halt::Found(name.to_owned())),
        None => Ok(()),
    }
}

/// One stream, through one layer of Flate or two; answers how much it held.
fn one(walker: &mut Walker<'_>, file: &mut File, sieve: &mut Sieve<'_>, stream: &Found) -> Result<u64, Halt> {
    let share = Share { packed: None, counted: !stream.picture, capped: !stream.picture };
    let mut piece = vec![0; PIECE];
    let mut size = 0;
    for layers in 1..=2 {
        file.seek(SeekFrom::Start(stream.at))?;
        let once = ZlibDecoder::new(BufReader::new(&mut *file));
        let mut reader: Box<dyn Read> =
            if layers == 1 { Box::new(once) } else { Box::new(ZlibDecoder::new(once)) };
        let (mut begun, mut layered) = (false, false);
        // Broken streams end early; readers of PDF shrug at them, and so do we.
        while let Ok(n) = reader.read(&mut piece) {
            if n == 0 || (stream.picture && size > PICTURE_BYTES) {
                break;
            }
            size += n as u64;
            walker.budget.bytes(n as u64, size, &share)?;
            layered = !begun && layers == 1 && is_zlib(&piece[..n]);
            if layered {
                break;
            }
            begun = true;
            sieve.feed(&piece[..n]);
        }
        if !layered {
            break;
        }
    }
    Ok(size)
}

/// Every place where zlib data follows the keyword, and whether the document is encrypted.
fn locate(file: &mut File, max: u64) -> Result<(Vec<Found>, bool), Halt> {
    let finder = memmem::Finder::new(KEYWORD);
    let (mut window, mut start, mut encrypted, mut found) = (Vec::new(), 0_u64, false, Vec::new());
    let mut piece = vec![0; PIECE];
    let mut done_to = 0_u64;
    file.rewind()?;
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            break;
        }
        window.extend_from_slice(&piece[..n]);
        encrypted |= memmem::find(&window, b"/Encrypt").is_some();
        for at in finder.find_iter(&window) {
            let absolute = start + at as u64;
            if absolute < done_to || at + KEYWORD.len() + 4 > window.len() {
                continue;
            }
            done_to = absolute + 1;
            let dictionary = &window[at.saturating_sub(DICTIONARY)..at];
            if dictionary.ends_with(b"end") {
                continue;
            }
            let after = &window[at + KEYWORD.len()..];
            let line_end = after.iter().take(2).take_while(|&&b| b == b'\r' || b == b'\n').count();
            if line_end == 0 || !is_zlib(&after[line_end..]) {
                continue;
            }
            let dictionary =
                memmem::rfind(dictionary, b"endobj").map_or(dictionary, |end| &dictionary[end..]);
            let picture = memmem::find(dictionary, b"/Image").is_some();
            found.push(Found { at: absolute + (KEYWORD.len() + line_end) as u64, picture });
            if found.len() as u64 > max.saturating_mul(100) {
                return Err(Halt::Limit(super::budget::Limit::Members));
            }
        }
        let keep = window.len().min(DICTIONARY + 16);
        let cut = window.len() - keep;
        window.drain(..cut);
        start += cut as u64;
    }
    Ok((found, encrypted))
}

/// A zlib header: method 8, a window of at most 32 KiB, and a checksum that fits.
fn is_zlib(bytes: &[u8]) -> bool {
    match bytes {
        [cmf, flags, ..] => {
            cmf & 0x0f == 8
                && cmf >> 4 <= 7
                && ((u16::from(*cmf) << 8) | u16::from(*flags)) % 31 == 0
                && flags & 0x20 == 0
        }
        _ => false,
    }
}
