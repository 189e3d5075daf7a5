//! `gristmill verify`: a clean run keeps every promise, and each promise that is broken is named alone.

use crate::cli::{gristmill, said};
use crate::world::{World, address};
use gristmill::domain::WorkspaceId;
use gristmill::runtime::every_kind;
use gristmill::store::invariants::{self, INVARIANTS, Patience, VerifyError};
use sqlx::{AssertSqlSafe, PgPool};
use std::collections::BTreeSet;

const PATIENCE: Patience = Patience { lease_seconds: 30.0, stuck_seconds: 3600.0 };

/// Statements that break one promise each. `replica` fires no trigger and holds no foreign key.
const PLANTED: &[(&str, &str)] = &[
    (
        "jobs.lapsed",
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload, state, worker, epoch, attempts, started_at, lease_until)
         VALUES (:workspace, 'forget', '{}', 'RUNNING', 'w', 1, 1, now(), now() - interval '61 seconds')",
    ),
    (
        "jobs.impossible",
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload, state, worker, epoch, attempts, started_at, lease_until)
         VALUES (:workspace, 'forget', '{}', 'RUNNING', 'w', 1, 0, now(), now() + interval '30 seconds')",
    ),
    (
        "jobs.key_twice",
        "DROP INDEX gristmill.jobs_unique;
         INSERT INTO gristmill.jobs (workspace_id, kind, payload, unique_key)
         VALUES (:workspace, 'forget', '{}', 'k'), (:workspace, 'forget', '{}', 'k')",
    ),
    (
        "jobs.key_holder",
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload, unique_key) VALUES (:workspace, 'forget', '{}', 'a');
         INSERT INTO gristmill.job_keys (workspace_id, kind, key, job_id, until)
         SELECT workspace_id, kind, 'b', id, 'infinity' FROM gristmill.jobs WHERE unique_key = 'a'",
    ),
    ("jobs.tree", "UPDATE gristmill.jobs SET root_id = parent_id WHERE kind = 'embed'"),
    (
        "jobs.silent_death",
        "INSERT INTO gristmill.attachments (id, workspace_id, status, bucket, key)
         VALUES ('00000000-0000-7000-8000-0000000000aa', :workspace, 'STORED', 'b', 'k');
         INSERT INTO gristmill.jobs (workspace_id, kind, payload, state, finished_at, reason)
         VALUES (:workspace, 'scan', '{\"attachment\": \"00000000-0000-7000-8000-0000000000aa\"}', 'DEAD', now(), 'gave_up')",
    ),
    (
        "attachments.stuck",
        "INSERT INTO gristmill.attachments (workspace_id, status, bucket, key) VALUES (:workspace, 'STORED', 'b', 'k');
         SET LOCAL session_replication_role = replica;
         UPDATE gristmill.attachments SET updated_at = now() - interval '61 minutes' WHERE key = 'k'",
    ),
    (
        "generations.stuck",
        "INSERT INTO gristmill.generations (workspace_id, resource_id, updated_at)
         SELECT workspace_id, id, now() - interval '61 minutes' FROM gristmill.resources LIMIT 1",
    ),
    ("attachments.not_clean", "UPDATE gristmill.attachments SET checksum_sha256 = repeat('ab', 32)"),
    ("extractions.before_verdict", "UPDATE gristmill.verdicts SET created_at = now()"),
    (
        "attachments.quarantined_text",
        "UPDATE gristmill.attachments SET status = 'QUARANTINED', failure_code = 'infected'",
    ),
    (
        "attachments.no_index",
        "INSERT INTO gristmill.resources (workspace_id, attachment_id, name)
         SELECT workspace_id, id, 'new' FROM gristmill.attachments LIMIT 1",
    ),
    ("resources.live_generation", "UPDATE gristmill.generations SET status = 'FAILED'"),
    (
        "generations.left_over",
        "INSERT INTO gristmill.generations (workspace_id, resource_id, status, done, total, finished_at)
         SELECT workspace_id, id, 'INDEXED', 0, 0, now() FROM gristmill.resources",
    ),
    ("chunks.incomplete", "DELETE FROM gristmill.chunks WHERE ord = 0"),
    (
        "chunks.misplaced",
        "INSERT INTO gristmill.resources (id, workspace_id, name)
         VALUES ('00000000-0000-7000-8000-0000000000bb', :workspace, 'elsewhere');
         UPDATE gristmill.chunks SET resource_id = '00000000-0000-7000-8000-0000000000bb' WHERE ord = 0",
    ),
    ("history.edges", "DELETE FROM gristmill.attachment_history WHERE to_status = 'SCANNING'"),
    (
        "budgets.overdrawn",
        "INSERT INTO gristmill.budgets (workspace_id, amount, spent) VALUES (:workspace, 1, 2);
         INSERT INTO gristmill.usages (workspace_id, type, kind, state, provider, model, key_source, input_tokens,
             cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost, source, settled_at)
         VALUES (:workspace, 'user', 'chat', 'SETTLED', 'p', 'm', 'platform', 1, 0, 0, 1, 0, 2, 'reported', now())",
    ),
    ("budgets.reserved", "INSERT INTO gristmill.budgets (workspace_id, amount, reserved) VALUES (:workspace, 10, 1)"),
    ("budgets.spent", "INSERT INTO gristmill.budgets (workspace_id, amount, spent) VALUES (:workspace, 10, 1)"),
    (
        "reservations.of_closed_call",
        "INSERT INTO gristmill.budgets (workspace_id, amount, reserved) VALUES (:workspace, 10, 1);
         INSERT INTO gristmill.usages (workspace_id, type, kind, state, provider, model, key_source, settled_at)
         VALUES (:workspace, 'user', 'chat', 'RELEASED', 'p', 'm', 'platform', now());
         INSERT INTO gristmill.reservations (workspace_id, usage_id, budget_id, amount, expires_at)
         SELECT :workspace, u.id, b.id, 1, now() FROM gristmill.usages u, gristmill.budgets b",
    ),
    (
        "calls.started_twice",
        "DROP INDEX gristmill.tool_attempts_effectful_once;
         INSERT INTO gristmill.tool_attempts (workspace_id, call_id, effect, idempotency_key, outcome, finished_at)
         SELECT workspace_id, id, 'effectful', 'k', 'OK', now() FROM gristmill.tool_calls, generate_series(1, 2)",
    ),
    ("calls.open_start", "UPDATE gristmill.tool_attempts SET outcome = NULL, finished_at = NULL"),
    ("calls.no_result", "DELETE FROM gristmill.tool_results"),
    ("calls.unanswered", "UPDATE gristmill.tool_results SET message_id = NULL, answered_at = NULL"),
    (
        "calls.out_of_order",
        "UPDATE gristmill.tool_results r SET message_id = o.message_id FROM gristmill.tool_results o WHERE o.id <> r.id",
    ),
    (
        "calls.stuck",
        "INSERT INTO gristmill.tool_calls (workspace_id, conversation_id, message_id, tool_call_id, ord, tool_name,
             arguments, arguments_sha256, updated_at)
         SELECT workspace_id, conversation_id, message_id, 'lost', 9, tool_name, arguments, arguments_sha256,
                now() - interval '61 minutes' FROM gristmill.tool_calls LIMIT 1",
    ),
    (
        "calls.arguments",
        "SET LOCAL session_replication_role = replica;
         UPDATE gristmill.tool_calls SET arguments = '{\"query\": \"another\"}'",
    ),
    (
        "tenants.crossed",
        "INSERT INTO gristmill.conversations (id, workspace_id)
         VALUES ('00000000-0000-7000-8000-0000000000cc', :workspace);
         SET LOCAL session_replication_role = replica;
         INSERT INTO gristmill.messages (workspace_id, conversation_id, serial_number, role, sender_type)
         VALUES (gen_random_uuid(), '00000000-0000-7000-8000-0000000000cc', 1, 'user', 'USER')",
    ),
];

fn prose() -> String {
    "The upper stone is the runner; it turns over the bed stone and grinds what the miller pours. ".repeat(60)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn each_broken_promise_is_named_and_no_other(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.ingest("a.txt", prose().as_bytes()).await?;
    let chat = crate::tool_call::Chat::new(&world).await?;
    chat.knowledge_base("kb").await?;
    for id in ["a", "b"] {
        chat.call(id, "kb", serde_json::json!({ "query": "stone" })).await?;
    }
    chat.work().await?;
    let listed: BTreeSet<_> = INVARIANTS.iter().map(|invariant| invariant.name).collect();
    let planted: BTreeSet<_> = PLANTED.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, planted, "a promise without its violation here");
    assert_eq!(listed.len(), INVARIANTS.len(), "two promises of one name");

    for (name, sql) in PLANTED {
        let mut tx = world.admin.begin().await?;
        assert_eq!(invariants::check_in(&mut tx, PATIENCE, 10).await?, vec![], "before {name}");
        let sql = sql.replace(":workspace", &format!("'{}'", world.workspace));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
        let found = invariants::check_in(&mut tx, PATIENCE, 10).await?;
        let names: BTreeSet<_> = found.iter().map(|violation| violation.invariant).collect();
        assert_eq!(names, BTreeSet::from([*name]), "{found:#?}");
        assert!(found.iter().all(|violation| !violation.id.is_empty() && !violation.detail.is_empty()));
        tx.rollback().await?;
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn whatever_ends_an_attachment_comes_to_keeps_every_promise(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let eicar = ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat();
    let forgotten = world.upload("gone.txt", b"soon forgotten").await?;
    for (name, bytes) in [
        ("a.txt", prose().as_bytes()),
        ("twin.txt", prose().as_bytes()),
        ("empty.txt", &[][..]),
        ("evil.txt", eicar.as_bytes()),
        ("broken.pdf", b"%PDF-1.7 and no more".as_slice()),
    ] {
        world.upload(name, bytes).await?;
    }
    world.work(every_kind).await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let forget = gristmill::jobs::Forget::Attachment(forgotten);
    gristmill::queue::enqueue(&mut tx, world.workspace, &forget).await?;
    tx.commit().await?;
    world.work(every_kind).await?;
    let strict = Patience { stuck_seconds: 0.0, ..PATIENCE };
    assert_eq!(invariants::check(&world.admin, strict, 10).await?, vec![]);
    let ends =
        "SELECT string_agg(DISTINCT status::text, ' ' ORDER BY status::text) FROM gristmill.attachments";
    assert_eq!(world.words(ends).await?, ["FAILED QUARANTINED READY"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_role_that_sees_one_tenant_at_a_time_cannot_say_that_all_is_well(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let refused = invariants::check(&world.ctx.db, PATIENCE, 10).await;
    assert!(matches!(refused, Err(VerifyError::Blinded)), "{refused:?}");
    let mut tx = gristmill::store::tenant(&world.ctx.db, WorkspaceId(world.workspace.0)).await?;
    assert!(matches!(invariants::check_in(&mut tx, PATIENCE, 10).await, Err(VerifyError::Blinded)));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_command_ends_with_one_when_a_promise_is_broken(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.ingest("a.txt", b"words").await?;
    let data = tempfile::tempdir()?;
    let verify = |arguments: &[&str]| {
        gristmill(&[&["verify"][..], arguments].concat(), data.path())
            .env("DATABASE_URL", address(&world.admin))
            .output()
    };
    let clean = verify(&[])?;
    assert_eq!(clean.status.code(), Some(0), "{}", said(&clean));
    world.change("DELETE FROM gristmill.chunks").await?;
    let broken = verify(&["--json"])?;
    assert_eq!(broken.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_str(&said(&broken))?;
    assert_eq!(answer["violations"][0]["invariant"], "chunks.incomplete");
    assert_eq!(answer["checks"].as_array().map(Vec::len), Some(INVARIANTS.len()));
    Ok(())
}
