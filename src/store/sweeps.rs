//! What looks across tenants to keep the house clean: SQL functions with the owner's rights
//! (`migrations/0015_schedules.sql`), each call one short, bounded step that may be repeated.

use crate::domain::{AttachmentId, AttachmentStatus, GenerationId, WorkspaceId};
use crate::store::decoded;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use std::time::Duration;
use uuid::Uuid;

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: duration.as_micros() as i64 }
}

/// Goes over to a tenant for the rest of the transaction: what follows is bound by its policy.
pub async fn visit(conn: &mut PgConnection, workspace: WorkspaceId) -> sqlx::Result<()> {
    sqlx::query_scalar!("SELECT set_config('gristmill.workspace', $1, true)", workspace.to_string())
        .fetch_one(conn)
        .await?;
    Ok(())
}

/// The ids of all tenants.
pub async fn workspaces(conn: &mut PgConnection) -> sqlx::Result<Vec<WorkspaceId>> {
    let ids = sqlx::query_scalar!(r#"SELECT id AS "id!" FROM gristmill.workspace_ids() AS id"#)
        .fetch_all(conn)
        .await?;
    Ok(ids.into_iter().map(WorkspaceId).collect())
}

/// Removes finished jobs past their time, whole trees at once.
pub async fn prune(conn: &mut PgConnection, done: Duration, dead: Duration, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.prune($1, $2, $3) AS "n!""#, interval(done), interval(dead), most)
        .fetch_one(conn)
        .await
}

/// Lets the next [`prune`] begin at the oldest row again.
pub async fn prune_anew(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("SELECT gristmill.prune_anew()").execute(conn).await?;
    Ok(())
}

/// Removes logins and sign-in links that are over.
pub async fn logins(conn: &mut PgConnection, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_logins($1) AS "n!""#, most).fetch_one(conn).await
}

/// Removes keys whose time is over.
pub async fn keys(conn: &mut PgConnection, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_keys($1) AS "n!""#, most).fetch_one(conn).await
}

/// Removes workers that were not seen for so long.
pub async fn workers(conn: &mut PgConnection, unseen_for: Duration) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_workers($1) AS "n!""#, interval(unseen_for))
        .fetch_one(conn)
        .await
}

/// Takes dead places out of the queues of shared limits.
pub async fn limits(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_limits() AS "n!""#).fetch_one(conn).await
}

/// Gives back what dead calls hold of a budget.
pub async fn reservations(conn: &mut PgConnection, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_reservations($1) AS "n!""#, most).fetch_one(conn).await
}

/// Removes events past their time.
pub async fn events(conn: &mut PgConnection, older_than: Duration, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_events($1, $2) AS "n!""#, interval(older_than), most)
        .fetch_one(conn)
        .await
}

/// Removes extractions and verdicts of bytes that no attachment has.
pub async fn leavings(conn: &mut PgConnection, older_than: Duration, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.sweep_leavings($1, $2) AS "n!""#, interval(older_than), most)
        .fetch_one(conn)
        .await
}

/// An attachment that nobody works on.
#[derive(Debug, Clone)]
pub struct StuckAttachment {
    pub workspace: WorkspaceId,
    pub id: AttachmentId,
    pub status: AttachmentStatus,
    /// How often its next step was queued again.
    pub revived: i16,
}

/// Attachments in an unfinished state for too long that no job works on.
pub async fn stuck_attachments(
    conn: &mut PgConnection,
    uploads: Duration,
    others: Duration,
    most: i32,
) -> sqlx::Result<Vec<StuckAttachment>> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "workspace_id!", id AS "id!", status AS "status!", revived AS "revived!"
           FROM gristmill.stuck_attachments($1, $2, $3)"#,
        interval(uploads),
        interval(others),
        most
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(StuckAttachment {
                workspace: WorkspaceId(row.workspace_id),
                id: AttachmentId(row.id),
                status: decoded(row.status.parse())?,
                revived: row.revived,
            })
        })
        .collect()
}

/// An unfinished index that nobody works on.
#[derive(Debug, Clone)]
pub struct StuckGeneration {
    pub workspace: WorkspaceId,
    pub id: GenerationId,
    pub attachment: Option<AttachmentId>,
    pub has_text: bool,
    pub revived: i16,
}

/// Index generations unfinished for too long that no job works on.
pub async fn stuck_generations(
    conn: &mut PgConnection,
    deadline: Duration,
    most: i32,
) -> sqlx::Result<Vec<StuckGeneration>> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "workspace_id!", id AS "id!", attachment_id, has_text AS "has_text!",
                  revived AS "revived!"
           FROM gristmill.stuck_generations($1, $2)"#,
        interval(deadline),
        most
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| StuckGeneration {
            workspace: WorkspaceId(row.workspace_id),
            id: GenerationId(row.id),
            attachment: row.attachment_id.map(AttachmentId),
            has_text: row.has_text,
            revived: row.revived,
        })
        .collect())
}

/// Whether a job of one of these kinds that is not over has the subject for its key.
pub async fn has_job(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    kinds: &[&str],
    subject: Uuid,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT gristmill.has_job($1, $2, $3) AS "has!""#,
        workspace.0,
        kinds as &[&str],
        subject
    )
    .fetch_one(conn)
    .await
}

/// Counts that an attachment's next step was queued again, if it still stands where it stood.
pub async fn revive_attachment(
    conn: &mut PgConnection,
    id: AttachmentId,
    at: AttachmentStatus,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE gristmill.attachments SET revived = revived + 1 WHERE id = $1 AND status::text = $2",
        id.0,
        at.as_str()
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Counts that a generation's next step was queued again, if it is still unfinished.
pub async fn revive_generation(conn: &mut PgConnection, id: GenerationId) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "UPDATE gristmill.generations SET revived = revived + 1 WHERE id = $1 AND finished_at IS NULL",
        id.0
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Generations that a newer one replaced a while ago and nobody forgot.
pub async fn superseded(
    conn: &mut PgConnection,
    older_than: Duration,
    most: i32,
) -> sqlx::Result<Vec<(WorkspaceId, GenerationId)>> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "workspace_id!", id AS "id!" FROM gristmill.superseded_generations($1, $2)"#,
        interval(older_than),
        most
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (WorkspaceId(row.workspace_id), GenerationId(row.id))).collect())
}

/// Of these keys of the tenant's bucket, those that no row of the tenant names. One that is called
/// by a sha256 is spared while an attachment has these bytes: a job may be about to name it.
pub async fn unnamed(conn: &mut PgConnection, bucket: &str, keys: &[String]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"SELECT k.key AS "key!" FROM unnest($2::text[]) AS k (key)
           WHERE NOT EXISTS (SELECT FROM gristmill.attachments WHERE bucket = $1 AND key = k.key)
             AND NOT EXISTS (SELECT FROM gristmill.extractions WHERE bucket = $1 AND key = k.key)
             AND NOT EXISTS (SELECT FROM gristmill.tool_results WHERE bucket = $1 AND key = k.key)
             AND NOT EXISTS (SELECT FROM gristmill.attachments
                             WHERE checksum_sha256 = substring(k.key FROM '([0-9a-f]{64})[^/]*$'))"#,
        bucket,
        keys
    )
    .fetch_all(conn)
    .await
}

/// Attachments whose bytes this engine with these signatures should look at again.
pub async fn to_rescan(
    conn: &mut PgConnection,
    (engine, signatures): (&str, &str),
    older_than: Duration,
    most: i32,
) -> sqlx::Result<Vec<(WorkspaceId, AttachmentId)>> {
    let rows = sqlx::query!(
        r#"SELECT workspace_id AS "workspace_id!", id AS "id!" FROM gristmill.to_rescan($1, $2, $3, $4)"#,
        engine,
        signatures,
        interval(older_than),
        most
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (WorkspaceId(row.workspace_id), AttachmentId(row.id))).collect())
}

/// The tenant's readable attachments with these bytes, held until the transaction ends.
pub async fn readable_with(conn: &mut PgConnection, sha256: &str) -> sqlx::Result<Vec<AttachmentId>> {
    let rows = sqlx::query_scalar!(
        "SELECT id FROM gristmill.attachments WHERE checksum_sha256 = $1 AND status::text IN ('READY', 'ATTACHED')
         ORDER BY id FOR UPDATE",
        sha256
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(AttachmentId).collect())
}

/// Takes every index of an attachment out of retrieval, by one update.
pub async fn hide(conn: &mut PgConnection, attachment: AttachmentId) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE gristmill.resources SET live_generation = NULL WHERE attachment_id = $1",
        attachment.0
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends parked tool calls whose time is over.
pub async fn expire_calls(conn: &mut PgConnection, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.expire_tool_calls($1) AS "n!""#, most).fetch_one(conn).await
}

/// Queues unfinished tool calls again that no job carries.
pub async fn revive_calls(conn: &mut PgConnection, deadline: Duration, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.revive_tool_calls($1, $2) AS "n!""#, interval(deadline), most)
        .fetch_one(conn)
        .await
}

/// Wakes tool calls that waited for money where there is some again.
pub async fn afford_calls(conn: &mut PgConnection, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.afford_tool_calls($1) AS "n!""#, most).fetch_one(conn).await
}

/// Wakes tool calls that wait for what is there: whoever brought it may have missed them.
pub async fn remind_calls(conn: &mut PgConnection, most: i32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT gristmill.remind_tool_calls($1) AS "n!""#, most).fetch_one(conn).await
}
