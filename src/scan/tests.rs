//! Type truth as a table: what is declared, what is found, what follows.

use super::*;
use std::io::Write;

fn settings(mismatch: Mismatch) -> config::Scan {
    config::Scan {
        required: false,
        clamd: String::new(),
        clamd_max_bytes: 100 << 20,
        max_total_bytes: 200 << 20,
        max_member_bytes: 50 << 20,
        max_members: 10_000,
        max_ratio: 200,
        max_nesting: 3,
        mismatch,
    }
}

fn claims(name: &str, mime: &str) -> Claims {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Claims { name: some(name), mime: some(mime) }
}

fn docx() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, text) in [("[Content_Types].xml", "<Types/>"), ("word/document.xml", "<w:document/>")] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

const PE: &[u8] = b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0\xb8\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0";
const ELF: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0";
const DOCX: &str = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";

/// Name, declared type, content, whether refused under each policy, and the type detected.
type Row<'a> = (&'a str, &'a str, &'a [u8], bool, bool, &'a str);

#[tokio::test]
async fn declared_type_extension_and_content_are_weighed() {
    // name, declared, content, refused under trust_content, refused under refuse, detected
    let docx = docx();
    let table: [Row<'_>; 18] = [
        ("a.pdf", "application/pdf", b"%PDF-1.7\nx", false, false, "application/pdf"),
        ("a.docx", DOCX, &docx, false, false, DOCX),
        ("a.txt", "text/plain; charset=utf-8", b"plain words", false, false, "text/plain"),
        ("a.md", "text/plain", b"# title", false, false, "text/markdown"),
        ("a.csv", "application/octet-stream", b"a,b\n1,2\n", false, false, "text/csv"),
        ("", "", b"<!doctype html><p>x", false, false, "text/html"),
        ("a.pdf", "application/pdf", b"just words, no PDF", false, true, "text/plain"),
        ("a.pdf", "application/pdf", &docx, false, true, DOCX),
        ("a.txt", "text/plain", b"%PDF-1.7\nx", false, true, "application/pdf"),
        ("a.png", "image/png", b"GIF89a\x01\0\x01\0\0\0\0", false, false, "image/gif"),
        ("a.png", "image/png", b"<html><script>x</script>", false, true, "text/html"),
        ("a.docx", DOCX, b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", false, true, "application/zip"),
        ("a.pdf", "application/pdf", PE, true, true, "application/vnd.microsoft.portable-executable"),
        ("a.docx", "", ELF, true, true, "application/x-executable"),
        ("a.txt", "text/plain", PE, true, true, "application/vnd.microsoft.portable-executable"),
        ("a.pdf.exe", "application/pdf", PE, true, true, "application/vnd.microsoft.portable-executable"),
        ("a.pdf", "application/pdf", b"#!/bin/sh\nrm -rf x", true, true, "text/x-shellscript"),
        (
            "a.exe",
            "application/x-msdownload",
            PE,
            false,
            false,
            "application/vnd.microsoft.portable-executable",
        ),
    ];
    for (name, mime, content, trusting, strict, detected) in table {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        for (policy, refused) in [(Mismatch::TrustContent, trusting), (Mismatch::Refuse, strict)] {
            let scanner = Scanner::new(&settings(policy)).unwrap();
            let found = scanner.identify(file.path(), &claims(name, mime)).await.unwrap();
            assert_eq!(found.refusal.is_some(), refused, "{name} {mime} {policy:?}: {found:?}");
            assert_eq!(found.detected_mime, detected, "{name} {mime}");
        }
    }
}

#[test]
fn scanning_that_is_required_needs_a_clamd() {
    let required = config::Scan { required: true, ..settings(Mismatch::Refuse) };
    let wrong = Scanner::new(&required).unwrap_err();
    assert!(matches!(wrong, ScanError::ClamdMissing));
    assert!(wrong.to_string().contains("scan.clamd"), "{wrong}");
    let odd = config::Scan { clamd: "clamav".to_owned(), ..settings(Mismatch::Refuse) };
    assert!(matches!(Scanner::new(&odd).unwrap_err(), ScanError::ClamdAddress(_)));
}

#[tokio::test]
async fn the_engine_changes_with_the_limits() {
    let one = Scanner::new(&settings(Mismatch::Refuse)).unwrap().engine().await.unwrap();
    let tighter = config::Scan { max_ratio: 10, ..settings(Mismatch::Refuse) };
    let other = Scanner::new(&tighter).unwrap().engine().await.unwrap();
    assert_eq!(one.name, "gristmill");
    assert_ne!(one.signature_version, other.signature_version);
}
