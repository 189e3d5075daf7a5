//! Chunks and vectors with the real model, and chunks over documents nobody here wrote.
//!
//! The model is `make deps`'s, else the one among the shared data; without either, or
//! without ONNX Runtime, these tests say so and pass.

use gristmill::chunk::{self, Chunker, decode_plan, encode_plan};
use gristmill::config;
use gristmill::domain::Syntax;
use gristmill::embed::{EmbedError, Embedder};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model_folder() -> Option<PathBuf> {
    let places = [root().join(".deps/model"), root().join("../shared/data/models/all-minilm-l6-v2-int8")];
    let found = places.into_iter().find(|place| place.join("model.onnx").is_file());
    if found.is_none() {
        eprintln!("skipped: no embedding model here (`make deps` brings it)");
    }
    found
}

async fn embedder(sessions: usize, batch: usize) -> Option<Embedder> {
    let settings = config::Embed {
        model: model_folder()?.to_string_lossy().into_owned(),
        onnxruntime: String::new(),
        sessions,
        threads: 1,
        batch,
        checkpoint: 64,
    };
    match Embedder::open(&settings, &root().join(".deps")).await {
        Ok(embedder) => Some(embedder),
        Err(EmbedError::RuntimeMissing(_)) => {
            eprintln!("skipped: no ONNX Runtime here (`make deps` brings it)");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn sentences_of_one_meaning_lie_closer_than_others() {
    let Some(embedder) = embedder(1, 1).await else { return };
    let texts = [
        "The cat sleeps on the sofa.",
        "A kitten naps on the couch.",
        "Interest rates rose again this quarter.",
    ];
    let vectors = embedder.embed(strings(&texts)).await.unwrap();
    let (near, far) = (cosine(&vectors[0], &vectors[1]), cosine(&vectors[0], &vectors[2]));
    assert!(near > 0.5 && far < 0.2, "near {near}, far {far}");
    for vector in &vectors {
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-3);
    }
    assert_eq!(embedder.space().dimensions as usize, vectors[0].len());
    assert_eq!(embedder.space().revision.len(), 16);
}

/// Whichever session takes which batch, a text's vector comes back at the text's place.
#[tokio::test]
async fn vectors_come_back_in_the_order_of_their_texts() {
    let Some(embedder) = embedder(2, 2).await else { return };
    let texts: Vec<String> = (0..24).map(|n| format!("mill {n} ").repeat(1 + (n * 7) % 40)).collect();
    let together = embedder.embed(texts.clone()).await.unwrap();
    for (text, vector) in texts.into_iter().zip(together) {
        let alone = embedder.embed(vec![text.clone()]).await.unwrap();
        // Dynamic quantisation takes its scale from the whole batch, so not exactly 1.
        assert!(cosine(&alone[0], &vector) > 0.98, "{text}");
    }
}

/// The model cuts what it does not read without a word; a chunk must never be cut.
#[tokio::test]
async fn a_chunk_is_never_longer_than_what_the_model_reads() {
    let Some(embedder) = embedder(1, 1).await else { return };
    let (size, overlap) = chunk::sizes(&config::Chunk { size: 0, overlap: 0 }, embedder.max_tokens());
    assert!(size <= 512 && size <= embedder.max_tokens());
    let chunker = Chunker::new(embedder.tokenizer(), size, overlap).unwrap();
    let text = "The upper stone is the runner; it turns over the bed stone. ".repeat(200);
    let spans = chunker.plan_str(&text, Syntax::Plain).unwrap();
    assert!(spans.len() > 5);
    assert!(spans.iter().all(|span| span.tokens as usize <= size));
    assert!(spans[0].tokens as usize > size * 3 / 4, "chunks are left half empty: {:?}", spans[0]);
}

#[tokio::test]
async fn a_caller_who_gives_up_leaves_the_sessions_working() {
    let Some(embedder) = embedder(1, 1).await else { return };
    let many: Vec<String> = (0..200).map(|n| format!("stone {n} ").repeat(100)).collect();
    let gave_up = tokio::time::timeout(std::time::Duration::from_millis(50), embedder.embed(many)).await;
    assert!(gave_up.is_err());
    assert_eq!(embedder.embed(strings(&["still here"])).await.unwrap().len(), 1);
}

#[tokio::test]
async fn nothing_to_embed_is_no_error() {
    let Some(embedder) = embedder(1, 1).await else { return };
    assert!(embedder.embed(Vec::new()).await.unwrap().is_empty());
}

/// Texts of the shared documents, as far as they are text already.
fn documents() -> Vec<(PathBuf, Syntax, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("../shared/data/docs"), root().join("../shared/data/docs_expected")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let syntax = match path.extension().and_then(|e| e.to_str()) {
                Some("md") => Syntax::Markdown,
                Some("rs") => Syntax::Rust,
                Some("py") => Syntax::Python,
                Some("js" | "json") => Syntax::Javascript,
                Some("go") => Syntax::Go,
                _ => Syntax::Plain,
            };
            if let Ok(text) = std::fs::read_to_string(&path) {
                found.push((path, syntax, text));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn slices_of_the_shared_documents_are_their_chunks() {
    let Some(folder) = model_folder() else { return };
    let documents = documents();
    if documents.is_empty() {
        eprintln!("skipped: no shared documents here");
        return;
    }
    let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    tokenizer.with_truncation(None).unwrap();
    tokenizer.with_padding(None);
    let chunker = Chunker::new(tokenizer.clone(), 256, 32).unwrap();
    let mut chunks = 0;
    for (path, syntax, text) in &documents {
        let spans = chunker.plan_str(text, *syntax).unwrap();
        assert_eq!(&chunker.plan(path, *syntax).unwrap(), &spans, "{}", path.display());
        assert_eq!(decode_plan(&encode_plan(&spans)).unwrap(), spans);
        let mut covered = 0;
        for span in &spans {
            let (start, end) = (span.start as usize, span.end as usize);
            let chunk = &text[start..end];
            assert_eq!(chunk, chunk.trim());
            assert!(start <= covered || text[covered..start].trim().is_empty(), "{}", path.display());
            let tokens = tokenizer.encode_fast(chunk, true).unwrap().len();
            assert_eq!(tokens, span.tokens as usize, "{}: {chunk:?}", path.display());
            assert!(tokens <= 256, "{}: {tokens} tokens", path.display());
            covered = end;
        }
        assert!(text[covered..].trim().is_empty(), "{}", path.display());
        chunks += spans.len();
    }
    eprintln!("{} documents, {chunks} chunks", documents.len());
    assert!(chunks > documents.len());
}
