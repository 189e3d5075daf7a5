//! Search: the best chunks for a question, by meaning, by words, or by both.
//!
//! After `embed` made a generation live. The caller opened the transaction and set its tenant
//! ([`tenant`](crate::store::tenant)); only chunks of live generations are seen. The lexical side
//! is `gristmill.bm25` of the migrations.

mod sql;

use crate::domain::{ChunkId, ConversationId, GenerationId, ResourceId, ToolId};
use pgvector::Vector;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres};
use std::collections::HashMap;
use uuid::Uuid;

/// Scopes up to so many chunks are compared one by one: exact, and quicker than asking an index
/// that holds everybody's vectors to find the few that pass the filter. A space gets its index at
/// the same number ([`count_into_index`](super::chunks::count_into_index)): a scope beyond it that
/// spreads over spaces without one has less than this in each, and those are compared one by one.
pub(super) const EXACT_UP_TO: i64 = 5_000;
/// What pgvector's `hnsw.ef_search` can be.
const EF_SEARCH: std::ops::RangeInclusive<u32> = 1..=1_000;

/// A question's vector and the space it lies in.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    pub space_id: i32,
    pub vector: &'a [f32],
}

/// How two rankings become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fusion {
    /// 1 / (k + rank), summed over both sides (Cormack, Clarke and Büttcher 2009).
    ReciprocalRank { k: u32 },
    /// alpha · meaning + (1 - alpha) · words, each scaled by its best candidate and its least
    /// possible value, and both known of every candidate (Bruch, Gai and Ingber 2023).
    Convex { alpha: f64 },
}

/// Which sides are asked.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    Dense(Probe<'a>),
    Lexical,
    Hybrid(Probe<'a>, Fusion),
}

impl<'a> Mode<'a> {
    fn probe(self) -> Option<Probe<'a>> {
        match self {
            Self::Dense(probe) | Self::Hybrid(probe, _) => Some(probe),
            Self::Lexical => None,
        }
    }
}

/// Which part of the tenant's chunks is searched; an empty filter is all of it.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// Of one knowledge base.
    pub tool: Option<ToolId>,
    pub conversation: Option<ConversationId>,
    pub resource: Option<ResourceId>,
    /// What the resource's metadata must contain.
    pub metadata: Option<serde_json::Value>,
}

/// A question and how to answer it.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    pub text: &'a str,
    pub mode: Mode<'a>,
    pub filters: Filters,
    pub top_k: u32,
    /// How many chunks each side puts forward.
    pub candidates: u32,
    pub ef_search: u32,
    /// Hits of one resource at most; 0 is no cap.
    pub per_document: u32,
    /// How many chunks before and after a hit come with it.
    pub neighbours: u32,
}

/// A passage, why it was found, and where it stands: resource, version, page and byte range.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct Hit {
    pub chunk: ChunkId,
    pub resource: ResourceId,
    pub resource_name: String,
    /// The version of the resource's index that the range belongs to.
    pub generation: GenerationId,
    pub ord: i32,
    pub content: String,
    pub page_first: Option<i32>,
    pub page_last: Option<i32>,
    /// The passage as bytes of the extracted text.
    pub start_byte: i64,
    pub end_byte: i64,
    /// Higher is better; comparable only within one answer.
    pub score: f64,
    /// Place on the dense side; none when only the words put it forward.
    pub dense_rank: Option<i32>,
    /// Cosine similarity, where the chunk lies in the question's space.
    pub dense_similarity: Option<f64>,
    pub lexical_rank: Option<i32>,
    /// BM25; none when no word of the question stands in the chunk.
    pub lexical_score: Option<f64>,
    /// The chunks just before, in reading order.
    pub before: Vec<String>,
    pub after: Vec<String>,
}

/// The best chunks, best first; equal questions over equal chunks have equal answers.
pub async fn search(conn: &mut PgConnection, query: &Query<'_>) -> sqlx::Result<Vec<Hit>> {
    let exact = match query.mode.probe() {
        Some(_) => scope_up_to(conn, &query.filters, EXACT_UP_TO).await? < EXACT_UP_TO,
        None => true,
    };
    if !exact {
        widen(conn, query).await?;
    }
    let text = sql::statement(query, exact);
    // Not kept as a prepared statement: a plan made for any filter would serve none of them.
    bound(sqlx::query_as(AssertSqlSafe(text)).persistent(false), query).fetch_all(conn).await
}

/// How the database would find the answer; for tests and for `doctor`.
pub async fn explain(conn: &mut PgConnection, query: &Query<'_>, exact: bool) -> sqlx::Result<String> {
    let text = format!("EXPLAIN (COSTS OFF) {}", sql::statement(query, exact));
    let lines: Vec<(String,)> =
        bound(sqlx::query_as(AssertSqlSafe(text)).persistent(false), query).fetch_all(conn).await?;
    Ok(lines.into_iter().map(|line| line.0).collect::<Vec<_>>().join("\n"))
}

type Bindable<'q, T> = QueryAs<'q, Postgres, T, PgArguments>;

/// Binds the values in the order that `sql` numbers them.
fn bound<'q, T>(statement: Bindable<'q, T>, query: &'q Query<'_>) -> Bindable<'q, T> {
    let vector = query.mode.probe().map(|probe| Vector::from(probe.vector.to_vec()));
    statement
        .bind(vector)
        .bind(query.text)
        .bind(i64::from(query.candidates))
        .bind(i64::from(query.top_k))
        .bind(match query.per_document {
            0 => i64::MAX,
            cap => i64::from(cap),
        })
        .bind(i32::try_from(query.neighbours).unwrap_or(i32::MAX))
        .bind(query.filters.tool.map(|id| id.0))
        .bind(query.filters.conversation.map(|id| id.0))
        .bind(query.filters.resource.map(|id| id.0))
        .bind(&query.filters.metadata)
}

/// Counts the chunks in scope, but no further than `ceiling`.
async fn scope_up_to(conn: &mut PgConnection, filters: &Filters, ceiling: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar(AssertSqlSafe(sql::scope_up_to(filters)))
        .persistent(false)
        .bind(ceiling)
        .bind(filters.tool.map(|id| id.0))
        .bind(filters.conversation.map(|id| id.0))
        .bind(filters.resource.map(|id| id.0))
        .bind(&filters.metadata)
        .fetch_one(conn)
        .await
}

/// Lets the vector index go on until enough chunks have passed the filter.
async fn widen(conn: &mut PgConnection, query: &Query<'_>) -> sqlx::Result<()> {
    let ef = query.ef_search.max(query.candidates).clamp(*EF_SEARCH.start(), *EF_SEARCH.end());
    sqlx::query(
        "SELECT set_config('hnsw.ef_search', $1, true), set_config('hnsw.iterative_scan', 'relaxed_order', true)",
    )
    .bind(ef.to_string())
    .execute(conn)
    .await?;
    Ok(())
}

/// Where a match begins and ends in a highlighted passage.
pub const MARKS: (char, char) = ('\u{2}', '\u{3}');

/// The telling passages of each chunk, the question's words between [`MARKS`].
pub async fn highlight(
    conn: &mut PgConnection,
    text: &str,
    chunks: &[ChunkId],
) -> sqlx::Result<HashMap<ChunkId, String>> {
    let ids: Vec<Uuid> = chunks.iter().map(|chunk| chunk.0).collect();
    let rows: Vec<(ChunkId, String)> = sqlx::query_as(
        "SELECT c.id, gristmill.highlight(c.language, c.content, $1) FROM gristmill.chunks c WHERE c.id = ANY ($2)",
    )
    .bind(text)
    .bind(ids)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().collect())
}
