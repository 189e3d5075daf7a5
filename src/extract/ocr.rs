//! Pictures of text, read by the commands `tesseract` and `pdftoppm` where they are installed.
//!
//! They are C and C++ programs on a stranger's bytes, so they run under the same limits as
//! the parsers, and see only the picture and a folder for what they make of it.

use super::draft::{Draft, Gap, Shape};
use super::process;
use super::process::Ending;
use super::wire::{Reading, Scanned, Task};
use super::{ExtractError, Extractor, Limit};
use crate::config;
use crate::domain::Completeness;
use crate::domain::TextFacts;
use std::path::{Path, PathBuf};

/// Where distributions put programs; the worker's own `PATH` is not trusted with this.
const FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];
/// Pages read of one document: at some seconds each, more would outlast any lease.
const MAX_PAGES: usize = 200;
/// Enough for print of usual size, and what tesseract was trained for.
const DPI: &str = "300";

/// The OCR engine, if there is one.
pub(super) enum Ocr {
    Off,
    Tesseract {
        program: PathBuf,
        /// Turns PDF pages into pictures; without it only pictures are read.
        renderer: Option<PathBuf>,
    },
}

impl Ocr {
    /// Looks for the commands, unless the settings forbid.
    pub(super) fn find(settings: &config::Extract) -> Self {
        match (settings.ocr, installed("tesseract")) {
            (config::Ocr::Auto, Some(program)) => {
                Self::Tesseract { program, renderer: installed("pdftoppm") }
            }
            _ => Self::Off,
        }
    }

    /// Adds the text of pictures to a reading, where there are any and an engine is.
    pub(super) async fn read(
        &self,
        extractor: &Extractor,
        source: &Path,
        reading: Reading,
        into: &Path,
    ) -> Result<TextFacts, ExtractError> {
        let Self::Tesseract { program, renderer } = self else { return Ok(reading.facts) };
        let job = Job { extractor, program, renderer: renderer.as_deref(), folder: tempfile::tempdir()? };
        match &reading.scanned {
            Scanned::Nothing => Ok(reading.facts),
            Scanned::Whole => {
                let found = job.recognise(source).await?;
                merged(extractor, into, reading.facts, vec![(1, found)]).await
            }
            Scanned::PdfPages(_) if renderer.is_none() => Ok(reading.facts),
            Scanned::PdfPages(pages) => {
                let mut found = Vec::new();
                for page in pages.iter().take(MAX_PAGES) {
                    found.push((*page, job.pdf_page(source, *page).await?));
                }
                found.extend(pages.iter().skip(MAX_PAGES).map(|page| (*page, None)));
                merged(extractor, into, reading.facts, found).await
            }
        }
    }
}

/// Where a helper program is installed, if it is.
pub fn installed(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|program| program.is_file())
}

struct Job<'a> {
    extractor: &'a Extractor,
    program: &'a Path,
    renderer: Option<&'a Path>,
    folder: tempfile::TempDir,
}

impl Job<'_> {
    async fn pdf_page(&self, source: &Path, page: u32) -> Result<Option<String>, ExtractError> {
        let Some(renderer) = self.renderer else { return Ok(None) };
        let (number, picture) = (page.to_string(), self.folder.path().join("page"));
        let name = picture.to_string_lossy().into_owned();
        let file = std::path::absolute(source)?.to_string_lossy().into_owned();
        let arguments =
            ["-f", &number, "-l", &number, "-r", DPI, "-gray", "-png", "-singlefile", &file, &name];
        if !self.run(renderer, &arguments, source).await? {
            return Ok(None);
        }
        let picture = picture.with_extension("png");
        let text = self.recognise(&picture).await;
        // The next page takes the same name; a picture left behind must not pass for it.
        tokio::fs::remove_file(&picture).await?;
        text
    }

    /// The text of a picture, `None` if the engine fails on it.
    async fn recognise(&self, picture: &Path) -> Result<Option<String>, ExtractError> {
        let text = self.folder.path().join("text");
        let file = std::path::absolute(picture)?.to_string_lossy().into_owned();
        let name = text.to_string_lossy().into_owned();
        // 1: find the page's orientation before its lines.
        let arguments = [&file, &name, "-l", &self.extractor.settings.ocr_languages, "--psm", "1"];
        if !self.run(self.program, &arguments, picture).await? {
            return Ok(None);
        }
        let text = text.with_extension("txt");
        let bytes = tokio::fs::read(&text).await?;
        tokio::fs::remove_file(&text).await?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// True if the program did its work.
    async fn run(&self, program: &Path, arguments: &[&str], source: &Path) -> Result<bool, ExtractError> {
        let task = Task::Run {
            program: program.into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            source: std::path::absolute(source)?,
            folder: self.folder.path().into(),
            limits: self.extractor.limits(),
        };
        match process::run(&self.extractor.program, &task, self.extractor.wall()).await? {
            Ending::Exit { code: 0, .. } => Ok(true),
            ending => {
                tracing::info!(extract.ending = %ending, "a helper program failed on a page");
                Ok(false)
            }
        }
    }
}

/// Writes the text anew with what was found on its pages.
async fn merged(
    extractor: &Extractor,
    into: &Path,
    facts: TextFacts,
    found: Vec<(u32, Option<String>)>,
) -> Result<TextFacts, ExtractError> {
    let ceiling = extractor.settings.max_text_bytes;
    let into = into.to_owned();
    let write = move || -> Result<TextFacts, ExtractError> {
        let text = std::fs::read_to_string(&into)?;
        let mut draft = Draft::new(std::fs::File::create(&into)?, ceiling);
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let of = |page: u32| found.iter().find(|(number, _)| *number == page);
        for page in &facts.pages {
            let found = of(page.number).and_then(|(_, text)| text.as_deref()).unwrap_or_default();
            let own = text.get(at(page.start)..at(page.end)).unwrap_or_default();
            draft.page(page.number, page.label.as_deref(), &format!("{own}{found}"))?;
        }
        if facts.pages.is_empty() {
            for (page, text) in &found {
                draft.page(*page, None, text.as_deref().unwrap_or_default())?;
            }
        }
        for (page, _) in found.iter().filter(|(_, text)| text.is_none()) {
            draft.picture(*page);
        }
        if let Completeness::Partial { detail, .. } = &facts.completeness
            && let Some((_, lost)) = detail.split_once("not read: ")
        {
            draft.gap(Gap::Unread, lost);
        }
        draft.title.clone_from(&facts.title);
        draft.syntax = facts.syntax;
        Ok(draft.finish(Shape::Other).map_err(super::refused)?.facts)
    };
    tokio::task::spawn_blocking(write).await.map_err(|_| ExtractError::LimitHit { limit: Limit::Memory })?
}
