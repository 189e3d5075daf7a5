//! The text of the search statement.
//!
//! The numbers of the space stand in the text, not in parameters: the vector index is partial
//! (`WHERE space_id = 7`) and over `embedding::vector(384)`, and only literals can match that.
//! Everything that a caller gives as text is a parameter.

use super::{Filters, Fusion, Mode, Probe, Query};
use std::fmt::Write as _;

/// The parameters of the statement, numbered as `bound` binds them; the typed NULLs keep those
/// that a mode has no use for.
const PARAMETERS: &str = "SELECT $1::vector AS vector, $2::text AS question, $3::bigint AS candidates,
    $4::bigint AS top_k, $5::bigint AS per_document, $6::int AS neighbours,
    $7::uuid AS tool, $8::uuid AS conversation, $9::uuid AS resource, $10::jsonb AS metadata";

/// The one statement: each side's candidates, fused, capped, cut, and cited.
pub fn statement(query: &Query<'_>, exact: bool) -> String {
    let space = query.mode.probe();
    format!(
        "WITH given AS ({PARAMETERS}),
         -- The nearest chunks in meaning.
         dense AS MATERIALIZED ({dense}),
         dense_ranked AS (
             SELECT d.id, d.similarity, (row_number() OVER (ORDER BY d.similarity DESC, d.id))::int AS place
             FROM dense d),
         -- The best chunks in words, and what the dense ones are worth there.
         lexical AS MATERIALIZED ({lexical}),
         lexical_ranked AS (
             SELECT l.id, l.score, (row_number() OVER (ORDER BY l.score DESC, l.id))::int AS place
             FROM lexical l),
         -- Every candidate with both its scores; a place only where its side put it forward.
         candidate AS MATERIALIZED (
             SELECT c.id, c.resource_id, d.place AS dense_rank,
                    coalesce(d.similarity, {similarity}) AS similarity,
                    CASE WHEN l.place <= $3 THEN l.place END AS lexical_rank, l.score AS lexical_score
             FROM dense_ranked d
             FULL JOIN lexical_ranked l USING (id)
             JOIN gristmill.chunks c USING (id)),
         scored AS (
             SELECT s.*, ({score})::float8 AS score
             FROM (SELECT a.*, max(a.similarity) OVER () AS top_similarity, max(a.lexical_score) OVER () AS top_lexical
                   FROM candidate a) s),
         capped AS (
             SELECT s.*, row_number() OVER (PARTITION BY s.resource_id ORDER BY {order}) AS of_document FROM scored s)
         SELECT c.id AS chunk, c.resource_id AS resource, r.name AS resource_name, c.generation_id AS generation,
                c.ord, c.content, c.page_first, c.page_last, c.start_byte, c.end_byte, s.score,
                s.dense_rank, s.similarity AS dense_similarity, s.lexical_rank, s.lexical_score,
                {before} AS before, {after} AS after
         FROM (SELECT * FROM capped s WHERE s.of_document <= $5 ORDER BY {order} LIMIT $4) s
         JOIN gristmill.chunks c ON c.id = s.id
         JOIN gristmill.resources r ON r.id = c.resource_id
         ORDER BY {order}",
        dense = dense(query, exact),
        lexical = lexical(query.mode),
        similarity = space.map_or_else(|| "NULL::float8".to_owned(), similarity_of_any),
        score = score(query.mode),
        // Ties go to the better words, then to the nearer meaning, then to the older chunk.
        order = "s.score DESC, s.lexical_score DESC NULLS LAST, s.similarity DESC NULLS LAST, s.id",
        before = neighbours("c.ord - $6", "c.ord - 1"),
        after = neighbours("c.ord + 1", "c.ord + $6"),
    )
}

/// Counts up to `$1` chunks in scope; its filters are `$2` to `$5`.
pub fn scope_up_to(filters: &Filters) -> String {
    format!(
        "WITH given AS (SELECT $1::bigint AS ceiling, $2::uuid AS tool, $3::uuid AS conversation,
                               $4::uuid AS resource, $5::jsonb AS metadata)
         SELECT count(*) FROM (
             SELECT 1 FROM gristmill.resources r
             JOIN gristmill.chunks c ON c.generation_id = r.live_generation
                 AND c.workspace_id = gristmill.current_workspace()
             WHERE r.workspace_id = gristmill.current_workspace(){}
             LIMIT $1) s",
        filtered(filters, 2)
    )
}

/// The conditions of the filters that are set; the first filter is parameter `first`.
fn filtered(filters: &Filters, first: u8) -> String {
    let mut conditions = String::new();
    let each = [
        (filters.tool.is_some(), "r.tool_id =", "uuid"),
        (filters.conversation.is_some(), "r.conversation_id =", "uuid"),
        (filters.resource.is_some(), "r.id =", "uuid"),
        (filters.metadata.is_some(), "r.metadata @>", "jsonb"),
    ];
    for (number, (set, condition, kind)) in (first..).zip(each) {
        if set {
            let _ = write!(conditions, " AND {condition} ${number}::{kind}");
        }
    }
    conditions
}

fn dense(query: &Query<'_>, exact: bool) -> String {
    let Some(probe) = query.mode.probe() else {
        return "SELECT NULL::uuid AS id, NULL::float8 AS similarity WHERE false".to_owned();
    };
    let filters = filtered(&query.filters, 7);
    let (distance, live) = if exact {
        // The plain column has no index, so an exact search cannot fall into one.
        let join = format!(
            "JOIN gristmill.resources r ON r.id = c.resource_id AND r.live_generation = c.generation_id
             WHERE true{filters}"
        );
        ("c.embedding <=> $1".to_owned(), join)
    } else {
        // OFFSET 0 keeps this a question to each chunk that the index brings. Made a join, it is
        // estimated at one row, and then sorting everybody's vectors looks cheap.
        let test = format!(
            "WHERE EXISTS (SELECT FROM gristmill.resources r
                           WHERE r.id = c.resource_id AND r.live_generation = c.generation_id{filters} OFFSET 0)"
        );
        (indexed_distance(probe.vector.len()), test)
    };
    format!(
        "SELECT c.id, 1 - ({distance}) AS similarity
         FROM gristmill.chunks c {live}
           AND c.space_id = {space} AND c.workspace_id = gristmill.current_workspace()
         ORDER BY {distance} LIMIT $3",
        space = probe.space_id,
    )
}

/// The distance as the space's index has it: see `gristmill.ensure_index`.
fn indexed_distance(dimensions: usize) -> String {
    let kind = if dimensions <= 2000 { "vector" } else { "halfvec" };
    format!("c.embedding::{kind}({dimensions}) <=> $1::vector::{kind}({dimensions})")
}

/// The similarity of a candidate that the words alone put forward.
fn similarity_of_any(probe: Probe<'_>) -> String {
    format!("CASE WHEN c.space_id = {} THEN 1 - (c.embedding <=> $1) END", probe.space_id)
}

fn lexical(mode: Mode<'_>) -> &'static str {
    match mode {
        Mode::Dense(_) => "SELECT NULL::uuid AS id, NULL::float8 AS score WHERE false",
        Mode::Lexical | Mode::Hybrid(..) => {
            "SELECT b.chunk_id AS id, b.score
             FROM gristmill.bm25($2, $3::int, $7, $8, $9, $10, ARRAY(SELECT d.id FROM dense d)) b"
        }
    }
}

fn score(mode: Mode<'_>) -> String {
    match mode {
        Mode::Dense(_) => "s.similarity".to_owned(),
        Mode::Lexical => "s.lexical_score".to_owned(),
        Mode::Hybrid(_, Fusion::ReciprocalRank { k }) => {
            format!("coalesce(1.0 / ({k} + s.dense_rank), 0) + coalesce(1.0 / ({k} + s.lexical_rank), 0)")
        }
        // A cosine is at least -1 and BM25 at least 0.
        Mode::Hybrid(_, Fusion::Convex { alpha }) => format!(
            "{alpha}::float8 * coalesce((1 + s.similarity) / nullif(1 + s.top_similarity, 0), 0)
             + (1 - {alpha}::float8) * coalesce(s.lexical_score / nullif(s.top_lexical, 0), 0)"
        ),
    }
}

fn neighbours(from: &str, to: &str) -> String {
    format!(
        "ARRAY(SELECT n.content FROM gristmill.chunks n
               WHERE n.generation_id = c.generation_id AND n.ord BETWEEN {from} AND {to} ORDER BY n.ord)"
    )
}
