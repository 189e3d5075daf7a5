//! Ids and words that every floor speaks: the ground floor, knows nothing of ours.

mod origin;
mod sealed;
mod tool;

pub use origin::{origin_of, origin_of_program};
pub use sealed::{Sealed, Unreadable};
pub use tool::{Credential, Saved, ToolOutput};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
        #[derive(schemars::JsonSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

ids! {
    /// A tenant: every worker table carries it.
    WorkspaceId,
    /// A file of a conversation or a knowledge base, from request to READY.
    AttachmentId,
    /// A file as a knowledge base or a conversation knows it.
    ResourceId,
    /// A tool; of type `knowledgebase` it owns resources and chunks.
    ToolId,
    ConversationId,
    MessageId,
    UserId,
    /// A tool call that a model asked for.
    ToolCallId,
    /// One index of one attachment, built beside the old one and flipped.
    GenerationId,
    /// A stretch of text with its vector.
    ChunkId,
    JobId,
}

/// The workspace of the house's own jobs: schedules and tidying.
pub const SYSTEM_WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(1));

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$word_doc])* #[serde(rename = $text)] $word),+ }

        impl $name {
            /// The word as the database and the chat layer write it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$word => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($text => Ok(Self::$word),)+
                    _ => Err(UnknownWord { of: stringify!($name), word: text.to_owned() }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = UnknownWord;
            fn try_from(text: String) -> Result<Self, UnknownWord> {
                text.parse()
            }
        }
    )+};
}

/// A word that a newer schema knows and this program does not.
#[derive(Debug, thiserror::Error)]
#[error("{word:?} is no {of} this version knows")]
pub struct UnknownWord {
    of: &'static str,
    word: String,
}

words! {
    /// Where an attachment's bytes come from.
    Origin {
        /// The bytes are in the bucket already.
        Upload = "UPLOAD",
        /// The worker brings them from `source_url`.
        Remote = "REMOTE",
        /// The product made them and put them in the bucket.
        Generated = "GENERATED",
    }

    /// The life of an attachment's bytes, in the words of the chat layer's own enum.
    AttachmentStatus {
        Requested = "REQUESTED",
        Planned = "PLANNED",
        Uploading = "UPLOADING",
        Stored = "STORED",
        Scanning = "SCANNING",
        Ready = "READY",
        Failed = "FAILED",
        Quarantined = "QUARANTINED",
        Attached = "ATTACHED",
    }

    /// The life of one index generation of a resource.
    IndexStatus {
        Pending = "PENDING",
        Extracting = "EXTRACTING",
        Chunking = "CHUNKING",
        Embedding = "EMBEDDING",
        /// Every chunk of the whole text is searchable.
        Indexed = "INDEXED",
        /// The file holds no text at all.
        Empty = "EMPTY",
        /// Some pages, members or the tail gave no text; which is told.
        Partial = "PARTIAL",
        /// The file holds pictures of text and no OCR engine is installed.
        NeedsOcr = "NEEDS_OCR",
        Failed = "FAILED",
        Cancelled = "CANCELLED",
    }

    /// What calling a tool does outside, the harmless first.
    Effect {
        /// Nothing.
        Read = "read",
        /// Twice is as good as once.
        Idempotent = "idempotent",
        /// Twice is once too often.
        Effectful = "effectful",
    }

    /// The life of a tool call.
    ToolCallState {
        Requested = "REQUESTED",
        /// A person must say yes.
        NeedsApproval = "NEEDS_APPROVAL",
        /// A credential is missing or was refused.
        NeedsAuth = "NEEDS_AUTH",
        /// A budget is used up.
        Budget = "BUDGET",
        /// It may have reached the other side.
        Started = "STARTED",
        Ok = "OK",
        Error = "ERROR",
        /// It has effects, and nobody knows whether it was done: a person says what now.
        Unknown = "UNKNOWN",
        Denied = "DENIED",
        Cancelled = "CANCELLED",
    }
}

/// How much of a file's text its extraction holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Completeness {
    Complete,
    Empty,
    NeedsOcr {
        pages: Vec<u32>,
    },
    /// Pages (or archive members, by name in `detail`) that gave nothing.
    Partial {
        pages: Vec<u32>,
        detail: String,
    },
    /// Text beyond the ceiling was left out.
    Truncated {
        kept_bytes: u64,
        total_bytes: Option<u64>,
    },
}

/// A page (or slide, sheet, archive member) as a byte range of the extracted text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub number: u32,
    /// A slide's title, a sheet's or member's name, where the format has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub start: u64,
    pub end: u64,
}

/// How a text is split: by its markdown structure, its syntax tree, or its prose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Syntax {
    Plain,
    Markdown,
    Rust,
    Python,
    Javascript,
    Go,
}

/// What an extraction says of its text; stored beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextFacts {
    pub text_bytes: u64,
    pub text_chars: u64,
    /// Lower-case hex sha256 of the text's bytes.
    pub text_sha256: String,
    pub completeness: Completeness,
    pub pages: Vec<Page>,
    /// ISO 639-1, when the text is long enough to tell.
    pub language: Option<String>,
    pub syntax: Syntax,
    pub title: Option<String>,
}

/// The vector space of an embedding model: only vectors of one space compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub model: String,
    /// Changes with the weights: a digest of the model file.
    pub revision: String,
    pub dimensions: u32,
}

/// A chunk as a byte range of the extracted text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub start: u64,
    pub end: u64,
    pub tokens: u32,
}
