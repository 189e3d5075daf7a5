//! From a folder to a cited answer with nothing but the command line; with the real model.

use super::*;
use crate::world::deps;
use std::path::PathBuf;

/// Runs commands on one database and one folder of objects.
struct House {
    data: tempfile::TempDir,
    deps: PathBuf,
    address: String,
}

impl House {
    fn new(db: &PgPool) -> anyhow::Result<Option<Self>> {
        let Some(deps) = deps() else { return Ok(None) };
        Ok(Some(Self { data: tempfile::tempdir()?, deps, address: address(db) }))
    }

    fn run(&self, arguments: &[&str]) -> std::io::Result<Output> {
        let mut command = gristmill(arguments, self.data.path());
        command.env("DATABASE_URL", &self.address).env("GRISTMILL__EMBEDDED__DEPS_DIR", &self.deps);
        command.output()
    }

    fn hits(&self, question: &str, knowledge_base: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let ask = ["search", question, "--knowledge-base", knowledge_base, "--json", "--top-k", "3"];
        let output = self.run(&ask)?;
        anyhow::ensure!(output.status.success(), "{}", complained(&output));
        let mut answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(answer["question"], question);
        Ok(serde_json::from_value(answer["hits"].take())?)
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_folder_is_ingested_asked_and_forgotten(db: PgPool) -> anyhow::Result<()> {
    let Some(house) = House::new(&db)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("deep"))?;
    for (name, text) in [
        ("stones.md", "# Stones\n\nThe runner turns over the bed stone."),
        ("deep/hours.txt", "The mill is open on Saturdays from nine to noon."),
        (".hidden.txt", "Nobody is to see this."),
    ] {
        std::fs::write(folder.path().join(name), text)?;
    }
    let path = folder.path().to_str().unwrap_or_default();
    let ingested = house.run(&["ingest", path, "--knowledge-base", "mill"])?;
    assert_eq!(ingested.status.code(), Some(0), "{}", complained(&ingested));
    let table = said(&ingested);
    assert_eq!(table.matches("READY").count(), 2, "{table}");
    assert!(
        table.contains("stones.md") && table.contains("hours.txt") && !table.contains("hidden"),
        "{table}"
    );

    let hits = house.hits("When can I visit?", "mill")?;
    assert_eq!(hits[0]["citation"]["name"], "hours.txt");
    assert_eq!(hits[0]["content"], "The mill is open on Saturdays from nine to noon.");
    assert_eq!(
        (&hits[0]["citation"]["start_byte"], &hits[0]["citation"]["end_byte"]),
        (&0.into(), &48.into())
    );
    let plain = said(&house.run(&["search", "Saturdays"])?);
    assert!(plain.contains("«Saturdays»") && plain.contains("hours.txt, bytes 0-48"), "{plain}");
    let nobody = house.run(&["search", "Saturdays", "--workspace", "another"])?;
    assert_eq!(said(&nobody), "nothing was found");
    let unknown = house.run(&["search", "Saturdays", "--knowledge-base", "brewery"])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(complained(&unknown).contains("brewery"), "{}", complained(&unknown));

    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id::text FROM gristmill.attachments").fetch_all(&db).await?;
    let forgotten = house.run(&["forget", &ids[0], &ids[1]])?;
    assert_eq!(said(&forgotten).matches("DONE").count(), 2, "{}", complained(&forgotten));
    assert!(house.hits("When can I visit?", "mill")?.is_empty());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_file_that_cannot_be_read_shows_in_the_exit_code(db: PgPool) -> anyhow::Result<()> {
    let Some(house) = House::new(&db)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let locked =
        "From: a@b\nSubject: x\nContent-Type: multipart/encrypted; boundary=foo\n\n--foo\n\nhQ\n--foo--\n";
    std::fs::write(folder.path().join("locked.eml"), locked)?;
    std::fs::write(folder.path().join("open.txt"), "honest words")?;
    let path = folder.path().to_str().unwrap_or_default();
    let ingested = house.run(&["ingest", path])?;
    assert_eq!(ingested.status.code(), Some(2), "{}", complained(&ingested));
    let table = said(&ingested);
    assert!(table.contains("parser_encrypted") && table.contains("READY"), "{table}");

    let missing = house.run(&["ingest", "no/such/file.txt"])?;
    assert_eq!(missing.status.code(), Some(1));
    assert!(complained(&missing).contains("no/such/file.txt"), "{}", complained(&missing));
    Ok(())
}
