//! `gristmill doctor`: each part is looked at, whatever became of the others.

use crate::cli::{gristmill, said};
use crate::world::{address, deps};
use serde_json::Value;
use sqlx::PgPool;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

/// Standing, finding and advice by part; of a part with two findings the last.
fn findings(output: &Output) -> anyhow::Result<BTreeMap<String, (String, String, String)>> {
    let all: Vec<Value> = serde_json::from_str(&said(output))?;
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok(all
        .iter()
        .map(|f| (word(f, "part"), (word(f, "standing"), word(f, "says"), word(f, "todo"))))
        .collect())
}

fn gristmill_kinds() -> Vec<&'static str> {
    gristmill::runtime::every_kind().kinds().into_iter().map(|kind| &*kind.leak()).collect()
}

const PARTS: [&str; 16] = [
    "clock",
    "database",
    "extensions",
    "extraction",
    "model",
    "node",
    "objects",
    "ocr",
    "python",
    "queue",
    "role",
    "scanner",
    "schedules",
    "schema",
    "spool",
    "workers",
];

fn doctor(db: &str, data: &Path, set: &[(&str, &str)]) -> std::io::Result<Output> {
    let deps = deps().unwrap_or_else(|| "no/such/folder".into());
    let mut command = gristmill(&["doctor", "--json"], data);
    command.env("DATABASE_URL", db).env("GRISTMILL__EMBEDDED__DEPS_DIR", deps);
    command.envs(set.iter().copied()).output()
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn every_part_is_looked_at_and_what_works_is_ok(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let output = doctor(&address(&db), data.path(), &[])?;
    let found = findings(&output)?;
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), PARTS);
    for part in ["clock", "extensions", "extraction", "objects", "queue", "role", "schema"] {
        assert_eq!(found[part].0, "ok", "{part}: {:?}", found[part]);
    }
    assert!(found["database"].1.contains("PostgreSQL"), "{:?}", found["database"]);
    assert!(!found["database"].1.contains(":pw@"), "the password stays hidden");
    let expected = if deps().is_some() { ("ok", Some(0)) } else { ("failed", Some(1)) };
    assert_eq!((found["model"].0.as_str(), output.status.code()), expected);
    assert_eq!(found["workers"].0, "warning", "none works here");
    Ok(())
}

#[sqlx::test(migrations = false)]
async fn a_missing_part_is_named_with_what_to_do_and_hides_no_other(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let gone = "postgres://nobody:hunter2@127.0.0.1:9/none";
    let away = [
        ("GRISTMILL__SCAN__CLAMD", "127.0.0.1:9"),
        ("GRISTMILL__OBJECTS__ENDPOINT", "http://127.0.0.1:9"),
        ("GRISTMILL__OBJECTS__ACCESS_KEY", "a"),
        ("GRISTMILL__OBJECTS__SECRET_KEY", "b"),
        ("GRISTMILL__EMBED__MODEL", "no/such/model"),
    ];
    let output = doctor(gone, data.path(), &away)?;
    assert_eq!(output.status.code(), Some(1));
    let found = findings(&output)?;
    for part in ["database", "objects", "scanner", "model"] {
        let (standing, _, todo) = &found[part];
        assert!(standing == "failed" && !todo.is_empty(), "{part}: {:?}", found[part]);
    }
    assert!(!said(&output).contains("hunter2"));
    for part in ["extraction", "spool"] {
        assert_eq!(found[part].0, "ok", "{part}: {:?}", found[part]);
    }

    // A database without a schema is reached, and told what it lacks.
    let found = findings(&doctor(&address(&db), data.path(), &[])?)?;
    assert_ne!(found["database"].0, "failed");
    assert_eq!(found["schema"].0, "failed");
    assert!(found["schema"].2.contains("gristmill migrate"), "{:?}", found["schema"]);
    assert_eq!(found["objects"].0, "ok");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_worker_role_that_could_pass_the_locks_is_refused(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    for (sql, role) in [
        ("SELECT 1", "postgres"),
        ("SELECT 1", "no_such_role"),
        ("ALTER TABLE gristmill.chunks DISABLE ROW LEVEL SECURITY", "gristmill_worker"),
    ] {
        sqlx::query(sql).execute(&db).await?;
        let output = doctor(&address(&db), data.path(), &[("GRISTMILL__DATABASE__ROLE", role)])?;
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(findings(&output)?["role"].0, "failed", "{role}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_workers_own_login_sees_as_much_as_the_worker_does(db: PgPool) -> anyhow::Result<()> {
    let login = format!("doctor_{}", uuid::Uuid::now_v7().simple());
    for sql in [
        format!("CREATE ROLE {login} LOGIN NOINHERIT PASSWORD 'pw'"),
        format!("GRANT gristmill_worker TO {login}"),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&db).await?;
    }
    let mut url = url::Url::parse(&address(&db))?;
    url.set_username(&login).ok();
    url.set_password(Some("pw")).ok();
    let data = tempfile::tempdir()?;
    let found = findings(&doctor(url.as_str(), data.path(), &[])?);
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP ROLE {login}"))).execute(&db).await?;
    let found = found?;
    for part in ["queue", "role", "schema"] {
        assert_eq!(found[part].0, "ok", "{part}: {:?}", found[part]);
    }
    assert!(found["database"].1.contains(&login), "{:?}", found["database"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_kind_that_no_worker_does_is_named(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let seen = "SELECT gristmill.report_worker($1, 'host', 1, '0.1', $2, 4)";
    for (name, kinds, standing) in
        [("mill-7", vec!["fetch", "scan"], "warning"), ("mill-8", gristmill_kinds(), "ok")]
    {
        sqlx::query(seen).bind(name).bind(kinds).execute(&db).await?;
        let found = findings(&doctor(&address(&db), data.path(), &[])?)?;
        assert_eq!(found["workers"].0, standing, "{:?}", found["workers"]);
        assert!(found["workers"].1.contains(name));
        assert_eq!(found["workers"].2.contains("embed"), standing == "warning");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_dead_and_a_schema_of_other_sources_are_told(db: PgPool) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    for sql in [
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload, state, reason, finished_at)
         VALUES (gen_random_uuid(), 'scan', '{}', 'DEAD', 'gave_up: x', now())",
        "UPDATE gristmill._sqlx_migrations SET checksum = '\\x00' WHERE version = 3",
    ] {
        sqlx::query(sql).execute(&db).await?;
    }
    let found = findings(&doctor(&address(&db), data.path(), &[])?)?;
    assert!(found["queue"].0 == "warning" && found["queue"].2.contains("jobs dead"), "{:?}", found["queue"]);
    assert!(found["schema"].0 == "failed" && found["schema"].2.contains('3'), "{:?}", found["schema"]);
    Ok(())
}
