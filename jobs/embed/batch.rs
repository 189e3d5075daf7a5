//! One batch of chunks: read from the extracted text, looked up or embedded, ready to be stored.

use crate::context::Context;
use crate::domain::{Page, Span};
use crate::job::{JobError, Turn};
use crate::store::chunks::{self, NewChunk};
use anyhow::anyhow;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// The extracted text and what all its chunks share.
pub struct Source {
    text: Arc<File>,
    pages: Vec<Page>,
    language: Option<String>,
    pub space: i32,
}

/// Chunks with their vectors.
pub struct Batch {
    pub space: i32,
    pub language: Option<String>,
    pub chunks: Vec<NewChunk>,
}

type Hash = [u8; 32];

impl Source {
    pub fn open(
        text: &Path,
        pages: Vec<Page>,
        language: Option<String>,
        space: i32,
    ) -> std::io::Result<Self> {
        Ok(Self { text: Arc::new(File::open(text)?), pages, language, space })
    }

    /// Reads these chunks and gives each its vector: the tenant's own where the same text has
    /// one in this space, the model's otherwise.
    pub async fn embed(&self, ctx: &Context, turn: &Turn, spans: &[(i32, Span)]) -> Result<Batch, JobError> {
        let contents = self.read(spans).await?;
        let hashes: Vec<Hash> = contents.iter().map(|text| Sha256::digest(text.as_bytes()).into()).collect();
        let vectors = self.vectors(ctx, turn, &contents, &hashes).await?;
        let chunks = spans
            .iter()
            .zip(contents)
            .zip(hashes)
            .map(|((&(ord, span), content), sha256)| NewChunk {
                ord,
                content,
                sha256,
                tokens: span.tokens as i32,
                start: span.start as i64,
                end: span.end as i64,
                pages: self.pages_of(span),
                vector: vectors.get(sha256.as_slice()).cloned().unwrap_or_default(),
            })
            .collect();
        Ok(Batch { space: self.space, language: self.language.clone(), chunks })
    }

    async fn vectors(
        &self,
        ctx: &Context,
        turn: &Turn,
        contents: &[String],
        hashes: &[Hash],
    ) -> Result<HashMap<Vec<u8>, Vec<f32>>, JobError> {
        let mut texts: HashMap<&[u8], &str> =
            hashes.iter().map(<[u8; 32]>::as_slice).zip(contents.iter().map(String::as_str)).collect();
        let keys: Vec<Vec<u8>> = texts.keys().map(|hash| hash.to_vec()).collect();
        // Not fenced: the fence's row lock would make this look wait for the batch being written.
        let mut tx = crate::store::tenant(&ctx.db, turn.workspace()).await?;
        let mut vectors = chunks::known_vectors(&mut *tx, turn.workspace(), self.space, &keys).await?;
        tx.commit().await?;
        texts.retain(|hash, _| !vectors.contains_key(*hash));
        let (new, wanted): (Vec<Vec<u8>>, Vec<String>) =
            texts.into_iter().map(|(hash, text)| (hash.to_vec(), text.to_owned())).unzip();
        if !wanted.is_empty() {
            tracing::debug!(chunks = wanted.len(), "embedding");
            vectors.extend(new.into_iter().zip(ctx.embedder.embed(wanted).await?));
        }
        Ok(vectors)
    }

    async fn read(&self, spans: &[(i32, Span)]) -> Result<Vec<String>, JobError> {
        let (text, spans) = (self.text.clone(), spans.to_vec());
        let read = tokio::task::spawn_blocking(move || {
            spans
                .iter()
                .map(|(_, span)| {
                    let mut bytes = vec![0; (span.end - span.start) as usize];
                    text.read_exact_at(&mut bytes, span.start)?;
                    String::from_utf8(bytes).map_err(|_| std::io::ErrorKind::InvalidData.into())
                })
                .collect::<std::io::Result<Vec<_>>>()
        });
        let contents = read.await.map_err(|error| JobError::fatal("bad_plan", error))?;
        contents
            .map_err(|error| JobError::fatal("bad_plan", anyhow!("the plan does not fit the text: {error}")))
    }

    /// The first and last page that a chunk touches.
    fn pages_of(&self, span: Span) -> Option<(i32, i32)> {
        let first = self.pages.partition_point(|page| page.end <= span.start);
        let after = self.pages.partition_point(|page| page.start < span.end);
        let touched = self.pages.get(first..after)?;
        Some((touched.first()?.number as i32, touched.last()?.number as i32))
    }
}
