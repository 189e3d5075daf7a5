//! The layers on a live Postgres: together, and each where another is switched off.

use super::statement::tests::{BENIGN, CALLED, DANGEROUS};
use super::*;
use crate::domain::Credential;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr, Statement};
use std::time::Instant;

mod files;
mod heavy;
mod refused;

/// The defaults, for tests that reach loopback.
pub(super) fn settings() -> config::Sql {
    config::Config::load(None).unwrap().sql
}

pub(super) fn guard() -> Guard {
    Guard::new(&["127.0.0.0/8".parse().unwrap()])
}

pub(super) fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic { username: username.to_owned(), password: SecretString::from(password) }
}

pub(super) fn text(output: &ToolOutput) -> &str {
    output.content[0]["text"].as_str().unwrap()
}

pub(super) fn rows(output: &ToolOutput) -> Value {
    assert!(!output.is_error, "{}", text(output));
    output.structured_content.as_ref().unwrap()["rows"].clone()
}

/// A database with notes in it, and a role that may only read them.
struct Shop {
    db: PgPool,
    /// A pool on another database: the worker's own, for these tests.
    own: PgPool,
    role: String,
    credential: Credential,
    endpoint: String,
    origin: String,
}

impl Shop {
    /// Runs a test in a shop of its own, and takes the role away whatever became of it.
    async fn run(db: PgPool, test: impl AsyncFnOnce(&Self)) {
        let options = db.connect_options();
        let name = options.get_database().unwrap().to_owned();
        // Unquoted names are folded, and cut at 63 bytes.
        let role = format!("reader{name}").to_lowercase();
        let role = role[..role.len().min(60)].to_owned();
        let script = format!(
            "CREATE TABLE notes (id int PRIMARY KEY, body text UNIQUE, at timestamptz DEFAULT now(), meta jsonb);
             COMMENT ON TABLE notes IS 'What people noted'; COMMENT ON COLUMN notes.body IS 'The text';
             CREATE SEQUENCE notes_id_seq;
             CREATE TABLE tags (id int PRIMARY KEY, note_id int REFERENCES notes, tag text NOT NULL);
             CREATE TABLE hidden (secret text);
             INSERT INTO notes VALUES (1, 'first note', '2026-01-02', '{{\"who\": \"me\", \"a\": [1, 2]}}'), (2, 'second', now(), NULL);
             INSERT INTO tags VALUES (1, 1, 'red'), (2, 1, 'blue');
             CREATE ROLE {role} LOGIN PASSWORD 'reader-pw';
             GRANT SELECT ON notes, tags TO {role}"
        );
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&db).await.unwrap();
        let address = format!("{}:{}", options.get_host(), options.get_port());
        let shop = Self {
            own: PgPool::connect_with((*options).clone().database("postgres")).await.unwrap(),
            credential: basic(&role, "reader-pw"),
            endpoint: format!("postgres://{address}/{name}"),
            origin: format!("postgres://{address}/{name}"),
            role: role.clone(),
            db,
        };
        let end = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(test(&shop))).await;
        let forget = format!("DROP OWNED BY {role}; DROP ROLE {role}");
        sqlx::raw_sql(AssertSqlSafe(forget)).execute(&shop.db).await.unwrap();
        if let Err(panic) = end {
            std::panic::resume_unwind(panic);
        }
    }

    fn sql(&self) -> Sql {
        Sql::new(&settings(), guard(), self.own.clone())
    }

    fn database(&self) -> Database<'_> {
        let saved = Saved { credential: &self.credential, origin: &self.origin };
        Database { endpoint: &self.endpoint, saved: Some(saved), workspace: WorkspaceId(uuid::Uuid::nil()) }
    }

    /// Everything that a write would have changed.
    async fn state(&self) -> String {
        sqlx::query_scalar(
            "SELECT concat((SELECT string_agg(n::text, ';' ORDER BY id) FROM notes n), (SELECT count(*) FROM tags),
                           (SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'S', 'v')
                              AND relnamespace = 'public'::regnamespace),
                           (SELECT last_value || '/' || is_called FROM notes_id_seq),
                           (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace),
                           (SELECT count(*) FROM pg_largeobject_metadata))",
        )
        .fetch_one(&self.db)
        .await
        .unwrap()
    }

    /// Sessions of database tools in this database that are at work.
    async fn at_work(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND usename = $1 AND state <> 'idle'",
        )
        .bind(&self.role)
        .fetch_one(&self.db)
        .await
        .unwrap()
    }
}

#[sqlx::test(migrations = false)]
async fn of_the_corpus_nothing_dangerous_runs_and_everything_benign_does(db: PgPool) {
    Shop::run(db, async |shop| {
        let (sql, before) = (shop.sql(), shop.state().await);
        for statement in DANGEROUS {
            let output = sql.query(&shop.database(), statement).await.unwrap();
            assert!(output.is_error && text(&output).starts_with("Not run: "), "{statement}: {output:?}");
        }
        assert_eq!(shop.state().await, before);
        for statement in BENIGN {
            let output = sql.query(&shop.database(), statement).await.unwrap();
            assert!(!output.is_error, "{statement}: {}", text(&output));
        }
    })
    .await;
}

/// `x.f` is `f(x)` where x has no column f, and only the database knows which it is.
#[sqlx::test(migrations = false)]
async fn a_function_that_is_called_by_a_dot_does_not_run(db: PgPool) {
    Shop::run(db, async |shop| {
        let functions = "CREATE FUNCTION peek(notes) RETURNS text VOLATILE LANGUAGE sql AS $$SELECT 'peeked'$$;
             CREATE FUNCTION \"a\"\"b\"(notes, int DEFAULT 1) RETURNS text VOLATILE LANGUAGE sql AS $$SELECT 'peeked'$$;
             CREATE FUNCTION full_name(notes) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT 'computed'$$";
        sqlx::raw_sql(functions).execute(&shop.db).await.unwrap();
        let sql = shop.sql();
        for statement in CALLED {
            let output = sql.query(&shop.database(), statement).await.unwrap();
            assert!(text(&output).contains("may call the function"), "{statement}: {output:?}");
        }
        // The control: they would have been called.
        for statement in ["SELECT notes.peek FROM notes", "SELECT notes.\"a\"\"b\" FROM notes"] {
            let told: String = sqlx::query_scalar(statement).fetch_one(&shop.db).await.unwrap();
            assert_eq!(told, "peeked");
        }
        for benign in ["SELECT notes.full_name FROM notes", "SELECT n.at, n.meta FROM public.notes n"] {
            let output = sql.query(&shop.database(), benign).await.unwrap();
            assert!(!output.is_error, "{benign}: {}", text(&output));
        }
    })
    .await;
}

/// The control: with the judge gone, the role, the transaction and the protocol still stop every
/// write; and some of the rest does run, so the judge is not idle either.
#[sqlx::test(migrations = false)]
async fn without_the_judge_the_other_layers_still_stop_writes(db: PgPool) {
    Shop::run(db, async |shop| {
        let mut sql = Sql { judged: false, ..shop.sql() };
        sql.query = Duration::from_millis(300);
        let before = shop.state().await;
        let mut ran = Vec::new();
        for statement in DANGEROUS {
            if let Ok(output) = sql.query(&shop.database(), statement).await
                && !output.is_error
            {
                ran.push(*statement);
            }
        }
        assert_eq!(shop.state().await, before, "{ran:?}");
        for expected in ["SELECT pg_advisory_lock(1)", "SELECT * FROM pg_stat_activity"] {
            assert!(ran.contains(&expected), "{expected}: {ran:?}");
        }
        // What a session held is gone with its connection.
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
                     (SELECT oid FROM pg_database WHERE datname = current_database())";
        assert_eq!(sqlx::query_scalar::<_, i64>(locks).fetch_one(&shop.db).await.unwrap(), 0);
        assert_eq!(shop.at_work().await, 0);
    })
    .await;
}

/// The control of the control: a role that owns everything, with neither judge nor check of the
/// role. The transaction and the protocol alone hold what they can.
#[sqlx::test(migrations = false)]
async fn with_a_role_that_may_write_the_transaction_still_refuses(db: PgPool) {
    Shop::run(db, async |shop| {
        sqlx::raw_sql(AssertSqlSafe(format!("GRANT ALL ON notes, tags, notes_id_seq TO {}", shop.role)))
            .execute(&shop.db)
            .await
            .unwrap();
        let sql = Sql { judged: false, refuse_powerful_roles: false, ..shop.sql() };
        let before = shop.state().await;
        for statement in [
            "INSERT INTO notes VALUES (9, 'x')",
            "WITH gone AS (DELETE FROM notes RETURNING id) SELECT * FROM gone",
            "SELECT nextval('notes_id_seq')",
            "SELECT * FROM notes FOR UPDATE",
            "COMMIT; CREATE TABLE evil (a int); BEGIN",
            "SELECT 1; DELETE FROM notes",
            "SELECT 1) AS x(c0); DELETE FROM notes; SELECT (1",
        ] {
            let output = sql.query(&shop.database(), statement).await.unwrap();
            assert!(output.is_error, "{statement}: {output:?}");
        }
        assert_eq!(shop.state().await, before);
        // The same role may write where no layer of ours stands.
        sqlx::raw_sql(AssertSqlSafe(format!(
            "SET ROLE {}; INSERT INTO notes VALUES (9, 'x'); RESET ROLE",
            shop.role
        )))
        .execute(&shop.db)
        .await
        .unwrap();
        assert_ne!(shop.state().await, before);
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn a_minute_s_query_is_cancelled_on_its_server_within_a_second_of_the_limit(db: PgPool) {
    Shop::run(db, async |shop| {
        let sql = Sql { judged: false, ..shop.sql() };
        assert_eq!(sql.query, Duration::from_secs(5), "the default is what is measured");
        let database = shop.database();
        for statement in ["SELECT pg_sleep(60)"] {
            let began = Instant::now();
            let (output, seen) = tokio::join!(sql.query(&database, statement), async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                shop.at_work().await
            });
            assert_eq!(seen, 1, "it does run meanwhile");
            assert!(text(&output.unwrap()).contains("was cancelled"), "{statement}");
            while shop.at_work().await > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(began.elapsed() <= Duration::from_secs(6), "{:?}", began.elapsed());
        }
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn a_judged_query_that_never_ends_is_cancelled_too(db: PgPool) {
    Shop::run(db, async |shop| {
        let mut sql = shop.sql();
        sql.query = Duration::from_millis(500);
        let endless =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT (i + 1) % 1000 FROM n) SELECT count(*) FROM n";
        let output = sql.query(&shop.database(), endless).await.unwrap();
        assert!(output.is_error && text(&output).contains("was cancelled"), "{output:?}");
        let began = Instant::now();
        while shop.at_work().await > 0 {
            assert!(began.elapsed() < Duration::from_secs(1), "it still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Whoever stops waiting leaves the statement to the server's own limit.
#[sqlx::test(migrations = false)]
async fn a_call_that_is_dropped_leaves_nothing_at_work_for_long(db: PgPool) {
    Shop::run(db, async |shop| {
        let mut sql = Sql { judged: false, ..shop.sql() };
        sql.query = Duration::from_secs(1);
        let database = shop.database();
        let dropped =
            tokio::time::timeout(Duration::from_millis(500), sql.query(&database, "SELECT pg_sleep(60)"));
        assert!(dropped.await.is_err());
        assert_eq!(shop.at_work().await, 1, "it does run on");
        let began = Instant::now();
        while shop.at_work().await > 0 {
            assert!(began.elapsed() < Duration::from_secs(3), "it still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn rows_and_bytes_are_capped_and_the_cut_is_told(db: PgPool) {
    Shop::run(db, async |shop| {
        let mut sql = shop.sql();
        sql.caps = Caps { rows: 500, bytes: 10_000 };
        // Without end: only a cursor that is left can stop it.
        let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
        let many = sql.query(&shop.database(), many).await.unwrap();
        assert_eq!(rows(&many).as_array().unwrap().len(), 500);
        assert_eq!(many.structured_content.as_ref().unwrap()["truncated"], true);
        assert!(text(&many).ends_with("narrow the query or page through it)"), "{}", text(&many));
        let wide = "SELECT repeat('x', 9000) AS x FROM generate_series(1, 10)";
        let wide = sql.query(&shop.database(), wide).await.unwrap();
        assert_eq!(rows(&wide).as_array().unwrap().len(), 1);
        // One value beyond the cap is cut by the server itself.
        let huge = "SELECT string_agg(repeat('x', 9000), '') FROM generate_series(1, 1000)";
        let huge = sql.query(&shop.database(), huge).await.unwrap();
        assert_eq!(rows(&huge)[0][0].as_str().unwrap().len(), 10_000);
        assert_eq!(huge.structured_content.as_ref().unwrap()["truncated"], true);
        let all = sql.query(&shop.database(), "SELECT n FROM generate_series(1, 450) g(n)").await.unwrap();
        assert_eq!(all.structured_content.as_ref().unwrap()["truncated"], false);
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn a_server_that_sends_without_end_is_cut_off(db: PgPool) {
    Shop::run(db, async |shop| {
        let mut sql = shop.sql();
        sql.max_wire_bytes = 100_000;
        let wide = "SELECT repeat('x', 9000) AS x FROM generate_series(1, 100)";
        let cut = sql.query(&shop.database(), wide).await.unwrap();
        assert!(cut.is_error && text(&cut).contains("Narrow the query"), "{cut:?}");
        // Wide rows are brought one by one, so the caps are met before the wire's limit.
        sql.caps = Caps { rows: 500, bytes: 20_000 };
        let narrow = sql.query(&shop.database(), wide).await.unwrap();
        assert_eq!(rows(&narrow).as_array().unwrap().len(), 2);
        // A server's words may be as long as a text of its data.
        let words = "SELECT string_agg(repeat('x', 9000), '')::int FROM generate_series(1, 8)";
        let words = sql.query(&shop.database(), words).await.unwrap();
        assert!(words.is_error && text(&words).len() < 2_100, "{}", text(&words).len());
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn values_keep_their_types_and_lose_nothing(db: PgPool) {
    Shop::run(db, async |shop| {
        let statement = "SELECT 1 AS a, 9007199254740993::int8 AS b, 12345678901234567890.10::numeric AS c, true AS d,
            NULL::int AS e, 'x|y' AS f, '{\"k\": [1]}'::jsonb AS g, ARRAY[1, 2] AS h, 'NaN'::float8 AS i, 1.5::float4 AS a,
            '2026-01-02 03:04:05+00'::timestamptz AS j, '\\xdead'::bytea AS k";
        let output = shop.sql().query(&shop.database(), statement).await.unwrap();
        let expected = json!([[1, 9_007_199_254_740_993_i64, "12345678901234567890.10", true, null, "x|y", {"k": [1]},
            "{1,2}", "NaN", 1.5, "2026-01-02 03:04:05+00", "\\xdead"]]);
        assert_eq!(rows(&output), expected);
        let columns = json!(["a", "b", "c", "d", "e", "f", "g", "h", "i", "a", "j", "k"]);
        assert_eq!(output.structured_content.as_ref().unwrap()["columns"], columns);
        assert!(text(&output).contains("| x\\|y |") && text(&output).ends_with("(1 row)"), "{}", text(&output));
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn the_schema_tells_what_the_role_may_read_and_no_more(db: PgPool) {
    Shop::run(db, async |shop| {
        let output = shop.sql().schema(&shop.database()).await.unwrap();
        let listed = rows(&output).to_string();
        for told in
            ["What people noted", "The text", "primary key", "references notes", "timestamp with time zone"]
        {
            assert!(listed.contains(told), "{told}: {listed}");
        }
        assert!(!listed.contains("hidden"), "{listed}");
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn the_database_s_own_words_reach_the_model(db: PgPool) {
    Shop::run(db, async |shop| {
        let sql = shop.sql();
        for (statement, told) in [
            ("SELECT nope FROM notes", "column \"nope\" does not exist"),
            ("SELECT * FROM hidden", "permission denied for table hidden"),
            ("SELECT 1 / 0", "division by zero"),
        ] {
            let output = sql.query(&shop.database(), statement).await.unwrap();
            assert!(output.is_error && text(&output).contains(told), "{statement}: {output:?}");
        }
    })
    .await;
}

#[test]
fn endpoints_are_read_with_care() {
    for (endpoint, expected) in [
        ("postgres://db.example/shop", "postgres://db.example:5432/shop"),
        ("postgresql://DB.example:6000/shop", "postgres://db.example:6000/shop"),
        ("mysql://db.example/shop?sslmode=require", "mysql://db.example:3306/shop"),
        ("mariadb://[::1]:1/x", "mysql://[::1]:1/x"),
        ("sqlite:shop.db", "sqlite:"),
    ] {
        assert_eq!(origin(endpoint).unwrap(), expected, "{endpoint}");
    }
    for endpoint in
        ["postgres://user:canary@db/shop", "postgres://user@db/x", "http://db/x", "postgres:///x", "db"]
    {
        let wrong = origin(endpoint).unwrap_err().to_string();
        assert!(!wrong.contains("canary"), "{wrong}");
    }
    let read = |endpoint: &str| Target::read(endpoint, None, "", uuid::Uuid::nil());
    for endpoint in ["mysql://db/mysql", "mysql://db/SYS", "mariadb://db/information_schema"] {
        assert!(matches!(read(endpoint), Err(SqlError::ServersOwn)), "{endpoint}");
    }
    assert!(read("mysql://db/shop").is_ok() && read("postgres://db/sys").is_ok());
    for endpoint in ["postgres://db", "postgres://db/a/b", "postgres://db/a?sslmode=maybe", "sqlite:shop.db"]
    {
        assert!(read(endpoint).is_err(), "{endpoint}");
    }
}

/// An unused session would be closed with the pool of the test; this one is ours.
#[sqlx::test(migrations = false)]
async fn no_session_outlives_its_call(db: PgPool) {
    Shop::run(db, async |shop| {
        let sql = shop.sql();
        for statement in ["SELECT 1", "SELECT 1 / 0", "DELETE FROM notes"] {
            sql.query(&shop.database(), statement).await.unwrap();
        }
        let mut conn = PgConnection::connect_with(&shop.db.connect_options()).await.unwrap();
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
        let mut left = 1;
        for _ in 0..100 {
            left =
                sqlx::query_scalar::<_, i64>(sessions).bind(&shop.role).fetch_one(&mut conn).await.unwrap();
            if left == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(left, 0);
    })
    .await;
}

#[test]
fn a_password_leaves_a_private_network_only_over_tls() {
    let usual = |addresses: &[&str]| {
        usual_tls(&addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>())
    };
    assert_eq!(usual(&["10.0.0.1:5432", "127.0.0.1:5432", "[fd00::1]:5432"]), Tls::Prefer);
    assert_eq!(usual(&["8.8.8.8:5432"]), Tls::Require);
    assert_eq!(usual(&["10.0.0.1:5432", "8.8.8.8:5432"]), Tls::Require);
    // Whatever an endpoint's editor writes behind it.
    let public = ["8.8.8.8:5432".parse().unwrap()];
    for (asked, expected) in [
        (Some(Tls::Off), Tls::Require),
        (Some(Tls::Prefer), Tls::Require),
        (Some(Tls::VerifyFull), Tls::VerifyFull),
        (None, Tls::Require),
    ] {
        assert_eq!(tls(asked, &public), expected, "{asked:?}");
    }
    assert_eq!(tls(Some(Tls::Off), &["10.0.0.1:5432".parse().unwrap()]), Tls::Off);
}

/// What one reads as a literal, the other must not read as the end of one.
#[sqlx::test(migrations = false)]
async fn postgres_reads_what_is_sent_as_the_judge_read_it(db: PgPool) {
    let mut conn = db.acquire().await.unwrap();
    let (mut agreed, found) = (0, statement::tests::ambiguous(Engine::Postgres, 20_000));
    for (sent, columns) in &found {
        if let Ok(described) = (&mut *conn).prepare(AssertSqlSafe(sent.clone()).into_sql_str()).await {
            assert_eq!(described.columns().len(), *columns, "{sent}");
            agreed += 1;
        }
    }
    eprintln!("{agreed} of {} literals were read alike, the others by none", found.len());
    assert!(agreed > 100);
}
