//! A call and its answer.

use super::Chat;
use crate::world::World;
use serde_json::json;
use sqlx::PgPool;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_call_of_a_knowledge_base_goes_from_sql_to_a_message_with_citations(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("handbook").await?;
    world.ingest("mill.txt", b"The miller opens the sluice at six in the morning.").await?;
    chat.change(format!("UPDATE gristmill.resources SET tool_id = '{tool}'")).await?;
    chat.change(format!("UPDATE gristmill.chunks SET tool_id = '{tool}'")).await?;

    let call =
        chat.call("call_1", "handbook", json!({ "query": "When does the miller open the sluice?" })).await?;
    chat.work().await?;

    assert_eq!(chat.state(call).await?, ("OK".into(), None));
    let told = chat.told().await?;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].tool_call_id, "call_1");
    assert!(told[0].text.starts_with("[output of the tool `handbook`"), "{}", told[0].text);
    assert!(told[0].text.contains("mill.txt, bytes 0-50\nThe miller opens the sluice"), "{}", told[0].text);
    assert_eq!(told[0].metadata["call"], json!(call));
    assert_eq!(chat.events(call).await?, ["requested", "started", "ok", "answered"]);
    let citation = "SELECT count(*) FROM gristmill.tool_results r
                    WHERE r.result #>> '{structuredContent,hits,0,citation,name}' = 'mill.txt' AND r.message_id IS NOT NULL";
    assert_eq!(world.count(citation).await?, 1);
    let attempts = "SELECT count(*) FROM gristmill.tool_attempts WHERE outcome = 'OK' AND effect = 'read'";
    assert_eq!(world.count(attempts).await?, 1);
    Ok(())
}
