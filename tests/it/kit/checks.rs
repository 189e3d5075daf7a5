//! The invariants as SQL: each query names what breaks one, and answers nothing when all is well.
//!
//! What `gristmill verify` looks for holds at any moment; these here hold at rest, after every
//! fault. The numbers are those of the catalogue the tests follow.

use gristmill::store::invariants::{self, Patience};
use sqlx::{Connection, PgConnection};

/// What must hold, and a query for whatever breaks it.
const INVARIANTS: [(&str, &str); 10] = [
    (
        "INV1: a job ends",
        "SELECT format('job %s (%s) is %s: %s', id, kind, state, reason) FROM gristmill.jobs
         WHERE finished_at IS NULL AND state <> 'PARKED'",
    ),
    (
        "INV1: no job used more attempts than it had",
        "SELECT format('job %s had %s of %s attempts', id, attempts, max_attempts) FROM gristmill.jobs
         WHERE attempts > max_attempts",
    ),
    (
        "INV2: the chunks of an index are 0..n-1, all of them",
        "SELECT format('generation %s has %s chunks up to %s of %s', g.id, count(c.id), max(c.ord), g.total)
         FROM gristmill.generations g LEFT JOIN gristmill.chunks c ON c.generation_id = g.id
         WHERE g.status IN ('INDEXED', 'PARTIAL') GROUP BY g.id
         HAVING count(c.id) <> g.total OR g.done <> g.total OR coalesce(max(c.ord), -1) <> g.total - 1",
    ),
    (
        "INV2: one generation is left, and retrieval sees it",
        "SELECT format('resource %s has %s generations', r.id, count(g.id))
         FROM gristmill.resources r LEFT JOIN gristmill.generations g ON g.resource_id = r.id
         GROUP BY r.id HAVING count(g.id) > 1 OR bool_or(g.status = 'INDEXED' AND g.id IS DISTINCT FROM r.live_generation)",
    ),
    (
        "INV2: no chunk outside an index",
        "SELECT format('chunk %s of an unfinished generation', c.id) FROM gristmill.chunks c
         JOIN gristmill.generations g ON g.id = c.generation_id WHERE g.finished_at IS NULL",
    ),
    (
        "INV5: no attachment waits without a job",
        "SELECT format('attachment %s is %s', a.id, a.status) FROM gristmill.attachments a
         WHERE a.status IN ('PLANNED', 'UPLOADING', 'STORED', 'SCANNING')
           AND NOT EXISTS (SELECT FROM gristmill.jobs j WHERE j.finished_at IS NULL
                           AND j.workspace_id = a.workspace_id AND j.payload::text LIKE '%' || a.id || '%')",
    ),
    (
        "INV6: what is READY was found CLEAN, these very bytes, before it was read",
        "SELECT format('attachment %s has no CLEAN verdict before its extraction', a.id)
         FROM gristmill.attachments a WHERE a.status IN ('READY', 'ATTACHED') AND NOT EXISTS (
            SELECT FROM gristmill.verdicts v
            LEFT JOIN gristmill.extractions e ON e.workspace_id = v.workspace_id AND e.sha256 = v.sha256
            WHERE v.workspace_id = a.workspace_id AND v.sha256 = a.checksum_sha256 AND v.outcome = 'CLEAN'
              AND (e.id IS NULL OR v.created_at <= e.created_at))",
    ),
    (
        "INV10: no end of an attachment was told twice",
        "SELECT format('%s of %s was told %s times', type, subject_id, count(*)) FROM gristmill.events
         WHERE type IN ('attachment.ready', 'attachment.failed', 'attachment.quarantined')
         GROUP BY type, subject_id HAVING count(*) > 1",
    ),
    (
        "INV12: only legal edges",
        "SELECT format('attachment %s went from %s to %s', attachment_id, from_status, to_status)
         FROM gristmill.attachment_history
         WHERE from_status IS NOT NULL AND NOT gristmill.attachment_edge(from_status, to_status)",
    ),
    (
        "INV12: the history has no gap",
        "SELECT format('attachment %s: %s after %s', attachment_id, from_status, before) FROM (
            SELECT *, lag(to_status) OVER (PARTITION BY attachment_id ORDER BY id) AS before
            FROM gristmill.attachment_history) h WHERE from_status IS DISTINCT FROM before",
    ),
];

/// Everything that breaks an invariant, in words; empty when all is well.
pub async fn violations(owner: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let mut tx = owner.begin().await?;
    // At rest nothing takes its time any more.
    let patience = Patience { lease_seconds: 0.0, stuck_seconds: 0.0 };
    let broken = invariants::check_in(&mut tx, patience, 20).await?;
    let mut found: Vec<_> =
        broken.iter().map(|v| format!("verify: {} {}: {}", v.invariant, v.id, v.detail)).collect();
    for (name, sql) in INVARIANTS {
        let broken: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *tx).await?;
        found.extend(broken.into_iter().map(|what| format!("{name}: {what}")));
    }
    tx.rollback().await?;
    Ok(found)
}
