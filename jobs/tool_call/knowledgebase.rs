//! The `knowledgebase` tool: passages of its resources that answer a question, with citations.
//!
//! `customConfig` of the reference models: `retrieveTopN` passages are found; of those the first
//! `rerankTopN` are given. There is no reranker in this version, so their order is retrieval's own,
//! and the answer says so. Which model, chunk size and overlap were used is the index's matter
//! (`embed`); where `embeddingModelID` names another model than this worker has, the answer says that.

use super::dispatch::Failure;
use super::ledger::Started;
use crate::config;
use crate::context::Context;
use crate::domain::{ToolId, ToolOutput};
use crate::job::Turn;
use crate::store::chunks;
use crate::store::search::{self, Filters, Fusion, Hit, Mode, Probe, Query};
use anyhow::anyhow;
use serde::Deserialize;
use serde_json::{Value, json};

/// No question asks for more passages at once.
const MOST: u32 = 100;

#[derive(Debug, Deserialize)]
struct Wish {
    #[serde(alias = "question")]
    query: String,
    #[serde(alias = "topK")]
    top_k: Option<u32>,
}

/// The tool's own settings.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Custom {
    #[serde(rename = "embeddingModelID")]
    embedding_model: Option<String>,
    #[serde(rename = "rerankingModelID")]
    reranking_model: Option<String>,
    retrieve_top_n: Option<u32>,
    rerank_top_n: Option<u32>,
}

/// Answers a question from the tool's resources.
pub async fn run(ctx: &Context, turn: &Turn, started: &Started) -> Result<ToolOutput, Failure> {
    let wish: Wish = match serde_json::from_value(started.call.arguments.clone()) {
        Ok(wish) => wish,
        Err(fault) => {
            return Ok(ToolOutput::error(format!("a knowledge base takes a `query` in words: {fault}")));
        }
    };
    if wish.query.trim().is_empty() {
        return Ok(ToolOutput::error("the `query` is empty"));
    }
    let Some(tool) = &started.cleared.tool else {
        return Err(Failure::before(anyhow!("the knowledge base is gone"), false));
    };
    let custom: Custom = serde_json::from_value(tool.custom_config.clone()).unwrap_or_default();
    let top_k = wish.top_k.or(custom.retrieve_top_n).unwrap_or(ctx.settings.search.top_k).clamp(1, MOST);
    let found = find(ctx, turn, tool.id, (&wish.query, top_k)).await;
    // Reading twice is no harm, so every failure of it may be tried again.
    let mut hits = found.map_err(|error| Failure::before(error, true))?;
    if let Some(most) = custom.rerank_top_n {
        hits.truncate(most as usize);
    }
    Ok(answer(ctx, &custom, &wish.query, &hits))
}

async fn find(
    ctx: &Context,
    turn: &Turn,
    tool: ToolId,
    (text, top_k): (&str, u32),
) -> anyhow::Result<Vec<Hit>> {
    let settings = &ctx.settings.search;
    let mut vectors = ctx.embedder.embed(vec![text.to_owned()]).await?;
    let vector = vectors.pop().unwrap_or_default();
    let mut tx = crate::store::tenant(&ctx.db, turn.workspace()).await?;
    let space_id = chunks::ensure_space(&mut tx, ctx.embedder.space()).await?;
    let query = Query {
        text,
        mode: Mode::Hybrid(Probe { space_id, vector: &vector }, fusion(settings)),
        filters: Filters { tool: Some(tool), ..Filters::default() },
        top_k,
        candidates: settings.candidates.max(top_k),
        ef_search: settings.ef_search,
        per_document: settings.per_document,
        neighbours: 0,
    };
    let hits = search::search(&mut tx, &query).await?;
    tx.commit().await?;
    Ok(hits)
}

fn fusion(settings: &config::Search) -> Fusion {
    match settings.fusion {
        config::Fusion::Convex => Fusion::Convex { alpha: settings.alpha },
        config::Fusion::ReciprocalRank => Fusion::ReciprocalRank { k: settings.rrf_k },
    }
}

fn answer(ctx: &Context, custom: &Custom, query: &str, hits: &[Hit]) -> ToolOutput {
    let model = &ctx.embedder.space().model;
    let mut notes = Vec::new();
    if let Some(wanted) = custom.reranking_model.as_deref().filter(|_| !hits.is_empty()) {
        notes.push(format!("not reranked: there is no reranker here ({wanted} was asked for)"));
    }
    if let Some(wanted) = custom.embedding_model.as_deref().filter(|wanted| *wanted != model.as_str()) {
        notes.push(format!("found with the embedding model {model} ({wanted} was asked for)"));
    }
    let mut text: Vec<String> = hits
        .iter()
        .enumerate()
        .map(|(n, hit)| format!("[{}] {}\n{}", n + 1, cited(hit), hit.content))
        .collect();
    if hits.is_empty() {
        text.push("nothing was found".into());
    }
    text.extend(notes.iter().map(|note| format!("({note})")));
    ToolOutput {
        structured_content: Some(json!({
            "query": query, "hits": hits.iter().map(as_json).collect::<Vec<_>>(), "reranked": false,
            "embedding_model": model, "notes": notes,
        })),
        ..ToolOutput::text(text.join("\n\n"))
    }
}

/// Where a passage stands, in words.
fn cited(hit: &Hit) -> String {
    let pages = match (hit.page_first, hit.page_last) {
        (Some(first), Some(last)) if first == last => format!(", p. {first}"),
        (Some(first), Some(last)) => format!(", pp. {first}-{last}"),
        _ => String::new(),
    };
    format!("{}{pages}, bytes {}-{}", hit.resource_name, hit.start_byte, hit.end_byte)
}

fn as_json(hit: &Hit) -> Value {
    json!({
        "content": hit.content, "score": hit.score,
        "citation": {
            "resource": hit.resource, "name": hit.resource_name, "generation": hit.generation, "chunk": hit.chunk,
            "ord": hit.ord, "page_first": hit.page_first, "page_last": hit.page_last,
            "start_byte": hit.start_byte, "end_byte": hit.end_byte,
        },
    })
}
