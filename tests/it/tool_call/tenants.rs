//! Two tenants that call tools at once know nothing of each other.

use super::Chat;
use crate::world::World;
use gristmill::store::tenants::ensure_workspace;
use serde_json::json;
use sqlx::{PgPool, Row};
use uuid::Uuid;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tenant_neither_calls_nor_reads_nor_decides_for_another(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let acme = Chat::new(&world).await?;
    let birch_id = ensure_workspace(&mut *world.admin.acquire().await?, "birch").await?;
    let birch = Chat::of(&world, birch_id).await?;
    let ours = acme.knowledge_base("kb").await?;
    let theirs = birch.knowledge_base("kb").await?;
    let first = acme.call("a", "kb", json!({ "query": "q" })).await?;
    let second = birch.call("a", "kb", json!({ "query": "q" })).await?;
    // By the other's id of a tool.
    let stolen = birch.call("b", &ours.to_string(), json!({ "query": "q" })).await?;
    acme.work().await?;
    assert_eq!((acme.told().await?.len(), birch.told().await?.len()), (1, 2));
    assert_eq!(birch.state(stolen).await?.1.unwrap_or_default(), "there is no such tool here; there is: kb");
    let tools: Vec<Uuid> =
        sqlx::query_scalar("SELECT tool_id FROM gristmill.tool_calls WHERE id = ANY ($1) ORDER BY id")
            .bind(vec![first, second])
            .fetch_all(&world.admin)
            .await?;
    assert_eq!(tools, [ours, theirs]);

    // The other's result, by its handle.
    let handle: Uuid = sqlx::query_scalar("SELECT id FROM gristmill.tool_results WHERE call_id = $1")
        .bind(first)
        .fetch_one(&world.admin)
        .await?;
    let own = acme.call("r", "read_result", json!({ "handle": handle })).await?;
    let foreign = birch.call("r", "read_result", json!({ "handle": handle })).await?;
    acme.work().await?;
    assert_eq!(acme.state(own).await?.0, "OK");
    let (state, reason) = birch.state(foreign).await?;
    assert_eq!(state, "ERROR");
    assert!(reason.unwrap_or_default().contains("no result of this handle"), "not theirs");

    // The functions, in a transaction that set the other tenant.
    for sql in [
        "SELECT gristmill.approve_call($1)::text",
        "SELECT gristmill.deny_call($1)::text",
        "SELECT gristmill.cancel_call($1)::text",
        "SELECT gristmill.resolve_unknown($1, 'ok')::text",
    ] {
        let mut tx = gristmill::store::tenant(&world.admin, birch_id).await?;
        let refused =
            sqlx::query(sql).bind(first).fetch_one(&mut *tx).await.map(|row| row.get::<Option<String>, _>(0));
        assert!(refused.unwrap_err().to_string().contains("there is no tool call"), "{sql}");
    }
    let mut tx = gristmill::store::tenant(&world.admin, birch_id).await?;
    let refused = sqlx::query("SELECT call_id FROM gristmill.call_tool($1, 'x', 'kb')")
        .bind(acme.message)
        .fetch_one(&mut *tx)
        .await;
    assert!(refused.unwrap_err().to_string().contains("there is no message"));
    Ok(())
}
