//! Chunks: text, vector and lexemes in one row, written batch by batch under the fence.

use crate::domain::{GenerationId, WorkspaceId};
use crate::store::search::EXACT_UP_TO;
use pgvector::Vector;
use sqlx::{PgConnection, PgExecutor, PgPool};
use std::collections::HashMap;
use uuid::Uuid;

/// SQLSTATE of a lock that was not given in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A chunk about to be stored.
#[derive(Debug, Clone)]
pub struct NewChunk {
    pub ord: i32,
    pub content: String,
    pub sha256: [u8; 32],
    pub tokens: i32,
    pub start: i64,
    pub end: i64,
    pub pages: Option<(i32, i32)>,
    pub vector: Vec<f32>,
}

/// The vector space's id; registered when it is new.
pub async fn ensure_space(conn: &mut PgConnection, space: &crate::domain::Space) -> sqlx::Result<i32> {
    sqlx::query_scalar!(
        r#"SELECT gristmill.ensure_space($1, $2, $3) AS "id!""#,
        space.model,
        space.revision,
        space.dimensions as i32
    )
    .fetch_one(conn)
    .await
}

/// Counts stored chunks of a space, and makes its vector index once search has a use for it;
/// answers whether it was made now.
///
/// Not for the transaction of an effect: while the index is built, nobody writes chunks. When
/// writers keep it from beginning, the next count tries again; until then search is slower.
pub async fn count_into_index(db: &PgPool, space: i32, more: usize) -> sqlx::Result<bool> {
    let due = sqlx::query_scalar!(
        r#"SELECT gristmill.count_chunks($1, $2, $3) AS "due!""#,
        space,
        more as i64,
        EXACT_UP_TO
    )
    .fetch_one(db)
    .await?;
    if !due {
        return Ok(false);
    }
    let made = sqlx::query_scalar!(r#"SELECT gristmill.ensure_index($1, $2) AS "made!""#, space, EXACT_UP_TO)
        .fetch_one(db)
        .await;
    match made {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => Ok(false),
        made => made,
    }
}

/// Which chunks of a generation are stored: the checkpoint a restart goes on from.
pub async fn stored(db: impl PgExecutor<'_>, generation: GenerationId) -> sqlx::Result<Vec<i32>> {
    sqlx::query_scalar!("SELECT ord FROM gristmill.chunks WHERE generation_id = $1", generation.0)
        .fetch_all(db)
        .await
}

/// Vectors that the tenant already has for these texts in this space.
pub async fn known_vectors(
    db: impl PgExecutor<'_>,
    workspace: WorkspaceId,
    space: i32,
    hashes: &[Vec<u8>],
) -> sqlx::Result<HashMap<Vec<u8>, Vec<f32>>> {
    let rows = sqlx::query!(
        r#"SELECT DISTINCT ON (content_sha256) content_sha256, embedding AS "embedding: Vector"
           FROM gristmill.chunks WHERE workspace_id = $1 AND space_id = $2 AND content_sha256 = ANY ($3)"#,
        workspace.0,
        space,
        hashes
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.content_sha256, row.embedding.to_vec())).collect())
}

/// Adds a batch; `language` is ISO 639-1 and decides how the text is stemmed.
pub async fn insert(
    conn: &mut PgConnection,
    generation: GenerationId,
    space: i32,
    language: Option<&str>,
    chunks: &[NewChunk],
) -> sqlx::Result<u64> {
    let ords: Vec<i32> = chunks.iter().map(|c| c.ord).collect();
    let contents: Vec<&str> = chunks.iter().map(|c| c.content.as_str()).collect();
    let hashes: Vec<&[u8]> = chunks.iter().map(|c| c.sha256.as_slice()).collect();
    let tokens: Vec<i32> = chunks.iter().map(|c| c.tokens).collect();
    let starts: Vec<i64> = chunks.iter().map(|c| c.start).collect();
    let ends: Vec<i64> = chunks.iter().map(|c| c.end).collect();
    let firsts: Vec<Option<i32>> = chunks.iter().map(|c| c.pages.map(|p| p.0)).collect();
    let lasts: Vec<Option<i32>> = chunks.iter().map(|c| c.pages.map(|p| p.1)).collect();
    let vectors: Vec<Vector> = chunks.iter().map(|c| Vector::from(c.vector.clone())).collect();
    let done = sqlx::query!(
        "INSERT INTO gristmill.chunks (workspace_id, generation_id, resource_id, tool_id, conversation_id, space_id,
             ord, content, content_sha256, tokens, start_byte, end_byte, page_first, page_last, embedding,
             language, terms, term_count)
         SELECT g.workspace_id, g.id, r.id, r.tool_id, r.conversation_id, $2,
                n.ord, n.content, n.sha256, n.tokens, n.first_byte, n.last_byte, n.page_first, n.page_last, n.embedding,
                l.config, t.terms, gristmill.term_count(t.terms)
         FROM gristmill.generations g
         JOIN gristmill.resources r ON r.id = g.resource_id
         CROSS JOIN gristmill.language_of($3) AS l (config)
         CROSS JOIN UNNEST($4::int[], $5::text[], $6::bytea[], $7::int[], $8::bigint[], $9::bigint[],
                           $10::int[], $11::int[], $12::vector[])
             AS n (ord, content, sha256, tokens, first_byte, last_byte, page_first, page_last, embedding)
         CROSS JOIN LATERAL (SELECT to_tsvector(l.config, n.content)) AS t (terms)
         WHERE g.id = $1",
        generation.0,
        space,
        language,
        &ords,
        &contents as &[&str],
        &hashes as &[&[u8]],
        &tokens,
        &starts,
        &ends,
        &firsts as &[Option<i32>],
        &lasts as &[Option<i32>],
        &vectors as &[Vector],
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// How many chunks a generation has.
pub async fn count(db: impl PgExecutor<'_>, generation: GenerationId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "n!" FROM gristmill.chunks WHERE generation_id = $1"#,
        generation.0
    )
    .fetch_one(db)
    .await
}

/// Removes up to `limit` chunks of a generation; 0 means none was left.
pub async fn delete_some(conn: &mut PgConnection, generation: GenerationId, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM gristmill.chunks WHERE id = ANY (ARRAY(
             SELECT id FROM gristmill.chunks WHERE generation_id = $1 LIMIT $2))",
        generation.0,
        limit
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// The id of a chunk by its place; what a citation names.
pub async fn at(db: impl PgExecutor<'_>, generation: GenerationId, ord: i32) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM gristmill.chunks WHERE generation_id = $1 AND ord = $2",
        generation.0,
        ord
    )
    .fetch_optional(db)
    .await
}
