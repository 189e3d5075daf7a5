//! Bytes on disk become text with facts about it: after the scan, before chunking.
//!
//! Parsers abort, hang and overrun the memory on forged files, so each document is read by a
//! child process of its own (`gristmill extract-child`), which has limits, can open nothing
//! but that file, and dies with it. What is wrong with a file is said in a word for programs
//! and a sentence for its owner.

mod archive;
mod charset;
mod child;
mod compound;
mod document;
mod draft;
mod drawn;
mod jail;
mod kind;
mod mail;
mod mend;
mod ocr;
mod pdf;
mod plain;
mod polish;
mod process;
mod reader;
pub mod score;
mod wire;
mod wordml;

pub use child::child_main;
pub use ocr::installed as helper;
pub use process::{Usage, children_usage};

use crate::config;
use crate::domain::TextFacts;
use process::Ending;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use wire::{Answer, EXIT_ANSWERED, EXIT_NOT_BEGUN, EXIT_PANICKED, Refusal, Task};

/// The hidden subcommand that a child runs as.
pub const CHILD: &str = "extract-child";

/// Raised whenever the same bytes would give another text.
const REVISION: &str = "gristmill-1/xberg-1.3.10";

/// What is known of a file beside its bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Hint {
    /// Its name; only the extension counts.
    pub name: Option<String>,
    /// Its type as the scan found it; asked when content and name are silent.
    pub mime: Option<String>,
}

/// Which ceiling a file ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Memory,
    Cpu,
    Wall,
    Output,
    /// An archive or package that unpacks to too much.
    Inflation,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Cpu => "computing time",
            Self::Wall => "time",
            Self::Output => "output",
            Self::Inflation => "unpacked size",
        })
    }
}

/// Why a file gave no text.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("the file is encrypted or locked with a password: take the protection off and upload it again")]
    Encrypted,
    #[error(
        "files of this type ({what}) cannot be read: convert it, for instance to PDF, and upload it again"
    )]
    Unsupported { what: String },
    #[error(
        "the file is damaged or not what its name says ({detail}): \
         open it in the program it comes from, save it again, and upload that"
    )]
    Malformed { detail: String },
    #[error("nothing in the file could be read ({detail}): unpack it and upload what matters")]
    NothingRead { detail: String },
    #[error("reading the file takes more {limit} than allowed: split it into smaller files and upload those")]
    LimitHit { limit: Limit },
    #[error(
        "the parser crashed on the file ({}): save it again or convert it, for instance to PDF, and upload that",
        signal.map_or_else(|| "panic".to_owned(), |signal| format!("signal {signal}"))
    )]
    Crashed { signal: Option<i32> },
    /// The child could not begin; the file is not to blame.
    #[error("the extraction process could not begin: {detail}")]
    NotBegun { detail: String },
    #[error("the extraction process gave no valid answer")]
    Answer(#[source] serde_json::Error),
    #[error("extraction could not reach its files or its process")]
    Io(#[from] std::io::Error),
}

impl ExtractError {
    /// The word for it in the attachment's row.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Encrypted => "parser_encrypted",
            Self::Unsupported { .. } => "parser_unsupported",
            Self::Malformed { .. } => "parser_malformed",
            Self::NothingRead { .. } => "parser_nothing_read",
            Self::LimitHit { limit: Limit::Memory } => "parser_limit_memory",
            Self::LimitHit { limit: Limit::Cpu } => "parser_limit_cpu",
            Self::LimitHit { limit: Limit::Wall } => "parser_limit_wall",
            Self::LimitHit { limit: Limit::Output } => "parser_limit_output",
            Self::LimitHit { limit: Limit::Inflation } => "parser_limit_inflation",
            Self::Crashed { .. } => "parser_crashed",
            Self::NotBegun { .. } | Self::Answer(_) | Self::Io(_) => "extract_unavailable",
        }
    }

    /// True if the same bytes can never give a text; false if trying again may help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::NotBegun { .. } | Self::Answer(_) | Self::Io(_))
    }
}

/// Reads documents in child processes, so many at a time.
pub struct Extractor {
    settings: config::Extract,
    program: PathBuf,
    children: Semaphore,
    ocr: ocr::Ocr,
}

impl Extractor {
    /// `program` is the gristmill binary, whose hidden subcommand is the child.
    pub fn new(settings: &config::Extract, program: PathBuf) -> Self {
        Self {
            settings: settings.clone(),
            program,
            children: Semaphore::new(settings.children.max(1)),
            ocr: ocr::Ocr::find(settings),
        }
    }

    /// Names the extractor; texts of one revision are the same for the same bytes.
    pub fn revision(&self) -> String {
        // A text that was cut must not answer for the whole one once the ceiling is raised.
        let ceiling = self.settings.max_text_bytes;
        match &self.ocr {
            ocr::Ocr::Off => format!("{REVISION}+max-{ceiling}"),
            ocr::Ocr::Tesseract { .. } => {
                format!("{REVISION}+max-{ceiling}+tesseract-{}", self.settings.ocr_languages)
            }
        }
    }

    /// Reads the file `source` and writes its text, UTF-8 and mended, into the file `into`.
    ///
    /// A cancelled call kills its child. `into` is worth nothing unless this returns `Ok`.
    pub async fn extract(&self, source: &Path, hint: &Hint, into: &Path) -> Result<TextFacts, ExtractError> {
        // The semaphore is never closed; if it were, one document too many is no harm.
        let _permit = self.children.acquire().await.ok();
        tokio::fs::File::create(into).await?;
        let task = Task::Read {
            source: std::path::absolute(source)?,
            into: std::path::absolute(into)?,
            hint: Hint { name: hint.name.as_deref().map(nameless), mime: hint.mime.clone() },
            max_text_bytes: self.settings.max_text_bytes,
            limits: self.limits(),
        };
        let ending = process::run(&self.program, &task, self.wall()).await?;
        let answer = Self::understood(&ending)?;
        if !answer.enforced.landlock || !answer.enforced.seccomp {
            tracing::warn!(
                extract.landlock = answer.enforced.landlock,
                extract.seccomp = answer.enforced.seccomp,
                "the kernel does not confine extraction fully: only limits protect this machine"
            );
        }
        let reading = answer.result.map_err(refused)?;
        self.ocr.read(self, source, reading, into).await
    }

    fn limits(&self) -> jail::Limits {
        jail::Limits {
            memory_bytes: self.settings.memory_bytes,
            cpu_seconds: self.settings.cpu_seconds,
            // A little more than the gate lets through, so that the gate speaks first.
            file_bytes: self.settings.max_text_bytes + 1024 * 1024,
        }
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(self.settings.wall_seconds)
    }

    fn understood(ending: &Ending) -> Result<Answer, ExtractError> {
        match ending {
            Ending::TimedOut => Err(ExtractError::LimitHit { limit: Limit::Wall }),
            Ending::TalkedTooMuch => Err(ExtractError::LimitHit { limit: Limit::Output }),
            Ending::Signal { signal, complaint } => Err(killed(*signal, complaint)),
            Ending::Exit { code, output, complaint } => match u8::try_from(*code) {
                Ok(EXIT_ANSWERED) => serde_json::from_slice(output).map_err(ExtractError::Answer),
                Ok(EXIT_PANICKED) if is_about_memory(complaint) => {
                    Err(ExtractError::LimitHit { limit: Limit::Memory })
                }
                Ok(EXIT_PANICKED) => {
                    // Only where: the message may quote the document.
                    let place =
                        complaint.lines().find(|line| line.contains("panicked at")).unwrap_or_default();
                    tracing::warn!(extract.place = place, "a parser panicked");
                    Err(ExtractError::Crashed { signal: None })
                }
                Ok(EXIT_NOT_BEGUN) => Err(ExtractError::NotBegun { detail: complaint.clone() }),
                _ => Err(ExtractError::Crashed { signal: None }),
            },
        }
    }
}

/// The extension is all that helps; a person's file name belongs in no process list.
fn nameless(name: &str) -> String {
    let file = name.rsplit(['/', '\\']).next().unwrap_or_default();
    // Two extensions, for `.tar.gz`.
    let mut extensions = file.rsplit('.').take(file.matches('.').count().min(2)).collect::<Vec<_>>();
    extensions
        .retain(|extension| extension.len() <= 10 && extension.bytes().all(|b| b.is_ascii_alphanumeric()));
    extensions.push("file");
    extensions.reverse();
    extensions.join(".")
}

fn killed(signal: i32, complaint: &str) -> ExtractError {
    match signal {
        libc::SIGXCPU => ExtractError::LimitHit { limit: Limit::Cpu },
        libc::SIGXFSZ => ExtractError::LimitHit { limit: Limit::Output },
        // Nobody but the kernel kills a child of ours: it ran out of memory.
        libc::SIGKILL => ExtractError::LimitHit { limit: Limit::Memory },
        libc::SIGABRT if is_about_memory(complaint) => ExtractError::LimitHit { limit: Limit::Memory },
        signal => ExtractError::Crashed { signal: Some(signal) },
    }
}

fn is_about_memory(complaint: &str) -> bool {
    ["memory allocation of", "capacity overflow", "Cannot allocate memory"]
        .iter()
        .any(|sign| complaint.contains(sign))
}

fn refused(refusal: Refusal) -> ExtractError {
    match refusal {
        Refusal::Encrypted => ExtractError::Encrypted,
        Refusal::Unsupported { what } => ExtractError::Unsupported { what },
        Refusal::Malformed { detail } => ExtractError::Malformed { detail },
        Refusal::NothingRead { detail } => ExtractError::NothingRead { detail },
        Refusal::Inflates => ExtractError::LimitHit { limit: Limit::Inflation },
        Refusal::TakesTooMuchMemory => ExtractError::LimitHit { limit: Limit::Memory },
        Refusal::Io { detail } => ExtractError::NotBegun { detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_extension_of_a_name_leaves_the_process() {
        assert_eq!(nameless("c:\\My Diary.docx"), "file.docx");
        assert_eq!(nameless("backup of 2024.tar.gz"), "file.tar.gz");
        assert_eq!(nameless("README"), "file");
    }

    #[test]
    fn what_the_file_is_to_blame_for_is_final() {
        assert!(killed(libc::SIGABRT, "memory allocation of 549 bytes failed").is_final());
        assert_eq!(
            killed(libc::SIGABRT, "memory allocation of 549 bytes failed").code(),
            "parser_limit_memory"
        );
        assert_eq!(killed(libc::SIGABRT, "has overflowed its stack").code(), "parser_crashed");
        assert_eq!(killed(libc::SIGXCPU, "").code(), "parser_limit_cpu");
        assert!(!refused(Refusal::Io { detail: "no space".to_owned() }).is_final());
    }
}
