//! A person's yes and no: asked for by policy, bound to the arguments, and not for ever.

use super::Chat;
use crate::world::World;
use gristmill::jobs::Tidy;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

/// A chat whose one tool has effects, as far as the ledger knows.
async fn effectful(world: &World) -> anyhow::Result<(Chat<'_>, Uuid)> {
    let chat = Chat::new(world).await?;
    let tool = chat.knowledge_base("pay").await?;
    chat.change(format!("UPDATE gristmill.tools SET effect = 'effectful' WHERE id = '{tool}'")).await?;
    Ok((chat, tool))
}

async fn starts(world: &World) -> anyhow::Result<i64> {
    world.count("SELECT count(*) FROM gristmill.tool_attempts").await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_parked_call_costs_no_attempt_survives_restarts_and_goes_on_when_approved(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let call = {
        let (chat, _) = effectful(&world).await?;
        let call = chat.call("a", "pay", json!({ "query": "q" })).await?;
        chat.work().await?;
        chat.work().await?;
        let (state, reason) = chat.state(call).await?;
        assert_eq!(state, "NEEDS_APPROVAL");
        assert!(reason.unwrap_or_default().starts_with("approval: "));
        call
    };
    let parked = "SELECT count(*) FROM gristmill.jobs WHERE state = 'PARKED' AND attempts = 0 AND reason LIKE 'NEEDS_APPROVAL: %'";
    assert_eq!(world.count(parked).await?, 1);
    let deadline = "SELECT count(*) FROM gristmill.tool_calls WHERE expires_at BETWEEN now() + interval '23 h' AND now() + interval '25 h'";
    assert_eq!(world.count(deadline).await?, 1);
    world.restart(|_| {})?;
    assert_eq!(starts(&world).await?, 0);

    let sql = "SELECT gristmill.approve_call(c.id, arguments_sha256 => c.arguments_sha256) FROM gristmill.tool_calls c WHERE c.id = $1";
    sqlx::query(sql).bind(call).execute(&world.admin).await?;
    world.work(gristmill::runtime::every_kind).await?;
    let ended =
        "SELECT count(*) FROM gristmill.tool_calls c JOIN gristmill.tool_results r ON r.call_id = c.id
                 WHERE c.state = 'OK' AND r.message_id IS NOT NULL";
    assert_eq!(world.count(ended).await?, 1);
    assert_eq!(starts(&world).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_approval_of_other_arguments_or_of_a_call_that_does_not_wait_is_refused(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, _) = effectful(&world).await?;
    let call = chat.call("a", "pay", json!({ "query": "10 euros" })).await?;
    let early = chat.say("SELECT gristmill.approve_call($1)", call).await.unwrap_err();
    assert!(early.to_string().contains("nothing to approve"), "{early}");
    chat.work().await?;
    let stale = "SELECT gristmill.approve_call($1, arguments_sha256 => gristmill.arguments_digest('{\"query\": \"1 euro\"}'))";
    let refused = chat.say(stale, call).await.unwrap_err();
    assert!(refused.to_string().contains("not the ones that were approved"), "{refused}");
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "NEEDS_APPROVAL");
    assert_eq!(starts(&world).await?, 0);
    let late = "UPDATE gristmill.tool_calls SET expires_at = now() - interval '1 s'";
    chat.change(late.into()).await?;
    let refused = chat.say("SELECT gristmill.approve_call($1)", call).await.unwrap_err();
    assert!(refused.to_string().contains("waited too long"), "{refused}");
    Ok(())
}

/// The worker does not believe a state: it looks for an approval of these arguments that still holds.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_without_a_fitting_approval_is_parked_again_whatever_its_state_says(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, _) = effectful(&world).await?;
    let call = chat.call("a", "pay", json!({ "query": "q" })).await?;
    chat.work().await?;
    let forged = [
        // Nothing; an approval that is over; one of other arguments; a refusal.
        "SELECT NULL::uuid, NULL::bytea, 'APPROVED', now() WHERE false",
        "SELECT id, arguments_sha256, 'APPROVED', now() - interval '1 s' FROM gristmill.tool_calls",
        "SELECT id, sha256('other'), 'APPROVED', now() + interval '1 h' FROM gristmill.tool_calls",
        "SELECT id, arguments_sha256, 'REFUSED', now() + interval '1 h' FROM gristmill.tool_calls",
    ];
    for rows in forged {
        chat.change(format!(
            "INSERT INTO gristmill.tool_approvals (workspace_id, call_id, arguments_sha256, decision, expires_at)
             SELECT '{}', x.id, x.digest, x.decision::gristmill.review_state, x.until FROM ({rows}) AS x (id, digest, decision, until)",
            chat.workspace
        ))
        .await?;
        chat.change("UPDATE gristmill.tool_calls SET state = 'REQUESTED', reason = NULL".into()).await?;
        chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", call).await?;
        chat.work().await?;
        assert_eq!(chat.state(call).await?.0, "NEEDS_APPROVAL", "{rows}");
    }
    assert_eq!(starts(&world).await?, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_denied_call_is_answered_with_the_reason_and_never_made(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, _) = effectful(&world).await?;
    let call = chat.call("a", "pay", json!({ "query": "q" })).await?;
    chat.work().await?;
    chat.say("SELECT gristmill.deny_call($1, reason => 'too dear')", call).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?, ("DENIED".into(), Some("a person said no: too dear".into())));
    assert_eq!(chat.events(call).await?, ["requested", "needs_approval", "denied", "answered"]);
    assert!(chat.told().await?[0].text.ends_with("a person said no: too dear"));
    assert_eq!(starts(&world).await?, 0);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state <> 'DONE'").await?, 0);
    assert!(chat.say("SELECT gristmill.approve_call($1)", call).await.is_err(), "a no is final");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn policies_decide_by_tool_and_arguments_the_first_that_fits(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, tool) = effectful(&world).await?;
    let other = chat.knowledge_base("look").await?;
    let policy = async |ord: i32, of: Option<Uuid>, arguments: Option<Value>, decision: &str| {
        sqlx::query(
            "INSERT INTO gristmill.tool_policies (workspace_id, tool_id, ord, arguments, decision, note)
             VALUES ($1, $2, $3, $4, $5::gristmill.tool_decision, 'policy ' || $3)",
        )
        .bind(chat.workspace.0)
        .bind(of)
        .bind(ord)
        .bind(arguments)
        .bind(decision)
        .execute(&world.admin)
        .await
    };
    let about = |pattern: &str| Some(json!({ "properties": { "query": { "pattern": pattern } } }));
    policy(1, Some(tool), about("^small"), "allow").await?;
    policy(2, Some(tool), about("^huge"), "deny").await?;
    // Not a schema: it allows nothing, and forbids what it may have meant.
    policy(3, Some(tool), Some(json!({ "properties": { "query": { "pattern": "(" } } })), "allow").await?;
    policy(4, Some(other), Some(json!({ "type": 7 })), "deny").await?;
    policy(5, None, about("^odd"), "ask").await?;

    let cases = [
        ("pay", "small sum", "OK"),
        ("pay", "huge sum", "DENIED"),
        ("pay", "odd sum", "NEEDS_APPROVAL"),
        ("pay", "any sum", "NEEDS_APPROVAL"),
        ("look", "anything", "DENIED"),
    ];
    let mut calls = Vec::new();
    for (n, (tool, query, _)) in cases.iter().enumerate() {
        let message = chat.ask().await?;
        calls.push(chat.call_of(message, &n.to_string(), tool, json!({ "query": query })).await?);
    }
    chat.work().await?;
    for (call, (tool, query, state)) in calls.iter().zip(cases) {
        assert_eq!(chat.state(*call).await?.0, state, "{tool} {query}");
    }
    assert!(chat.state(calls[1]).await?.1.unwrap_or_default().contains("policy 2"));
    chat.change("DELETE FROM gristmill.tool_policies WHERE ord = 4".into()).await?;
    let message = chat.ask().await?;
    let odd = chat.call_of(message, "odd", "look", json!({ "query": "odd one" })).await?;
    let plain = chat.call_of(message, "plain", "look", json!({ "query": "plain one" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(odd).await?.0, "NEEDS_APPROVAL", "of all tools");
    assert_eq!(chat.state(plain).await?.0, "OK");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_waits_too_long_is_cancelled_by_tidy_and_the_model_is_told(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, _) = effectful(&world).await?;
    let call = chat.call("a", "pay", json!({ "query": "q" })).await?;
    let kept = chat.call("b", "pay", json!({ "query": "r" })).await?;
    chat.work().await?;
    chat.change(format!("UPDATE gristmill.tool_calls SET expires_at = now() WHERE id = '{call}'")).await?;
    tidy(&world).await?;
    let (state, reason) = chat.state(call).await?;
    assert_eq!(state, "CANCELLED");
    assert!(reason.unwrap_or_default().starts_with("it waited too long (approval: "));
    assert_eq!(chat.told().await?.len(), 1);
    assert_eq!(chat.state(kept).await?.0, "NEEDS_APPROVAL");
    let told = "SELECT count(*) FROM gristmill.events WHERE type = 'house.tidied' AND (body ->> 'expired_calls')::int = 1";
    assert_eq!(world.count(told).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_that_lost_its_job_is_taken_up_again(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("kb").await?;
    let call = chat.call("a", "kb", json!({ "query": "q" })).await?;
    chat.change("DELETE FROM gristmill.jobs".into()).await?;
    chat.change("ALTER TABLE gristmill.tool_calls DISABLE TRIGGER tool_calls_touch".into()).await?;
    chat.change("UPDATE gristmill.tool_calls SET updated_at = now() - interval '2 h'".into()).await?;
    tidy(&world).await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    Ok(())
}

async fn tidy(world: &World) -> anyhow::Result<()> {
    let mut tx = gristmill::store::tenant(&world.ctx.db, gristmill::domain::SYSTEM_WORKSPACE).await?;
    gristmill::queue::enqueue(&mut tx, gristmill::domain::SYSTEM_WORKSPACE, &Tidy { deep: false }).await?;
    tx.commit().await?;
    world.work(gristmill::runtime::every_kind).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_that_waits_for_money_goes_on_when_there_is_some(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("kb").await?;
    chat.change(format!(
        "INSERT INTO gristmill.budgets (workspace_id, user_id, amount) VALUES ('{}', '{}', 0)",
        chat.workspace, chat.user
    ))
    .await?;
    let call = chat.call("a", "kb", json!({ "query": "q" })).await?;
    chat.work().await?;
    assert_eq!(
        chat.state(call).await?,
        ("BUDGET".into(), Some("budget: the user's budget is used up".into()))
    );
    tidy(&world).await?;
    assert_eq!(chat.state(call).await?.0, "BUDGET");
    chat.change("UPDATE gristmill.budgets SET amount = 5".into()).await?;
    tidy(&world).await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn looking_again_says_nothing_new_and_waits_no_longer(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, tool) = effectful(&world).await?;
    let call = chat.call("a", "pay", json!({ "query": "q" })).await?;
    chat.work().await?;
    chat.change("UPDATE gristmill.tool_calls SET expires_at = now() + interval '1 h'".into()).await?;
    chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", call).await?;
    chat.work().await?;
    assert_eq!(chat.events(call).await?, ["requested", "needs_approval"]);
    let kept = "SELECT count(*) FROM gristmill.tool_calls WHERE expires_at <= now() + interval '1 h'";
    assert_eq!(world.count(kept).await?, 1);
    // Nobody approved it: the policy did.
    chat.change(format!(
        "INSERT INTO gristmill.tool_policies (workspace_id, tool_id, decision) VALUES ('{}', '{tool}', 'allow')",
        chat.workspace
    ))
    .await?;
    chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", call).await?;
    chat.work().await?;
    assert_eq!(
        chat.events(call).await?,
        ["requested", "needs_approval", "resumed", "started", "ok", "answered"]
    );
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_policy_that_allows_speaks_only_of_calls_that_say_what_it_bounds(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let (chat, tool) = effectful(&world).await?;
    chat.change(format!(
        "INSERT INTO gristmill.tool_policies (workspace_id, tool_id, decision, arguments)
         VALUES ('{}', '{tool}', 'allow', '{{\"properties\": {{\"limit\": {{\"maximum\": 5}}}}}}')",
        chat.workspace
    ))
    .await?;
    let silent = chat.call("a", "pay", json!({ "query": "q" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(silent).await?.0, "NEEDS_APPROVAL");
    Ok(())
}

/// What was taken away while the call was made ready: here, while it took its turn at the tool's limit.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_right_that_is_lost_between_the_look_and_the_start_stops_the_call(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("kb").await?;
    chat.change(format!("SELECT gristmill.set_limit('tool:{tool}', 'calls', 100, NULL)")).await?;
    for sql in [
        "CREATE FUNCTION public.take_away() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
         $$ BEGIN DELETE FROM gristmill.agent_tools; RETURN NULL; END $$",
        "CREATE TRIGGER take_away AFTER INSERT OR UPDATE ON gristmill.limits
         FOR EACH STATEMENT EXECUTE FUNCTION public.take_away()",
    ] {
        chat.change(sql.into()).await?;
    }
    let call = chat.call("a", "kb", json!({ "query": "q" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?, ("DENIED".into(), Some("the agent does not have this tool".into())));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.agent_tools").await?, 0, "taken away meanwhile");
    assert_eq!(starts(&world).await?, 0);
    Ok(())
}

/// As a save leaves it whose transaction was open while the call looked: neither saw the other.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn tidy_wakes_a_call_whose_credential_came_unseen(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("kb").await?;
    chat.change(format!("UPDATE gristmill.tools SET authentication_type = 'bearer' WHERE id = '{tool}'"))
        .await?;
    let call = chat.call("a", "kb", json!({ "query": "q" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "NEEDS_AUTH");
    tidy(&world).await?;
    assert_eq!(chat.state(call).await?.0, "NEEDS_AUTH", "there is none yet");
    chat.change("ALTER TABLE gristmill.tool_credentials DISABLE TRIGGER tool_credentials_wake".into())
        .await?;
    chat.change(format!(
        "INSERT INTO gristmill.tool_credentials (workspace_id, tool_id, origin, credential, iv, auth_tag, key_id)
         VALUES ('{}', '{tool}', 'https://a.test', 'x', repeat('i', 16), repeat('t', 22), 'k')",
        chat.workspace
    ))
    .await?;
    tidy(&world).await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_asked_for_again_of_another_tool_is_refused(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("one").await?;
    chat.knowledge_base("two").await?;
    let call = chat.call("a", "one", json!({ "query": "q" })).await?;
    assert_eq!(chat.call("a", &tool.to_string(), json!({ "query": "q" })).await?, call, "by its id");
    let refused = chat.call("a", "two", json!({ "query": "q" })).await.unwrap_err();
    assert!(refused.to_string().contains("of another tool, one"), "{refused}");
    Ok(())
}
