//! `gristmill search`: a question, and the passages that answer it with their citations.

use crate::cli::house::House;
use crate::cli::operate::Tenant;
use crate::config;
use crate::context::Context;
use crate::domain::{ConversationId, ResourceId, WorkspaceId};
use crate::store::search::{self, Filters, Fusion, Hit, MARKS, Mode, Probe, Query};
use crate::store::{chunks, tenants};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Which sides of the index are asked.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Side {
    Hybrid,
    Dense,
    Text,
}

/// Arguments of `search`.
#[derive(Debug, Args)]
pub struct Search {
    /// The question, in words.
    question: String,
    #[command(flatten)]
    tenant: Tenant,
    /// Only this knowledge base.
    #[arg(long, value_name = "NAME")]
    knowledge_base: Option<String>,
    /// Only files of this conversation.
    #[arg(long)]
    conversation: Option<ConversationId>,
    /// Only this resource.
    #[arg(long)]
    resource: Option<ResourceId>,
    /// A JSON object that the resource's metadata must contain.
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// Which sides of the index are asked.
    #[arg(long, value_enum, default_value_t = Side::Hybrid)]
    by: Side,
    /// How many passages; the default is `search.top_k`.
    #[arg(long)]
    top_k: Option<u32>,
    /// How many chunks before and after each passage come with it.
    #[arg(long, default_value_t = 0)]
    neighbours: u32,
    /// One JSON document for machines.
    #[arg(long)]
    json: bool,
}

impl Search {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let workspace = self.tenant.find(house).await?;
        let ctx = house.context().await?;
        let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
        let tool = match &self.knowledge_base {
            None => None,
            Some(name) => Some(
                tenants::find_knowledge_base(&mut tx, name)
                    .await?
                    .with_context(|| format!("there is no knowledge base named {name:?}"))?,
            ),
        };
        tx.commit().await?;
        let metadata =
            self.metadata.as_deref().map(serde_json::from_str).transpose().context("--metadata")?;
        let filters = Filters { tool, conversation: self.conversation, resource: self.resource, metadata };
        let ask = Ask { side: self.by, top_k: self.top_k, neighbours: self.neighbours, filters };
        let answer = answer(&ctx, workspace, &self.question, &ask).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&as_json(&self.question, &answer))?);
        } else {
            print_passages(&answer);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How a question is to be answered.
#[derive(Debug, Clone)]
pub struct Ask {
    side: Side,
    top_k: Option<u32>,
    neighbours: u32,
    filters: Filters,
}

impl Ask {
    /// By both sides, so many passages.
    pub fn hybrid(top_k: u32) -> Self {
        Self { side: Side::Hybrid, top_k: Some(top_k), neighbours: 0, filters: Filters::default() }
    }
}

/// A hit with its telling passage, the question's words between marks.
pub type Passage = (Hit, String);

/// The fusion that the settings name.
pub fn fusion(settings: &config::Search) -> Fusion {
    match settings.fusion {
        config::Fusion::Convex => Fusion::Convex { alpha: settings.alpha },
        config::Fusion::ReciprocalRank => Fusion::ReciprocalRank { k: settings.rrf_k },
    }
}

/// Asks the tenant's index.
pub async fn answer(
    ctx: &Context,
    workspace: WorkspaceId,
    question: &str,
    ask: &Ask,
) -> anyhow::Result<Vec<Passage>> {
    let settings = &ctx.settings.search;
    let vector = ctx.embedder.embed(vec![question.to_owned()]).await?.remove(0);
    let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
    let probe =
        Probe { space_id: chunks::ensure_space(&mut tx, ctx.embedder.space()).await?, vector: &vector };
    let query = Query {
        text: question,
        mode: match ask.side {
            Side::Hybrid => Mode::Hybrid(probe, fusion(settings)),
            Side::Dense => Mode::Dense(probe),
            Side::Text => Mode::Lexical,
        },
        filters: ask.filters.clone(),
        top_k: ask.top_k.unwrap_or(settings.top_k),
        candidates: settings.candidates,
        ef_search: settings.ef_search,
        per_document: settings.per_document,
        neighbours: ask.neighbours,
    };
    let hits = search::search(&mut tx, &query).await?;
    let ids: Vec<_> = hits.iter().map(|hit| hit.chunk).collect();
    let mut marked = search::highlight(&mut tx, question, &ids).await?;
    tx.commit().await?;
    Ok(hits
        .into_iter()
        .map(|hit| {
            let text = marked.remove(&hit.chunk).unwrap_or_default();
            (hit, text)
        })
        .collect())
}

/// Where a hit stands, in a person's words.
pub fn citation(hit: &Hit) -> String {
    let pages = match (hit.page_first, hit.page_last) {
        (Some(first), Some(last)) if first == last => format!(", p. {first}"),
        (Some(first), Some(last)) => format!(", pp. {first}-{last}"),
        _ => String::new(),
    };
    format!("{}{pages}, bytes {}-{}", hit.resource_name, hit.start_byte, hit.end_byte)
}

/// The passages for a terminal: scores and ranks, the citation, the marked text.
pub fn print_passages(passages: &[Passage]) {
    if passages.is_empty() {
        println!("nothing was found");
    }
    let rank = |rank: Option<i32>| rank.map_or("-".to_owned(), |rank| rank.to_string());
    for (place, (hit, text)) in passages.iter().enumerate() {
        println!(
            "{:>2}. {:.3}  meaning #{} ({})  words #{} ({})  [{}]",
            place + 1,
            hit.score,
            rank(hit.dense_rank),
            hit.dense_similarity.map_or("-".to_owned(), |s| format!("{s:.2}")),
            rank(hit.lexical_rank),
            hit.lexical_score.map_or("-".to_owned(), |s| format!("{s:.1}")),
            citation(hit),
        );
        println!("    {}", marked(text));
    }
}

/// One line with the question's words in bold where the terminal can.
fn marked(text: &str) -> String {
    let (on, off) =
        if std::io::stdout().is_terminal() { ("\u{1b}[1;33m", "\u{1b}[0m") } else { ("«", "»") };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // What a document holds must not steer the terminal.
    let safe: String = line.chars().filter(|c| !c.is_control() || *c == MARKS.0 || *c == MARKS.1).collect();
    safe.replace(MARKS.0, on).replace(MARKS.1, off)
}

fn as_json(question: &str, passages: &[Passage]) -> serde_json::Value {
    let hits: Vec<_> = passages
        .iter()
        .map(|(hit, text)| {
            serde_json::json!({
                "chunk": hit.chunk, "score": hit.score, "content": hit.content,
                "passage": text.replace([MARKS.0, MARKS.1], ""),
                "citation": {
                    "resource": hit.resource, "name": hit.resource_name, "generation": hit.generation, "ord": hit.ord,
                    "page_first": hit.page_first, "page_last": hit.page_last,
                    "start_byte": hit.start_byte, "end_byte": hit.end_byte,
                },
                "dense": { "rank": hit.dense_rank, "similarity": hit.dense_similarity },
                "lexical": { "rank": hit.lexical_rank, "score": hit.lexical_score },
                "before": hit.before, "after": hit.after,
            })
        })
        .collect();
    serde_json::json!({ "question": question, "hits": hits })
}
