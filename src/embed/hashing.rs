//! Vectors out of word hashes: deterministic, instant, and without meaning beyond shared words.

use crate::domain::Space;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

/// A tokenizer for which a word or a punctuation mark is a token.
const WORDS: &str = r#"{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [],
  "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
  "pre_tokenizer": {"type": "BertPreTokenizer"},
  "post_processor": null,
  "decoder": null,
  "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
}"#;

/// The embedder of unit tests.
pub struct Hashing {
    space: Space,
    tokenizer: Tokenizer,
}

impl Hashing {
    pub(super) const MAX_TOKENS: usize = 256;

    pub(super) fn new(dimensions: u32) -> Self {
        let space = Space { model: "hashing".into(), revision: "1".into(), dimensions: dimensions.max(1) };
        let tokenizer = Tokenizer::from_bytes(WORDS).expect("the text above is a tokenizer");
        Self { space, tokenizer }
    }

    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    pub(super) fn tokenizer(&self) -> Tokenizer {
        self.tokenizer.clone()
    }

    pub(super) fn embed(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0.0_f32; self.space.dimensions as usize];
        let lower = text.to_lowercase();
        for word in lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            add(&mut vector, word);
        }
        // No words, or words that cancel out: the text as a whole still has a place.
        if vector.iter().all(|x| *x == 0.0) {
            add(&mut vector, text);
        }
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in &mut vector {
            *x /= length;
        }
        vector
    }
}

fn add(vector: &mut [f32], word: &str) {
    let digest = Sha256::digest(word);
    let mut place = [0; 8];
    place.copy_from_slice(&digest[..8]);
    let index = (u64::from_le_bytes(place) % vector.len() as u64) as usize;
    vector[index] += if digest[8] & 1 == 0 { 1.0 } else { -1.0 };
}
