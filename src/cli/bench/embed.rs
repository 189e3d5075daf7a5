//! The raw side of `gristmill bench embed`: how many chunks a second the model file gives on
//! this machine, with nothing of ours around it.
//!
//! Texts are tokenized beforehand and sorted by length; then bare ONNX sessions run them, for
//! every layout of sessions, threads and batch. The best of these is what the whole `embed`
//! job is held against, and what the defaults in `config/default.toml` were chosen by. Rounds
//! go over all layouts in turn and medians are taken, so that a neighbour's load hits all.

use crate::chunk::{Chunker, sizes};
use crate::config;
use crate::domain::Syntax;
use crate::embed::{Embedder, environment, model_folder};
use anyhow::Context as _;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::Tensor;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const BATCHES: [usize; 5] = [1, 2, 4, 8, 32];

/// One way to lay the model out over the cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub sessions: usize,
    pub threads: usize,
    pub batch: usize,
}

/// What a layout gave: chunks a second in each round, slowest first.
#[derive(Debug, Clone)]
pub struct Measured {
    pub layout: Layout,
    pub rounds: Vec<f64>,
}

impl Measured {
    pub fn median(&self) -> f64 {
        self.rounds.get(self.rounds.len() / 2).copied().unwrap_or_default()
    }
}

/// The layouts worth trying on so many cores: one thread a session, all threads in one
/// session, and what lies between.
pub fn layouts(cores: usize) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for sessions in (1..=cores).rev().filter(|sessions| cores.is_multiple_of(*sessions)) {
        for batch in BATCHES {
            layouts.push(Layout { sessions, threads: cores / sessions, batch });
        }
    }
    layouts
}

/// Measures every layout in `rounds` rounds over the same texts. Blocks.
pub fn sweep(
    settings: &config::Embed,
    deps_dir: &Path,
    texts: &Texts,
    (layouts, rounds): (&[Layout], usize),
) -> anyhow::Result<Vec<Measured>> {
    let folder =
        model_folder(settings, deps_dir).context("the sweep needs a model folder, not a hub's name")?;
    let environment = environment(settings, deps_dir)?;
    let mut measured: Vec<Measured> =
        layouts.iter().map(|layout| Measured { layout: *layout, rounds: Vec::new() }).collect();
    for _ in 0..rounds {
        for one in &mut measured {
            one.rounds.push(raw(&environment, &folder.join("model.onnx"), texts, one.layout)?);
        }
    }
    for one in &mut measured {
        one.rounds.sort_by(f64::total_cmp);
    }
    Ok(measured)
}

/// The layout with the highest median.
pub fn best(measured: &[Measured]) -> Option<&Measured> {
    measured.iter().max_by(|a, b| a.median().total_cmp(&b.median()))
}

/// Chunks a second through the worker's own embedder: tokenizing, pooling and checks included.
pub async fn through(embedder: &Embedder, texts: &Texts) -> anyhow::Result<f64> {
    let strings: Vec<String> = texts.texts.iter().map(|text| text.text.clone()).collect();
    let count = strings.len();
    let start = Instant::now();
    embedder.embed(strings).await?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// The sweep as a table, fastest first.
pub fn table(measured: &[Measured]) -> comfy_table::Table {
    let mut rows: Vec<&Measured> = measured.iter().collect();
    rows.sort_by(|a, b| b.median().total_cmp(&a.median()));
    let top = rows.first().map_or(1.0, |row| row.median());
    let mut table =
        crate::cli::table::table(["sessions", "threads", "batch", "chunks/s", "slowest..fastest", "of best"]);
    for row in rows {
        let Layout { sessions, threads, batch } = row.layout;
        let range = match row.rounds.as_slice() {
            [slowest, .., fastest] => format!("{slowest:.1}..{fastest:.1}"),
            _ => String::new(),
        };
        table.add_row([
            sessions.to_string(),
            threads.to_string(),
            batch.to_string(),
            format!("{:.1}", row.median()),
            range,
            format!("{:.2}", row.median() / top),
        ]);
    }
    table
}

struct Text {
    text: String,
    ids: Vec<i64>,
}

/// Chunks to measure with, tokenized, longest first, and the document they are the chunks of.
pub struct Texts {
    texts: Vec<Text>,
    document: String,
}

impl Texts {
    /// About `count` chunks of the text and markdown files in `folder`, or of prose made up on
    /// the spot, cut as the worker cuts them by default.
    pub fn gather(embedder: &Embedder, folder: Option<&Path>, count: usize) -> anyhow::Result<Self> {
        let (size, overlap) = sizes(&config::Chunk { size: 0, overlap: 0 }, embedder.max_tokens());
        let tokenizer = embedder.tokenizer();
        let chunker = Chunker::new(tokenizer.clone(), size, overlap)?;
        let mut document = match folder {
            Some(folder) => documents(folder)?.join("\n\n"),
            None => prose(count * size * 5),
        };
        if let Some(last) = chunker.plan_str(&document, Syntax::Plain)?.get(count.saturating_sub(1)) {
            document.truncate(last.end as usize);
        }
        let mut texts = Vec::new();
        // Planned anew: these are the very chunks that the job makes of the document.
        for span in chunker.plan_str(&document, Syntax::Plain)? {
            let text = document[span.start as usize..span.end as usize].to_owned();
            let encoding = tokenizer.encode_fast(text.as_str(), true).map_err(anyhow::Error::from_boxed)?;
            let ids = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
            texts.push(Text { text, ids });
        }
        anyhow::ensure!(!texts.is_empty(), "no text to measure with");
        texts.sort_by_key(|text| std::cmp::Reverse(text.ids.len()));
        Ok(Self { texts, document })
    }

    /// The document whose chunks these are.
    pub fn document(&self) -> &str {
        &self.document
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Tokens of a text on average, special ones included.
    pub fn mean_tokens(&self) -> usize {
        self.texts.iter().map(|text| text.ids.len()).sum::<usize>() / self.texts.len().max(1)
    }
}

fn documents(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "txt" || kind == "md") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())))
        .collect()
}

const WORDS: &str = "the mill stands by a river and its wheel turns all day while water falls on \
    the boards corn comes in sacks from farms around each sack is weighed written into a book and \
    carried up to the bins flour leaves in the evening on carts that go to bakers of three towns \
    winter brings ice so men break it every morning with long poles summer may dry the stream then \
    nobody grinds and people mend ropes dress stones or count what is owed between harvests";

/// Made-up prose of about `bytes` bytes: common words in sentences and paragraphs, always the same.
fn prose(bytes: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        // xorshift64: repeatable, which is all that is asked of it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut text = String::with_capacity(bytes + 200);
    while text.len() < bytes {
        for _ in 0..=4 + draw(12) {
            text.push_str(words[draw(words.len())]);
            text.push(' ');
        }
        text.pop();
        text.push_str(if draw(6) == 0 { ".\n\n" } else { ". " });
    }
    text
}

/// Chunks a second of bare sessions; loading and the first run are not counted.
fn raw(environment: &Environment, model: &Path, texts: &Texts, layout: Layout) -> anyhow::Result<f64> {
    let mut sessions = Vec::with_capacity(layout.sessions);
    for _ in 0..layout.sessions {
        let mut session = Session::builder(environment)?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|e| anyhow::anyhow!("{e}"))?
            .with_intra_threads(layout.threads)
            .map_err(|e| anyhow::anyhow!("{e}"))?
            .commit_from_file(model)?;
        run(&mut session, &texts.texts[..layout.batch.min(texts.len())])?;
        sessions.push(session);
    }
    let batches: Vec<&[Text]> = texts.texts.chunks(layout.batch).collect();
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let (batches, next) = (&batches, &next);
        let workers: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                scope.spawn(move || {
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        run(session, batch)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_| anyhow::anyhow!("a session's thread panicked"))?
        })
    })?;
    Ok(texts.len() as f64 / start.elapsed().as_secs_f64())
}

fn run(session: &mut Session, batch: &[Text]) -> anyhow::Result<()> {
    let longest = batch.iter().map(|text| text.ids.len()).max().unwrap_or_default();
    let shape = [batch.len(), longest];
    let padded = |fill: fn(i64) -> i64| -> Vec<i64> {
        let row = |text: &Text| {
            let ids = text.ids.iter().map(|id| fill(*id)).collect::<Vec<_>>();
            ids.into_iter().chain(std::iter::repeat_n(0, longest - text.ids.len()))
        };
        batch.iter().flat_map(row).collect()
    };
    let mut inputs = ort::inputs![
        "input_ids" => Tensor::from_array((shape, padded(|id| id)))?,
        "attention_mask" => Tensor::from_array((shape, padded(|_| 1)))?,
    ];
    if session.inputs().iter().any(|input| input.name() == "token_type_ids") {
        inputs.push(("token_type_ids".into(), Tensor::from_array((shape, padded(|_| 0)))?.into()));
    }
    session.run(inputs)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_use_every_core_and_begin_with_a_session_for_each() {
        for cores in [1, 2, 6, 8] {
            let layouts = layouts(cores);
            assert!(layouts.iter().all(|layout| layout.sessions * layout.threads == cores));
            assert_eq!(layouts[0], Layout { sessions: cores, threads: 1, batch: 1 });
        }
    }

    #[test]
    fn the_best_layout_is_the_one_with_the_highest_median() {
        let layout = |batch| Layout { sessions: 1, threads: 1, batch };
        let lucky = Measured { layout: layout(1), rounds: vec![1.0, 2.0, 90.0] };
        let steady = Measured { layout: layout(2), rounds: vec![50.0, 51.0, 52.0] };
        assert_eq!(best(&[lucky, steady]).unwrap().layout.batch, 2);
    }

    #[test]
    fn made_up_prose_is_long_enough_and_the_same_each_time() {
        assert!(prose(10_000).len() >= 10_000);
        assert_eq!(prose(1000), prose(1000));
    }
}
