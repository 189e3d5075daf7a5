//! Reads a retrieval set in BEIR's form: `corpus.jsonl`, `queries.jsonl`, `qrels.tsv`.

use super::metrics::Gains;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Why a folder is no retrieval set.
#[derive(Debug, thiserror::Error)]
pub enum BeirError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line} is not what BEIR has there", path.display())]
    Json { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{}:{line} is not `query-id<TAB>corpus-id<TAB>score`", path.display())]
    Judgement { path: PathBuf, line: usize },
}

/// A document of the corpus.
#[derive(Debug, Clone, Deserialize)]
pub struct Document {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(default)]
    pub title: String,
    pub text: String,
}

impl Document {
    /// What is ingested: the title as its own paragraph, where there is one, and the text.
    pub fn body(&self) -> String {
        if self.title.is_empty() { self.text.clone() } else { format!("{}\n\n{}", self.title, self.text) }
    }
}

/// A question of the set.
#[derive(Debug, Clone, Deserialize)]
pub struct Question {
    #[serde(rename = "_id")]
    pub id: String,
    pub text: String,
}

/// A whole set.
#[derive(Debug, Clone)]
pub struct Set {
    pub documents: Vec<Document>,
    pub questions: Vec<Question>,
    /// Question to judged documents.
    pub judgements: HashMap<String, Gains>,
}

impl Set {
    /// Reads the set in `folder`.
    pub fn read(folder: &Path) -> Result<Self, BeirError> {
        Ok(Self {
            documents: lines_of(&folder.join("corpus.jsonl"))?,
            questions: lines_of(&folder.join("queries.jsonl"))?,
            judgements: judgements(&folder.join("qrels.tsv"))?,
        })
    }

    /// The questions of this set over the documents of another: retrieval across languages, where
    /// both name their documents alike.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self { documents: other.documents.clone(), ..self.clone() }
    }

    /// What people judged of a question's documents.
    pub fn gains(&self, question: &str) -> Gains {
        self.judgements.get(question).cloned().unwrap_or_default()
    }
}

fn text_of(path: &Path) -> Result<String, BeirError> {
    std::fs::read_to_string(path).map_err(|source| BeirError::Read { path: path.to_owned(), source })
}

fn lines_of<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, BeirError> {
    text_of(path)?
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|source| BeirError::Json {
                path: path.to_owned(),
                line: number + 1,
                source,
            })
        })
        .collect()
}

fn judgements(path: &Path) -> Result<HashMap<String, Gains>, BeirError> {
    let mut judged: HashMap<String, Gains> = HashMap::new();
    // The first line names the columns.
    for (number, line) in text_of(path)?.lines().enumerate().skip(1) {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = || BeirError::Judgement { path: path.to_owned(), line: number + 1 };
        let mut fields = line.split('\t');
        let (Some(question), Some(document), Some(gain), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(wrong());
        };
        let gain: f64 = gain.trim().parse().map_err(|_| wrong())?;
        judged.entry(question.to_owned()).or_default().insert(document.to_owned(), gain);
    }
    Ok(judged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(corpus: &str, queries: &str, qrels: &str) -> Result<Set, BeirError> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", qrels)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Set::read(folder.path())
    }

    #[test]
    fn a_set_is_read_with_its_judgements() {
        let set = set(
            "{\"_id\":\"d1\",\"title\":\"T\",\"text\":\"x\"}\n{\"_id\":\"d2\",\"title\":\"\",\"text\":\"y\",\"more\":1}\n",
            "{\"_id\":\"q\",\"text\":\"what?\"}\n",
            "query-id\tcorpus-id\tscore\nq\td2\t3\n",
        )
        .unwrap();
        assert_eq!(set.documents[0].body(), "T\n\nx");
        assert_eq!(set.documents[1].body(), "y");
        assert_eq!(set.gains("q"), Gains::from([("d2".to_owned(), 3.0)]));
        assert!(set.gains("unasked").is_empty());
    }

    #[test]
    fn a_broken_line_is_named() {
        let wrong = set("{\"_id\":\"d1\",\"text\":\"x\"}\n{\n", "", "").unwrap_err();
        assert!(matches!(wrong, BeirError::Json { line: 2, .. }), "{wrong}");
        let wrong = set("", "", "query-id\tcorpus-id\tscore\nq\td\n").unwrap_err();
        assert!(matches!(wrong, BeirError::Judgement { line: 2, .. }), "{wrong}");
    }
}
