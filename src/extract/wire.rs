//! What parent and child say to each other: the task as JSON in an argument, the answer as
//! JSON on standard output.

use super::Hint;
use super::jail::Enforced;
use super::jail::Limits;
use crate::domain::TextFacts;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The child's exit codes; anything else is a crash.
pub(super) const EXIT_ANSWERED: u8 = 0;
/// The task was not understood or could not be begun.
pub(super) const EXIT_NOT_BEGUN: u8 = 71;
/// A parser panicked.
pub(super) const EXIT_PANICKED: u8 = 70;

/// What a child is for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Reads `source` and writes its text into `into`, which exists and is empty.
    Read { source: PathBuf, into: PathBuf, hint: Hint, max_text_bytes: u64, limits: Limits },
    /// Becomes `program`, which may read `source` and write below `folder`.
    Run { program: PathBuf, arguments: Vec<String>, source: PathBuf, folder: PathBuf, limits: Limits },
}

/// What a child found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub enforced: Enforced,
    pub result: Result<Reading, Refusal>,
}

/// A text that was read.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reading {
    pub facts: TextFacts,
    /// What an OCR engine could add.
    pub scanned: Scanned,
}

/// Where the pictures of text are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Scanned {
    Nothing,
    /// The file is one picture.
    Whole,
    /// These pages of a PDF.
    PdfPages(Vec<u32>),
}

/// Why a file has no text for us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    Encrypted,
    Unsupported {
        what: String,
    },
    Malformed {
        detail: String,
    },
    /// A container of which no part could be read.
    NothingRead {
        detail: String,
    },
    /// An archive that unpacks to more than is allowed.
    Inflates,
    /// Its reading asked for more memory than a child may have, in a place that could say so.
    TakesTooMuchMemory,
    /// The machine's fault, not the file's.
    Io {
        detail: String,
    },
}

impl From<std::io::Error> for Refusal {
    fn from(e: std::io::Error) -> Self {
        Self::Io { detail: e.to_string() }
    }
}

impl Refusal {
    pub(super) fn malformed(detail: impl std::fmt::Display) -> Self {
        Self::Malformed { detail: detail.to_string() }
    }
}
