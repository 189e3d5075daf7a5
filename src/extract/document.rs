//! Documents as the crate xberg reads them, turned into pages of Markdown.

use super::Hint;
use super::draft::{Draft, Gap, Shape};
use super::drawn;
use super::kind;
use super::mail;
use super::mail::MAIL;
use super::pdf;
use super::polish;
use super::reader;
use super::wire::Refusal;
use super::wordml;
use crate::domain::Syntax;
use xberg::{
    ConcurrencyConfig, ContentFilterConfig, ExtractInput, ExtractedDocument, ExtractionConfig, OutputFormat,
    PageConfig, PdfConfig, SecurityLimits, XbergError,
};

pub(super) const PDF: &str = "application/pdf";
const SEVEN_ZIP: &str = "application/x-7z-compressed";
const ZIP: &str = "application/zip";
const PAGE_MARK: &str = "<!-- gristmill page ";
const PAGE_MARK_END: &str = " -->";

/// The type of a zip file that is a document, `None` for one that is just an archive.
pub(super) fn packaged(bytes: &[u8], hint: &Hint) -> Option<String> {
    let mime = xberg::detect_mime_type_from_bytes(bytes).ok().filter(|mime| mime != ZIP)?;
    tracing::debug!(mime, hinted = hint.mime, "a document in a zip file");
    Some(mime)
}

/// Reads a document by its type.
pub(super) fn read(bytes: Vec<u8>, mime: &str, hint: &Hint, draft: &mut Draft) -> Result<Shape, Refusal> {
    refuse_locked(&bytes, mime)?;
    // A second look needs the bytes again, and only a PDF gets one.
    let kept = (mime == PDF).then(|| bytes.clone());
    let drawn = if is_office_package(mime) { drawn::parts(&bytes) } else { Vec::new() };
    let document = extract(bytes, mime, hint)?;
    if let Some(bytes) = kept {
        write_pdf(&document, bytes, draft)?;
        write_children(&document, draft)?;
        return Ok(Shape::Pdf);
    }
    write(&document, draft)?;
    for text in drawn::unknown(drawn, &all_of(&document)) {
        draft.block(&text)?;
    }
    Ok(Shape::Other)
}

/// All text of a document with what is embedded in it.
fn all_of(document: &ExtractedDocument) -> String {
    let embedded = document.children.iter().flatten().map(|child| all_of(&child.result));
    std::iter::once(document.content.clone()).chain(embedded).collect()
}

fn is_office_package(mime: &str) -> bool {
    mime.contains("openxmlformats") || mime.contains("macroEnabled")
}

/// Reads structured text; what xberg cannot parse is still text.
pub(super) fn markup(bytes: &[u8], mime: &str, hint: &Hint, draft: &mut Draft) -> Result<(), Refusal> {
    let text = polish::declared_utf8(reader::characters(bytes)?);
    if wordml::is_wordml(&text) {
        return Ok(wordml::paragraphs(&text, draft)?);
    }
    let read = extract(text.clone().into_bytes(), mime, hint);
    match read {
        Ok(document) if text.trim().is_empty() || !document.content.trim().is_empty() => {
            write(&document, draft)
        }
        Ok(_) => salvage(&text, mime, draft),
        Err(Refusal::Malformed { .. } | Refusal::Unsupported { .. }) => {
            draft.gap(Gap::Unread, "the structure of the text");
            salvage(&text, mime, draft)
        }
        Err(e) => Err(e),
    }
}

/// What a parser found no text in may hold some all the same, without its structure.
fn salvage(text: &str, mime: &str, draft: &mut Draft) -> Result<(), Refusal> {
    let is_tagged = mime.ends_with("xml") || mime.ends_with("html");
    Ok(if is_tagged { draft.block(&polish::untagged(text)) } else { draft.block(text) }?)
}

/// Locks that the parser would not call by their name.
fn refuse_locked(bytes: &[u8], mime: &str) -> Result<(), Refusal> {
    let locked = match mime {
        // A wrapper that says "get another reader" around the encrypted document.
        PDF => ["/EncryptedPayload", "MicrosoftIRMServices"]
            .iter()
            .any(|mark| kind::find(bytes, mark.as_bytes()).is_some()),
        MAIL => mail::is_encrypted(bytes),
        _ => false,
    };
    if locked { Err(Refusal::Encrypted) } else { Ok(()) }
}

fn extract(bytes: Vec<u8>, mime: &str, hint: &Hint) -> Result<ExtractedDocument, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .thread_stack_size(16 * 1024 * 1024)
        .build()?;
    let input = ExtractInput::from_bytes(bytes, mime, hint.name.clone());
    let mut output = runtime.block_on(xberg::extract(input, &settings(mime))).map_err(refusal)?;
    if output.results.is_empty() {
        let message = output.errors.pop().map_or_else(|| "no result".to_owned(), |e| e.message);
        return Err(by_message(message));
    }
    Ok(output.results.swap_remove(0))
}

fn settings(mime: &str) -> ExtractionConfig {
    ExtractionConfig {
        use_cache: false,
        disable_ocr: true,
        enable_quality_processing: false,
        output_format: OutputFormat::Markdown,
        escape_markdown: false,
        extraction_timeout_secs: None,
        concurrency: Some(ConcurrencyConfig { max_threads: Some(1), max_concurrent_ocr: None }),
        content_filter: Some(ContentFilterConfig {
            include_footnotes: true,
            ..ContentFilterConfig::default()
        }),
        pages: Some(PageConfig {
            extract_pages: true,
            // Other formats carry their pages beside the text, or have none of their own.
            insert_page_markers: mime == PDF,
            marker_format: format!("\n\n{PAGE_MARK}{{page_num}}{PAGE_MARK_END}\n\n"),
            keep_native_content: false,
        }),
        pdf_options: Some(PdfConfig { extract_annotations: true, ..PdfConfig::default() }),
        // Memory and time are limited for the whole process; these are for honest large files.
        security_limits: Some(SecurityLimits {
            max_compression_ratio: 2000,
            max_table_cells: 2_000_000,
            ..SecurityLimits::default()
        }),
        ..ExtractionConfig::default()
    }
}

fn refusal(e: XbergError) -> Refusal {
    match e {
        XbergError::UnsupportedFormat(what) => Refusal::Unsupported { what },
        XbergError::Security { .. } => Refusal::Inflates,
        other => by_message(other.to_string()),
    }
}

fn by_message(message: String) -> Refusal {
    let lower = message.to_lowercase();
    if lower.contains("encrypt") || lower.contains("password") {
        Refusal::Encrypted
    } else if lower.starts_with("unsupported format") {
        Refusal::Unsupported { what: message.chars().skip("unsupported format: ".len()).collect() }
    } else if lower.contains("out of memory") {
        // The words of std::io for an allocation that was refused, not aborted on.
        Refusal::TakesTooMuchMemory
    } else {
        Refusal::Malformed { detail: message }
    }
}

/// Writes slides and sheets page by page, everything else as one text.
fn write(document: &ExtractedDocument, draft: &mut Draft) -> Result<(), Refusal> {
    describe(document, draft);
    let mime = document.mime_type.as_ref();
    let pages = document.pages.as_deref().unwrap_or_default();
    let is_paged =
        ["presentation", "powerpoint", "spreadsheet", "excel"].iter().any(|word| mime.contains(word));
    if mime == SEVEN_ZIP || mime == ZIP {
        // The content is only a list of what the children are.
    } else if is_paged && pages.iter().any(|page| !page.content.trim().is_empty()) {
        let titles = document.metadata.pages.as_ref().and_then(|pages| pages.pages.as_deref());
        for page in pages {
            let title = titles.into_iter().flatten().find(|info| info.number == page.page_number);
            let label = page.sheet_name.as_deref().or_else(|| title?.title.as_deref());
            let polished = polish::markdown(&page.content);
            // A sheet's name says what its numbers are.
            let named = page.sheet_name.as_deref().filter(|_| !polished.text.starts_with("## "));
            let heading = named.map(|name| format!("## {name}\n\n")).unwrap_or_default();
            if polished.is_pictures_alone() {
                draft.page(page.page_number, label, "")?;
                draft.picture(page.page_number);
            } else {
                draft.page(page.page_number, label, &format!("{heading}{}", polished.text))?;
            }
        }
    } else {
        let polished = polish::markdown(&document.content);
        if polished.is_pictures_alone() {
            draft.picture(1);
        } else {
            draft.block(&polished.text)?;
        }
    }
    write_children(document, draft)
}

/// Writes a PDF page by page, and looks for pictures on the pages without text.
fn write_pdf(document: &ExtractedDocument, bytes: Vec<u8>, draft: &mut Draft) -> Result<(), Refusal> {
    describe(document, draft);
    let pages = split_at_marks(&document.content, document.counts.pages);
    let blank: Vec<u32> =
        (1..).zip(&pages).filter(|(_, text)| text.trim().is_empty()).map(|(number, _)| number).collect();
    let pictured = pdf::pictured(bytes, &blank);
    for (number, text) in (1..).zip(&pages) {
        draft.page(number, None, &polish::markdown(text).text)?;
        if pictured.contains(&number) {
            draft.picture(number);
        }
    }
    Ok(())
}

fn describe(document: &ExtractedDocument, draft: &mut Draft) {
    if !draft.is_inside() {
        draft.syntax = Syntax::Markdown;
    }
    draft.title.clone_from(&document.metadata.title);
}

/// Writes what was embedded or attached, and names what could not be read.
fn write_children(document: &ExtractedDocument, draft: &mut Draft) -> Result<(), Refusal> {
    for child in document.children.iter().flatten() {
        if child.result.content.trim().is_empty() && child.result.children.is_none() {
            continue;
        }
        draft.member(&child.path, |draft| write(&child.result, draft))?;
    }
    for warning in &document.processing_warnings {
        // Warnings name a lost part as `Failed to extract '…': why`; pictures are no loss of text.
        let lost = warning.message.strip_prefix("Failed to extract ").and_then(|rest| rest.split_once('\''));
        let lost = lost.and_then(|(_, rest)| rest.split_once("': "));
        if let Some((name, why)) = lost
            && !why.contains("image/")
        {
            let locked = matches!(by_message(why.to_owned()), Refusal::Encrypted);
            draft.gap(if locked { Gap::Encrypted } else { Gap::Unread }, name);
        }
    }
    Ok(())
}

/// The text of each page, by the marks between them.
fn split_at_marks(content: &str, pages: usize) -> Vec<String> {
    let mut texts = vec![String::new(); pages.max(1)];
    let mut number = 1;
    let mut pieces = content.split(PAGE_MARK);
    let mut put = |number: usize, text: &str| {
        // A mark that the document itself forged does not make pages.
        let index = number.clamp(1, texts.len()) - 1;
        texts[index].push_str(text.trim_matches('\n'));
    };
    put(number, pieces.next().unwrap_or_default());
    for piece in pieces {
        let Some((digits, text)) = piece.split_once(PAGE_MARK_END) else { continue };
        number = digits.parse().unwrap_or(number);
        put(number, text);
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_pages_and_an_empty_page_stays() {
        let content = "<!-- gristmill page 1 -->one\n\n<!-- gristmill page 3 -->\n\nthree\n";
        assert_eq!(split_at_marks(content, 3), ["one", "", "three"]);
    }

    #[test]
    fn a_text_without_marks_is_the_first_page() {
        assert_eq!(split_at_marks("all of it", 2), ["all of it", ""]);
    }

    #[test]
    fn an_error_about_a_password_is_an_encrypted_file() {
        assert_eq!(by_message("Workbook is password protected".to_owned()), Refusal::Encrypted);
        assert!(matches!(by_message("bad zip".to_owned()), Refusal::Malformed { .. }));
        let starved = by_message("IO error: out of memory".to_owned());
        assert_eq!(starved, Refusal::TakesTooMuchMemory);
    }
}
