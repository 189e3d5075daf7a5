//! What a file is by its bytes alone; names and declarations come later (`claim`).

use super::{ole, text, unpack};
use std::fs::File;
use std::io::{self, Read, Seek};

/// What the content is for: files of one family may stand in for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Empty,
    Text,
    Markup,
    /// Text that a shell runs.
    Script,
    Email,
    Pdf,
    Rtf,
    Ooxml,
    Ole,
    Odf,
    Epub,
    Archive,
    Image,
    Media,
    Executable,
    Unknown,
}

/// A file's content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub mime: &'static str,
    pub family: Family,
}

/// How the walker opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Zip,
    Gz,
    Tar,
    Pdf,
    Ole,
    /// Told by `detect` alone: a first piece does not make a mail.
    Mail,
    /// An archive whose packing is not known here: 7z, rar, bzip2, xz, zstd.
    OtherArchive,
    Executable,
    Leaf,
}

const fn kind(mime: &'static str, family: Family) -> Kind {
    Kind { mime, family }
}

/// The outer shape, from a file's first bytes.
pub(super) fn shape(head: &[u8]) -> Shape {
    const ZIP: [&[u8]; 4] = [b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"PK00PK\x03\x04"];
    const OTHER: [&[u8]; 6] = [
        b"7z\xbc\xaf\x27\x1c",
        b"Rar!\x1a\x07",
        b"BZh",
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"\x04\x22\x4d\x18",
    ];
    let bzip_or_no_text = |mark: &[u8]| mark != b"BZh" || head.get(4..10) == Some(b"1AY&SY");
    if ZIP.iter().any(|mark| head.starts_with(mark)) {
        Shape::Zip
    } else if head.starts_with(b"\x1f\x8b\x08") {
        Shape::Gz
    } else if head.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
        Shape::Ole
    } else if OTHER.iter().any(|mark| head.starts_with(mark) && bzip_or_no_text(mark)) {
        Shape::OtherArchive
    } else if head.get(257..262) == Some(b"ustar") {
        Shape::Tar
    } else if executable(head).is_some() {
        Shape::Executable
    } else if memchr::memmem::find(&head[..head.len().min(1024)], b"%PDF-").is_some() {
        Shape::Pdf
    } else {
        Shape::Leaf
    }
}

/// Machine code, by its container's mark.
fn executable(head: &[u8]) -> Option<&'static str> {
    let machine = match head {
        [0x7f, b'E', b'L', b'F', ..] => "application/x-executable",
        // The last is a fat Mach-O or a Java class: both run.
        [0xfe, 0xed, 0xfa, 0xce | 0xcf, ..]
        | [0xce | 0xcf, 0xfa, 0xed, 0xfe, ..]
        | [0xca, 0xfe, 0xba, 0xbe, ..] => "application/x-mach-binary",
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => "application/wasm",
        [b'd', b'e', b'x', b'\n', b'0', b'3', ..] => "application/vnd.android.dex",
        // Two letters begin many honest texts; a DOS header is not text.
        [b'M', b'Z', ..] if has_pe_header(head) || !text::is_text(head) => {
            "application/vnd.microsoft.portable-executable"
        }
        _ => return None,
    };
    Some(machine)
}

/// The offset at 0x3c of a DOS header leads to the real one, whatever lies between.
fn has_pe_header(head: &[u8]) -> bool {
    let offset = head.get(0x3c..0x40).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    offset.and_then(|at| head.get(at as usize..)).is_some_and(|at| at.starts_with(b"PE\0\0"))
}

/// Reads as much of the file as it takes to say what it is. The file may be anything; an error
/// is our own disk's.
pub(super) fn detect(file: &mut File, max_members: u64) -> io::Result<(Kind, Shape)> {
    file.rewind()?;
    let mut head = Vec::with_capacity(unpack::PIECE);
    file.take(unpack::PIECE as u64).read_to_end(&mut head)?;
    let shape = shape(&head);
    let kind = match shape {
        _ if head.is_empty() => kind("application/x-empty", Family::Empty),
        Shape::Zip => zipped(file, max_members),
        Shape::Gz => kind("application/gzip", Family::Archive),
        Shape::Tar => kind("application/x-tar", Family::Archive),
        Shape::OtherArchive => kind(
            infer::get(&head).map_or("application/x-compressed", |known| known.mime_type()),
            Family::Archive,
        ),
        Shape::Ole => {
            file.rewind()?;
            kind(ole::mime(file).unwrap_or("application/x-ole-storage"), Family::Ole)
        }
        Shape::Executable => {
            kind(executable(&head).unwrap_or("application/x-executable"), Family::Executable)
        }
        Shape::Pdf => kind("application/pdf", Family::Pdf),
        Shape::Leaf | Shape::Mail => leaf(&head),
    };
    let mail = kind.family == Family::Email;
    Ok((kind, if mail { Shape::Mail } else { shape }))
}

fn leaf(head: &[u8]) -> Kind {
    if head.starts_with(b"{\\rtf") {
        return kind("application/rtf", Family::Rtf);
    }
    if text::is_text(head) {
        return text::sniff(head);
    }
    match infer::get(head) {
        Some(known) => match known.matcher_type() {
            infer::MatcherType::Image => kind(known.mime_type(), Family::Image),
            infer::MatcherType::Audio | infer::MatcherType::Video => kind(known.mime_type(), Family::Media),
            infer::MatcherType::Archive => kind(known.mime_type(), Family::Archive),
            _ => kind(known.mime_type(), Family::Unknown),
        },
        None => kind("application/octet-stream", Family::Unknown),
    }
}

/// Which of the formats that are zips inside; a plain or damaged one is just a zip.
fn zipped(file: &mut File, max_members: u64) -> Kind {
    const PLAIN: Kind = kind("application/zip", Family::Archive);
    // Before the crate reads the directory into memory; the walk reports the limit.
    if unpack::check_directory(file, max_members).is_err() {
        return PLAIN;
    }
    let Ok(mut archive) = zip::ZipArchive::new(&mut *file) else { return PLAIN };
    if let Some(found) = archive.by_name("mimetype").ok().and_then(declared_inside) {
        return found;
    }
    let has = |name: &str| archive.file_names_raw().any(|n| n.eq_ignore_ascii_case(name.as_bytes()));
    let under = |folder: &str| archive.file_names_raw().any(|n| n.starts_with(folder.as_bytes()));
    if !has("[Content_Types].xml") {
        return PLAIN;
    }
    let mime = if has("xl/workbook.bin") {
        "application/vnd.ms-excel.sheet.binary.macroEnabled.12"
    } else if under("word/") {
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    } else if under("ppt/") {
        "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    } else if under("xl/") {
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    } else {
        return PLAIN;
    };
    kind(mime, Family::Ooxml)
}

/// ODF and EPUB name their type in a member of their own.
fn declared_inside(member: impl Read) -> Option<Kind> {
    const KNOWN: [(&str, Family); 6] = [
        ("application/epub+zip", Family::Epub),
        ("application/vnd.oasis.opendocument.text", Family::Odf),
        ("application/vnd.oasis.opendocument.spreadsheet", Family::Odf),
        ("application/vnd.oasis.opendocument.presentation", Family::Odf),
        ("application/vnd.oasis.opendocument.graphics", Family::Odf),
        ("application/vnd.oasis.opendocument.text-template", Family::Odf),
    ];
    let mut name = String::new();
    member.take(100).read_to_string(&mut name).ok()?;
    KNOWN.iter().find(|(mime, _)| *mime == name.trim()).map(|(mime, family)| kind(mime, *family))
}
