//! Forged files cost a child its life, never the worker its own.

use super::extract::{extract, settings};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use gristmill::config;
use gristmill::domain::Completeness;
use gristmill::extract::ExtractError;
use std::io::Write;
use std::time::{Duration, Instant};

/// Small enough that the bombs need not be large.
const MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// What the bombs unpack to: more than the memory allows.
const BOMB_BYTES: usize = 320 * 1024 * 1024;

fn tight() -> config::Extract {
    config::Extract { memory_bytes: MEMORY_BYTES, cpu_seconds: 20, wall_seconds: 30, ..settings() }
}

/// The most memory that any child of this process has had, as seen while `work` runs.
async fn peak_of_children<T>(work: impl Future<Output = T>) -> (T, u64) {
    let watch = async {
        let mut peak = 0;
        loop {
            peak = peak.max(largest_child());
            PEAK.with(|seen| seen.set(peak));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = watch => unreachable!("the watch has no end"),
    };
    (done, PEAK.get())
}

thread_local! {
    static PEAK: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The peak of the largest living child, by the kernel's own count.
fn largest_child() -> u64 {
    let own = format!("PPid:\t{}\n", std::process::id());
    let statuses = std::fs::read_dir("/proc").unwrap().flatten();
    let statuses = statuses.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    let peak = |status: String| -> Option<u64> {
        status.contains("Name:\tgristmill").then_some(())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    statuses.filter(|status| status.contains(&own)).filter_map(peak).max().unwrap_or(0) * 1024
}

/// Extracts a forged file and checks that it ended in time, memory and a told way.
async fn bounded(name: &str, bytes: &[u8]) -> Result<(), ExtractError> {
    let started = Instant::now();
    let (outcome, peak) = peak_of_children(extract(&tight(), name, bytes)).await;
    assert!(started.elapsed() < Duration::from_secs(35), "{name} took {:?}", started.elapsed());
    assert!(peak <= MEMORY_BYTES, "{name} took {peak} bytes");
    if let Err(e) = &outcome {
        assert!(e.is_final(), "{name}: {e}");
        eprintln!("{name}: {}", e.code());
    }
    // The worker is alive and reads the next file.
    assert_eq!(extract(&tight(), "next.txt", b"next").await.unwrap().0, "next");
    outcome.map(drop)
}

pub fn xlsx(sheet: &dyn Fn(&mut dyn Write)) -> Vec<u8> {
    const PARTS: [(&str, &str); 4] = [
        (
            "[Content_Types].xml",
            r#"<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>"#,
        ),
        (
            "_rels/.rels",
            r#"<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>"#,
        ),
        (
            "xl/workbook.xml",
            r#"<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>"#,
        ),
        (
            "xl/_rels/workbook.xml.rels",
            r#"<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/sheet1.xml"/></Relationships>"#,
        ),
    ];
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_level(Some(1));
    for (name, text) in PARTS {
        zip.start_file(name, options).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.start_file("xl/worksheets/sheet1.xml", options).unwrap();
    zip.write_all(
        br#"<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>"#,
    )
    .unwrap();
    sheet(&mut zip);
    zip.write_all(b"</sheetData></worksheet>").unwrap();
    zip.finish().unwrap().into_inner()
}

fn pdf_with_content(stream: &[u8], filter: &str) -> Vec<u8> {
    let mut pdf = b"%PDF-1.7\n".to_vec();
    let mut offsets = Vec::new();
    let objects: [&[u8]; 4] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R >>",
        &[
            format!("<< /Length {} /Filter {filter} >>\nstream\n", stream.len()).as_bytes(),
            stream,
            b"\nendstream",
        ]
        .concat(),
    ];
    for (number, object) in objects.iter().enumerate() {
        offsets.push(pdf.len());
        pdf.extend(format!("{} 0 obj\n", number + 1).bytes());
        pdf.extend(*object);
        pdf.extend(b"\nendobj\n");
    }
    let xref = pdf.len();
    pdf.extend(b"xref\n0 5\n0000000000 65535 f \n");
    for offset in offsets {
        pdf.extend(format!("{offset:010} 00000 n \n").bytes());
    }
    pdf.extend(format!("trailer\n<< /Size 5 /Root 1 0 R >>\nstartxref\n{xref}\n%%EOF\n").bytes());
    pdf
}

fn deflated(piece: &[u8], times: usize) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..times {
        encoder.write_all(piece).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_sheet_with_two_far_corners_does_not_fill_the_memory() {
    let sheet = xlsx(&|zip| {
        zip.write_all(
            br#"<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>"#,
        )
        .unwrap();
    });
    assert!(sheet.len() < 4096);
    let _told = bounded("corners.xlsx", &sheet).await;
}

#[tokio::test]
async fn a_cell_of_more_than_the_memory_is_refused() {
    let piece = vec![b'a'; 1024 * 1024];
    let sheet = xlsx(&|zip| {
        zip.write_all(br#"<row r="1"><c r="A1" t="inlineStr"><is><t>"#).unwrap();
        for _ in 0..BOMB_BYTES / piece.len() {
            zip.write_all(&piece).unwrap();
        }
        zip.write_all(b"</t></is></c></row>").unwrap();
    });
    assert!(bounded("cell.xlsx", &sheet).await.is_err());
}

#[tokio::test]
async fn a_stream_that_inflates_to_more_than_the_memory_is_bounded() {
    let spaces = deflated(&vec![b' '; 1024 * 1024], BOMB_BYTES / 1024 / 1024);
    let _told = bounded("bomb.pdf", &pdf_with_content(&spaces, "/FlateDecode")).await;
    let twice = deflated(&spaces, 1);
    assert!(twice.len() < 100_000);
    let _told = bounded("twice.pdf", &pdf_with_content(&twice, "[/FlateDecode /FlateDecode]")).await;
}

#[tokio::test]
async fn arrays_nested_without_end_are_bounded() {
    let nested = deflated(b"[[[[[[[[[[[[[[[[", 50_000);
    let _told = bounded("nested.pdf", &pdf_with_content(&nested, "/FlateDecode")).await;
}

#[tokio::test]
async fn elements_nested_without_end_are_bounded() {
    let nested = "<div>".repeat(200_000);
    let _told = bounded("nested.html", nested.as_bytes()).await;
    let nested = format!("<?xml version=\"1.0\"?>{}", "<a>".repeat(300_000));
    let _told = bounded("nested.xml", nested.as_bytes()).await;
}

#[tokio::test]
async fn entities_that_multiply_are_bounded() {
    let entity = |(this, last)| format!("<!ENTITY {this} \"{}\">", format!("&{last};").repeat(10));
    let entities: String = ('b'..='k').zip('a'..='j').map(entity).collect();
    let laughs = format!("<?xml version=\"1.0\"?><!DOCTYPE l [<!ENTITY a \"haha\">{entities}]><l>&k;</l>");
    let _told = bounded("laughs.xml", laughs.as_bytes()).await;
}

#[tokio::test]
async fn an_archive_that_inflates_beyond_its_limits_is_bounded() {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_level(Some(1));
    zip.start_file("zeros.txt", options).unwrap();
    let piece = vec![b'0'; 1024 * 1024];
    for _ in 0..BOMB_BYTES / piece.len() {
        zip.write_all(&piece).unwrap();
    }
    let zip = zip.finish().unwrap().into_inner();
    assert!(bounded("zeros.zip", &zip).await.is_err());
}

#[tokio::test]
async fn a_child_that_takes_too_long_is_killed() {
    let slow = config::Extract { wall_seconds: 0, ..tight() };
    let error = extract(&slow, "a.txt", b"words").await.unwrap_err();
    assert_eq!((error.code(), error.is_final()), ("parser_limit_wall", true));
}

#[tokio::test]
async fn a_text_larger_than_the_memory_of_its_child_streams_through() {
    let line = "the quick brown fox jumps naïvely over the lazy dog and the sleeping cat\n";
    let times = MEMORY_BYTES as usize / line.len();
    // Less than the text; the program itself takes more than half of it in a debug build.
    let small = config::Extract { memory_bytes: MEMORY_BYTES / 8 * 7, ..tight() };
    let file = line.repeat(times);
    let (text, facts) = extract(&small, "large.txt", file.as_bytes()).await.unwrap();
    assert_eq!(text.len(), line.len() * times);
    assert_eq!(facts.completeness, Completeness::Complete);
}

#[tokio::test]
async fn a_sheet_is_a_page_with_its_name() {
    let sheet = xlsx(&|zip| {
        zip.write_all(
            br#"<row r="1"><c r="A1" t="inlineStr"><is><t>width</t></is></c><c r="B1"><v>42</v></c></row>"#,
        )
        .unwrap();
    });
    let (text, facts) = extract(&tight(), "a.xlsx", &sheet).await.unwrap();
    assert!(text.starts_with("## S\n") && text.contains("42"), "{text}");
    assert_eq!(facts.pages.len(), 1);
    assert_eq!(facts.pages[0].label.as_deref(), Some("S"));
}
