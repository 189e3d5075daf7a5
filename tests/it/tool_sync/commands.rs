//! Servers, definitions and logins from the command line.

use super::{Synced, five, tool};
use crate::cli::{complained, gristmill, said};
use crate::credentials::{user, with_keys};
use crate::oauth::server::{Provider, Rules};
use crate::world::{World, address};
use serde_json::Value;
use sqlx::{PgPool, Row};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// The command in this world's database, for its workspace.
fn command(world: &World, words: &str, data: &Path) -> Command {
    let words: Vec<_> = ["tool"].into_iter().chain(words.split(' ')).chain(["--workspace", "acme"]).collect();
    let mut command = gristmill(&words, data);
    command.env("DATABASE_URL", address(&world.admin)).env("GRISTMILL__SEAL__KEYS__K7", hex::encode([7; 32]));
    command
        .env("GRISTMILL__OBJECTS__ENDPOINT", "http://127.0.0.1:1")
        .env("GRISTMILL__OBJECTS__ACCESS_KEY", "k");
    command.env("GRISTMILL__OBJECTS__SECRET_KEY", "s").env("GRISTMILL__FETCH__ALLOW", "127.0.0.0/8");
    command
}

fn run(world: &World, words: &str) -> (bool, String) {
    let data = tempfile::tempdir().unwrap();
    let output: Output = command(world, words, data.path()).output().unwrap();
    (output.status.success(), format!("{}{}", said(&output), complained(&output)))
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_server_is_connected_and_its_tools_reviewed_from_the_command_line(
    db: PgPool,
) -> anyhow::Result<()> {
    let mut synced = Synced::new(db, None, false).await?;
    synced.sync().await?;
    let (ok, told) = run(&synced.world, "server list");
    assert!(ok && told.contains("connected") && told.contains('x'), "{told}");
    let (ok, told) = run(&synced.world, "review list");
    assert!(
        ok && told.contains("x__a")
            && told.contains("+ description: Does a.")
            && !told.contains("- description"),
        "{told}"
    );
    let (ok, told) = run(&synced.world, "review approve x__*");
    assert!(
        ok && told.lines().filter(|line| line.contains("approved, 0 calls go on")).count() == 5,
        "{told}"
    );
    assert_eq!(run(&synced.world, "review list").1, "nothing waits");

    let mut tools = five();
    tools[0]["description"] = "Does a, differently.".into();
    tools.push(tool("f"));
    synced.tools(&tools);
    synced.sync().await?;
    let (_, told) = run(&synced.world, "review list");
    assert!(
        told.contains("- description: Does a.") && told.contains("+ description: Does a, differently."),
        "{told}"
    );
    let id: uuid::Uuid = sqlx::query_scalar("SELECT definition_id FROM gristmill.tools WHERE name = 'x__f'")
        .fetch_one(&synced.world.admin)
        .await?;
    let (ok, told) = run(&synced.world, &format!("review refuse x__a {id}"));
    assert!(ok && told.contains("x__a refused") && told.contains("x__f refused"), "{told}");
    assert!(synced.look().await?[0].contains("REFUSED, not offered"));
    assert!(!run(&synced.world, "review approve x__nothing").0);

    assert!(run(&synced.world, "server disconnect x").0);
    assert!(run(&synced.world, "server list").1.contains("off"));
    assert!(!run(&synced.world, "server connect nowhere").0);
    assert!(!run(&synced.world, "server connect x --parameters [1]").0);
    let (ok, told) = run(&synced.world, "server connect x --review trust_on_first_use");
    assert!(ok && told == synced.connection.to_string(), "{told}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_user_signs_in_with_a_browser_and_the_login_is_theirs(db: PgPool) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    user(&world, "ada").await;
    let provider = Provider::start(Rules { names_issuer: true, ..Rules::default() }).await;
    sqlx::query(
        "INSERT INTO gristmill.mcp_servers (name, transport, url) VALUES ('remote', 'streamable_http', $1)",
    )
    .bind(provider.url("/mcp").as_str())
    .execute(&world.admin)
    .await?;
    assert!(run(&world, "server connect remote").0);
    let data = tempfile::tempdir()?;
    let mut login = tokio::process::Command::from(command(&world, "login remote --user ada", data.path()));
    let mut login = login.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut line = String::new();
    BufReader::new(login.stdout.take().unwrap()).read_line(&mut line).await?;
    let back = provider.consent(&line.trim().parse()?);
    let ask = async |target: String| -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", back.port().unwrap())).await?;
        stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    // Somebody else's page may know the port, and does not know the state.
    assert!(ask("/callback?code=x&state=guessed".to_owned()).await?.contains("404"));
    assert!(ask("/favicon.ico".to_owned()).await?.contains("404"));
    assert!(ask(format!("/callback?{}", back.query().unwrap())).await?.contains("200 OK"));
    assert!(login.wait().await?.success());
    let row = sqlx::query(
        "SELECT u.external_id, c.origin, c.expires_at > now(), to_jsonb(c) FROM gristmill.tool_credentials c
         JOIN gristmill.users u ON u.id = c.user_id",
    )
    .fetch_one(&world.admin)
    .await?;
    assert_eq!((row.get::<&str, _>(0), row.get::<bool, _>(2)), ("ada", true));
    assert!(provider.url("/").as_str().starts_with(row.get::<&str, _>(1)));
    assert!(!row.get::<Value, _>(3).to_string().contains("access_token"));
    // A server without a login says so.
    let (ok, told) = run(&world, "login nowhere");
    assert!(!ok && told.contains("nowhere"), "{told}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_catalogue_of_the_settings_is_offered_by_migrate_and_a_dangerous_one_refused(
    db: PgPool,
) -> anyhow::Result<()> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile()?;
    let migrate = |servers: &str| {
        std::fs::write(file.path(), servers).unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut command = gristmill(&["migrate", "--config", file.path().to_str().unwrap()], data.path());
        let output = command.env("DATABASE_URL", address(&db)).output().unwrap();
        (output.status.success(), complained(&output))
    };
    let (ok, told) =
        migrate("[[mcp.servers]]\nname = \"time\"\ncommand = \"uvx\"\narguments = [\"mcp-server-time\"]\n");
    assert!(ok, "{told}");
    let (ok, told) =
        migrate("[[mcp.servers]]\nname = \"evil\"\ncommand = \"npx\"\narguments = [\"-c\", \"id\"]\n");
    assert!(!ok && told.contains("evil") && told.contains("runs what follows it as code"), "{told}");
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM gristmill.mcp_servers").fetch_all(&db).await?;
    assert_eq!(names, ["time"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn doctor_says_which_server_lacks_what_it_is_written_for(db: PgPool) -> anyhow::Result<()> {
    sqlx::query("INSERT INTO gristmill.mcp_servers (name, command) VALUES ('here', 'python3'), ('away', '/no/such/server')").execute(&db).await?;
    let data = tempfile::tempdir()?;
    let output = gristmill(&["doctor", "--json"], data.path()).env("DATABASE_URL", address(&db)).output()?;
    let findings: Vec<Value> = serde_json::from_str(&said(&output))?;
    let servers = findings.iter().find(|finding| finding["part"] == "servers").unwrap();
    assert_eq!(servers["standing"], "warning");
    assert!(servers["says"].as_str().unwrap().contains("away needs /no/such/server"), "{servers}");
    let known: i64 =
        sqlx::query_scalar("SELECT count(*) FROM gristmill.runtime_statuses").fetch_one(&db).await?;
    assert_eq!(known, 2);
    Ok(())
}
