//! `gristmill eval`: how well the product's own search answers, on a set with judgements.
//!
//! The set's documents were ingested as any file is; here each question goes through
//! [`search`](crate::store::search::search) once a side, and a document stands where its best
//! chunk does.

pub mod beir;
pub mod docs;
pub mod metrics;
pub mod run;

use crate::domain::ResourceId;
use crate::store::search::{self, Filters, Fusion, Mode, Probe, Query};
use beir::Set;
use metrics::Figures;
use sqlx::PgConnection;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a comparison needs beside the set: how it was ingested, and how search is set.
#[derive(Debug)]
pub struct Setting<'a> {
    /// The space that `vectors` and the chunks lie in.
    pub space_id: i32,
    /// One vector a question, in the set's order.
    pub vectors: &'a [Vec<f32>],
    /// Which document each resource is.
    pub documents: &'a HashMap<ResourceId, String>,
    /// Searched when the workspace holds more than the set.
    pub filters: Filters,
    pub candidates: u32,
    pub ef_search: u32,
    pub rrf_k: u32,
    pub alpha: f64,
}

/// One line of the comparison.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Line {
    pub side: &'static str,
    #[serde(flatten)]
    pub figures: Figures,
    /// The median question took so long in the database.
    pub median: Duration,
}

/// Measures dense, full text and both fusions side by side.
pub async fn compare(conn: &mut PgConnection, set: &Set, setting: &Setting<'_>) -> sqlx::Result<Vec<Line>> {
    let ranks = Fusion::ReciprocalRank { k: setting.rrf_k };
    let scores = Fusion::Convex { alpha: setting.alpha };
    let mut lines = Vec::new();
    for (side, choose) in [
        ("dense", Side::Dense),
        ("full text", Side::Lexical),
        ("hybrid (reciprocal rank)", Side::Both(ranks)),
        ("hybrid (convex)", Side::Both(scores)),
    ] {
        lines.push(measure(&mut *conn, set, setting, side, choose).await?);
    }
    Ok(lines)
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Dense,
    Lexical,
    Both(Fusion),
}

async fn measure(
    conn: &mut PgConnection,
    set: &Set,
    setting: &Setting<'_>,
    name: &'static str,
    side: Side,
) -> sqlx::Result<Line> {
    let mut rankings = Vec::with_capacity(set.questions.len());
    let mut times = Vec::with_capacity(set.questions.len());
    for (question, vector) in set.questions.iter().zip(setting.vectors) {
        let probe = Probe { space_id: setting.space_id, vector };
        let query = Query {
            text: &question.text,
            mode: match side {
                Side::Dense => Mode::Dense(probe),
                Side::Lexical => Mode::Lexical,
                Side::Both(fusion) => Mode::Hybrid(probe, fusion),
            },
            filters: setting.filters.clone(),
            top_k: 10,
            candidates: setting.candidates,
            ef_search: setting.ef_search,
            // A document is as good as its best chunk.
            per_document: 1,
            neighbours: 0,
        };
        let began = Instant::now();
        let hits = search::search(&mut *conn, &query).await?;
        times.push(began.elapsed());
        let ranking: Vec<String> =
            hits.iter().filter_map(|hit| setting.documents.get(&hit.resource).cloned()).collect();
        rankings.push((set.gains(&question.id), ranking));
    }
    let figures = metrics::figures(rankings.iter().map(|(gains, ranking)| (gains, ranking.as_slice())));
    times.sort();
    Ok(Line { side: name, figures, median: times.get(times.len() / 2).copied().unwrap_or_default() })
}

/// The comparison as a table for a terminal.
pub fn table(lines: &[Line]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "nDCG@10", "recall@10", "MRR@10", "questions", "median ms"]);
    for line in lines {
        table.add_row([
            line.side.to_owned(),
            format!("{:.3}", line.figures.ndcg_at_10),
            format!("{:.3}", line.figures.recall_at_10),
            format!("{:.3}", line.figures.mrr_at_10),
            line.figures.questions.to_string(),
            format!("{:.1}", line.median.as_secs_f64() * 1e3),
        ]);
    }
    table
}
