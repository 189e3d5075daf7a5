//! Money is exact, and no reservation goes over a budget.

use futures::future::join_all;
use sqlx::PgPool;

use super::CHECK_VIOLATION;
use super::attempt;
use super::insert_samples;
use super::names;
use super::refusal;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn no_amount_of_money_or_tokens_is_a_float(db: PgPool) -> anyhow::Result<()> {
    let money = names(
        &db,
        "SELECT table_name || '.' || column_name || ' ' || data_type FROM information_schema.columns
         WHERE table_schema = 'gristmill'
           AND column_name ~ '(^|_)(cost|amount|spent|reserved|remaining|price|budget)(_|$)'
           AND data_type NOT IN ('numeric', 'uuid') ORDER BY 1",
    )
    .await?;
    assert!(money.is_empty(), "{money:?}");

    let floats = names(
        &db,
        "SELECT table_name || '.' || column_name FROM information_schema.columns
         WHERE table_schema = 'gristmill' AND data_type IN ('real', 'double precision')
           -- Moments of the limits' clocks.
           AND table_name NOT IN ('limits', 'limit_turns')
           AND column_name NOT IN ('lat', 'lng', 'temperature', 'top_p', 'frequency_penalty', 'presence_penalty')",
    )
    .await?;
    assert!(floats.is_empty(), "{floats:?}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn parallel_reservations_fill_a_budget_and_do_not_pass_it(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    // 9.5 of 10 are free: 95 of 120 fit. The statement has no condition of its own.
    let reserve = || sqlx::query("UPDATE gristmill.budgets SET reserved = reserved + 0.1").execute(&db);
    let outcomes = join_all((0..120).map(|_| reserve())).await;
    let (fitted, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((fitted.len(), refused.len()), (95, 25));
    for outcome in refused {
        assert_eq!(refusal(outcome), CHECK_VIOLATION);
    }
    let exact: bool = sqlx::query_scalar("SELECT reserved = 10 AND remaining = 0 FROM gristmill.budgets")
        .fetch_one(&db)
        .await?;
    assert!(exact);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_bill_above_its_reservation_is_recorded_and_stops_the_next(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let settle = "UPDATE gristmill.budgets SET spent = spent + 12, reserved = reserved - 0.5";
    assert_eq!(attempt(&db, settle).await?, 1);
    assert_eq!(attempt(&db, "UPDATE gristmill.budgets SET amount = 0.1").await?, 1);
    let next = format!("{settle}; UPDATE gristmill.budgets SET reserved = reserved + 0.000001");
    assert_eq!(refusal(attempt(&db, &next).await), CHECK_VIOLATION);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_settled_call_has_its_price_or_says_that_there_is_none(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let settle = |rest: &str| {
        format!(
            "UPDATE gristmill.usages SET state = 'SETTLED', settled_at = now(), source = 'estimated', input_tokens = 1,
                 cache_read_tokens = 0, cache_write_tokens = 0, output_tokens = 1, reasoning_tokens = 0, {rest}
             WHERE state = 'OPEN'"
        )
    };
    assert_eq!(attempt(&db, &settle("cost = 0.25")).await?, 1);
    assert_eq!(attempt(&db, &settle("unpriced = true")).await?, 1);
    assert_eq!(refusal(attempt(&db, &settle("cost = NULL")).await), CHECK_VIOLATION);
    assert_eq!(refusal(attempt(&db, &settle("unpriced = true, cost = 0")).await), CHECK_VIOLATION);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn usage_stats_count_every_class_of_tokens_once(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let (input, output, total): (i64, i64, i64) =
        sqlx::query_as("SELECT input_tokens, output_tokens, total_tokens FROM gristmill.usage_stats")
            .fetch_one(&db)
            .await?;
    assert_eq!((input, output, total), (1110, 250, 1360));
    Ok(())
}
