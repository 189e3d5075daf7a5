//! Ids and words that every floor speaks: the ground floor, knows nothing of ours.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
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
    /// One index of one attachment, built beside the old one and flipped.
    GenerationId,
    /// A stretch of text with its vector.
    ChunkId,
    JobId,
}

/// Where an attachment's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "gristmill.asset_origin", rename_all = "UPPERCASE")]
#[serde(rename_all = "UPPERCASE")]
pub enum Origin {
    /// The bytes are in the bucket already.
    Upload,
    /// The worker brings them from `source_url`.
    Remote,
    /// The product made them and put them in the bucket.
    Generated,
}

/// The life of an attachment's bytes, in the words of the chat layer's own enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "gristmill.asset_status", rename_all = "UPPERCASE")]
#[serde(rename_all = "UPPERCASE")]
pub enum AttachmentStatus {
    Requested,
    Planned,
    Uploading,
    Stored,
    Scanning,
    Ready,
    Failed,
    Quarantined,
    Attached,
}

/// The life of one index generation of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "gristmill.index_status", rename_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IndexStatus {
    Pending,
    Extracting,
    Chunking,
    Embedding,
    /// Every chunk of the whole text is searchable.
    Indexed,
    /// The file holds no text at all.
    Empty,
    /// Some pages or members gave no text; which ones is told.
    Partial,
    /// The file holds pictures of text and no OCR engine is installed.
    NeedsOcr,
    Failed,
    Cancelled,
}

/// How much of a file's text its extraction holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Completeness {
    Complete,
    Empty,
    NeedsOcr { pages: Vec<u32> },
    /// Pages (or archive members, by name in `detail`) that gave nothing.
    Partial { pages: Vec<u32>, detail: String },
    /// Text beyond the ceiling was left out.
    Truncated { kept_bytes: u64, total_bytes: Option<u64> },
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
