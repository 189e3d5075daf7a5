//! `gristmill tool`, as a person meets it.

use crate::cli::{complained, gristmill, said};
use crate::world::{World, address};
use gristmill::runtime::every_kind;
use serde_json::Value;
use sqlx::PgPool;
use std::process::Output;

struct Shell<'a> {
    world: &'a World,
    data: tempfile::TempDir,
}

impl Shell<'_> {
    fn run(&self, arguments: &[&str]) -> std::io::Result<Output> {
        let line = [&["tool"], arguments].concat();
        gristmill(&line, self.data.path()).env("DATABASE_URL", address(&self.world.admin)).output()
    }

    /// What it says when it succeeds.
    fn say(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        anyhow::ensure!(output.status.success(), "{arguments:?}: {}", complained(&output));
        Ok(said(&output))
    }

    /// What it complains of when it fails.
    fn complain(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        anyhow::ensure!(output.status.code() == Some(1), "{arguments:?}: {}", said(&output));
        Ok(complained(&output))
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_tool_is_added_called_approved_and_its_result_read(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let shell = Shell { world: &world, data: tempfile::tempdir()? };
    let acme = ["--workspace", "acme"];
    let settings = r#"{"retrieveTopN": 3}"#;
    let add = [
        &["add", "ledger", "--kind", "knowledgebase", "--effect", "effectful", "--settings", settings],
        &acme[..],
    ]
    .concat();
    shell.say(&add)?.parse::<uuid::Uuid>()?;
    assert!(shell.complain(&add)?.contains("has a tool named ledger already"));
    let listed = shell.say(&[&["list"], &acme[..]].concat())?;
    assert!(
        listed.contains("ledger") && listed.contains("knowledgebase") && listed.contains("effectful"),
        "{listed}"
    );

    let call = shell.say(&[&["call", "ledger", r#"{"query": "oats"}"#, "--no-wait"], &acme[..]].concat())?;
    world.work(every_kind).await?;
    let detail: Value = serde_json::from_str(&shell.say(&["log", &call, "--json"])?)?;
    assert_eq!(detail["call"]["state"], "NEEDS_APPROVAL");
    let digest = detail["call"]["arguments_sha256"].as_str().unwrap_or_default().to_owned();
    let other = "00".repeat(32);
    assert!(
        shell.complain(&["approve", &call, "--digest", &other])?.contains("not the ones that were approved")
    );
    assert!(shell.complain(&["results", &call])?.contains("has no result yet"));
    assert!(shell.complain(&["resolve", &call, "ok"])?.contains("nothing to resolve"));
    assert_eq!(shell.say(&["approve", &call[..13], "--digest", &digest])?, format!("{call} is approved"));
    world.work(every_kind).await?;

    assert_eq!(shell.say(&["results", &call])?, "nothing was found");
    let whole: Value = serde_json::from_str(&shell.say(&["results", &call, "--json"])?)?;
    assert_eq!(whole["structuredContent"]["query"], "oats");
    let log = shell.say(&["log", &call])?;
    for word in ["ledger of acme", "OK", "effectful: OK", "needs_approval", "approved", "answered", &digest] {
        assert!(log.contains(word), "{word} in {log}");
    }
    assert_eq!(shell.say(&["cancel", &call])?, format!("{call} is OK already"));
    assert!(shell.say(&["log", "--state", "ok", "--tool", "ledger"])?.contains(&call));
    assert!(!shell.say(&["log", "--state", "error"])?.contains(&call));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_cannot_be_meant_is_refused_in_words(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let shell = Shell { world: &world, data: tempfile::tempdir()? };
    assert!(shell.complain(&["log", "0199ffff"])?.contains("there is no tool call 0199ffff"));
    assert!(shell.complain(&["deny", "0"])?.contains("too short"));
    assert!(shell.complain(&["approve", "0199ffff", "--digest", "zz"])?.contains("--digest is no hex"));
    assert!(shell.complain(&["call", "x", "{no json"])?.contains("the arguments are no JSON"));
    assert!(
        shell
            .complain(&["add", "s__t", "--kind", "mcp", "--server", "none"])?
            .contains("no server named \"none\"")
    );
    assert!(
        shell.complain(&["add", "read_result", "--kind", "knowledgebase"])?.contains("name_is_not_built_in")
    );
    Ok(())
}
