//! Text files of any encoding, streamed: first what the bytes are, then their characters.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1251, WINDOWS_1252, X_MAC_CYRILLIC};
use std::io::{self, Read, Seek, SeekFrom};

const PIECE_BYTES: usize = 64 * 1024;
/// The guesser has seen enough after so much; a text does not change its encoding later.
const GUESSED_BYTES: u64 = 4 * 1024 * 1024;
/// Where a markup file declares its encoding, if it does.
const DECLARED_BYTES: usize = 1024;

/// Tells the encoding of the whole of `source`, and leaves it at its beginning.
///
/// A byte order mark, then UTF-16 by its zeros, then UTF-8 by its validity, then what the
/// markup declares, then a guess by frequency.
pub(super) fn detect(source: &mut (impl Read + Seek), is_markup: bool) -> io::Result<&'static Encoding> {
    let mut head = Vec::new();
    source.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut head)?;
    source.rewind()?;
    if let Some((encoding, _)) = Encoding::for_bom(&head) {
        return Ok(encoding);
    }
    if let Some(encoding) = utf16_without_mark(&head) {
        return Ok(encoding);
    }
    let survey = Survey::of(source)?;
    source.rewind()?;
    if survey.is_utf8() {
        return Ok(UTF_8);
    }
    if is_markup && let Some(encoding) = declared(&head[..head.len().min(DECLARED_BYTES)]) {
        return Ok(encoding);
    }
    let mut guesser = EncodingDetector::new(Iso2022JpDetection::Allow);
    let mut piece = vec![0; PIECE_BYTES];
    let mut source = source.take(GUESSED_BYTES);
    loop {
        let n = source.read(&mut piece)?;
        guesser.feed(&piece[..n], n == 0);
        if n == 0 {
            break;
        }
    }
    source.into_inner().seek(SeekFrom::Start(0))?;
    Ok(unless_macintosh(&head, guesser.guess(None, Utf8Detection::Deny)))
}

/// The guesser does not know the Cyrillic of old Macintoshes, which shares most of its small
/// letters with Windows but `я`: there it stands where Windows has a capital.
fn unless_macintosh(head: &[u8], guess: &'static Encoding) -> &'static Encoding {
    if guess != WINDOWS_1251 && guess != WINDOWS_1252 {
        return guess;
    }
    let (text, _, _) = WINDOWS_1251.decode(head);
    let is_cyrillic = |c: char| matches!(c, '\u{400}'..='\u{4FF}');
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let cyrillic = text.chars().filter(|c| is_cyrillic(*c)).count();
    let pairs = text.chars().zip(text.chars().skip(1));
    let amid_a_word = pairs.filter(|(a, b)| is_cyrillic(*a) && a.is_lowercase() && *b == 'Я').count();
    // A Western text would turn Cyrillic in its few accented letters only.
    if cyrillic * 2 > letters && amid_a_word > 0 { X_MAC_CYRILLIC } else { guess }
}

/// Hands the characters of `source` to `each`, piece by piece.
pub(super) fn decode(
    source: &mut impl Read,
    encoding: &'static Encoding,
    mut each: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    let mut decoder = encoding.new_decoder_with_bom_removal();
    let mut piece = vec![0; PIECE_BYTES];
    let mut text = String::with_capacity(PIECE_BYTES * 3 + 16);
    loop {
        let n = source.read(&mut piece)?;
        let _ = decoder.decode_to_string(&piece[..n], &mut text, n == 0);
        if !text.is_empty() {
            each(&text)?;
            text.clear();
        }
        if n == 0 {
            return Ok(());
        }
    }
}

/// The whole of a small text, in characters.
pub(super) fn decoded(bytes: &[u8], is_markup: bool) -> io::Result<String> {
    let mut source = io::Cursor::new(bytes);
    let encoding = detect(&mut source, is_markup)?;
    let mut text = String::with_capacity(bytes.len());
    decode(&mut source, encoding, |piece| {
        text.push_str(piece);
        Ok(())
    })?;
    Ok(text)
}

/// True if bytes without a byte order mark look like text of any encoding: no NUL, or so
/// many that it is UTF-16, and not too many controls.
pub(super) fn looks_like_text(head: &[u8]) -> bool {
    if Encoding::for_bom(head).is_some() || utf16_without_mark(head).is_some() {
        return true;
    }
    let odd = head.iter().filter(|b| matches!(b, 0..=8 | 14..=26 | 28..=31)).count();
    odd * 8 <= head.len()
}

/// Latin text in UTF-16 has a zero in every second byte and almost none in the others.
fn utf16_without_mark(head: &[u8]) -> Option<&'static Encoding> {
    let pairs = head.len() / 2;
    if pairs < 2 {
        return None;
    }
    let zeros = |from: usize| head.iter().skip(from).step_by(2).filter(|b| **b == 0).count();
    let (high_first, low_first) = (zeros(0), zeros(1));
    if low_first * 10 >= pairs * 4 && high_first * 50 <= pairs {
        Some(UTF_16LE)
    } else if high_first * 10 >= pairs * 4 && low_first * 50 <= pairs {
        Some(UTF_16BE)
    } else {
        None
    }
}

/// How well a file reads as UTF-8.
#[derive(Default)]
struct Survey {
    wide: u64,
    broken: u64,
}

impl Survey {
    fn of(source: &mut impl Read) -> io::Result<Self> {
        let mut survey = Self::default();
        let mut piece = vec![0; PIECE_BYTES];
        let mut held = 0;
        loop {
            let n = source.read(&mut piece[held..])?;
            let end = held + n;
            held = survey.count(&piece[..end], n == 0);
            piece.copy_within(end - held..end, 0);
            if n == 0 {
                return Ok(survey);
            }
        }
    }

    /// Counts what is whole in `bytes` and answers how many of the last belong to a next piece.
    fn count(&mut self, bytes: &[u8], last: bool) -> usize {
        let mut rest = bytes;
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.wide += wide(text);
                    return 0;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    self.wide += std::str::from_utf8(good).map_or(0, wide);
                    match e.error_len() {
                        Some(n) => {
                            self.broken += 1;
                            rest = &bad[n..];
                        }
                        None if last => {
                            self.broken += 1;
                            return 0;
                        }
                        None => return bad.len(),
                    }
                }
            }
        }
    }

    /// A few broken bytes in a text full of good sequences are damage, not another encoding.
    fn is_utf8(&self) -> bool {
        self.broken == 0 || self.wide >= self.broken * 20
    }
}

fn wide(text: &str) -> u64 {
    text.bytes().filter(|b| *b >= 0xC0).count() as u64
}

/// `<?xml encoding="…"?>` or `<meta charset="…">`.
fn declared(head: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let at = head.find("encoding=").map(|at| at + 9).or_else(|| head.find("charset=").map(|at| at + 8))?;
    let label = head[at..].trim_start_matches(['"', '\'', ' ']);
    let label = label.split(['"', '\'', ' ', '>', ';', '/', '?']).next()?;
    // A file that declares UTF-8 and is not is guessed instead.
    Encoding::for_label(label.as_bytes()).filter(|encoding| *encoding != UTF_8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUSSIAN: &str =
        "В гимназии он не был в числе первых учеников, исключение составляли математика и латынь.";

    #[test]
    fn utf_16_is_told_by_its_mark_and_without_it() {
        let text = "Grüße, world";
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decoded(&bytes, false).unwrap(), text);
        assert_eq!(decoded(&[b"\xFF\xFE".as_slice(), &bytes].concat(), false).unwrap(), text);
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(decoded(&bytes, false).unwrap(), text);
    }

    #[test]
    fn an_undeclared_old_encoding_is_guessed() {
        let (bytes, _, _) = encoding_rs::WINDOWS_1251.encode(RUSSIAN);
        assert_eq!(decoded(&bytes, false).unwrap(), RUSSIAN);
        let (bytes, _, _) = X_MAC_CYRILLIC.encode(RUSSIAN);
        assert_eq!(decoded(&bytes, false).unwrap(), RUSSIAN);
        let french = "À l'été, l'élève français était allé à l'école près de la forêt, où il a reçu un prix.";
        let (bytes, _, _) = WINDOWS_1252.encode(french);
        assert_eq!(decoded(&bytes, false).unwrap(), french);
    }

    #[test]
    fn a_declared_encoding_is_believed_unless_the_bytes_are_utf_8() {
        let text = "<meta charset=iso-8859-15>15 €";
        let (bytes, _, _) = encoding_rs::ISO_8859_15.encode(text);
        assert_eq!(decoded(&bytes, true).unwrap(), text);
        assert_eq!(decoded(text.as_bytes(), true).unwrap(), text);
    }

    #[test]
    fn one_broken_byte_does_not_spoil_a_utf_8_text() {
        let mut bytes = RUSSIAN.as_bytes().to_vec();
        bytes.push(0xFF);
        assert_eq!(decoded(&bytes, false).unwrap(), format!("{RUSSIAN}\u{FFFD}"));
    }

    #[test]
    fn a_sequence_across_two_pieces_stays_whole() {
        let text = format!("{}é", "a".repeat(PIECE_BYTES - 1)).repeat(3);
        assert_eq!(decoded(text.as_bytes(), false).unwrap(), text);
    }

    #[test]
    fn a_program_is_not_text() {
        assert!(!looks_like_text(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0"));
        assert!(looks_like_text("naïve\ttext\n".as_bytes()));
    }
}
