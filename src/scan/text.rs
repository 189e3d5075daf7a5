//! Text or not, and which kind of text: told from the first 64 KiB.

use super::kind::{Family, Kind};

/// Whether these bytes read as text in some encoding. A stray NUL or control character does not
/// make a text binary; many of them do.
pub(super) fn is_text(head: &[u8]) -> bool {
    const MARKS: [&[u8]; 5] = [b"\xef\xbb\xbf", b"\xff\xfe\0\0", b"\0\0\xfe\xff", b"\xff\xfe", b"\xfe\xff"];
    if head.is_empty() || MARKS[..3].iter().any(|mark| head.starts_with(mark)) {
        return true;
    }
    if MARKS[3..].iter().any(|mark| head.starts_with(mark)) || is_bare_utf16(head) {
        return true;
    }
    let odd = head.iter().filter(|&&b| is_control(b)).count();
    let unfinished = |e: std::str::Utf8Error| e.error_len().is_none() && head.len() - e.valid_up_to() < 4;
    match std::str::from_utf8(head) {
        Ok(_) => odd * 10 <= head.len(),
        Err(e) if unfinished(e) => odd * 10 <= head.len(),
        Err(_) => odd * 100 <= head.len() && is_letters(head),
    }
}

fn is_control(byte: u8) -> bool {
    byte == 0x7f || (byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0x1b))
}

/// An old 8-bit encoding is mostly letters and has spaces or lines; compressed data has not.
fn is_letters(head: &[u8]) -> bool {
    let count = |wanted: fn(&u8) -> bool| head.iter().filter(|&b| wanted(b)).count();
    let spaces = count(|b| matches!(b, b' ' | b'\n' | b'\t' | b'\r'));
    let ascii = count(u8::is_ascii_graphic);
    let high_letters = count(|&b| b >= 0xc0);
    (spaces * 40 >= head.len() || head.len() < 40) && (ascii + high_letters + spaces) * 10 >= head.len() * 7
}

/// UTF-16 without a mark: every second byte of western text is NUL.
fn is_bare_utf16(head: &[u8]) -> bool {
    let pairs = head.len() / 2;
    if pairs < 8 {
        return false;
    }
    let zeros = |parity: usize| head.iter().skip(parity).step_by(2).filter(|&&b| b == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    (even * 10 > pairs * 7 && odd * 20 < pairs) || (odd * 10 > pairs * 7 && even * 20 < pairs)
}

/// Which kind of text. What nothing marks is plain.
pub(super) fn sniff(head: &[u8]) -> Kind {
    let text = readable(head);
    let start = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    let lower: String = start.chars().take(2_000).collect::<String>().to_ascii_lowercase();
    let (mime, family) = if let Some(found) = script(&lower) {
        found
    } else if lower.starts_with('<') {
        markup(&lower)
    } else if start.starts_with("From ") && has_mail_headers(start.lines().skip(1)) {
        ("application/mbox", Family::Email)
    } else if has_mail_headers(start.lines()) {
        ("message/rfc822", Family::Email)
    } else if start.starts_with("WEBVTT") {
        ("text/vtt", Family::Text)
    } else if start.starts_with(['{', '[']) && is_json(start) {
        ("application/json", Family::Text)
    } else {
        ("text/plain", Family::Text)
    };
    Kind { mime, family }
}

/// Enough of a decoding to look for ASCII words.
fn readable(head: &[u8]) -> String {
    let wide = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") || is_bare_utf16(head);
    if wide || head.starts_with(b"\0\0\xfe\xff") {
        let narrow: Vec<u8> = head.iter().copied().filter(|b| b.is_ascii() && *b != 0).collect();
        return String::from_utf8_lossy(&narrow).into_owned();
    }
    String::from_utf8_lossy(head).into_owned()
}

fn script(lower: &str) -> Option<(&'static str, Family)> {
    if lower.starts_with("#!") {
        return Some(("text/x-shellscript", Family::Script));
    }
    let batch = lower.starts_with("@echo off") || lower.starts_with("rem ") && lower.contains("\n@echo");
    batch.then_some(("application/x-bat", Family::Script))
}

fn markup(lower: &str) -> (&'static str, Family) {
    const HTML: [&str; 12] = [
        "<!doctype html",
        "<html",
        "<head",
        "<body",
        "<title",
        "<meta",
        "<table",
        "<div",
        "<p>",
        "<script",
        "<h1",
        "<style",
    ];
    let mut rest = lower;
    // Declarations and comments stand before the root element.
    loop {
        rest = rest.trim_start();
        let end = if rest.starts_with("<!--") {
            rest.find("-->").map(|at| at + 3)
        } else if rest.starts_with("<?") {
            rest.find("?>").map(|at| at + 2)
        } else if rest.starts_with("<!doctype") && !rest.starts_with("<!doctype html") {
            // Its declarations may be longer than what is looked at here.
            return ("application/xml", Family::Markup);
        } else {
            None
        };
        match end {
            Some(at) => rest = &rest[at..],
            None => break,
        }
    }
    if rest.starts_with("<svg") {
        ("image/svg+xml", Family::Markup)
    } else if HTML.iter().any(|tag| rest.starts_with(tag)) {
        ("text/html", Family::Markup)
    } else if lower.starts_with("<?xml") || looks_like_an_element(rest) {
        ("application/xml", Family::Markup)
    } else {
        ("text/plain", Family::Text)
    }
}

fn looks_like_an_element(rest: &str) -> bool {
    let inner = rest.strip_prefix('<').unwrap_or_default();
    inner.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && inner.find('>').is_some_and(|end| !inner[..end].contains('<') && inner[end..].contains("</"))
}

/// Two header lines that only mail has, before the first empty line.
fn has_mail_headers<'a>(lines: impl Iterator<Item = &'a str>) -> bool {
    const HEADERS: [&str; 16] = [
        "from",
        "to",
        "cc",
        "subject",
        "date",
        "received",
        "mime-version",
        "message-id",
        "return-path",
        "delivered-to",
        "content-type",
        "content-transfer-encoding",
        "reply-to",
        "x-mailer",
        "sender",
        "references",
    ];
    let mut known = 0;
    for line in lines.take(60) {
        if line.trim().is_empty() {
            break;
        }
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let Some((name, _)) = line.split_once(':') else { return false };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return false;
        }
        let name = name.to_ascii_lowercase();
        known += usize::from(HEADERS.contains(&name.as_str()) || name.starts_with("x-"));
    }
    known >= 2
}

/// The head of a long JSON text ends in the middle; that is no error.
fn is_json(start: &str) -> bool {
    match serde_json::from_str::<serde::de::IgnoredAny>(start) {
        Ok(_) => true,
        Err(e) => e.is_eof() && start.len() > 100,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_many_kinds_are_told_apart() {
        let table: [(&[u8], &str); 23] = [
            (b"hello there", "text/plain"),
            (b"<!DOCTYPE html><p>x", "text/html"),
            (b"  \n<HTML><body>", "text/html"),
            (b"<?xml version='1.0'?><!-- c --><html xmlns='x'>", "text/html"),
            (b"<?xml version='1.0'?>\n<svg width='1'/>", "image/svg+xml"),
            (b"<?xml version='1.0'?><a/>", "application/xml"),
            (b"<!DOCTYPE note SYSTEM 'x'><note>x</note>", "application/xml"),
            (b"<!DOCTYPE bomb [\n<!ENTITY a 'x'>\n]><bomb/>", "application/xml"),
            (b"<note><to>x</to></note>", "application/xml"),
            (b"<3 is a heart", "text/plain"),
            (b"From: a@b\nSubject: x\n\nbody", "message/rfc822"),
            (b"Received: x\n by y\nDate: z\n\nbody", "message/rfc822"),
            (b"From a@b Mon\nFrom: a@b\nTo: x\n\nbody", "application/mbox"),
            (b"From: this place we went on", "text/plain"),
            (b"{\"a\": 1}", "application/json"),
            (b"[note] remember", "text/plain"),
            (b"WEBVTT\n\n00:00", "text/vtt"),
            (b"#!/bin/sh\nrm", "text/x-shellscript"),
            (b"@echo off\r\ndel", "application/x-bat"),
            (b"\xff\xfeh\0i\0", "text/plain"),
            (b"\xff\xfe<\0h\0t\0m\0l\0>\0", "text/html"),
            (b"h\0e\0l\0l\0o\0 \0w\0o\0r\0l\0d\0", "text/plain"),
            (b"caf\xe9 au lait, s'il vous pla\xeet", "text/plain"),
        ];
        for (bytes, mime) in table {
            assert!(is_text(bytes), "{mime}: {:?}", String::from_utf8_lossy(bytes));
            assert_eq!(sniff(bytes).mime, mime, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_stray_nul_is_still_text_and_noise_is_not() {
        assert!(is_text(b"a text with one \0 in it, and more words after it"));
        let noise: Vec<u8> = (0..4_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        assert!(!is_text(&noise));
    }
}
