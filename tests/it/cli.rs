//! The command line as a person meets it: words, exit codes, and what is left in the database.

use crate::world::address;
use sqlx::PgPool;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

mod onnx;

pub fn gristmill(arguments: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gristmill"));
    command.args(arguments).env_remove("DATABASE_URL").env("GRISTMILL__EMBEDDED__DATA_DIR", data);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

pub fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

const COMMANDS: &[&str] = &[
    "",
    "up",
    "worker",
    "migrate",
    "ingest",
    "search",
    "forget",
    "enqueue",
    "jobs",
    "jobs list",
    "jobs stats",
    "jobs show",
    "jobs explain",
    "jobs dead",
    "jobs retry",
    "jobs cancel",
    "limits",
    "limits list",
    "limits set",
    "limits pause",
    "limits clear",
    "tool",
    "tool add",
    "tool list",
    "tool call",
    "tool approve",
    "tool deny",
    "tool resolve",
    "tool cancel",
    "tool log",
    "tool results",
    "doctor",
    "verify",
    "schedules",
    "schedules list",
    "schedules run",
    "schedules enable",
    "tool",
    "tool credential",
    "tool credential set",
    "tool credential list",
    "tool credential remove",
    "tool credential reseal",
    "tool login",
    "tool server",
    "tool server list",
    "tool server connect",
    "tool server disconnect",
    "tool sync",
    "tool review",
    "tool review list",
    "tool review approve",
    "tool review refuse",
    "demo",
    "eval",
    "eval-docs",
    "bench",
    "bench embed",
    "bench queue",
    "bench fairness",
    "bench claim",
];

#[test]
fn each_command_says_what_it_does() {
    let data = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for command in COMMANDS {
        let arguments: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let output = gristmill(&arguments, data.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {}", complained(&output));
        writeln!(all, "$ gristmill {}\n{}\n", arguments.join(" "), said(&output)).unwrap();
    }
    insta::assert_snapshot!(all);
    let top = all.split("$ gristmill").nth(1).unwrap_or_default();
    let listed = top.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.map_while(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let shown = COMMANDS.iter().filter(|name| !name.is_empty() && !name.contains(' '));
    assert!(listed.eq(shown.copied()), "a command is missing in this test");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("gristmill.toml");
    std::fs::write(&file, "[queue]\nleese_seconds = 3\n").unwrap();
    let file = file.to_str().unwrap();
    let in_file = gristmill(&["--config", file, "jobs"], data.path()).output().unwrap();
    let variable = gristmill(&["jobs"], data.path()).env("GRISTMILL__QUEUE__LEESE", "3").output().unwrap();
    let value = gristmill(&["jobs"], data.path()).env("GRISTMILL__SCAN__MISMATCH", "maybe").output().unwrap();
    let alone = gristmill(&["worker"], data.path()).output().unwrap();
    for (output, named) in
        [(in_file, "leese_seconds"), (variable, "leese"), (value, "maybe"), (alone, "DATABASE_URL")]
    {
        assert_eq!(output.status.code(), Some(1), "{named}");
        let complaint = complained(&output);
        assert!(complaint.starts_with("gristmill: ") && complaint.contains(named), "{complaint}");
    }
    let unknown = gristmill(&["grind"], data.path()).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "clap's own code for a wrong command line");
}

#[sqlx::test(migrations = false)]
async fn migrating_again_or_by_four_at_once_changes_nothing(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let migrate = || gristmill(&["migrate"], data.path()).env("DATABASE_URL", address(&db)).spawn();
    let four = [migrate()?, migrate()?, migrate()?, migrate()?];
    for one in four {
        let output = one.wait_with_output()?;
        assert!(output.status.success(), "{}", complained(&output));
    }
    let ledger = "SELECT count(*), bool_and(success) FROM gristmill._sqlx_migrations";
    let (applied, all): (i64, bool) = sqlx::query_as(ledger).fetch_one(&db).await?;
    assert_eq!((applied as usize, all), (gristmill::MIGRATOR.iter().count(), true));

    let fifth = migrate()?.wait_with_output()?;
    assert_eq!((fifth.status.code(), said(&fifth).as_str()), (Some(0), "the schema is up to date"));
    Ok(())
}

#[sqlx::test(migrations = false)]
async fn a_first_migration_says_how_many_steps_it_took(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let output = gristmill(&["migrate"], data.path()).env("DATABASE_URL", address(&db)).output()?;
    assert_eq!(said(&output), format!("{} migrations applied", gristmill::MIGRATOR.iter().count()));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_is_queued_once_for_its_key_and_listed(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let run =
        |arguments: &[&str]| gristmill(arguments, data.path()).env("DATABASE_URL", address(&db)).output();
    let payload = r#"{"attachment":"01990000-0000-7000-8000-000000000001"}"#;
    let ask = ["enqueue", "fetch", payload, "--workspace", "acme", "--key", "one"];
    let first = run(&ask)?;
    assert!(first.status.success(), "{}", complained(&first));
    let id: uuid::Uuid = said(&first).parse()?;
    assert_eq!(said(&run(&ask)?), format!("{id} (it was there already)"));
    let rows = "SELECT kind, payload::text FROM gristmill.jobs WHERE id = $1 AND state = 'WAITING'";
    let (kind, stored): (String, String) = sqlx::query_as(rows).bind(id).fetch_one(&db).await?;
    assert_eq!(kind, "fetch");
    assert_eq!(stored.parse::<serde_json::Value>()?, payload.parse::<serde_json::Value>()?);

    let listed = said(&run(&["jobs", "--state", "waiting"])?);
    assert!(listed.contains(&id.to_string()) && listed.contains("WAITING"), "{listed}");
    assert!(!said(&run(&["jobs", "--state", "dead"])?).contains(&id.to_string()));

    let wrong = run(&["enqueue", "fetch", "{no json"])?;
    assert_eq!(wrong.status.code(), Some(1));
    assert!(complained(&wrong).contains("JSON"), "{}", complained(&wrong));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_limit_is_set_paused_listed_and_cleared(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let run = |arguments: &[&str]| {
        gristmill(&[&["limits"], arguments].concat(), data.path()).env("DATABASE_URL", address(&db)).output()
    };
    let name = ["platform:openai", "gpt-x"];
    assert!(run(&["set", name[0], name[1], "--requests", "600", "--tokens", "90000"])?.status.success());
    assert!(
        said(&run(&["pause", name[0], name[1], "60", "--why", "maintenance"])?).starts_with("paused until ")
    );
    let listed = said(&run(&["list"])?);
    for word in [name[0], name[1], "600", "90000", "maintenance"] {
        assert!(listed.contains(word), "{word} in {listed}");
    }
    assert!(run(&["clear", name[0], name[1]])?.status.success());
    assert!(!said(&run(&["list"])?).contains(name[0]));
    assert_eq!(run(&["clear", name[0], name[1]])?.status.code(), Some(2), "there is none");
    assert_eq!(run(&["set", name[0], name[1], "--requests", "0"])?.status.code(), Some(2));
    Ok(())
}
