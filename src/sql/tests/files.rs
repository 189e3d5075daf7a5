//! SQLite files: which are opened, and what can be done to them.

use super::*;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::path::Path;

const SCRIPT: &str = "
    CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT, price REAL, data BLOB);
    CREATE TABLE tags (id INTEGER PRIMARY KEY, note_id INTEGER REFERENCES notes (id), tag TEXT NOT NULL);
    INSERT INTO notes VALUES (1, 'first note', 1.5, x'dead'), (2, NULL, NULL, NULL);
    INSERT INTO tags VALUES (1, 1, 'red'), (2, 1, 'blue');";

struct Cabinet {
    folder: tempfile::TempDir,
    workspace: WorkspaceId,
}

impl Cabinet {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cabinet = Self { folder, workspace: WorkspaceId(uuid::Uuid::from_u128(7)) };
        let own = cabinet.folder.path().join(cabinet.workspace.0.to_string());
        std::fs::create_dir(&own).unwrap();
        fill(&own.join("shop.db")).await;
        fill(&cabinet.folder.path().join("other.db")).await;
        std::os::unix::fs::symlink(cabinet.folder.path().join("other.db"), own.join("link.db")).unwrap();
        std::os::unix::fs::symlink(own.join("shop.db"), own.join("fine.db")).unwrap();
        cabinet
    }

    fn sql(&self) -> Sql {
        let folder = format!("{}/{{workspace}}", self.folder.path().display());
        let own = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
        Sql::new(&config::Sql { sqlite_folder: folder, ..settings() }, Guard::new(&[]), own)
    }

    fn database<'a>(&self, endpoint: &'a str) -> Database<'a> {
        Database { endpoint, saved: None, workspace: self.workspace }
    }
}

async fn fill(file: &Path) {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(SCRIPT).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn a_file_is_asked_and_its_values_keep_their_types() {
    let cabinet = Cabinet::new().await;
    let sql = cabinet.sql();
    for endpoint in ["sqlite:shop.db", "sqlite:///shop.db", "sqlite:fine.db"] {
        let output = sql.query(&cabinet.database(endpoint), "SELECT * FROM notes ORDER BY id").await.unwrap();
        assert_eq!(rows(&output), json!([[1, "first note", 1.5, "0xdead"], [2, null, null, null]]));
    }
    let schema = rows(&sql.schema(&cabinet.database("sqlite:shop.db")).await.unwrap()).to_string();
    for told in ["notes", "primary key", "references notes", "CREATE TABLE tags"] {
        assert!(schema.contains(told), "{told}: {schema}");
    }
}

#[tokio::test]
async fn benign_statements_run_on_a_file() {
    let cabinet = Cabinet::new().await;
    let sql = cabinet.sql();
    for statement in [
        "SELECT 1",
        "SELECT count(*), group_concat(tag) FROM tags",
        "SELECT n.id, t.tag FROM notes n LEFT JOIN tags t ON t.note_id = n.id ORDER BY 1, 2 LIMIT 5",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
        "SELECT strftime('%Y', 'now'), date('now', '-1 day'), datetime()",
        "SELECT name FROM sqlite_master WHERE type = 'table'",
        "SELECT body GLOB 'f*', body LIKE '%note' FROM notes",
        "SELECT json_extract('{\"a\": 1}', '$.a'), value FROM json_each('[1,2]')",
        "SELECT row_number() OVER (ORDER BY id) FROM notes",
        "SELECT ifnull(body, ''), iif(id > 1, 'b', 'a'), typeof(price), coalesce(price, 0) FROM notes",
        "SELECT CAST(price AS INTEGER), round(price, 1), abs(-1), hex(data) FROM notes",
    ] {
        let output = sql.query(&cabinet.database("sqlite:shop.db"), statement).await.unwrap();
        assert!(!output.is_error, "{statement}: {}", text(&output));
    }
}

#[tokio::test]
async fn only_files_of_the_workspace_are_opened() {
    let cabinet = Cabinet::new().await;
    let outside = cabinet.folder.path().join("other.db");
    for endpoint in [
        "sqlite:../other.db",
        "sqlite:link.db",
        "sqlite:missing.db",
        "sqlite:.",
        "sqlite:",
        "sqlite:shop.db?mode=rwc",
        "sqlite:%2e%2e/other.db",
        "sqlite::memory:",
        "sqlite:sub/../../other.db",
        &format!("sqlite:{}", outside.display()),
    ] {
        let wrong = cabinet.sql().query(&cabinet.database(endpoint), "SELECT 1").await;
        assert!(matches!(wrong, Err(SqlError::File(_))), "{endpoint}: {wrong:?}");
    }
    let own = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
    let off = Sql::new(&settings(), Guard::new(&[]), own);
    assert!(matches!(
        off.query(&cabinet.database("sqlite:shop.db"), "SELECT 1").await,
        Err(SqlError::File(_))
    ));
}

/// The control: without the judge, a file that was opened to be read is still not written.
#[tokio::test]
async fn without_the_judge_a_file_is_still_not_written() {
    let cabinet = Cabinet::new().await;
    let file = cabinet.folder.path().join(cabinet.workspace.0.to_string()).join("shop.db");
    let before = std::fs::read(&file).unwrap();
    let sql = Sql { judged: false, ..cabinet.sql() };
    for statement in [
        "INSERT INTO notes VALUES (9, 'x', 1, NULL)",
        "DELETE FROM notes",
        "DROP TABLE notes",
        "CREATE TABLE evil (a)",
        "PRAGMA user_version = 9",
        "ROLLBACK; DELETE FROM notes",
        "SELECT load_extension('/tmp/evil.so')",
    ] {
        let asked = sql.query(&cabinet.database("sqlite:shop.db"), statement).await;
        assert!(
            !asked.is_ok_and(|output| !output.is_error && statement.starts_with("SELECT")),
            "{statement}"
        );
    }
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_query_without_end_is_interrupted() {
    let cabinet = Cabinet::new().await;
    let mut sql = cabinet.sql();
    sql.query = Duration::from_millis(300);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let output = sql.query(&cabinet.database("sqlite:shop.db"), endless).await.unwrap();
    assert!(output.is_error && text(&output).contains("was cancelled"), "{output:?}");
}

#[tokio::test]
async fn rows_of_a_file_are_capped() {
    let cabinet = Cabinet::new().await;
    let mut sql = cabinet.sql();
    sql.caps.rows = 10;
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let output = sql.query(&cabinet.database("sqlite:shop.db"), many).await.unwrap();
    assert_eq!(rows(&output).as_array().unwrap().len(), 10);
    assert_eq!(output.structured_content.unwrap()["truncated"], true);
}

#[tokio::test]
async fn sqlite_reads_what_is_sent_as_the_judge_read_it() {
    let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    let (mut agreed, found) = (0, statement::tests::ambiguous(Engine::Sqlite, 20_000));
    for (sent, columns) in &found {
        if let Ok(described) = (&mut conn).prepare(AssertSqlSafe(sent.clone()).into_sql_str()).await {
            assert_eq!(described.columns().len(), *columns, "{sent}");
            agreed += 1;
        }
    }
    eprintln!("{agreed} of {} literals were read alike, the others by none", found.len());
    assert!(agreed > 100);
}
