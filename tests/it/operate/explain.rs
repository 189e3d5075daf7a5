//! Why a job is where it is: one code for programs, one sentence for people.

use super::*;

async fn plant(world: &World, columns: &str, values: &str) -> anyhow::Result<Uuid> {
    let sql = format!(
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload, {columns}) VALUES ($1, 'forget', '{{}}', {values}) RETURNING id"
    );
    let id =
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(world.workspace.0).fetch_one(&world.admin).await?;
    Ok(id)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn every_state_has_its_reason_and_its_sentence(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let leased = "state, worker, epoch, attempts, started_at, lease_until";
    for (columns, values, code, word) in [
        ("run_at", "now() + interval '1 hour'", "schedule", "in 60 min, not before"),
        (
            "state, run_at, attempts, reason",
            "'SCHEDULED', now() + interval '8 seconds', 3, 'gave_up: the store is away'",
            "backoff",
            "attempt 3 of 10 failed (gave_up: the store is away)",
        ),
        (
            "state, run_at, reason",
            "'SCHEDULED', now() + interval '1 minute', 'the other side is busy'",
            "asked_to_wait",
            "the other side is busy",
        ),
        (
            "state, run_at, reason",
            "'SCHEDULED', now() + interval '1 minute', 'rate limit of openai gpt-5: 500 requests a minute'",
            "rate_limit",
            "500 requests",
        ),
        (
            "state, run_at, attempts, reason",
            "'SCHEDULED', now() + interval '1 minute', 2, 'worker_crash: the lease of w lapsed'",
            "rescued",
            "the lease of w lapsed",
        ),
        (
            "state, reason",
            "'PARKED', 'NEEDS_APPROVAL: the tool deletes files'",
            "parked_needs_approval",
            "approval",
        ),
        ("state, reason", "'PARKED', 'NEEDS_AUTH: log in'", "parked_needs_auth", "credential"),
        ("state, reason", "'PARKED', 'BUDGET: 3 dollars are spent'", "parked_budget", "3 dollars"),
        (
            leased,
            "'RUNNING', 'mill-7', 1, 1, now() - interval '5 seconds', now() + interval '20 seconds'",
            "running",
            "mill-7 has been at work on it for 5 s, attempt 1 of 10",
        ),
        (
            leased,
            "'RUNNING', 'mill-7', 1, 1, now() - interval '1 minute', now() - interval '30 seconds'",
            "lease_lapsed",
            "lapsed 30 s ago",
        ),
        ("state, finished_at, attempts", "'DONE', now() - interval '3 days', 1", "done", "done 3 days ago"),
        ("state, finished_at, reason", "'DEAD', now(), 'gave_up: no luck'", "dead", "gave_up: no luck"),
        (
            "state, finished_at, reason",
            "'CANCELLED', now(), 'cancelled on request'",
            "cancelled",
            "on request",
        ),
        ("cancel_requested", "true", "cancel_requested", "a cancel was asked for"),
        ("attempts, max_attempts", "3, 3", "used_up", "its 3 attempts are used up"),
    ] {
        let id = plant(&world, columns, values).await?;
        let reasons = jobs::explain(&world.ctx.db, id).await?;
        let codes: Vec<_> = reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert!(codes.contains(&code), "{values}: {codes:?}");
        let says: Vec<_> = reasons.iter().map(|reason| reason.says.as_str()).collect();
        assert!(says.iter().any(|says| says.contains(word)), "{word}: {says:?}");
    }
    assert!(jobs::explain(&world.ctx.db, Uuid::now_v7()).await?.is_empty());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_waits_its_turn_is_told_how_many_are_before_it(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    for seconds in [50, 40, 30] {
        plant(&world, "run_at", &format!("now() - interval '{seconds} seconds'")).await?;
    }
    plant(&world, "run_at, priority", "now(), 5").await?;
    let ours = plant(&world, "run_at", "now() - interval '10 seconds'").await?;
    sqlx::query(
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload) VALUES (gen_random_uuid(), 'forget', '{}')",
    )
    .execute(&world.admin)
    .await?;
    let reasons = jobs::explain(&world.ctx.db, ours).await?;
    let turn = reasons.iter().find(|reason| reason.code == "turn").map(|reason| &reason.facts);
    assert_eq!(turn, Some(&serde_json::json!({ "before_it": 4, "other_workspaces": 1 })), "{reasons:?}");
    assert_eq!(reasons.last().map(|reason| reason.code.as_str()), Some("due"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_that_nobody_may_take_is_told_who_holds_it_back(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let ours = plant(&world, "run_at", "now()").await?;
    let codes = async || -> anyhow::Result<Vec<String>> {
        let reasons = jobs::explain(&world.ctx.db, ours).await?;
        Ok(reasons.into_iter().map(|reason| reason.code).collect())
    };
    assert_eq!(codes().await?, ["no_worker", "due"]);
    world.change("SELECT gristmill.report_worker('mill-7', 'host', 1, '0.1', '{scan}', 4)").await?;
    assert_eq!(codes().await?, ["no_worker", "due"], "that one does another kind");
    world.change("SELECT gristmill.report_worker('mill-8', 'host', 1, '0.1', '{scan,forget}', 4)").await?;
    assert_eq!(codes().await?, ["due"]);
    world.change("UPDATE gristmill.workers SET last_seen = now() - interval '1 hour'").await?;
    assert_eq!(codes().await?, ["no_worker", "due"]);
    world.change("UPDATE gristmill.workers SET last_seen = now()").await?;

    world.change("UPDATE gristmill.kinds SET in_flight_cap = 0 WHERE kind = 'forget'").await?;
    assert_eq!(codes().await?, ["paused", "due"]);
    world.change("UPDATE gristmill.kinds SET in_flight_cap = 1").await?;
    let leased = "state, worker, epoch, attempts, started_at, lease_until";
    plant(&world, leased, "'RUNNING', 'w', 1, 1, now(), now() + interval '1 minute'").await?;
    assert_eq!(codes().await?, ["kind_cap", "places", "due"]);
    world.change("UPDATE gristmill.kinds SET in_flight_cap = NULL").await?;
    world
        .change("INSERT INTO gristmill.shares (workspace_id, in_flight_cap) SELECT workspace_id, 1 FROM gristmill.jobs LIMIT 1")
        .await?;
    assert_eq!(codes().await?, ["workspace_cap", "places", "due"]);
    world.change("UPDATE gristmill.shares SET in_flight_cap = 2").await?;
    assert_eq!(codes().await?, ["places", "due"]);
    Ok(())
}
