//! Whose word becomes a command line: the operator's, in the settings or in rows, and nobody else's.

use super::Synced;
use gristmill::store::mcp_servers;
use serde_json::{Value, json};
use sqlx::{PgPool, Row};

/// The statements of a tenant, as the worker's role, that would make a command line of its rows.
const TENANTS_WORDS: [&str; 8] = [
    "INSERT INTO gristmill.mcp_servers (name, command) VALUES ('evil', '/bin/sh')",
    "UPDATE gristmill.mcp_servers SET command = '/bin/sh'",
    "UPDATE gristmill.mcp_servers SET arguments = '{-c,id}'",
    r#"UPDATE gristmill.mcp_servers SET env = '{"LD_PRELOAD": "/tmp/x.so"}'"#,
    "UPDATE gristmill.mcp_servers SET parameters = '{}'",
    "UPDATE gristmill.mcp_servers SET believe_hints = true",
    "DELETE FROM gristmill.mcp_servers",
    "TRUNCATE gristmill.mcp_servers CASCADE",
];

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn no_tenants_row_becomes_a_command_line(db: PgPool) -> anyhow::Result<()> {
    let mut synced = Synced::new(db, Some("trust_on_first_use"), false).await?;
    let mark = synced.state.with_extension("mark");
    for words in TENANTS_WORDS {
        let mut tx = gristmill::store::tenant(&synced.world.ctx.db, synced.world.workspace).await?;
        let refused = sqlx::query(words).execute(&mut *tx).await.unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{words}: {refused}");
    }
    // What a tenant may write: parameters, and tools that name a program as their endpoint.
    let shell = json!({ "command": "/bin/sh", "arguments": ["-c", format!("touch {}", mark.display())] });
    sqlx::query("UPDATE gristmill.mcp_server_connections SET parameters = $1")
        .bind(shell)
        .execute(&synced.world.admin)
        .await?;
    sqlx::query(
        "INSERT INTO gristmill.tools (workspace_id, name, type, transport_type, endpoint)
         VALUES ($1, 'evil', 'MCP', 'stdio', $2)",
    )
    .bind(synced.world.workspace.0)
    .bind(format!("/bin/sh -c 'touch {}'", mark.display()))
    .execute(&synced.world.admin)
    .await?;
    synced.sync().await?;
    assert_eq!(synced.connection().await?.0, "error");
    assert!(!mark.exists());
    // The catalogue's own entry works.
    sqlx::query("UPDATE gristmill.mcp_server_connections SET parameters = '{}'")
        .execute(&synced.world.admin)
        .await?;
    synced.sync().await?;
    assert_eq!(synced.connection().await?.0, "connected");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_settings_make_the_catalogue_and_take_back_what_they_made(db: PgPool) -> anyhow::Result<()> {
    let text = r#"
        [[mcp.servers]]
        name = "files"
        command = "npx"
        arguments = ["-y", "@example/files@1", "{folder}"]
        env = { TZ = "UTC", API_TOKEN = { credential = true } }
        believe_hints = true
        [mcp.servers.parameters]
        type = "object"
        required = ["folder"]
        properties.folder = { type = "string", pattern = "^/srv/[a-z]+$" }

        [[mcp.servers]]
        name = "remote"
        transport = "streamable_http"
        url = "https://tools.example.org/mcp"
    "#;
    let file = tempfile::Builder::new().suffix(".toml").tempfile()?;
    std::fs::write(file.path(), text)?;
    let servers = gristmill::config::Config::load(Some(file.path()))?.mcp.servers;
    let mut conn = db.acquire().await?;
    sqlx::query(
        "INSERT INTO gristmill.mcp_servers (name, transport, url) VALUES ('own', 'sse', 'https://own.test/')",
    )
    .execute(&mut *conn)
    .await?;
    assert!(mcp_servers::offer(&mut conn, &servers).await?.is_empty());
    let row = sqlx::query("SELECT command, arguments, env, parameters, believe_hints, by_config FROM gristmill.mcp_servers WHERE name = 'files'").fetch_one(&mut *conn).await?;
    assert_eq!((row.get::<&str, _>(0), row.get::<Vec<String>, _>(1)[2].as_str()), ("npx", "{folder}"));
    assert_eq!(row.get::<Value, _>(2), json!({ "TZ": "UTC", "API_TOKEN": { "credential": true } }));
    assert_eq!(row.get::<Value, _>(3)["properties"]["folder"]["pattern"], "^/srv/[a-z]+$");
    assert_eq!((row.get::<bool, _>(4), row.get::<bool, _>(5)), (true, true));
    let offered = "SELECT string_agg(name || ' ' || offered, ', ' ORDER BY name) FROM gristmill.mcp_servers";
    mcp_servers::offer(&mut conn, &servers[1..]).await?;
    let now: String = sqlx::query_scalar(offered).fetch_one(&mut *conn).await?;
    assert_eq!(now, "files false, own true, remote true");
    mcp_servers::offer(&mut conn, &servers).await?;
    let mut own = servers[1].clone();
    own.name = "own".into();
    assert_eq!(mcp_servers::offer(&mut conn, &[own]).await?, ["own"], "an operator's own row is let be");
    Ok(())
}
