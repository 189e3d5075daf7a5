//! Status edges: of an attachment's bytes, of a tool call.

use sqlx::AssertSqlSafe;
use sqlx::PgPool;

use super::CHECK_VIOLATION;
use super::UNIQUE_VIOLATION;
use super::attempt;
use super::insert_samples;
use super::refusal;
use super::run;

const STATUSES: [&str; 9] =
    ["REQUESTED", "PLANNED", "UPLOADING", "STORED", "SCANNING", "READY", "FAILED", "QUARANTINED", "ATTACHED"];

/// Written down apart from the migration: its function is what is tested.
const LEGAL: [(&str, &str); 15] = [
    ("REQUESTED", "PLANNED"),
    ("PLANNED", "UPLOADING"),
    ("UPLOADING", "STORED"),
    ("STORED", "SCANNING"),
    ("SCANNING", "READY"),
    ("READY", "ATTACHED"),
    ("REQUESTED", "FAILED"),
    ("PLANNED", "FAILED"),
    ("UPLOADING", "FAILED"),
    ("STORED", "FAILED"),
    ("SCANNING", "FAILED"),
    ("SCANNING", "QUARANTINED"),
    ("READY", "QUARANTINED"),
    ("ATTACHED", "QUARANTINED"),
    ("FAILED", "STORED"),
];

fn set_status(to: &str) -> String {
    let failure = if ["FAILED", "QUARANTINED"].contains(&to) { "'because'" } else { "NULL" };
    format!(
        "UPDATE gristmill.attachments SET status = '{to}', failure_code = {failure},
             size = 1, checksum_sha256 = repeat('ab', 32)"
    )
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_moves_along_legal_edges_only_and_each_move_is_history(
    db: PgPool,
) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    for from in STATUSES {
        for to in STATUSES.into_iter().filter(|to| *to != from) {
            let mut tx = db.begin().await?;
            // The replica role fires no trigger: the row is put where the edge begins.
            run(&mut tx, "SET LOCAL session_replication_role = replica").await?;
            run(&mut tx, &set_status(from)).await?;
            run(&mut tx, "SET LOCAL session_replication_role = origin").await?;

            let moved = run(&mut tx, &set_status(to)).await;
            if LEGAL.contains(&(from, to)) {
                assert_eq!(moved?, 1, "{from} > {to}");
                let last: (String, String, Option<String>) = sqlx::query_as(
                    "SELECT from_status::text, to_status::text, reason FROM gristmill.attachment_history
                     ORDER BY id DESC LIMIT 1",
                )
                .fetch_one(&mut *tx)
                .await?;
                let reason = ["FAILED", "QUARANTINED"].contains(&to).then(|| "because".to_owned());
                assert_eq!(last, (from.to_owned(), to.to_owned(), reason));
            } else {
                assert_eq!(refusal(moved), CHECK_VIOLATION, "{from} > {to}");
            }
        }
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_cannot_begin_as_ready(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    for status in ["SCANNING", "READY", "ATTACHED", "FAILED", "QUARANTINED"] {
        let failure = if ["FAILED", "QUARANTINED"].contains(&status) { "'x'" } else { "NULL" };
        let outcome = attempt(
            &db,
            &format!(
                "INSERT INTO gristmill.attachments (workspace_id, status, bucket, key, size, checksum_sha256, failure_code)
                 SELECT id, '{status}', 'b', 'k', 1, repeat('ab', 32), {failure} FROM gristmill.workspaces LIMIT 1"
            ),
        )
        .await;
        assert_eq!(refusal(outcome), CHECK_VIOLATION, "{status}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_without_a_size_and_checksum_is_not_ready(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let mut tx = db.begin().await?;
    run(&mut tx, "UPDATE gristmill.attachments SET status = 'SCANNING'").await?;
    let outcome = run(&mut tx, "UPDATE gristmill.attachments SET status = 'READY'").await;
    assert_eq!(refusal(outcome), CHECK_VIOLATION);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_finished_tool_call_is_not_started_again(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let to = |state: &str, finished: &str| {
        format!("UPDATE gristmill.tool_calls SET state = '{state}', reason = 'why', finished_at = {finished}")
    };
    for last in ["OK", "ERROR", "CANCELLED"] {
        let mut tx = db.begin().await?;
        run(&mut tx, &to("STARTED", "NULL")).await?;
        run(&mut tx, &to(last, "now()")).await?;
        let again = run(&mut tx, &to("STARTED", "NULL")).await;
        assert_eq!(refusal(again), CHECK_VIOLATION, "{last}");
    }
    // A call whose outcome is unknown goes on only by way of a person's word.
    let mut tx = db.begin().await?;
    run(&mut tx, &to("STARTED", "NULL")).await?;
    run(&mut tx, &to("UNKNOWN", "now()")).await?;
    assert_eq!(run(&mut tx, &to("REQUESTED", "NULL")).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_arguments_of_a_tool_call_stay_what_was_approved(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let outcome = attempt(&db, r#"UPDATE gristmill.tool_calls SET arguments = '{"all": true}'"#).await;
    assert_eq!(refusal(outcome), CHECK_VIOLATION);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_effectful_call_starts_twice_only_by_a_persons_order(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let start = |effect: &str, ordered: bool| {
        format!(
            "INSERT INTO gristmill.tool_attempts (workspace_id, call_id, effect, idempotency_key, ordered)
             SELECT workspace_id, id, '{effect}', 'k', {ordered} FROM gristmill.tool_calls"
        )
    };
    for sql in
        [start("effectful", false), start("effectful", true), start("read", false), start("read", false)]
    {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db).await?;
    }
    assert_eq!(refusal(attempt(&db, &start("effectful", false)).await), UNIQUE_VIOLATION);
    Ok(())
}
