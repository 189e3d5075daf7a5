//! ONNX sessions side by side, each on a thread of its own.
//!
//! Two sessions of one thread each beat one session of two threads (`gristmill bench embed`),
//! so texts are cut into small batches that whichever session is free takes next.

use super::model::{ModelFiles, model_folder};
use super::pool::Pool;
use super::{EmbedError, runtime};
use crate::config;
use crate::domain::Space;
use fastembed::{EmbeddingModel, InitOptionsUserDefined, ModelTrait, TextEmbedding, TextInitOptions};
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use tokenizers::Tokenizer;
use tokio::sync::oneshot;

/// Bytes of a token in ordinary prose; only batches are planned with it.
const BYTES_PER_TOKEN: usize = 4;
/// Batches that one caller keeps under way for each session: one at work and one waiting, so
/// that no session idles and no other caller waits behind a whole document.
const UNDER_WAY_PER_SESSION: usize = 2;

struct Work {
    texts: Vec<String>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, EmbedError>>,
}

/// A local model, loaded.
pub struct Local {
    space: Space,
    max_tokens: usize,
    tokenizer: Tokenizer,
    /// Dropped with the model: the threads end when nothing can come any more.
    work: mpsc::Sender<Work>,
    sessions: usize,
    batch: usize,
}

impl Local {
    /// Loads the model once for each session. Blocks.
    pub(super) fn open(settings: &config::Embed, deps_dir: &Path) -> Result<Self, EmbedError> {
        let source = Source::find(settings, deps_dir)?;
        let environment = runtime::environment(settings, deps_dir)?;
        // Batches are small and sessions many: a second pool of threads would only be in their way.
        tokenizers::utils::parallelism::set_parallelism(false);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let sessions = if settings.sessions == 0 { cores } else { settings.sessions };
        let options = InitOptionsUserDefined::new()
            .with_environment(environment)
            .with_intra_threads(settings.threads.max(1));
        let mut models = Vec::with_capacity(sessions);
        for _ in 0..sessions {
            models.push(source.session(options.clone())?);
        }
        let mut tokenizer = models[0].tokenizer.clone();
        let reads = tokenizer.get_truncation().map(|limit| limit.max_length);
        tokenizer.with_truncation(None).map_err(EmbedError::Tokenizer)?;
        tokenizer.with_padding(None);
        // The truth about the dimensions is in a vector.
        let pool = source.pool();
        let probe = pool.embed(&mut models[0], &["dimensions".to_owned()])?;
        let dimensions = probe.first().map_or(0, Vec::len) as u32;
        let (model, revision) = source.identity()?;
        Ok(Self {
            space: Space { model, revision, dimensions },
            max_tokens: reads.unwrap_or(source.max_tokens()),
            tokenizer,
            work: start(models, &pool)?,
            sessions,
            batch: settings.batch.max(1),
        })
    }

    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(super) fn tokenizer(&self) -> Tokenizer {
        self.tokenizer.clone()
    }

    pub(super) async fn embed(&self, mut texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let lengths: Vec<usize> = texts.iter().map(String::len).collect();
        let batches = batches(&lengths, self.batch, self.max_tokens);
        let mut vectors = vec![Vec::new(); texts.len()];
        let jobs = batches.into_iter().map(|indices| {
            let texts = indices.iter().map(|i| std::mem::take(&mut texts[*i])).collect();
            self.run(indices, texts)
        });
        let mut done = futures::stream::iter(jobs).buffer_unordered(self.sessions * UNDER_WAY_PER_SESSION);
        while let Some((indices, found)) = done.try_next().await? {
            for (index, vector) in indices.into_iter().zip(found) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }

    async fn run(
        &self,
        indices: Vec<usize>,
        texts: Vec<String>,
    ) -> Result<(Vec<usize>, Vec<Vec<f32>>), EmbedError> {
        let (reply, answer) = oneshot::channel();
        self.work.send(Work { texts, reply }).map_err(|_| EmbedError::SessionLost)?;
        let vectors = answer.await.map_err(|_| EmbedError::SessionLost)??;
        if vectors.len() != indices.len() {
            return Err(EmbedError::Count { asked: indices.len(), got: vectors.len() });
        }
        Ok((indices, vectors))
    }
}

/// Groups texts of like length, longest first, so that little is padded and the last batches,
/// for which sessions wait on each other, are short. `batch` counts texts of full length:
/// of shorter ones as many go together as make the same number of padded tokens.
fn batches(lengths: &[usize], batch: usize, max_tokens: usize) -> Vec<Vec<usize>> {
    let tokens = |index: usize| (lengths[index] / BYTES_PER_TOKEN + 2).min(max_tokens);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match batches.last_mut() {
            Some(last) if tokens(last[0]) * (last.len() + 1) <= batch * max_tokens => last.push(index),
            _ => batches.push(vec![index]),
        }
    }
    batches
}

/// One thread for each model, all taking from one queue.
fn start(models: Vec<TextEmbedding>, pool: &Pool) -> Result<mpsc::Sender<Work>, EmbedError> {
    let (sender, receiver) = mpsc::channel::<Work>();
    let receiver = Arc::new(Mutex::new(receiver));
    for (number, mut model) in models.into_iter().enumerate() {
        let (receiver, pool) = (receiver.clone(), pool.clone());
        std::thread::Builder::new()
            .name(format!("embed-{number}"))
            .spawn(move || {
                while let Some(work) = next(&receiver) {
                    // A caller that gave up needs no vectors.
                    if !work.reply.is_closed() {
                        let vectors = pool.embed(&mut model, &work.texts);
                        let _gone = work.reply.send(vectors);
                    }
                }
            })
            .map_err(EmbedError::Thread)?;
    }
    Ok(sender)
}

fn next(receiver: &Mutex<mpsc::Receiver<Work>>) -> Option<Work> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Where the model comes from: files on disk, or fastembed's hub.
enum Source {
    Folder(Box<ModelFiles>),
    Hub { model: EmbeddingModel, cache: PathBuf },
}

impl Source {
    fn find(settings: &config::Embed, deps_dir: &Path) -> Result<Self, EmbedError> {
        if let Some(folder) = model_folder(settings, deps_dir) {
            return Ok(Self::Folder(Box::new(ModelFiles::read(&folder)?)));
        }
        let by_code = || {
            let known = TextEmbedding::list_supported_models();
            known.into_iter().find(|info| info.model_code.eq_ignore_ascii_case(&settings.model))
        };
        let model = match settings.model.parse::<EmbeddingModel>() {
            Ok(model) => model,
            Err(_) => by_code().ok_or_else(|| EmbedError::UnknownModel(settings.model.clone()))?.model,
        };
        // fastembed lets this variable decide where the hub's files lie, so it holds here too.
        let cache = std::env::var_os("HF_HOME").map_or_else(|| deps_dir.join("hub"), PathBuf::from);
        Ok(Self::Hub { model, cache })
    }

    fn session(&self, options: InitOptionsUserDefined) -> Result<TextEmbedding, EmbedError> {
        match self {
            Self::Folder(files) => files.session(options),
            Self::Hub { model, cache } => {
                let mut named = TextInitOptions::new(model.clone())
                    .with_cache_dir(cache.clone())
                    .with_show_download_progress(false);
                named.environment = options.environment;
                named.intra_threads = options.intra_threads;
                Ok(TextEmbedding::try_new(named)?)
            }
        }
    }

    /// The model's name and the digest of its weights.
    fn identity(&self) -> Result<(String, String), EmbedError> {
        match self {
            Self::Folder(files) => Ok((files.name.clone(), files.revision.clone())),
            Self::Hub { model, cache } => {
                let info = EmbeddingModel::get_model_info(model)
                    .ok_or_else(|| EmbedError::UnknownModel(model.to_string()))?;
                let path = downloaded(cache, &info.model_code, &info.model_file)?;
                let bytes = std::fs::read(&path).map_err(|source| EmbedError::Read { path, source })?;
                Ok((info.model_code.clone(), hex::encode(Sha256::digest(&bytes))[..16].to_owned()))
            }
        }
    }

    fn pool(&self) -> Pool {
        match self {
            Self::Folder(files) => Pool { pooling: files.pooling.clone(), output: None },
            Self::Hub { model, .. } => Pool {
                pooling: TextEmbedding::get_default_pooling_method(model).unwrap_or_default(),
                output: EmbeddingModel::get_model_info(model).and_then(|info| info.output_key.clone()),
            },
        }
    }

    fn max_tokens(&self) -> usize {
        match self {
            Self::Folder(files) => files.max_tokens,
            Self::Hub { .. } => TextInitOptions::default().max_length,
        }
    }
}

/// The hub's cache keeps a model as `models--owner--name/snapshots/<commit>/<file>`.
fn downloaded(cache: &Path, code: &str, file: &str) -> Result<PathBuf, EmbedError> {
    let snapshots = cache.join(format!("models--{}", code.replace('/', "--"))).join("snapshots");
    let entries = std::fs::read_dir(&snapshots)
        .map_err(|source| EmbedError::Read { path: snapshots.clone(), source })?;
    let found = entries.flatten().map(|entry| entry.path().join(file)).find(|path| path.exists());
    found.ok_or_else(|| EmbedError::ModelMissing(snapshots.join(file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_is_in_exactly_one_batch_and_no_batch_is_over_budget(
            lengths in prop::collection::vec(0_usize..3000, 0..200),
            batch in 1_usize..6,
        ) {
            let batches = batches(&lengths, batch, 256);
            let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for group in &batches {
                let longest = (lengths[group[0]] / BYTES_PER_TOKEN + 2).min(256);
                prop_assert!(group.len() == 1 || longest * group.len() <= batch * 256);
            }
        }
    }

    #[test]
    fn long_texts_go_first_and_short_ones_together() {
        assert_eq!(batches(&[40, 2000, 44, 1500], 1, 256), [vec![1], vec![3], vec![2, 0]]);
    }
}
