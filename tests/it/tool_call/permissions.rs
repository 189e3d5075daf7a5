//! Who may call what is read from the rows, in the worker, each time.

use super::Chat;
use crate::world::World;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};

/// What is taken from a call that would be made, the state it comes to, and a word of the reason.
const TAKEN: &[(&str, &str, &str)] = &[
    ("DELETE FROM gristmill.agent_tools", "DENIED", "the agent does not have this tool"),
    ("UPDATE gristmill.tools SET enabled = false", "DENIED", "switched off"),
    ("UPDATE gristmill.tools SET per_user = true", "DENIED", "the user does not have this tool"),
    ("UPDATE gristmill.users SET status = 'Disabled'", "DENIED", "not active"),
    ("UPDATE gristmill.conversations SET deleted_at = now()", "DENIED", "deleted"),
    (
        "UPDATE gristmill.conversations SET is_shared = true, share_token = 's', user_id = NULL",
        "DENIED",
        "reads along",
    ),
    ("UPDATE gristmill.tool_calls SET agent_id = NULL", "DENIED", "there is no agent, and the user does not"),
    ("UPDATE gristmill.tool_calls SET agent_id = NULL, user_id = NULL", "DENIED", "neither an agent nor a user"),
    (
        "INSERT INTO gristmill.policies (workspace_id, name, resource, action)
         SELECT id, 'p', 'tool:other', 'call' FROM gristmill.workspaces WHERE external_id = 'acme'",
        "DENIED",
        "the user's role does not allow it",
    ),
    ("UPDATE gristmill.tools SET authentication_type = 'bearer'", "NEEDS_AUTH", "needs one (bearer)"),
    (
        "INSERT INTO gristmill.budgets (workspace_id, amount, spent)
         SELECT id, 1, 1 FROM gristmill.workspaces WHERE external_id = 'acme'",
        "BUDGET",
        "the workspace's budget is used up",
    ),
    (
        "INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition)
         SELECT workspace_id, id, sha256('new'), '{}' FROM gristmill.tools WHERE name = 'kb'",
        "NEEDS_APPROVAL",
        "definition: its definition is new or has changed",
    ),
    (
        "INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition, review, reviewed_at)
         SELECT workspace_id, id, sha256('new'), '{}', 'REFUSED', now() FROM gristmill.tools WHERE name = 'kb'",
        "DENIED",
        "looked at and refused",
    ),
    (
        "UPDATE gristmill.tools SET input_schema = '{\"type\": \"object\", \"required\": [\"place\"]}'",
        "ERROR",
        "the arguments do not fit the tool's schema: \"place\" is a required property",
    ),
];

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_that_lacks_one_right_is_not_made_and_says_which(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("kb").await?;
    // With everything in its place it is made.
    let call = chat.call("all", "kb", json!({ "query": "q" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    let starts = "SELECT count(*) FROM gristmill.tool_attempts";
    assert_eq!(world.count(starts).await?, 1);

    for (n, (taken, state, word)) in TAKEN.iter().enumerate() {
        let message = chat.ask().await?;
        let call = chat.call_of(message, &n.to_string(), "kb", json!({ "query": "q" })).await?;
        let mut tx = world.admin.begin().await?;
        sqlx::query("CREATE TABLE public.undo AS SELECT 1").execute(&mut *tx).await?;
        tx.rollback().await?;
        let before = Snapshot::take(&world).await?;
        sqlx::query(AssertSqlSafe(*taken)).execute(&world.admin).await?;
        chat.work().await?;
        let (now, reason) = chat.state(call).await?;
        assert_eq!(&now, state, "{taken}");
        assert!(reason.clone().unwrap_or_default().contains(word), "{taken}: {reason:?}");
        before.put_back(&world).await?;
    }
    assert_eq!(world.count(starts).await?, 1, "none of them was started");
    Ok(())
}

/// The rows that speak of rights, as they were.
struct Snapshot {
    agent_tools: Vec<(uuid::Uuid, uuid::Uuid, uuid::Uuid)>,
}

impl Snapshot {
    async fn take(world: &World) -> anyhow::Result<Self> {
        let sql = "SELECT workspace_id, agent_id, tool_id FROM gristmill.agent_tools";
        Ok(Self { agent_tools: sqlx::query_as(sql).fetch_all(&world.admin).await? })
    }

    async fn put_back(self, world: &World) -> anyhow::Result<()> {
        for sql in [
            "DELETE FROM gristmill.agent_tools",
            "DELETE FROM gristmill.policies",
            "DELETE FROM gristmill.budgets",
            "DELETE FROM gristmill.tool_definitions",
            "UPDATE gristmill.tools SET enabled = true, per_user = false, authentication_type = 'none', input_schema = '{\"type\": \"object\"}'",
            "UPDATE gristmill.users SET status = 'Active'",
            "UPDATE gristmill.conversations SET deleted_at = NULL, is_shared = false, user_id = (SELECT id FROM gristmill.users LIMIT 1)",
            "DELETE FROM gristmill.jobs WHERE state = 'PARKED'",
        ] {
            sqlx::query(sql).execute(&world.admin).await?;
        }
        for (workspace, agent, tool) in self.agent_tools {
            sqlx::query(
                "INSERT INTO gristmill.agent_tools (workspace_id, agent_id, tool_id) VALUES ($1, $2, $3)",
            )
            .bind(workspace)
            .bind(agent)
            .bind(tool)
            .execute(&world.admin)
            .await?;
        }
        Ok(())
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_role_allows_a_tool_by_its_name_or_by_the_beginning_of_it(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("books__find").await?;
    let role =
        format!("INSERT INTO gristmill.roles (workspace_id, name) VALUES ('{}', 'User')", chat.workspace);
    chat.change(role).await?;
    chat.change("UPDATE gristmill.users SET role_id = (SELECT id FROM gristmill.roles)".into()).await?;
    let cases = [
        ("tool:books__find", "call", "OK"),
        ("tool:books__*", "call", "OK"),
        ("tool:*", "*", "OK"),
        ("*", "call", "OK"),
        ("tool:books__find", "list", "DENIED"),
        ("tool:books", "call", "DENIED"),
        ("tool:films__*", "call", "DENIED"),
    ];
    for (n, (resource, action, state)) in cases.into_iter().enumerate() {
        chat.change("DELETE FROM gristmill.policies".into()).await?;
        chat.change(format!(
            "INSERT INTO gristmill.policies (workspace_id, name, resource, action) VALUES ('{}', 'p', '{resource}', '{action}')",
            chat.workspace
        ))
        .await?;
        chat.change(
            "INSERT INTO gristmill.role_policies (workspace_id, role_id, policy_id)
             SELECT r.workspace_id, r.id, p.id FROM gristmill.roles r, gristmill.policies p"
                .into(),
        )
        .await?;
        let message = chat.ask().await?;
        let call = chat.call_of(message, &n.to_string(), "books__find", json!({ "query": "q" })).await?;
        chat.work().await?;
        assert_eq!(chat.state(call).await?.0, state, "{resource} {action}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_name_that_no_tool_has_is_answered_with_those_there_are(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    chat.knowledge_base("handbook").await?;
    let wrong = chat.call("a", "handbok", json!({})).await?;
    let text = chat.call("b", "handbook", json!("no object")).await?;
    chat.work().await?;
    let (state, reason) = chat.state(wrong).await?;
    assert_eq!(
        (state.as_str(), reason.as_deref()),
        ("ERROR", Some("there is no such tool here; there is: handbook"))
    );
    assert_eq!(chat.state(text).await?, ("ERROR".into(), Some("the arguments are no JSON object".into())));
    assert!(chat.told().await?.iter().all(|told| told.metadata["is_error"] == true));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state <> 'DONE'").await?, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tool_that_waits_for_review_leaves_others_alone(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let changed = chat.knowledge_base("changed").await?;
    chat.knowledge_base("sound").await?;
    chat.change(format!(
        "INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition)
         VALUES ('{}', '{changed}', sha256('x'), '{{}}')",
        chat.workspace
    ))
    .await?;
    let first = chat.call("a", "changed", json!({ "query": "q" })).await?;
    let second = chat.call("b", "sound", json!({ "query": "q" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(first).await?.0, "NEEDS_APPROVAL");
    assert_eq!(chat.state(second).await?.0, "OK");
    chat.change("UPDATE gristmill.tool_definitions SET review = 'APPROVED', reviewed_at = now()".into())
        .await?;
    chat.say("SELECT gristmill.unpark(id) FROM gristmill.jobs WHERE unique_key = $1::text", first).await?;
    chat.work().await?;
    assert_eq!(chat.state(first).await?.0, "OK");
    let pinned = "SELECT count(*) FROM gristmill.tool_calls WHERE definition_id IS NOT NULL";
    assert_eq!(world.count(pinned).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tool_over_its_rate_waits_its_turn_at_no_cost(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("kb").await?;
    // A burst of ten seconds' worth goes at once: two calls; the third waits.
    chat.change(format!("SELECT gristmill.set_limit('tool:{tool}', 'calls', 12, NULL)")).await?;
    for n in 0..3 {
        chat.call(&n.to_string(), "kb", json!({ "query": "q" })).await?;
    }
    let worker = gristmill::runtime::Worker::start(&world.ctx, gristmill::runtime::every_kind)?;
    let waits = "SELECT count(*) = 1 FROM gristmill.jobs WHERE state = 'SCHEDULED' AND reason LIKE 'rate limit of tool:%' AND attempts = 0";
    let waited = world.until("one waits", waits).await;
    worker.stop().await;
    waited?;
    let requested = "SELECT count(*) FROM gristmill.tool_calls WHERE state = 'REQUESTED'";
    assert!(world.count(requested).await? >= 1);
    Ok(())
}
