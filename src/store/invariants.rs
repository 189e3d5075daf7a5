//! What must hold of the stored rows whatever was killed, cut or doubled: one statement each.
//!
//! `gristmill verify` runs them, and so do the tests that destroy things. Every statement answers
//! the rows that break it; all are asked in one snapshot, by a role that sees every tenant.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};

/// One promise on the stored rows, and the statement that finds what breaks it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Invariant {
    /// The name of the check: `subject.what_is_wrong`.
    pub name: &'static str,
    /// What holds when it finds nothing.
    pub promise: &'static str,
    /// Answers (id, detail) of what breaks the promise.
    #[serde(skip)]
    sql: &'static str,
}

/// A row that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub invariant: &'static str,
    pub id: String,
    pub detail: String,
}

/// When something that takes its time has taken too long.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The lease of the workers, in seconds.
    pub lease_seconds: f64,
    /// How long a subject may stand in a state that is not final without a job that carries it.
    pub stuck_seconds: f64,
}

/// Why nothing was checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("this role sees one tenant at a time: log in as the owner of the database")]
    Blinded,
    #[error("the check {name}: {error}")]
    Database { name: &'static str, error: sqlx::Error },
}

/// Every violation of every promise, as of one moment; at most `most` for each.
pub async fn check(db: &PgPool, patience: Patience, most: usize) -> Result<Vec<Violation>, VerifyError> {
    let failed = |error| VerifyError::Database { name: "snapshot", error };
    let mut tx = crate::store::begin(db).await.map_err(failed)?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let found = check_in(&mut tx, patience, most).await?;
    tx.commit().await.map_err(failed)?;
    Ok(found)
}

/// [`check`] in the caller's transaction.
pub async fn check_in(
    conn: &mut PgConnection,
    patience: Patience,
    most: usize,
) -> Result<Vec<Violation>, VerifyError> {
    let failed = |name| move |error| VerifyError::Database { name, error };
    let blinded = "SELECT row_security_active('gristmill.attachments')";
    if sqlx::query_scalar(blinded).fetch_one(&mut *conn).await.map_err(failed("role"))? {
        return Err(VerifyError::Blinded);
    }
    sqlx::query("SELECT set_config('gristmill.lease', $1, true), set_config('gristmill.stuck', $2, true)")
        .bind(format!("{} seconds", patience.lease_seconds))
        .bind(format!("{} seconds", patience.stuck_seconds))
        .execute(&mut *conn)
        .await
        .map_err(failed("patience"))?;
    let mut found = Vec::new();
    for &Invariant { name, sql, .. } in INVARIANTS {
        let rows: Vec<(String, String)> =
            sqlx::query_as(sql).fetch_all(&mut *conn).await.map_err(failed(name))?;
        found.extend(rows.into_iter().take(most).map(|(id, detail)| Violation {
            invariant: name,
            id,
            detail,
        }));
    }
    Ok(found)
}

/// Every promise, in the order they are checked.
pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "jobs.lapsed",
        promise: "no job is at work three leases after its worker was last heard of",
        sql: "SELECT id::text, format('%s, held by %s until %s', kind, worker, lease_until) FROM gristmill.jobs
              WHERE state = 'RUNNING'
                AND lease_until < clock_timestamp() - 2 * current_setting('gristmill.lease')::interval",
    },
    Invariant {
        name: "jobs.impossible",
        promise: "every job's state agrees with its times, its worker, its attempts and its reason",
        sql: "SELECT id::text, format('%s %s: attempt %s of %s, epoch %s, worker %s, lease until %s, finished %s, reason %s',
                         kind, state, attempts, max_attempts, epoch, worker, lease_until, finished_at, reason)
              FROM gristmill.jobs
              WHERE (state = 'RUNNING') <> (lease_until IS NOT NULL)
                 OR (state IN ('DONE', 'DEAD', 'CANCELLED')) <> (finished_at IS NOT NULL)
                 OR (state = 'RUNNING' AND (worker IS NULL OR started_at IS NULL OR epoch = 0 OR attempts = 0))
                 OR (state IN ('DEAD', 'PARKED') AND coalesce(reason, '') = '')
                 OR (state = 'DEAD' AND attempts > max_attempts)
                 OR (state = 'DONE' AND epoch = 0)
                 OR attempts < 0",
    },
    Invariant {
        name: "jobs.key_twice",
        promise: "one key of one kind has one live job in its workspace",
        sql: "SELECT string_agg(id::text, ' '), format('%s, key %s', kind, unique_key) FROM gristmill.jobs
              WHERE unique_key IS NOT NULL AND state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
              GROUP BY workspace_id, kind, unique_key HAVING count(*) > 1",
    },
    Invariant {
        name: "jobs.key_holder",
        promise: "a key that outlives its job names a job that has it",
        sql: "SELECT j.id::text, format('%s with key %s holds key %s of %s', j.kind, j.unique_key, k.key, k.kind)
              FROM gristmill.job_keys k JOIN gristmill.jobs j ON j.id = k.job_id
              WHERE (j.workspace_id, j.kind, j.unique_key) IS DISTINCT FROM (k.workspace_id, k.kind, k.key)",
    },
    Invariant {
        name: "jobs.tree",
        promise: "a job that came of another has its root and its workspace, and is not older than it",
        // The house's own jobs have children in every workspace.
        sql: "SELECT j.id::text, format('parent %s, root %s; the parent''s root %s', p.id, j.root_id, p.root_id)
              FROM gristmill.jobs j JOIN gristmill.jobs p ON p.id = j.parent_id
              WHERE j.root_id IS DISTINCT FROM coalesce(p.root_id, p.id) OR p.workspace_id NOT IN (j.workspace_id, '00000000-0000-0000-0000-000000000001')
                 OR p.created_at > j.created_at OR p.id = j.id
              UNION ALL
              SELECT id::text, format('root %s without a parent', root_id) FROM gristmill.jobs
              WHERE root_id IS NOT NULL AND parent_id IS NULL",
    },
    Invariant {
        name: "jobs.silent_death",
        promise: "what a dead job worked on is told: its attachment is not left half-way",
        sql: "SELECT d.id::text, format('dead %s (%s), but attachment %s is %s and no job carries it', d.kind, d.reason, a.id, a.status)
              FROM (SELECT j.*, gristmill.attachment_of(j.kind, j.payload) AS attachment
                    FROM gristmill.jobs j WHERE j.state = 'DEAD') d
              JOIN gristmill.attachments a ON a.id = d.attachment AND a.workspace_id = d.workspace_id
              WHERE a.status NOT IN ('READY', 'ATTACHED', 'FAILED', 'QUARANTINED') AND a.id NOT IN (
                  SELECT x.id FROM (
                      SELECT gristmill.attachment_of(l.kind, l.payload) AS id FROM gristmill.jobs l
                      WHERE l.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')) x WHERE x.id IS NOT NULL)",
    },
    Invariant {
        name: "attachments.stuck",
        promise: "an attachment that is not at its end has a job that carries it on",
        sql: "SELECT a.id::text, format('%s since %s', a.status, a.updated_at) FROM gristmill.attachments a
              WHERE a.status NOT IN ('READY', 'ATTACHED', 'FAILED', 'QUARANTINED')
                AND a.updated_at < now() - current_setting('gristmill.stuck')::interval
                AND a.id NOT IN (
                    SELECT x.id FROM (
                        SELECT gristmill.attachment_of(l.kind, l.payload) AS id FROM gristmill.jobs l
                        WHERE l.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')) x WHERE x.id IS NOT NULL)",
    },
    Invariant {
        name: "generations.stuck",
        promise: "an index that is not at its end has a job that builds it",
        sql: "SELECT g.id::text, format('%s since %s, %s of %s chunks', g.status, g.updated_at, g.done, g.total)
              FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
              WHERE g.finished_at IS NULL AND g.updated_at < now() - current_setting('gristmill.stuck')::interval
                AND NOT EXISTS (
                    SELECT FROM gristmill.jobs l WHERE l.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
                      AND (l.payload ->> 'generation' = g.id::text
                           OR l.payload ->> 'attachment' = r.attachment_id::text))",
    },
    Invariant {
        name: "attachments.not_clean",
        promise: "a READY attachment's bytes have a CLEAN verdict",
        sql: "SELECT a.id::text, format('%s with sha256 %s', a.status, a.checksum_sha256) FROM gristmill.attachments a
              WHERE a.status IN ('READY', 'ATTACHED') AND NOT EXISTS (
                  SELECT FROM gristmill.verdicts v WHERE v.workspace_id = a.workspace_id
                    AND v.sha256 = a.checksum_sha256 AND v.outcome = 'CLEAN')",
    },
    Invariant {
        name: "extractions.before_verdict",
        promise: "no text was taken of bytes before their scan was CLEAN",
        sql: "SELECT e.id::text, format('sha256 %s was read at %s', e.sha256, e.created_at) FROM gristmill.extractions e
              WHERE NOT EXISTS (
                  SELECT FROM gristmill.verdicts v WHERE v.workspace_id = e.workspace_id AND v.sha256 = e.sha256
                    AND v.outcome = 'CLEAN' AND v.created_at <= e.created_at)",
    },
    Invariant {
        name: "attachments.quarantined_text",
        promise: "nothing of a QUARANTINED attachment is stored to be found",
        sql: "SELECT a.id::text, format('%s chunks; live generation %s', count(c.id), r.live_generation)
              FROM gristmill.attachments a JOIN gristmill.resources r ON r.attachment_id = a.id
              LEFT JOIN gristmill.chunks c ON c.resource_id = r.id
              WHERE a.status = 'QUARANTINED'
              GROUP BY a.id, r.id HAVING count(c.id) > 0 OR r.live_generation IS NOT NULL",
    },
    Invariant {
        name: "attachments.no_index",
        promise: "every resource of a READY attachment is searchable, or says why not",
        sql: "SELECT a.id::text, format('%s, resource %s has no index and none is being built', a.status, r.id)
              FROM gristmill.attachments a JOIN gristmill.resources r ON r.attachment_id = a.id
              WHERE a.status IN ('READY', 'ATTACHED') AND r.live_generation IS NULL
                AND NOT EXISTS (SELECT FROM gristmill.generations g WHERE g.resource_id = r.id)
                AND NOT EXISTS (
                    SELECT FROM gristmill.jobs l WHERE l.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
                      AND l.payload ->> 'attachment' = a.id::text)",
    },
    Invariant {
        name: "resources.live_generation",
        promise: "what search sees of a resource is one finished generation of its own",
        sql: "SELECT r.id::text, format('live generation %s: %s, of resource %s', g.id, g.status, g.resource_id)
              FROM gristmill.resources r JOIN gristmill.generations g ON g.id = r.live_generation
              WHERE g.resource_id <> r.id OR g.status NOT IN ('INDEXED', 'PARTIAL', 'EMPTY')",
    },
    Invariant {
        name: "generations.left_over",
        promise: "an index that was replaced is being removed",
        sql: "SELECT g.id::text, format('%s since %s, beside %s', g.status, g.finished_at, r.live_generation)
              FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
              WHERE r.live_generation IS NOT NULL AND g.id <> r.live_generation
                AND g.status IN ('INDEXED', 'PARTIAL')
                AND NOT EXISTS (
                    SELECT FROM gristmill.jobs l WHERE l.kind = 'forget' AND l.payload ->> 'generation' = g.id::text
                      AND l.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED'))",
    },
    Invariant {
        name: "chunks.incomplete",
        promise: "a generation that search sees holds its chunks 0 to n-1, each once",
        sql: "SELECT g.id::text, format('%s chunks from %s to %s, %s of %s said to be done',
                         count(c.id), min(c.ord), max(c.ord), g.done, g.total)
              FROM gristmill.resources r JOIN gristmill.generations g ON g.id = r.live_generation
              LEFT JOIN gristmill.chunks c ON c.generation_id = g.id
              WHERE g.status IN ('INDEXED', 'PARTIAL', 'EMPTY')
              GROUP BY g.id
              HAVING count(c.id) <> coalesce(g.total, 0) OR g.done <> coalesce(g.total, 0)
                  OR (count(c.id) > 0 AND (min(c.ord) <> 0 OR max(c.ord) <> count(c.id) - 1))
                  OR count(DISTINCT c.ord) <> count(c.id)",
    },
    Invariant {
        name: "chunks.misplaced",
        promise: "a chunk lies in a generation of its own resource and in that generation's space",
        sql: "SELECT c.id::text, format('resource %s, generation %s of resource %s', c.resource_id, g.id, g.resource_id)
              FROM gristmill.chunks c JOIN gristmill.generations g ON g.id = c.generation_id
              WHERE c.resource_id <> g.resource_id OR c.space_id IS DISTINCT FROM g.space_id",
    },
    Invariant {
        name: "history.edges",
        promise: "every attachment went along legal edges, from its first status to the one it has",
        sql: "SELECT attachment_id::text, format('%s to %s (history %s, after %s)', from_status, to_status, id, before)
              FROM (SELECT h.*, lag(h.to_status) OVER (PARTITION BY h.attachment_id ORDER BY h.id) AS before
                    FROM gristmill.attachment_history h) h
              WHERE from_status IS DISTINCT FROM before
                 OR CASE WHEN from_status IS NULL
                         THEN to_status NOT IN ('REQUESTED', 'PLANNED', 'UPLOADING', 'STORED')
                         ELSE NOT gristmill.attachment_edge(from_status, to_status) END
              UNION ALL
              SELECT a.id::text, format('is %s, its history ends with %s', a.status, last.to_status)
              FROM gristmill.attachments a
              LEFT JOIN LATERAL (SELECT h.to_status FROM gristmill.attachment_history h
                                 WHERE h.attachment_id = a.id ORDER BY h.id DESC LIMIT 1) last ON true
              WHERE last.to_status IS DISTINCT FROM a.status",
    },
    Invariant {
        name: "budgets.overdrawn",
        promise: "what is spent and reserved stays within the budget (an owner may have lowered it since)",
        sql: "SELECT id::text, format('%s spent and %s reserved of %s', spent, reserved, amount)
              FROM gristmill.budgets WHERE spent + reserved > amount",
    },
    Invariant {
        name: "budgets.reserved",
        promise: "what a budget holds reserved is the sum of its reservations",
        sql: "SELECT b.id::text, format('%s reserved, its reservations are %s', b.reserved, coalesce(sum(r.amount), 0))
              FROM gristmill.budgets b LEFT JOIN gristmill.reservations r ON r.budget_id = b.id
              GROUP BY b.id HAVING b.reserved <> coalesce(sum(r.amount), 0)",
    },
    Invariant {
        name: "budgets.spent",
        promise: "what a budget says is spent is what its calls cost since the period began",
        sql: "SELECT b.id::text, format('%s spent, its calls cost %s', b.spent, u.cost)
              FROM gristmill.budgets b CROSS JOIN LATERAL (
                  SELECT coalesce(sum(u.cost), 0) AS cost FROM gristmill.usages u
                  WHERE u.workspace_id = b.workspace_id AND u.state = 'SETTLED' AND u.settled_at >= b.period_start
                    AND (b.user_id IS NULL OR u.user_id = b.user_id)
                    AND (b.agent_id IS NULL OR u.agent_id = b.agent_id)) u
              WHERE b.spent <> u.cost",
    },
    Invariant {
        name: "reservations.of_closed_call",
        promise: "a reservation belongs to a call that is still open",
        sql: "SELECT r.id::text, format('%s of budget %s for call %s, which is %s', r.amount, r.budget_id, u.id, u.state)
              FROM gristmill.reservations r JOIN gristmill.usages u ON u.id = r.usage_id WHERE u.state <> 'OPEN'",
    },
    Invariant {
        name: "calls.started_twice",
        promise: "a tool call with effects was started once, unless a person ordered more or it never reached the other side",
        sql: "SELECT call_id::text, format('%s starts', count(*)) FROM gristmill.tool_attempts
              WHERE effect = 'effectful' AND NOT ordered AND NOT unsent GROUP BY call_id HAVING count(*) > 1",
    },
    Invariant {
        name: "calls.open_start",
        promise: "a tool call that is STARTED has one start without an outcome, and no other has any",
        sql: "SELECT c.id::text, format('%s with %s open starts', c.state, count(a.id)) FROM gristmill.tool_calls c
              LEFT JOIN gristmill.tool_attempts a ON a.call_id = c.id AND a.outcome IS NULL
              GROUP BY c.id HAVING count(a.id) <> (c.state = 'STARTED')::int",
    },
    Invariant {
        name: "calls.no_result",
        promise: "a tool call has a result when it is finished and nobody is asked any more, and none before",
        sql: "SELECT c.id::text, format('%s, result %s', c.state, r.id) FROM gristmill.tool_calls c
              LEFT JOIN gristmill.tool_results r ON r.call_id = c.id
              WHERE (r.id IS NOT NULL) <> (c.finished_at IS NOT NULL AND (c.state <> 'UNKNOWN' OR c.expires_at IS NULL))",
    },
    Invariant {
        name: "calls.unanswered",
        promise: "a result whose elders are answered has its `tool` message",
        sql: "SELECT c.id::text, format('call %s of message %s', c.ord, c.message_id) FROM gristmill.tool_calls c
              JOIN gristmill.tool_results r ON r.call_id = c.id AND r.answered_at IS NULL
              WHERE NOT EXISTS (SELECT FROM gristmill.tool_calls e LEFT JOIN gristmill.tool_results er ON er.call_id = e.id
                                WHERE e.message_id = c.message_id AND (e.ord, e.id) < (c.ord, c.id) AND er.id IS NULL)",
    },
    Invariant {
        name: "calls.out_of_order",
        promise: "the `tool` messages of one message stand in the order of its calls",
        sql: "SELECT id::text, format('call %s is answered at %s, its elder at %s', ord, serial_number, before) FROM (
                  SELECT c.id, c.ord, m.serial_number,
                         lag(m.serial_number) OVER (PARTITION BY c.message_id ORDER BY c.ord, c.id) AS before
                  FROM gristmill.tool_calls c JOIN gristmill.tool_results r ON r.call_id = c.id
                  JOIN gristmill.messages m ON m.id = r.message_id) x
              WHERE before > serial_number",
    },
    Invariant {
        name: "calls.stuck",
        promise: "a tool call that is not finished has a job that carries it on",
        sql: "SELECT id::text, format('%s since %s', state, updated_at) FROM gristmill.tool_calls
              WHERE finished_at IS NULL AND updated_at < now() - current_setting('gristmill.stuck')::interval
                AND NOT gristmill.has_job(workspace_id, '{tool_call}', id)",
    },
    Invariant {
        name: "calls.arguments",
        promise: "the digest of a tool call, which approvals are bound to, is that of its arguments",
        sql: "SELECT id::text, format('%s of %s', encode(arguments_sha256, 'hex'), tool_name) FROM gristmill.tool_calls
              WHERE arguments_sha256 <> gristmill.arguments_digest(arguments)",
    },
    Invariant {
        name: "tenants.crossed",
        promise: "no row names a row of another tenant",
        sql: "SELECT id, format('%s: %s', child, names) FROM gristmill.rows_across_tenants()",
    },
];
