//! Extracted texts: the text lies in the bucket, once for each content and extractor.

use crate::domain::{TextFacts, WorkspaceId};
use crate::store::decoded;
use crate::store::leftovers::Place;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// An extraction and where its text lies.
#[derive(Debug, Clone)]
pub struct Extraction {
    pub id: Uuid,
    pub bucket: String,
    pub key: String,
    pub facts: TextFacts,
}

fn extraction(
    id: Uuid,
    (bucket, key): (String, String),
    facts: serde_json::Value,
) -> sqlx::Result<Extraction> {
    Ok(Extraction { id, bucket, key, facts: decoded(serde_json::from_value(facts))? })
}

/// The extraction of these bytes by this extractor.
pub async fn find(
    db: impl PgExecutor<'_>,
    sha256: &str,
    extractor: &str,
) -> sqlx::Result<Option<Extraction>> {
    let row = sqlx::query!(
        "SELECT id, bucket, key, facts FROM gristmill.extractions WHERE sha256 = $1 AND extractor = $2",
        sha256,
        extractor
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| extraction(row.id, (row.bucket, row.key), row.facts)).transpose()
}

/// The extraction by its id.
pub async fn get(db: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Extraction>> {
    let row = sqlx::query!("SELECT id, bucket, key, facts FROM gristmill.extractions WHERE id = $1", id)
        .fetch_optional(db)
        .await?;
    row.map(|row| extraction(row.id, (row.bucket, row.key), row.facts)).transpose()
}

/// An extraction whose text has been put in its place.
#[derive(Debug, Clone, Copy)]
pub struct NewExtraction<'a> {
    pub sha256: &'a str,
    pub extractor: &'a str,
    pub bucket: &'a str,
    pub key: &'a str,
    pub facts: &'a TextFacts,
}

/// Stores where a text lies, and answers with what is stored: a twin that was faster keeps its row.
pub async fn record(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    new: &NewExtraction<'_>,
) -> sqlx::Result<Extraction> {
    sqlx::query!(
        "INSERT INTO gristmill.extractions (workspace_id, sha256, extractor, bucket, key, facts)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (workspace_id, sha256, extractor) DO NOTHING",
        workspace.0,
        new.sha256,
        new.extractor,
        new.bucket,
        new.key,
        decoded(serde_json::to_value(new.facts))?,
    )
    .execute(&mut *conn)
    .await?;
    find(conn, new.sha256, new.extractor).await?.ok_or(sqlx::Error::RowNotFound)
}

/// Forgets the texts of these bytes; their objects, which lie at the answered places, are the caller's.
pub async fn delete(conn: &mut PgConnection, sha256: &str) -> sqlx::Result<Vec<Place>> {
    sqlx::query_as!(
        Place,
        "DELETE FROM gristmill.extractions WHERE sha256 = $1 RETURNING bucket, key",
        sha256
    )
    .fetch_all(conn)
    .await
}
