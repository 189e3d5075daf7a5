//! A call and its answer.

use super::Chat;
use crate::world::{World, settings};
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

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_long_result_lies_in_the_bucket_and_is_read_page_by_page(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.tools.inline_bytes = 2_000;
    settings.tools.view_chars = 1_000;
    settings.tools.page_chars = 700;
    let world = World::with(db, settings).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("handbook").await?;
    let text: String =
        (0..400).map(|n| format!("Sack {n} of the mill weighs {} pounds. ", n * 7 % 97)).collect();
    world.ingest("sacks.txt", text.as_bytes()).await?;
    chat.change(format!("UPDATE gristmill.resources SET tool_id = '{tool}'")).await?;
    chat.change(format!("UPDATE gristmill.chunks SET tool_id = '{tool}'")).await?;
    let call = chat.call("a", "handbook", json!({ "query": "how much does each sack weigh" })).await?;
    chat.work().await?;
    assert_eq!(chat.state(call).await?.0, "OK");
    let told = chat.told().await?.remove(0);
    assert_eq!(told.metadata["truncated"], true);
    assert!(told.text.contains("are left out here") && told.text.chars().count() < 1_600, "{}", told.text);
    let handle = told.metadata["result"].as_str().unwrap_or_default().to_owned();
    assert!(told.text.contains(&handle));
    let stored = "SELECT count(*) FROM gristmill.tool_results r JOIN gristmill.resources s ON s.id = r.resource_id
                  WHERE r.result IS NULL AND s.s3_uri = format('s3://%s/%s', r.bucket, r.key) AND octet_length(r.sha256) = 32";
    assert_eq!(world.count(stored).await?, 1);

    let mut whole = String::new();
    for page in 1.. {
        let message = chat.ask().await?;
        let arguments = json!({ "handle": handle, "page": page });
        let read = chat.call_of(message, &format!("p{page}"), "read_result", arguments).await?;
        chat.work().await?;
        if chat.state(read).await?.0 == "ERROR" {
            break;
        }
        let text = chat.told().await?.pop().map(|told| told.text).unwrap_or_default();
        // Below the line that marks it, and the line that numbers the page.
        let body = text.splitn(3, "]\n").nth(2).unwrap_or_default();
        assert!(text.starts_with("[output of the tool `read_result`"), "{text}");
        whole.push_str(body);
    }
    assert!(whole.starts_with("[1] sacks.txt, bytes ") && whole.chars().count() > 3_000, "{whole}");
    for n in [0, 399] {
        assert!(whole.contains(&format!("Sack {n} of the mill")), "{n}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_knowledge_base_says_what_it_could_not_do_as_asked(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let chat = Chat::new(&world).await?;
    let tool = chat.knowledge_base("kb").await?;
    for n in 0..4 {
        world.ingest(&format!("{n}.txt"), format!("Grain of field {n}.").as_bytes()).await?;
    }
    chat.change(format!("UPDATE gristmill.resources SET tool_id = '{tool}'")).await?;
    chat.change(format!("UPDATE gristmill.chunks SET tool_id = '{tool}'")).await?;
    chat.change(
        "UPDATE gristmill.tools SET custom_config = custom_config || '{\"retrieveTopN\": 3, \"rerankTopN\": 2,
            \"embeddingModelID\": \"another\", \"rerankingModelID\": \"a-cross-encoder\"}'"
            .into(),
    )
    .await?;
    chat.call("a", "kb", json!({ "query": "grain" })).await?;
    let empty = chat.call("b", "kb", json!({ "query": " " })).await?;
    chat.work().await?;
    let told = chat.told().await?;
    assert!(told[0].text.contains("[2] ") && !told[0].text.contains("[3] "), "{}", told[0].text);
    assert!(told[0].text.contains("not reranked: there is no reranker here (a-cross-encoder was asked for)"));
    assert!(told[0].text.contains("(another was asked for)"));
    assert_eq!(chat.state(empty).await?.0, "ERROR");
    Ok(())
}
