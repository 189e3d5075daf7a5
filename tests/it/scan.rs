//! The scanner on hostile and honest files, with no clamd, a false one, and a real one.

use gristmill::config::{self, Mismatch};
use gristmill::scan::{Claims, Outcome, Report, ScanError, Scanner};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub mod clamd;

const MIB: u64 = 1 << 20;

fn settings(clamd: &str) -> config::Scan {
    config::Scan {
        required: false,
        clamd: clamd.to_owned(),
        clamd_max_bytes: 100 * MIB,
        max_total_bytes: 200 * MIB,
        max_member_bytes: 50 * MIB,
        max_members: 10_000,
        max_ratio: 200,
        max_nesting: 3,
        mismatch: Mismatch::TrustContent,
    }
}

/// From two halves: no file of ours may hold it whole.
pub fn eicar() -> Vec<u8> {
    ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!$H+H*"].concat().into_bytes()
}

pub fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn gz_of(bytes: &[u8]) -> Vec<u8> {
    // What does not compress is not worth the test's time.
    let level = if bytes.len() > 200 << 20 { 0 } else { 6 };
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn zlib_of(bytes: &[u8]) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(bytes).unwrap();
    zlib.finish().unwrap()
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn docx_with(part: &[u8]) -> Vec<u8> {
    zip_of(&[
        ("[Content_Types].xml", b"<Types/>"),
        ("word/document.xml", b"<w:document/>"),
        ("word/x.bin", part),
    ])
}

fn pdf_with(stream: &[u8], filter: &str) -> Vec<u8> {
    let dictionary = format!("%PDF-1.5\n1 0 obj\n<< /Length {} /Filter {filter} >>\nstream\n", stream.len());
    [dictionary.as_bytes(), stream, b"\nendstream\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"].concat()
}

fn mail_with(attachment: &[u8]) -> Vec<u8> {
    let encoded = aws_smithy_types::base64::encode(attachment);
    let lines: Vec<&str> = encoded.as_bytes().chunks(76).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!(
        "From: a@x.test\r\nTo: b@x.test\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n\
         --B\r\n\r\nhello\r\n--B\r\nContent-Type: application/octet-stream\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}\r\n--B--\r\n",
        lines.join("\r\n")
    )
    .into_bytes()
}

/// A VBA project with one module: its source packed as literals alone.
fn macros_with(source: &str) -> Vec<u8> {
    let source = format!("Attribute VB_Name = \"M\"\r\n{source}");
    let mut chunk = Vec::new();
    for eight in source.as_bytes().chunks(8) {
        chunk.push(0);
        chunk.extend_from_slice(eight);
    }
    let header = 0xb000_u16 | (chunk.len() as u16 - 1);
    let mut project = cfb::CompoundFile::create(std::io::Cursor::new(Vec::new())).unwrap();
    project.create_storage("/VBA").unwrap();
    let mut module = project.create_stream("/VBA/M").unwrap();
    module.write_all(b"performance cache\x01").unwrap();
    module.write_all(&header.to_le_bytes()).unwrap();
    module.write_all(&chunk).unwrap();
    drop(module);
    project.into_inner().into_inner()
}

fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

async fn report(scanner: &Scanner, bytes: &[u8], name: &str) -> Report {
    let file = write(bytes);
    let claims = Claims { name: Some(name.to_owned()), mime: None };
    scanner.scan(file.path(), &claims).await.unwrap()
}

fn own() -> Scanner {
    Scanner::new(&settings("")).unwrap()
}

/// EICAR in each of its hiding places.
pub fn infected() -> Vec<(&'static str, Vec<u8>)> {
    let eicar = eicar();
    let zip = zip_of(&[("a.txt", b"hello"), ("eicar.com", &eicar)]);
    vec![
        ("plain.txt", eicar.clone()),
        ("later.txt", [&vec![b'x'; 5_000][..], &eicar].concat()),
        ("in.zip", zip.clone()),
        ("in.gz", gz_of(&eicar)),
        ("second.gz", [gz_of(b"hello"), gz_of(&eicar)].concat()),
        ("in.tar", tar_of(&[("a", b"b"), ("eicar", &eicar)])),
        ("in.tar.gz", gz_of(&tar_of(&[("eicar", &eicar)]))),
        ("nested.zip", zip_of(&[("b.zip", &zip_of(&[("c.gz", &gz_of(&zip))]))])),
        ("in.docx", docx_with(&eicar)),
        ("in.pdf", pdf_with(&zlib_of(&eicar), "/FlateDecode")),
        ("twice.pdf", pdf_with(&zlib_of(&zlib_of(&eicar)), "[/FlateDecode /FlateDecode]")),
        ("attached.eml", mail_with(&eicar)),
        ("attached.zip.eml", mail_with(&zip)),
        ("pdf.zip", zip_of(&[("a.pdf", &pdf_with(&zlib_of(&eicar), "/FlateDecode"))])),
    ]
}

#[tokio::test]
async fn eicar_is_found_wherever_it_hides() {
    for (name, bytes) in infected() {
        let report = report(&own(), &bytes, name).await;
        let expected = Outcome::Infected { signature: "Eicar-Test-Signature".to_owned() };
        assert_eq!(report.outcome, expected, "{name}");
    }
}

#[tokio::test]
async fn honest_files_of_every_shape_are_clean() {
    let honest = [
        ("a.txt", b"just words".to_vec()),
        ("a.zip", zip_of(&[("a.txt", b"hello")])),
        ("a.gz", gz_of(b"hello")),
        ("a.tar.gz", gz_of(&tar_of(&[("a", b"b")]))),
        ("two.gz", [gz_of(b"hello"), gz_of(b"again")].concat()),
        ("padded.gz", [gz_of(b"hello"), vec![0; 512]].concat()),
        ("a.docx", docx_with(b"picture")),
        ("a.pdf", pdf_with(&zlib_of(b"BT (hello) Tj ET"), "/FlateDecode")),
        ("half.txt", eicar()[..40].to_vec()),
        ("empty.txt", Vec::new()),
    ];
    for (name, bytes) in honest {
        let report = report(&own(), &bytes, name).await;
        assert_eq!(report.outcome, Outcome::Clean, "{name}");
        assert_eq!((report.size, report.limits_hit.len()), (bytes.len() as u64, 0), "{name}");
    }
}

#[tokio::test]
async fn a_program_inside_of_a_document_is_infected() {
    let program = [&b"MZ\x90\0\x03\0\0\0"[..], &[0; 100], b"This program cannot be run in DOS mode"].concat();
    for (name, bytes) in
        [("a.docx", docx_with(&program)), ("a.pdf", pdf_with(&zlib_of(&program), "/FlateDecode"))]
    {
        let report = report(&own(), &bytes, name).await;
        assert!(matches!(report.outcome, Outcome::Infected { .. }), "{name}: {:?}", report.outcome);
    }
    let archive = report(&own(), &zip_of(&[("setup.exe", &program)]), "a.zip").await;
    assert_eq!(archive.outcome, Outcome::Clean, "an archive may hold programs: none is run");
}

#[tokio::test]
async fn a_macro_that_starts_itself_and_a_shell_is_infected_and_others_are_not() {
    let evil = "Sub AutoOpen()\r\n CreateObject(\"WScript.Shell\").Run \"calc\"\r\nEnd Sub\r\n";
    let tame = "Sub AutoOpen()\r\n MsgBox \"welcome\"\r\nEnd Sub\r\n";
    for (source, infected) in [(evil, true), (tame, false)] {
        for (name, bytes) in [("a.docm", docx_with(&macros_with(source))), ("a.doc", macros_with(source))] {
            let outcome = report(&own(), &bytes, name).await.outcome;
            assert_eq!(matches!(outcome, Outcome::Infected { .. }), infected, "{name}: {outcome:?}");
        }
    }
}

/// Streams zeros into a zip member without holding them.
pub fn zeros_in_zip(size: u64) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let level = if size > 100 * MIB { 1 } else { 6 };
    let options = zip::write::SimpleFileOptions::default().compression_level(Some(level));
    zip.start_file("zeros", options).unwrap();
    let piece = vec![0; MIB as usize];
    for _ in 0..size / MIB {
        zip.write_all(&piece).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn many_members(count: u32) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for i in 0..count {
        zip.start_file(format!("{i}"), zip::write::SimpleFileOptions::default()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A directory that is large although it has few entries: the crate would hold all of it.
fn long_names(count: usize) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for i in 0..count {
        let name = format!("{i}{}", "n".repeat(60_000));
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub fn nested(depth: u32) -> Vec<u8> {
    (0..depth).fold(b"the core".to_vec(), |inner, _| zip_of(&[("inner.zip", &inner)]))
}

/// Bytes that do not compress, so that the ratio stays silent; the same every time.
fn dense(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Resident memory now and at its peak since the last reset, in KiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn reset_peak() {
    // Where the kernel does not let us, the peak stays that of making the bombs: see below.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[tokio::test]
async fn bombs_are_unscannable_in_bounded_time_and_memory() {
    let block = dense(40 << 20);
    let bombs = [
        ("zeros.zip", zeros_in_zip(1 << 30), "member_bytes"),
        ("fewer.zip", zeros_in_zip(48 << 20), "ratio"),
        ("members.zip", many_members(10_050), "members"),
        ("names.zip", long_names(400), "members"),
        ("nested.zip", nested(10), "nesting"),
        ("zeros.gz", gz_of(&vec![0; 64 << 20]), "ratio"),
        ("member.zip", zip_of(&[("big", &dense(51 << 20))]), "member_bytes"),
        (
            "total.tar.gz",
            gz_of(&tar_of(&[
                ("1", &block),
                ("2", &block),
                ("3", &block),
                ("4", &block),
                ("5", &block),
                ("6", &block),
            ])),
            "total_bytes",
        ),
        ("flate.pdf", pdf_with(&zlib_of(&vec![0; 64 << 20]), "/FlateDecode"), "ratio"),
        (
            "flate2.pdf",
            pdf_with(&zlib_of(&zlib_of(&vec![b' '; 64 << 20])), "[/FlateDecode /FlateDecode]"),
            "ratio",
        ),
    ];
    for (name, bytes, limit) in bombs {
        let file = write(&bytes);
        drop(bytes);
        let claims = Claims { name: Some(name.to_owned()), mime: None };
        reset_peak();
        let (begin, (before, _)) = (Instant::now(), memory());
        let report = own().scan(file.path(), &claims).await.unwrap();
        let (taken, grown) = (begin.elapsed(), memory().1.saturating_sub(before));
        assert!(matches!(report.outcome, Outcome::Unscannable { .. }), "{name}: {:?}", report.outcome);
        assert_eq!(report.limits_hit, [limit], "{name}");
        assert!(taken < Duration::from_secs(10), "{name}: {taken:?}");
        // Tests beside this one breathe too; holding what is inflated would take 200 MiB.
        assert!(grown < 128 * 1024, "{name}: scanning took {grown} KiB");
        eprintln!("{name}: {taken:?}, {grown} KiB");
    }
}

#[tokio::test]
async fn three_levels_inside_of_an_archive_are_opened_and_a_fourth_is_not() {
    let at = |levels: u32| {
        let core = zip_of(&[("eicar", &eicar())]);
        (0..levels).fold(core, |inner, _| zip_of(&[("inner.zip", &inner)]))
    };
    assert!(matches!(report(&own(), &at(3), "a.zip").await.outcome, Outcome::Infected { .. }));
    assert_eq!(report(&own(), &at(4), "a.zip").await.limits_hit, ["nesting"]);
}

#[tokio::test]
async fn what_cannot_be_looked_into_is_not_clean() {
    let whole = zip_of(&[("a.txt", &dense(100_000))]);
    let mut encrypted = whole.clone();
    // Bit 0 of the flags, in the local and in the central header.
    encrypted[6] |= 1;
    let central = encrypted.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    encrypted[central + 8] |= 1;
    let mut broken = whole.clone();
    broken[50_000] ^= 0xff;
    for (name, bytes, word) in [
        ("cut.zip", whole[..whole.len() / 2].to_vec(), "damaged"),
        ("broken.zip", broken, "damaged"),
        ("cut.gz", gz_of(&dense(10_000))[..5_000].to_vec(), "damaged"),
        ("locked.zip", encrypted, "encrypted"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\x04rest".to_vec(), "not looked into"),
    ] {
        match report(&own(), &bytes, name).await.outcome {
            Outcome::Unscannable { reason } => assert!(reason.contains(word), "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// `../shared/data` as seen from the repository or from a worktree of it.
pub fn corpus() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["../shared/data", "../../shared/data"].iter().map(|p| root.join(p)).find(|p| p.is_dir())
}

/// Packed by PKZIP's "implode" of 1989, which neither we nor the extractor unpack.
const UNREADABLE: [&str; 1] = ["docs/tika/moby.zip"];

#[tokio::test]
async fn honest_documents_of_the_corpus_are_not_flagged() {
    let Some(corpus) = corpus() else {
        eprintln!("skipped: ../shared/data is absent");
        return;
    };
    let manifest = std::fs::read_to_string(corpus.join("docs_manifest.jsonl")).unwrap();
    let (mut wrong, mut slowest) = (Vec::new(), (Duration::ZERO, String::new()));
    let scanner = own();
    let all = Instant::now();
    for line in manifest.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let (file, expect) = (entry["file"].as_str().unwrap(), entry["expect"].as_str().unwrap());
        let name = file.rsplit('/').next().map(str::to_owned);
        let begin = Instant::now();
        let report = scanner.scan(&corpus.join(file), &Claims { name, mime: None }).await.unwrap();
        if begin.elapsed() > slowest.0 {
            slowest = (begin.elapsed(), file.to_owned());
        }
        eprintln!(
            "corpus\t{expect}\t{file}\t{}\t{:?}\t{:?}",
            report.detected_mime, report.outcome, report.limits_hit
        );
        if expect == "text" && !UNREADABLE.contains(&file) && report.outcome != Outcome::Clean {
            wrong.push((file.to_owned(), report.outcome));
        }
    }
    eprintln!("corpus scanned in {:?}, slowest {slowest:?}", all.elapsed());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
