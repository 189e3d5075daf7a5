//! A MariaDB of the test's own, where one is installed; and SQLite short of memory.

use super::*;
use std::path::Path;
use std::process::{Child, Command, Stdio};

struct Maria {
    server: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Maria {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|at| Path::new(at).join(program))
        .find(|path| path.exists())
}

const SHOP: &str = "CREATE DATABASE shop; USE shop;
    CREATE TABLE notes (id INT PRIMARY KEY, body VARCHAR(100) COMMENT 'The text', price DECIMAL(20, 4), at DATETIME,
                        data BLOB, big BIGINT UNSIGNED, meta JSON, kind ENUM('a', 'b')) COMMENT 'What people noted';
    CREATE TABLE tags (id INT PRIMARY KEY, note_id INT REFERENCES notes (id), tag TEXT);
    INSERT INTO notes VALUES (1, 'first note', 1.5, '2026-01-02 03:04:05', x'ff00', 18446744073709551615, '{\"a\": 1}', 'b'),
                             (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    INSERT INTO tags VALUES (1, 1, 'red'), (2, 1, 'blue');
    CREATE USER reader@'%' IDENTIFIED BY 'reader-pw'; GRANT SELECT ON shop.* TO reader@'%';
    CREATE USER writer@'%' IDENTIFIED BY 'writer-pw'; GRANT ALL ON shop.* TO writer@'%';
    CREATE USER power@'%' IDENTIFIED BY 'power-pw'; GRANT ALL ON *.* TO power@'%'";

impl Maria {
    /// Starts a server in a folder of its own, with a shop in it.
    fn start() -> Option<Self> {
        let (Some(server), Some(install), Some(client)) =
            (find("mariadbd"), find("mariadb-install-db"), find("mariadb"))
        else {
            eprintln!("skipped: no MariaDB here (Debian: mariadb-server-core, mariadb-client-core)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        // As root it must be told that this is meant.
        let who = "--user=root".to_owned();
        let places = [
            "--no-defaults".to_owned(),
            who,
            format!("--datadir={}", at("data")),
            format!("--tmpdir={}", at("tmp")),
        ];
        let installed = Command::new(install)
            .args(&places)
            .args(["--auth-root-authentication-method=normal", "--skip-test-db"])
            .output()
            .unwrap();
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stdout));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let socket = at("s");
        let server = Command::new(server)
            .args(&places)
            .args([
                format!("--port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--socket={socket}"),
                format!("--pid-file={}", at("pid")),
                "--innodb-buffer-pool-size=16M".to_owned(),
                "--skip-name-resolve".to_owned(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let maria = Self { server, folder, port };
        maria.fill(&client, &socket);
        Some(maria)
    }

    /// Waits for the server, and gives it a shop and three roles.
    fn fill(&self, client: &Path, socket: &str) {
        for _ in 0..200 {
            let mut client = Command::new(client);
            client.args(["--no-defaults", "-uroot", "-S", socket, "-e", SHOP]);
            if client.stderr(Stdio::null()).status().unwrap().success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("MariaDB does not answer in {}", self.folder.path().display());
    }

    async fn ask(&self, sql: &Sql, (role, statement): (&str, &str)) -> Result<ToolOutput, SqlError> {
        let endpoint = format!("mysql://127.0.0.1:{}/shop", self.port);
        let credential = basic(role, &format!("{role}-pw"));
        let saved = Some(Saved { credential: &credential, origin: &endpoint });
        let database = Database { endpoint: &endpoint, saved, workspace: WorkspaceId(uuid::Uuid::nil()) };
        if statement == "schema" {
            sql.schema(&database).await
        } else {
            sql.query(&database, statement).await
        }
    }
}

fn sql() -> Sql {
    Sql::new(&settings(), guard(), PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap())
}

#[tokio::test]
async fn mariadb_is_read_and_never_written() {
    let Some(maria) = Maria::start() else { return };
    let sql = sql();
    let output = maria.ask(&sql, ("reader", "SELECT * FROM notes ORDER BY id")).await.unwrap();
    let first = json!([1, "first note", "1.5000", "2026-01-02 03:04:05", "0xff00", u64::MAX, {"a": 1}, "b"]);
    let found = rows(&output);
    // MariaDB's JSON is a text by another name.
    let meta = found[0][6].as_str().map_or(found[0][6].clone(), |text| serde_json::from_str(text).unwrap());
    for i in (0..8).filter(|i| *i != 6) {
        assert_eq!(found[0][i], first[i], "column {i}");
    }
    assert_eq!(meta, first[6]);
    assert_eq!(found[1], json!([2, null, null, null, null, null, null, null]));
    let schema = rows(&maria.ask(&sql, ("reader", "schema")).await.unwrap()).to_string();
    for told in ["What people noted", "The text", "primary key", "bigint(20) unsigned", "references notes"] {
        assert!(schema.contains(told), "{told}: {schema}");
    }
    benign(&maria, &sql).await;
    layers(&maria, &sql).await;
    limits(&maria, &sql).await;
    readings(&maria).await;
}

/// What one reads as a literal, the other must not read as the end of one.
async fn readings(maria: &Maria) {
    let url = format!("mysql://reader:reader-pw@127.0.0.1:{}/shop", maria.port);
    let mut conn = sqlx::MySqlConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(mysql::MODE).execute(&mut conn).await.unwrap();
    let (mut agreed, found) = (0, statement::tests::ambiguous(Engine::MySql, 20_000));
    for (sent, columns) in &found {
        if let Ok(described) = (&mut conn).prepare(AssertSqlSafe(sent.clone()).into_sql_str()).await {
            assert_eq!(described.columns().len(), *columns, "{sent}");
            agreed += 1;
        }
    }
    eprintln!("{agreed} of {} literals were read alike, the others by none", found.len());
    assert!(agreed > 100);
}

async fn benign(maria: &Maria, sql: &Sql) {
    for statement in [
        "SELECT 1",
        "SELECT count(*), group_concat(tag ORDER BY tag SEPARATOR ', ') FROM tags",
        "SELECT `n`.`id`, t.tag FROM notes n LEFT JOIN tags t ON t.note_id = n.id ORDER BY 1 LIMIT 0, 5",
        "SELECT tag, count(*) FROM tags GROUP BY tag HAVING count(*) > 0",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
        "SELECT date_format(at, '%Y-%m'), year(at), datediff(now(), at), date_add(at, INTERVAL 1 DAY) FROM notes",
        "SELECT concat(body, '!'), if(id > 1, 'b', 'a'), ifnull(body, ''), upper(body) FROM notes",
        "SELECT body REGEXP '^f', body LIKE '%note' FROM notes",
        "SELECT 'it''s', \"double\", 'a\\'b', 'c\\\\' # done",
        "SELECT id DIV 2, id % 2, round(price, 1), CAST(price AS CHAR) FROM notes",
        "SELECT json_extract('{\"a\": 1}', '$.a'), json_unquote('\"x\"')",
        "SELECT row_number() OVER (ORDER BY id) FROM notes",
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'shop'",
        "SELECT id FROM notes UNION SELECT note_id FROM tags",
    ] {
        let output = maria.ask(sql, ("reader", statement)).await.unwrap();
        assert!(!output.is_error, "{statement}: {}", text(&output));
    }
    let literal = maria.ask(sql, ("reader", "SELECT 'a\\'b', 'c\\\\', 'd''e'")).await.unwrap();
    assert_eq!(rows(&literal), json!([["a'b", "c\\", "d'e"]]));
}

/// The controls: without the judge, a role that may write meets the transaction; a role that may
/// do everything meets the check.
async fn layers(maria: &Maria, sql: &Sql) {
    let count = async || rows(&maria.ask(sql, ("reader", "SELECT count(*) FROM notes")).await.unwrap());
    let judged = maria.ask(sql, ("writer", "INSERT INTO notes (id) VALUES (9)")).await.unwrap();
    assert!(text(&judged).starts_with("Not run: "), "{judged:?}");
    let open = Sql { judged: false, ..sql.clone() };
    for statement in [
        "INSERT INTO notes (id) VALUES (9)",
        "DELETE FROM notes",
        "SELECT 1; DELETE FROM notes",
        "COMMIT; DELETE FROM notes",
        "SELECT * FROM notes INTO OUTFILE '/tmp/gristmill-test-outfile'",
    ] {
        let output = maria.ask(&open, ("writer", statement)).await.unwrap();
        assert!(output.is_error, "{statement}: {output:?}");
    }
    assert_eq!(count().await, json!([[2]]));
    let power = maria.ask(sql, ("power", "SELECT 1")).await;
    assert!(matches!(power, Err(SqlError::PowerfulRole(_))), "{power:?}");
}

async fn limits(maria: &Maria, sql: &Sql) {
    let mut quick = Sql { judged: false, ..sql.clone() };
    quick.query = Duration::from_millis(500);
    let began = Instant::now();
    let late = maria.ask(&quick, ("reader", "SELECT sleep(60)")).await.unwrap();
    assert!(text(&late).contains("was cancelled"), "{late:?}");
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    quick.query = Duration::from_secs(5);
    quick.caps.rows = 3;
    let mut busy = "x".to_owned();
    for _ in 0..50 {
        let statement = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep%'";
        busy = rows(&maria.ask(&quick, ("reader", statement)).await.unwrap())[0][0].to_string();
        if busy == "0" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(busy, "0", "the statement still runs on the server");
    let many = maria.ask(&quick, ("reader", "SELECT a.seq FROM seq_1_to_1000000 a")).await.unwrap();
    assert_eq!(rows(&many).as_array().unwrap().len(), 3);
    assert_eq!(many.structured_content.unwrap()["truncated"], true);
}

#[test]
fn grants_on_everything_are_told_from_grants_on_a_shop() {
    for (grant, power) in [
        ("GRANT USAGE ON *.* TO `r`@`%` IDENTIFIED BY PASSWORD '*X'", None),
        ("GRANT SELECT, SHOW VIEW ON *.* TO `r`@`%`", None),
        ("GRANT SELECT ON `shop`.* TO `r`@`%`", None),
        ("GRANT ALL PRIVILEGES ON *.* TO `r`@`%` WITH GRANT OPTION", Some("ALL PRIVILEGES on everything")),
        ("GRANT SELECT, FILE ON *.* TO `r`@`%`", Some("FILE on everything")),
        ("GRANT SUPER ON *.* TO `r`@`%`", Some("SUPER on everything")),
    ] {
        assert_eq!(mysql::power(grant).as_deref(), power, "{grant}");
    }
}

/// A text that doubles with each row would fill the memory of this process.
#[tokio::test]
async fn sqlite_takes_no_more_memory_than_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty.db"), "").unwrap();
    let own = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
    let settings = config::Sql {
        sqlite_folder: folder.path().display().to_string(),
        sqlite_memory_bytes: 32 << 20,
        ..settings()
    };
    let sql = Sql::new(&settings, Guard::new(&[]), own);
    let database =
        Database { endpoint: "sqlite:empty.db", saved: None, workspace: WorkspaceId(uuid::Uuid::nil()) };
    let doubling = "WITH RECURSIVE t(a) AS (SELECT 'xxxxxxxxxxxxxxxx' UNION ALL SELECT a || a FROM t WHERE length(a) < 900000000)
                    SELECT max(length(a)) FROM t";
    let output = sql.query(&database, doubling).await.unwrap();
    assert!(output.is_error && text(&output).contains("out of memory"), "{output:?}");
}
