//! Pieces to vectors: a local ONNX model behind one small door.
//!
//! After `chunk`; `search` embeds its question through the same door, so both lie in one
//! vector space. There is no fallback: a missing model or library is an error that names the
//! command that brings it.

mod hashing;
mod local;
mod model;
mod pool;
mod runtime;

pub use hashing::Hashing;
pub use local::Local;
pub use model::model_folder;
pub use runtime::environment;

use crate::config;
use crate::domain::Space;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Why texts have no vectors.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    #[error("the embedding model's {} is not there: `make deps` brings it", .0.display())]
    ModelMissing(PathBuf),
    #[error("ONNX Runtime is not there (looked for {}): `make deps` brings it", .0.display())]
    RuntimeMissing(PathBuf),
    #[error("ONNX Runtime at {} cannot be used", path.display())]
    RuntimeRefused { path: PathBuf, source: ort::LoadDynamicError },
    #[error("ONNX Runtime failed")]
    Runtime(#[from] ort::Error),
    #[error("`{0}` is neither a folder nor a model that fastembed knows")]
    UnknownModel(String),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not what its name says: {why}", path.display())]
    Malformed { path: PathBuf, why: String },
    #[error("{} asks for a pooling that is neither mean nor cls", .0.display())]
    Pooling(PathBuf),
    #[error("the model failed")]
    Model(#[from] fastembed::Error),
    #[error("the model's output has the shape {0:?}: neither texts nor tokens of texts")]
    Shape(Vec<usize>),
    #[error("the tokenizer failed: {0}")]
    Tokenizer(tokenizers::Error),
    #[error("no thread for an embedding session")]
    Thread(#[source] std::io::Error),
    /// The session's thread died, or its process is stopping.
    #[error("the embedding session is gone")]
    SessionLost,
    #[error("the model gave {got} vectors for {asked} texts")]
    Count { asked: usize, got: usize },
    #[error("vector {index} has {got} dimensions instead of {expected}")]
    Dimensions { index: usize, expected: usize, got: usize },
    #[error("vector {index} holds a number that is not finite")]
    NotFinite { index: usize },
    #[error("vector {index} is all zero")]
    Zero { index: usize },
}

/// Turns texts into vectors of one space.
pub enum Embedder {
    /// An ONNX model in this process.
    Local(Local),
    /// Word hashes, for tests that need no meaning. No setting leads here.
    Hashing(Hashing),
}

impl Embedder {
    /// Opens the model that the settings name, in as many sessions as they ask for.
    pub async fn open(settings: &config::Embed, deps_dir: &Path) -> Result<Self, EmbedError> {
        let (settings, deps_dir) = (settings.clone(), deps_dir.to_owned());
        let opened = tokio::task::spawn_blocking(move || Local::open(&settings, &deps_dir));
        opened.await.map_err(|_| EmbedError::SessionLost)?.map(Self::Local)
    }

    /// The embedder of unit tests: the same text always gives the same vector.
    pub fn hashing(dimensions: u32) -> Self {
        Self::Hashing(Hashing::new(dimensions))
    }

    pub fn space(&self) -> &Space {
        match self {
            Self::Local(local) => local.space(),
            Self::Hashing(hashing) => hashing.space(),
        }
    }

    /// How many tokens the model reads of a text, special ones included.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::Local(local) => local.max_tokens(),
            Self::Hashing(_) => Hashing::MAX_TOKENS,
        }
    }

    /// The model's own tokenizer, without truncation and padding.
    pub fn tokenizer(&self) -> Tokenizer {
        match self {
            Self::Local(local) => local.tokenizer(),
            Self::Hashing(hashing) => hashing.tokenizer(),
        }
    }

    /// The vectors of `texts`, in their order, each of length one. All or nothing: a vector
    /// that could poison an index is an error.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let asked = texts.len();
        let vectors = match self {
            Self::Local(local) => local.embed(texts).await?,
            Self::Hashing(hashing) => texts.iter().map(|text| hashing.embed(text)).collect(),
        };
        check(&vectors, asked, self.space().dimensions as usize)?;
        Ok(vectors)
    }
}

fn check(vectors: &[Vec<f32>], asked: usize, expected: usize) -> Result<(), EmbedError> {
    if vectors.len() != asked {
        return Err(EmbedError::Count { asked, got: vectors.len() });
    }
    for (index, vector) in vectors.iter().enumerate() {
        if vector.len() != expected {
            return Err(EmbedError::Dimensions { index, expected, got: vector.len() });
        }
        if !vector.iter().all(|x| x.is_finite()) {
            return Err(EmbedError::NotFinite { index });
        }
        if vector.iter().all(|x| *x == 0.0) {
            return Err(EmbedError::Zero { index });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_would_poison_an_index_are_refused() {
        let good = vec![0.6, 0.8];
        assert!(check(std::slice::from_ref(&good), 1, 2).is_ok());
        assert!(matches!(
            check(std::slice::from_ref(&good), 2, 2),
            Err(EmbedError::Count { asked: 2, got: 1 })
        ));
        assert!(matches!(
            check(&[good.clone(), vec![1.0]], 2, 2),
            Err(EmbedError::Dimensions { index: 1, expected: 2, got: 1 })
        ));
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(matches!(
                check(&[good.clone(), vec![bad, 1.0]], 2, 2),
                Err(EmbedError::NotFinite { index: 1 })
            ));
        }
        assert!(matches!(check(&[vec![0.0, -0.0]], 1, 2), Err(EmbedError::Zero { index: 0 })));
    }

    #[tokio::test]
    async fn a_missing_model_names_the_command_that_brings_it() {
        let nothing = tempfile::tempdir().unwrap();
        let settings = config::Embed {
            model: String::new(),
            onnxruntime: String::new(),
            sessions: 1,
            threads: 1,
            batch: 1,
            checkpoint: 1,
        };
        let Err(error) = Embedder::open(&settings, nothing.path()).await else {
            panic!("opened a model out of an empty folder");
        };
        assert!(matches!(error, EmbedError::ModelMissing(_)), "{error:?}");
        assert!(error.to_string().contains("make deps"), "{error}");
    }

    #[tokio::test]
    async fn hashing_gives_the_same_text_the_same_vector_and_others_another() {
        let embedder = Embedder::hashing(64);
        let texts = ["the mill", "the mill", "a river", "", "?!"].map(String::from).to_vec();
        let vectors = embedder.embed(texts).await.unwrap();
        assert_eq!(vectors[0], vectors[1]);
        assert_ne!(vectors[0], vectors[2]);
        let length: f32 = vectors[2].iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
}
