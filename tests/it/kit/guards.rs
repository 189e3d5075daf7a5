//! Guards of the queue, taken out of a test's own database.

use sqlx::{AssertSqlSafe, Executor, PgPool};

/// A change to the text of a function: its name, what goes, what comes in its place.
pub type Change<'a> = (&'a str, &'a str, &'a str);

/// What `enter`, `complete` and `bury` ask of the row.
pub const SAME_EPOCH: &str = "AND epoch = at_epoch AND (state = 'RUNNING') IS TRUE";

/// Changes every place of a function's text where the guard stands. One that is not found is an
/// error, so that the controls follow the migrations.
pub async fn take_out(owner: &PgPool, (function, from, to): Change<'_>) -> anyhow::Result<()> {
    let text: String = sqlx::query_scalar("SELECT pg_get_functiondef($1::regproc)")
        .bind(format!("gristmill.{function}"))
        .fetch_one(owner)
        .await?;
    anyhow::ensure!(text.contains(from), "gristmill.{function} has no `{from}` any more:\n{text}");
    owner.execute(AssertSqlSafe(text.replace(from, to))).await?;
    Ok(())
}
