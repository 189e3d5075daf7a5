//! What a file is, and so who reads it: its content decides, then its name, then the hint.

use super::Hint;
use super::charset;
use super::mail::MAIL;
use crate::domain::Syntax;

/// How many bytes of the beginning the decision needs.
pub(super) const HEAD_BYTES: usize = 64 * 1024;

const HTML: &str = "text/html";
const XML: &str = "application/xml";

/// Who reads a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Characters that are the text already.
    Text(Syntax),
    /// Subtitles: text between times.
    Captions,
    /// Text with a structure that xberg reads, in any encoding.
    Markup(String),
    /// Bytes that xberg reads by this type.
    Document(String),
    /// An OLE file: which one is told by what it holds.
    Compound,
    /// E-mails, one after the other.
    Mailbox,
    Zip,
    Tar,
    Gzip,
    /// Text for an OCR engine at most.
    Picture,
    Unknown,
}

/// Tells the kind of a file by its first `HEAD_BYTES` bytes, name and hint.
pub(super) fn of(head: &[u8], hint: &Hint) -> Kind {
    let extension = extension(hint);
    if let Some(kind) = by_magic(head, &extension) {
        return kind;
    }
    if !charset::looks_like_text(head) {
        return Kind::Unknown;
    }
    let text = String::from_utf8_lossy(&head[..head.len().min(8192)]);
    match by_name(&extension) {
        // Text under the name of a binary format: what it says is what counts.
        Some(Kind::Document(mime)) if mime != MAIL => by_opening(&text).unwrap_or(Kind::Text(Syntax::Plain)),
        Some(kind) => kind,
        None => by_opening(&text).or_else(|| by_mime(hint)).unwrap_or(Kind::Text(Syntax::Plain)),
    }
}

fn extension(hint: &Hint) -> String {
    let name = hint.name.as_deref().unwrap_or_default();
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    name.rsplit_once('.').map_or_else(String::new, |(_, extension)| extension.to_ascii_lowercase())
}

fn by_magic(head: &[u8], extension: &str) -> Option<Kind> {
    let document = |mime: &str| Some(Kind::Document(mime.to_owned()));
    // Mail gateways and printers put up to a kilobyte before a PDF's first line.
    if head.starts_with(b"%PDF-") || find(&head[..head.len().min(1024)], b"\n%PDF-").is_some() {
        return document("application/pdf");
    }
    match head {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => Some(zipped(extension)),
        [0xD0, 0xCF, 0x11, 0xE0, 0xA1, 0xB1, 0x1A, 0xE1, ..] => Some(Kind::Compound),
        [0x1F, 0x8B, ..] => Some(Kind::Gzip),
        [b'7', b'z', 0xBC, 0xAF, 0x27, 0x1C, ..] => document("application/x-7z-compressed"),
        [b'{', b'\\', b'r', b't', b'f', ..] => document("application/rtf"),
        [b'!', b'B', b'D', b'N', ..] => document("application/vnd.ms-outlook-pst"),
        [0x89, b'P', b'N', b'G', ..]
        | [0xFF, 0xD8, 0xFF, ..]
        | [b'G', b'I', b'F', b'8', ..]
        | [b'I', b'I', b'*', 0, ..]
        | [b'M', b'M', 0, b'*', ..]
        | [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..]
        | [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..]
        | [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'a' | b'm', ..] => Some(Kind::Picture),
        _ if head.get(257..262) == Some(b"ustar") => Some(Kind::Tar),
        _ => None,
    }
}

/// A zip file with the name of a document is looked into by xberg; so is one without.
fn zipped(extension: &str) -> Kind {
    match extension {
        // xberg takes these two for their sisters.
        "xlsb" => Kind::Document("application/vnd.ms-excel.sheet.binary.macroEnabled.12".to_owned()),
        "epub" => Kind::Document("application/epub+zip".to_owned()),
        // Not archives to their owners, and nothing in them is text to us.
        "pages" | "numbers" | "key" => Kind::Document(format!("application/vnd.apple.{extension}")),
        _ => Kind::Zip,
    }
}

fn by_name(extension: &str) -> Option<Kind> {
    let markup = |mime: &str| Some(Kind::Markup(mime.to_owned()));
    match extension {
        // What an XML file is stands at its beginning.
        "" | "xml" => None,
        "md" | "markdown" => Some(Kind::Text(Syntax::Markdown)),
        "rs" => Some(Kind::Text(Syntax::Rust)),
        "py" | "pyi" => Some(Kind::Text(Syntax::Python)),
        "js" | "mjs" | "cjs" | "jsx" => Some(Kind::Text(Syntax::Javascript)),
        "go" => Some(Kind::Text(Syntax::Go)),
        "vtt" | "srt" => Some(Kind::Captions),
        "mbox" | "mbx" => Some(Kind::Mailbox),
        "eml" => Some(Kind::Document(MAIL.to_owned())),
        "htm" | "html" | "xhtml" => markup(HTML),
        "txt" | "text" | "log" | "json" | "jsonl" | "ndjson" | "yaml" | "yml" | "toml" | "ini" | "conf" => {
            Some(Kind::Text(Syntax::Plain))
        }
        _ => {
            let mime = xberg::detect_mime_type(format!("file.{extension}"), false).ok()?;
            Some(kind_of_mime(&mime))
        }
    }
}

fn by_mime(hint: &Hint) -> Option<Kind> {
    let mime = hint.mime.as_deref()?.split(';').next()?.trim();
    Some(match mime {
        "text/markdown" => Kind::Text(Syntax::Markdown),
        "text/vtt" => Kind::Captions,
        _ => kind_of_mime(mime),
    })
    .filter(|kind| *kind != Kind::Unknown)
}

fn kind_of_mime(mime: &str) -> Kind {
    match mime {
        "application/x-ipynb+json" | "text/csv" | "text/tab-separated-values" => {
            Kind::Markup(mime.to_owned())
        }
        "application/json" | "application/x-ndjson" | "text/plain" => Kind::Text(Syntax::Plain),
        _ if mime.ends_with("xml") || mime == HTML => Kind::Markup(mime.to_owned()),
        _ if mime.starts_with("text/") => Kind::Text(Syntax::Plain),
        _ if mime.starts_with("image/") => Kind::Picture,
        _ if mime.starts_with("application/") || mime == MAIL => Kind::Document(mime.to_owned()),
        _ => Kind::Unknown,
    }
}

fn by_opening(text: &str) -> Option<Kind> {
    let text = text.trim_start_matches('\u{FEFF}').trim_start();
    let lower = text.get(..text.floor_char_boundary(1024))?.to_ascii_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        return Some(Kind::Markup(HTML.to_owned()));
    }
    if lower.starts_with("<?xml") || lower.starts_with("<!doctype") {
        let xhtml = lower.contains("<html") || lower.contains("<!doctype html");
        return Some(Kind::Markup(if xhtml { HTML } else { XML }.to_owned()));
    }
    if lower.starts_with("webvtt") {
        return Some(Kind::Captions);
    }
    if lower.starts_with("from ") && lower.lines().nth(1).is_some_and(is_header) {
        return Some(Kind::Mailbox);
    }
    let headers = text.lines().take_while(|line| !line.is_empty()).take(40);
    let known = headers.filter(|line| is_mail_header(line)).count();
    (known >= 2 && text.lines().next().is_some_and(is_header)).then(|| Kind::Document(MAIL.to_owned()))
}

fn is_header(line: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    })
}

fn is_mail_header(line: &str) -> bool {
    const KNOWN: [&str; 10] = [
        "from",
        "to",
        "subject",
        "date",
        "received",
        "return-path",
        "message-id",
        "mime-version",
        "delivered-to",
        "content-type",
    ];
    line.split_once(':').is_some_and(|(name, _)| KNOWN.contains(&name.to_ascii_lowercase().as_str()))
}

/// Where `needle` first lies in `hay`.
pub(super) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(head: &[u8], name: &str) -> Kind {
        of(head, &Hint { name: Some(name.to_owned()), mime: None })
    }

    #[test]
    fn content_outranks_the_name() {
        assert_eq!(kind(b"%PDF-1.7\n", "notes.txt"), Kind::Document("application/pdf".to_owned()));
        assert_eq!(kind(b"<!DOCTYPE html><table>", "export.xls"), Kind::Markup(HTML.to_owned()));
        assert_eq!(kind(b"just words", "report.docx"), Kind::Text(Syntax::Plain));
    }

    #[test]
    fn source_code_is_told_by_its_name() {
        assert_eq!(kind(b"fn main() {}", "src/main.rs"), Kind::Text(Syntax::Rust));
        assert_eq!(kind(b"package main", "main.GO"), Kind::Text(Syntax::Go));
    }

    #[test]
    fn a_nameless_mail_is_told_by_its_headers() {
        let mail = b"Return-Path: <a@b>\r\nReceived: from x\r\nSubject: hi\r\n\r\nhello";
        assert_eq!(kind(mail, "mail_test_2"), Kind::Document(MAIL.to_owned()));
        assert_eq!(kind(b"From a@b Thu Jan 1 1970\nFrom: a@b\n\nhello", "box"), Kind::Mailbox);
        assert_eq!(kind(b"Note: this is\nprose: really", "note"), Kind::Text(Syntax::Plain));
    }

    #[test]
    fn a_program_is_unknown() {
        assert_eq!(kind(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0", "run"), Kind::Unknown);
    }

    #[test]
    fn the_hint_speaks_when_content_and_name_are_silent() {
        let hint = Hint { name: None, mime: Some("text/csv; charset=utf-8".to_owned()) };
        assert_eq!(of(b"a,b\n1,2\n", &hint), Kind::Markup("text/csv".to_owned()));
    }
}
