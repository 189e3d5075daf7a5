//! A model as a folder of files: what it is called, how much it reads, how its tokens become
//! one vector.

use super::EmbedError;
use crate::config;
use fastembed::{InitOptionsUserDefined, Pooling, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Base models whose published fine-tunings were trained on less than their files allow, for
/// folders that lack `sentence_bert_config.json`, which says so.
const TRAINED_ON: [(&str, usize); 2] =
    [("nreimers/MiniLM-L6-H384-uncased", 256), ("microsoft/MiniLM-L12-H384-uncased", 128)];
/// Tokenizers without a limit write a number with thirty digits.
const NO_LIMIT: u64 = 1 << 20;
const FALLBACK_TOKENS: usize = 512;

/// The folder of the configured model; `None` if the settings give a name instead.
pub fn model_folder(settings: &config::Embed, deps_dir: &Path) -> Option<PathBuf> {
    if settings.model.is_empty() {
        return Some(deps_dir.join("model"));
    }
    let path = PathBuf::from(&settings.model);
    // A path that leads nowhere is still a path, and its error should say so.
    let written_as_path = path.is_absolute() || settings.model.starts_with('.');
    (path.is_dir() || written_as_path).then_some(path)
}

/// The files of a user-defined model, read, and what they say of it.
pub(super) struct ModelFiles {
    pub name: String,
    /// The first 16 hex digits of the weights' sha256.
    pub revision: String,
    pub max_tokens: usize,
    pub pooling: Pooling,
    model: UserDefinedEmbeddingModel,
}

impl ModelFiles {
    /// Reads the five files, and whichever of `gristmill.toml` (`name`, `pooling`,
    /// `max_tokens`), `1_Pooling/config.json` and `sentence_bert_config.json` are beside them.
    pub fn read(folder: &Path) -> Result<Self, EmbedError> {
        let onnx = required(&folder.join("model.onnx"))?;
        let mut digest = Sha256::new_with_prefix(&onnx);
        let files = TokenizerFiles {
            tokenizer_file: required(&folder.join("tokenizer.json"))?,
            config_file: required(&folder.join("config.json"))?,
            special_tokens_map_file: required(&folder.join("special_tokens_map.json"))?,
            tokenizer_config_file: required(&folder.join("tokenizer_config.json"))?,
        };
        let note = Note::read(folder)?;
        let max_tokens = match note.max_tokens {
            Some(said) => said,
            None => max_tokens(folder)?,
        };
        let pooling = match note.pooling {
            Some(said) => said,
            None => pooling(folder)?,
        };
        let mut model = UserDefinedEmbeddingModel::new(onnx, files).with_pooling(pooling.clone());
        for name in ["model.onnx_data", "model.onnx.data"] {
            if let Some(weights) = optional(&folder.join(name))? {
                digest.update(&weights);
                model = model.with_external_initializer(name.into(), weights);
            }
        }
        let named = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            name: note.name.or(named).unwrap_or_default(),
            revision: hex::encode(digest.finalize())[..16].to_owned(),
            max_tokens,
            pooling,
            model,
        })
    }

    /// One more session over these files.
    pub fn session(&self, options: InitOptionsUserDefined) -> Result<TextEmbedding, EmbedError> {
        let options = options.with_max_length(self.max_tokens);
        Ok(TextEmbedding::try_new_from_user_defined(self.model.clone(), options)?)
    }
}

/// What `gristmill.toml` beside a model says.
#[derive(Default)]
struct Note {
    name: Option<String>,
    pooling: Option<Pooling>,
    max_tokens: Option<usize>,
}

impl Note {
    fn read(folder: &Path) -> Result<Self, EmbedError> {
        let path = folder.join("gristmill.toml");
        if !path.is_file() {
            return Ok(Self::default());
        }
        let source = ::config::File::from(path.as_path()).format(::config::FileFormat::Toml);
        let malformed =
            |e: ::config::ConfigError| EmbedError::Malformed { path: path.clone(), why: e.to_string() };
        let note = ::config::Config::builder().add_source(source).build().map_err(malformed)?;
        let pooling = match note.get_string("pooling").as_deref() {
            Ok("mean") => Some(Pooling::Mean),
            Ok("cls") => Some(Pooling::Cls),
            Ok(_) => return Err(EmbedError::Pooling(path)),
            Err(_) => None,
        };
        Ok(Self {
            name: note.get_string("name").ok(),
            pooling,
            max_tokens: note.get::<usize>("max_tokens").ok(),
        })
    }
}

/// How the model's token vectors become one; mean where nothing is said.
fn pooling(folder: &Path) -> Result<Pooling, EmbedError> {
    let path = folder.join("1_Pooling").join("config.json");
    let Some(said) = json(&path)? else {
        return Ok(Pooling::Mean);
    };
    let is = |mode: &str| said[mode].as_bool() == Some(true);
    match (is("pooling_mode_mean_tokens"), is("pooling_mode_cls_token")) {
        (true, false) => Ok(Pooling::Mean),
        (false, true) => Ok(Pooling::Cls),
        _ => Err(EmbedError::Pooling(path)),
    }
}

/// How many tokens the model was made to read: the least of what its files say.
fn max_tokens(folder: &Path) -> Result<usize, EmbedError> {
    let model = json(&folder.join("config.json"))?.unwrap_or_default();
    let tokenizer = json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let sentence = json(&folder.join("sentence_bert_config.json"))?.unwrap_or_default();
    let base = model["_name_or_path"].as_str().unwrap_or_default();
    let trained = match sentence["max_seq_length"].as_u64() {
        None => TRAINED_ON.iter().find(|(name, _)| *name == base).map(|(_, tokens)| *tokens as u64),
        said => said,
    };
    let limits = [trained, tokenizer["model_max_length"].as_u64(), model["max_position_embeddings"].as_u64()];
    let least = limits.into_iter().flatten().filter(|limit| (1..NO_LIMIT).contains(limit)).min();
    Ok(least.map_or(FALLBACK_TOKENS, |tokens| tokens as usize))
}

fn json(path: &Path) -> Result<Option<Value>, EmbedError> {
    let Some(bytes) = optional(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|e| EmbedError::Malformed { path: path.into(), why: e.to_string() })
}

fn required(path: &Path) -> Result<Vec<u8>, EmbedError> {
    optional(path)?.ok_or_else(|| EmbedError::ModelMissing(path.into()))
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>, EmbedError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EmbedError::Read { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn the_least_of_a_models_limits_holds() {
        let plain = folder(&[
            ("config.json", r#"{"max_position_embeddings": 512}"#),
            ("tokenizer_config.json", r#"{"model_max_length": 1000000000000000019884624838656}"#),
        ]);
        assert_eq!(max_tokens(plain.path()).unwrap(), 512);
        std::fs::write(plain.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 128}"#).unwrap();
        assert_eq!(max_tokens(plain.path()).unwrap(), 128);
    }

    #[test]
    fn minilm_reads_256_tokens_even_where_its_files_say_512() {
        let minilm = folder(&[
            (
                "config.json",
                r#"{"_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "max_position_embeddings": 512}"#,
            ),
            ("tokenizer_config.json", r#"{"model_max_length": 512}"#),
        ]);
        assert_eq!(max_tokens(minilm.path()).unwrap(), 256);
    }

    #[test]
    fn pooling_is_what_the_model_says_and_mean_where_it_is_silent() {
        assert_eq!(pooling(folder(&[]).path()).unwrap(), Pooling::Mean);
        let cls = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        assert_eq!(pooling(folder(&[("1_Pooling/config.json", cls)]).path()).unwrap(), Pooling::Cls);
        let max = folder(&[("1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#)]);
        assert!(matches!(pooling(max.path()), Err(EmbedError::Pooling(_))));
    }

    #[test]
    fn a_note_beside_the_model_has_the_last_word() {
        let note = folder(&[("gristmill.toml", "name = \"ours\"\npooling = \"cls\"\nmax_tokens = 99\n")]);
        let note = Note::read(note.path()).unwrap();
        assert_eq!((note.name.as_deref(), note.max_tokens), (Some("ours"), Some(99)));
        assert_eq!(note.pooling, Some(Pooling::Cls));
    }
}
