//! Messages in both shapes, and summaries that are never rewritten.

use futures::future::try_join_all;
use sqlx::PgPool;

use super::CHECK_VIOLATION;
use super::RESTRICT_VIOLATION;
use super::UNIQUE_VIOLATION;
use super::attempt;
use super::insert_samples;
use super::refusal;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_message_given_by_role_or_by_sender_has_both(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let rows: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT serial_number, role::text, sender_type::text FROM gristmill.messages ORDER BY serial_number",
    )
    .fetch_all(&db)
    .await?;
    let row = |sn, role: &str, sender: &str| (sn, role.to_owned(), sender.to_owned());
    assert_eq!(rows, [row(1, "user", "USER"), row(2, "assistant", "AI")]);

    let contradiction =
        attempt(&db, "UPDATE gristmill.messages SET sender_type = 'AI' WHERE role = 'user'").await;
    assert_eq!(refusal(contradiction), CHECK_VIOLATION);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn parallel_writers_of_one_conversation_leave_no_gap_and_no_double(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let write = || {
        sqlx::query(
            "INSERT INTO gristmill.messages (workspace_id, conversation_id, role, content_text)
             SELECT workspace_id, id, 'user', 'hello' FROM gristmill.conversations",
        )
        .execute(&db)
    };
    try_join_all((0..40).map(|_| write())).await?;
    let numbers: Vec<i64> =
        sqlx::query_scalar("SELECT serial_number FROM gristmill.messages ORDER BY 1").fetch_all(&db).await?;
    assert_eq!(numbers, (1..=42).collect::<Vec<i64>>());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_is_history_is_not_changed_even_by_the_owner(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    for sql in [
        "UPDATE gristmill.summaries SET content = 'other'",
        "UPDATE gristmill.prompts SET content = 'other'",
        "UPDATE gristmill.agent_versions SET manifest = '{}'",
        "UPDATE gristmill.model_prices SET cost_1k_input = 0",
        "UPDATE gristmill.tool_definitions SET definition = '{}'",
        "UPDATE gristmill.tool_approvals SET decision = 'REFUSED'",
    ] {
        assert_eq!(refusal(attempt(&db, sql).await), RESTRICT_VIOLATION, "{sql}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_summary_pointer_names_a_summary_and_moves_back(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let point = |to: &str| format!("UPDATE gristmill.conversations SET latest_summary_sn = {to}");
    for to in ["1", "NULL"] {
        assert_eq!(attempt(&db, &point(to)).await?, 1, "{to}");
    }
    assert_eq!(refusal(attempt(&db, &point("3")).await), CHECK_VIOLATION);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_retired_user_key_makes_room_for_the_next(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let next = "INSERT INTO gristmill.user_keys (workspace_id, user_id, provider, api_key, iv, auth_tag)
                SELECT workspace_id, user_id, provider, 'new', iv, auth_tag FROM gristmill.user_keys";
    assert_eq!(refusal(attempt(&db, next).await), UNIQUE_VIOLATION);
    let retire = format!("UPDATE gristmill.user_keys SET retired_at = now(); {next}");
    attempt(&db, &retire).await?;
    Ok(())
}
