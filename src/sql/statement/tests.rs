//! What is refused and what is let through, by the parser alone.

use super::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

/// The text alone.
fn judge(engine: Engine, sql: &str) -> Result<String, Objection> {
    super::judge(engine, sql).map(|written| written.text)
}

/// Every row of the table of what a weak role can still do, and what is worse elsewhere.
pub(crate) const DANGEROUS: &[&str] = &[
    // Writes, plain and in disguise.
    "INSERT INTO notes VALUES (9, 'x')",
    "UPDATE notes SET body = 'x'",
    "DELETE FROM notes",
    "MERGE INTO notes USING notes n ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE notes",
    "WITH gone AS (DELETE FROM notes RETURNING id) SELECT * FROM gone",
    "WITH new AS (INSERT INTO notes VALUES (9, 'x') RETURNING id) SELECT * FROM new",
    "SELECT * FROM (WITH x AS (UPDATE notes SET body = 'x' RETURNING id) SELECT * FROM x) y",
    "EXPLAIN ANALYZE INSERT INTO notes VALUES (9, 'x')",
    "EXPLAIN SELECT 1",
    "PREPARE p AS INSERT INTO notes VALUES (9, 'x')",
    "EXECUTE p",
    "SELECT nextval('notes_id_seq')",
    "SELECT setval('notes_id_seq', 1)",
    "CREATE TEMP TABLE t (a int)",
    "CREATE TABLE evil (a int)",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP TABLE notes",
    "ALTER TABLE notes ADD COLUMN x int",
    "GRANT ALL ON notes TO public",
    "SELECT * INTO evil FROM notes",
    "SELECT * FROM notes FOR UPDATE",
    "SELECT * FROM notes FOR SHARE",
    "SELECT * FROM (SELECT * FROM notes FOR UPDATE) n",
    "SELECT (SELECT id FROM notes LIMIT 1 FOR NO KEY UPDATE)",
    "LOCK TABLE notes",
    "VACUUM notes",
    "REFRESH MATERIALIZED VIEW v",
    // Out of the transaction, out of the limits.
    "COMMIT; CREATE TABLE evil (a int); BEGIN",
    "SELECT 1; DELETE FROM notes",
    "SELECT 1; SELECT 2",
    "SET TRANSACTION READ WRITE",
    "SET statement_timeout = 0",
    "SET statement_timeout=0; SELECT pg_sleep(60)",
    "SET SESSION AUTHORIZATION postgres",
    "SET ROLE postgres",
    "RESET ALL",
    "ROLLBACK",
    "BEGIN",
    "SAVEPOINT s",
    "SELECT set_config('statement_timeout', '0', false)",
    "SELECT pg_sleep(60)",
    "SELECT pg_catalog.pg_sleep(60)",
    "SELECT \"pg_sleep\"(60)",
    "SELECT \"LOWER\"('x')",
    "SELECT public.lower('x')",
    "SELECT pg_sleep_for('1 minute')",
    "SELECT * FROM pg_sleep(60)",
    "SELECT * FROM notes, LATERAL pg_sleep(60)",
    "SELECT * FROM notes ORDER BY pg_sleep(60)",
    "SELECT count(*) FILTER (WHERE pg_sleep(60) IS NULL) FROM notes",
    "SELECT sum(1) OVER (ORDER BY pg_sleep(60)) FROM notes",
    "SELECT CASE WHEN true THEN pg_sleep(60) END",
    "VALUES (pg_sleep(60))",
    "SELECT * FROM notes LIMIT (SELECT 1 FROM pg_sleep(60))",
    "SELECT ARRAY[pg_sleep(60)]",
    "SELECT (pg_stat_file('x')).size",
    // A dot after an expression is a call: `x.f` is `f(x)` where x has no column f.
    "SELECT ('app.jwt_secret'::text).current_setting",
    "SELECT (60).pg_sleep",
    "SELECT (pid).pg_cancel_backend FROM (VALUES (1)) p(pid)",
    "SELECT ('host=127.0.0.1'::text).dblink_connect",
    "SELECT (SELECT 60).pg_sleep",
    "SELECT (ARRAY[60])[1].pg_sleep",
    "SELECT meta['a'].pg_sleep FROM notes",
    "SELECT * FROM notes WHERE (id).pg_advisory_lock IS NULL",
    // The file system, programs, other connections.
    "COPY notes TO '/tmp/x'",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "COPY notes FROM '/etc/passwd'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT * FROM pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_creat(-1)",
    "SELECT lo_export(1, '/tmp/x')",
    "SELECT pg_switch_wal()",
    "SELECT pg_import_system_collations('pg_catalog')",
    "SELECT * FROM dblink('dbname=x', 'DELETE FROM notes') AS t(a int)",
    "SELECT dblink_exec('dbname=x', 'DELETE FROM notes')",
    "SELECT query_to_xml('DELETE FROM notes', true, true, '')",
    "SELECT table_to_xml('notes', true, true, '')",
    "SELECT database_to_xml(true, true, '')",
    "SELECT cursor_to_xml('c', 1, true, true, '')",
    "LOAD 'evil'",
    "DO $$ BEGIN PERFORM pg_sleep(60); END $$",
    "CALL evil()",
    // Locks, messages, other sessions.
    "NOTIFY gristmill_events, 'x'",
    "LISTEN gristmill_events",
    "SELECT pg_notify('gristmill_events', 'x')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_terminate_backend(pg_backend_pid())",
    "SELECT pg_cancel_backend(1)",
    "SELECT * FROM pg_stat_activity",
    "SELECT usename FROM pg_catalog.pg_stat_activity",
    "SELECT * FROM \"pg_stat_activity\"",
    "SELECT rolname FROM pg_roles",
    "SELECT passwd FROM pg_shadow",
    "SELECT * FROM pg_settings",
    "SELECT * FROM information_schema.enabled_roles",
    "TABLE pg_stat_activity",
    "SELECT current_setting('data_directory')",
    "SELECT version()",
    "SELECT inet_server_addr()",
    // Words behind comments, and things that no query is.
    "/* harmless */ DELETE FROM notes",
    "-- harmless\nDELETE FROM notes",
    "/* /* nested */ */ DROP TABLE notes",
    "SELECT 1 /* ; */ ; DELETE FROM notes",
    "SELECT 'a\\'; DELETE FROM notes; --'",
    "SELECT $1",
    "SELECT repeat('x', 1000000000)",
    "SELECT lpad('x', id) FROM notes",
    "SELECT 1 OPERATOR(public.evil) 2",
    "",
    ";",
    "not sql at all",
    "FETCH ALL FROM gristmill_cursor",
    "CLOSE gristmill_cursor",
    "DECLARE c CURSOR FOR SELECT 1",
    "SHOW ALL",
    "ANALYZE",
    "CHECKPOINT",
    "DISCARD ALL",
];

/// Read as columns by the parser; the database knows them for functions, and is asked.
pub(crate) const CALLED: &[&str] = &[
    "SELECT g.current_setting FROM unnest(ARRAY['app.jwt_secret']) g",
    "SELECT g.\"current_setting\" FROM unnest(ARRAY['app.jwt_secret']) g",
    "SELECT g.Current_Setting FROM unnest(ARRAY['app.jwt_secret']) g",
    "SELECT g.pg_sleep FROM (VALUES (60)) v(n), LATERAL generate_series(60, 60) g",
    "SELECT generate_series.pg_advisory_lock FROM generate_series(1, 2)",
    "SELECT g.pg_advisory_lock[1] FROM generate_series(1, 2) g",
    "SELECT 1 FROM generate_series(1, 2) g ORDER BY g.pg_cancel_backend",
    "SELECT count(*) FROM generate_series(1, 2) g WHERE g.pg_terminate_backend",
    "SELECT notes.peek FROM notes",
    "SELECT public.notes.peek FROM notes",
    "SELECT notes.\"a\"\"b\" FROM notes",
];

/// What people ask; run on a database by the tests of the module.
pub(crate) const BENIGN: &[&str] = &[
    "SELECT 1",
    "SELECT * FROM notes",
    "SELECT id, body FROM notes WHERE id = 1;",
    "select count(*) from notes",
    "SELECT n.id AS number, upper(n.body) FROM notes n WHERE n.body LIKE 'f%' ORDER BY n.id DESC LIMIT 10 OFFSET 0",
    "SELECT n.id, t.tag FROM notes n JOIN tags t ON t.note_id = n.id",
    "SELECT n.id, t.tag FROM notes n LEFT JOIN tags t ON t.note_id = n.id WHERE t.tag IS NULL",
    "SELECT * FROM notes n FULL OUTER JOIN tags t USING (id)",
    "SELECT t.tag, count(*), avg(n.id), min(n.id), max(n.id) FROM notes n JOIN tags t ON t.note_id = n.id \
     GROUP BY t.tag HAVING count(*) > 0",
    "SELECT DISTINCT tag FROM tags",
    "SELECT DISTINCT ON (note_id) note_id, tag FROM tags ORDER BY note_id, id",
    "WITH recent AS (SELECT * FROM notes WHERE at > now() - interval '7 days') SELECT count(*) FROM recent",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT sum(i) FROM n",
    "SELECT id FROM notes UNION SELECT note_id FROM tags",
    "SELECT id FROM notes EXCEPT SELECT note_id FROM tags ORDER BY 1",
    "SELECT id FROM notes INTERSECT SELECT note_id FROM tags",
    "SELECT id, row_number() OVER (PARTITION BY at ORDER BY id) FROM notes",
    "SELECT id, lag(id) OVER w, sum(id) OVER w FROM notes WINDOW w AS (ORDER BY id)",
    "SELECT date_trunc('day', at) AS day, count(*) FROM notes GROUP BY 1 ORDER BY 1",
    "SELECT extract(year FROM at), to_char(at, 'YYYY-MM') FROM notes",
    "SELECT CASE WHEN id > 1 THEN 'many' ELSE 'one' END FROM notes",
    "SELECT coalesce(body, ''), nullif(body, ''), greatest(1, 2) FROM notes",
    "SELECT * FROM notes WHERE id IN (1, 2, 3) AND body NOT IN ('x') AND id BETWEEN 1 AND 5",
    "SELECT * FROM notes WHERE EXISTS (SELECT 1 FROM tags WHERE tags.note_id = notes.id)",
    "SELECT * FROM notes WHERE id = ANY (ARRAY[1, 2])",
    "SELECT (SELECT max(id) FROM tags) AS top",
    "SELECT id::text, CAST(id AS numeric(10, 2)), '1'::int FROM notes",
    "SELECT meta ->> 'who', meta -> 'a' -> 0, meta #>> '{a,0}', meta @> '{\"who\": \"me\"}' FROM notes",
    "SELECT jsonb_array_elements(meta -> 'a') FROM notes",
    "SELECT string_agg(tag, ', ' ORDER BY tag) FROM tags",
    "SELECT array_agg(id) FILTER (WHERE id > 1) FROM notes",
    "SELECT * FROM generate_series(1, 3) AS g(n)",
    "SELECT unnest(ARRAY['a', 'b']) AS letter",
    "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS v(n, letter)",
    "VALUES (1), (2)",
    "SELECT n.id, x.tag FROM notes n CROSS JOIN LATERAL (SELECT tag FROM tags t WHERE t.note_id = n.id LIMIT 1) x",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM notes",
    "SELECT body FROM notes WHERE to_tsvector('english', body) @@ plainto_tsquery('english', 'first')",
    "SELECT body ~* 'FIRST', body ILIKE '%note', body SIMILAR TO '%n' FROM notes",
    "SELECT 'it''s', E'tab\\t', $$dollar$$, 'O\\Reilly'",
    "SELECT \"id\", \"body\" AS \"The text\" FROM \"public\".\"notes\"",
    "-- how many?\nSELECT /* all of them */ count(*) FROM notes -- done",
    "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'",
    "SELECT tag, count(*) FROM tags GROUP BY GROUPING SETS ((tag), ())",
    "SELECT at AT TIME ZONE 'Europe/Berlin', current_date, at + interval '1 day', age(at) FROM notes",
    "SELECT substring(body FROM 1 FOR 3), position('n' IN body), trim(BOTH ' ' FROM body) FROM notes",
    "SELECT round(id / 3.0, 2), id % 2, -id, id ^ 2, abs(-1) FROM notes",
    "SELECT lpad(id::text, 5, '0') FROM notes",
    "SELECT * FROM notes ORDER BY id FETCH FIRST 2 ROWS ONLY",
    "SELECT body || ' ' || id FROM notes WHERE body IS NOT NULL AND (id <> 2 OR NOT false)",
    "SELECT public.notes.body, notes.id FROM public.notes",
    "SELECT t.name, t.date, t.text, t.version, t.age FROM (VALUES ('a', 1, 2, 3, 4)) t(name, date, text, version, age)",
    "SELECT t.a[1], t.a[1:2], n.meta['a'][0], (ARRAY[1])[1] FROM (VALUES (ARRAY[1])) t(a), notes n",
];

const MYSQL_DANGEROUS: &[&str] = &[
    "SELECT sleep(60)",
    "SELECT benchmark(1000000000, md5('x'))",
    "SELECT load_file('/etc/passwd')",
    "SELECT * FROM notes INTO OUTFILE '/tmp/x'",
    "SELECT 1 INTO DUMPFILE '/tmp/x'",
    "SELECT 1 INTO @x",
    "SELECT @@global.version",
    "SELECT @a := 1",
    "SELECT get_lock('x', 10)",
    "SELECT release_all_locks()",
    "SELECT /*! sleep(60) */",
    "SELECT 1 /*!50000 UNION SELECT sleep(60) */",
    "/*! DELETE FROM notes */",
    "SELECT user FROM mysql.user",
    "SELECT * FROM performance_schema.threads",
    "SELECT * FROM sys.session",
    "SELECT * FROM information_schema.processlist",
    "SELECT * FROM notes LOCK IN SHARE MODE",
    "SELECT * FROM notes FOR UPDATE",
    "SELECT extractvalue(1, concat(0x7e, (SELECT 1)))",
    "SET SESSION max_statement_time = 0",
    "HANDLER notes OPEN",
    "LOAD DATA INFILE '/etc/passwd' INTO TABLE notes",
    "DO sleep(60)",
    "CALL evil()",
    "SHOW TABLES",
    "USE mysql",
    "SELECT * FROM notes PROCEDURE ANALYSE()",
    "SELECT sys_exec('id')",
    "SELECT 1; DELETE FROM notes",
    "REPLACE INTO notes VALUES (1)",
    "KILL 1",
    "XA START 'x'",
    "SELECT master_pos_wait('a', 1)",
    "SELECT uuid_short(), last_insert_id(5)",
];

const SQLITE_DANGEROUS: &[&str] = &[
    "ATTACH DATABASE '/etc/passwd' AS x",
    "DETACH x",
    "PRAGMA query_only = OFF",
    "PRAGMA table_info(notes)",
    "SELECT * FROM pragma_table_info('notes')",
    "SELECT * FROM pragma_database_list",
    "SELECT load_extension('evil.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('/tmp/x', 'y')",
    "SELECT edit('x')",
    "SELECT fts3_tokenizer('x')",
    "SELECT zeroblob(1000000000)",
    "SELECT randomblob(1000000000)",
    "SELECT printf('%1000000000d', 1)",
    "SELECT format('%1000000000d', 1)",
    "SELECT * FROM sqlite_dbpage",
    "SELECT * FROM dbstat",
    "VACUUM INTO '/tmp/x'",
    "INSERT INTO notes VALUES (1)",
    "REPLACE INTO notes VALUES (1)",
    "CREATE TABLE x (a)",
    "SELECT 1; DELETE FROM notes",
    "REINDEX",
    "SELECT sqlite_compileoption_get(1)",
    // One step that nothing interrupts.
    "SELECT instr(hex(data), 'a') FROM notes",
    "SELECT replace(body, 'a', 'aa') FROM notes",
    "SELECT trim(body, 'abc') FROM notes",
    "SELECT ltrim(body, 'abc') FROM notes",
    "SELECT rtrim(body, body) FROM notes",
    "SELECT unhex(body, body) FROM notes",
    "SELECT body LIKE body FROM notes",
    "SELECT body NOT LIKE '%' || body FROM notes",
    "SELECT body GLOB body FROM notes",
    "SELECT like(body, body), glob(body, body) FROM notes",
];

/// Lists of literals made to be read in two ways, as far as they are let through: the text that
/// would be sent, and how many columns the judge saw in it.
pub(crate) fn ambiguous(engine: Engine, tries: usize) -> Vec<(String, usize)> {
    let opening =
        ["'", "''", "E'", "e'", "\"", "`", "$$", "$a$", "N'", "x'", "b'", "U&'", "_utf8'", "1", "q'["];
    let inside = [
        "'", "''", "\\", "\\'", "\\\\", "a", "--", "/*", "*/", "#", "$$", "$a$", "\"", "\"\"", "`", ",",
        "\n", "/*!", "%", ";",
    ];
    let item = (sample(&opening), proptest::collection::vec(sample(&inside), 0..5), sample(&opening))
        .prop_map(|(open, body, close)| format!("{open}{}{close}", body.concat()));
    let list = proptest::collection::vec(item, 1..4).prop_map(|items| format!("SELECT {}", items.join(", ")));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let texts = (0..tries).map(|_| list.new_tree(&mut runner).unwrap().current());
    texts
        .filter_map(|text| judge(engine, &text).ok())
        .map(|sent| (columns(engine, &sent), sent))
        .map(|(n, sent)| (sent, n))
        .collect()
}

fn sample(of: &[&'static str]) -> impl Strategy<Value = &'static str> + use<> {
    proptest::sample::select(of.to_vec())
}

fn columns(engine: Engine, sent: &str) -> usize {
    match *parse(engine, sent).unwrap().0.body {
        SetExpr::Select(select) => select.projection.len(),
        _ => panic!("{sent}"),
    }
}

fn accepted(engine: Engine, statements: &'static [&'static str]) -> Vec<(&'static str, String)> {
    statements.iter().filter_map(|sql| judge(engine, sql).ok().map(|written| (*sql, written))).collect()
}

#[test]
fn no_dangerous_statement_is_let_through() {
    assert!(DANGEROUS.len() >= 100, "{}", DANGEROUS.len());
    assert_eq!(accepted(Engine::Postgres, DANGEROUS), []);
    assert_eq!(accepted(Engine::MySql, MYSQL_DANGEROUS), []);
    assert_eq!(accepted(Engine::Sqlite, SQLITE_DANGEROUS), []);
    // What is a write to one is a write to all.
    for engine in [Engine::MySql, Engine::Sqlite] {
        assert_eq!(accepted(engine, &DANGEROUS[..8]), [], "{engine:?}");
    }
}

#[test]
fn a_pattern_for_sqlite_is_a_short_text() {
    let like = |n: usize| {
        ["LIKE", "GLOB"]
            .map(|op| judge(Engine::Sqlite, &format!("SELECT a {op} '{}'", "x".repeat(n))).is_ok())
    };
    assert_eq!((like(200), like(201)), ([true; 2], [false; 2]));
    assert!(judge(Engine::Sqlite, "SELECT trim(a), ltrim(a), rtrim(a), unhex(a) FROM b").is_ok());
}

/// The parser cannot know them for functions; it names them, and the database is asked.
#[test]
fn whatever_stands_after_a_dot_is_named() {
    for sql in CALLED {
        let judged = super::judge(Engine::Postgres, sql).unwrap();
        assert_eq!(judged.fields.len(), 1, "{sql}: {:?}", judged.fields);
    }
    let fields =
        super::judge(Engine::Postgres, "SELECT n.Body, n.\"X\", n.lower, n.a[1], id FROM n").unwrap();
    assert_eq!(fields.fields.into_iter().collect::<Vec<_>>(), ["X", "a", "body"]);
}

#[test]
fn every_benign_statement_is_let_through() {
    assert!(BENIGN.len() >= 50, "{}", BENIGN.len());
    for sql in BENIGN {
        if let Err(objection) = judge(Engine::Postgres, sql) {
            panic!("{sql}\n{objection}");
        }
    }
}

#[test]
fn comments_do_not_reach_the_server() {
    let sql = "SELECT /* a */ 1 -- b\n, 2 /* /* c */ d */";
    assert_eq!(judge(Engine::Postgres, sql).unwrap(), "SELECT 1, 2");
    let odd = judge(Engine::MySql, "SELECT 1 # c\n, 'a''b', \"c\"").unwrap();
    assert_eq!(odd, "SELECT 1, 'a''b', \"c\"");
}

#[test]
fn a_statement_that_is_deep_or_long_is_refused_and_breaks_no_stack() {
    let deep = |open: &str, close: &str, n: usize| format!("SELECT {}1{}", open.repeat(n), close.repeat(n));
    let hostile = [
        deep("(", ")", 15_000),
        deep("(SELECT ", ")", 3_000),
        deep("NOT ", "", 7_000),
        deep("-", "", 30_000),
        deep("abs(", ")", 6_000),
        deep("CASE WHEN true THEN ", " END", 1_000),
        deep("ARRAY[", "]", 3_000),
        format!("SELECT {}", vec!["1"; 1_900].join("+")),
        format!("SELECT {}", vec!["1"; 1_900].join(" OR ")),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(1_300)),
        format!("SELECT {}", vec!["1"; 16_000].join(",")),
        format!("SELECT a{}", "[1]".repeat(1_300)),
        format!("SELECT a{}", "::int".repeat(1_900)),
        format!("SELECT * FROM a{}", " JOIN b ON true".repeat(700)),
        format!("SELECT {}", "x".repeat(40_000)),
    ];
    // As deep as a task of the runtime may go.
    let judged = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        for sql in &hostile {
            // Refused or not, it comes back.
            let _ = judge(Engine::Postgres, sql);
        }
        hostile.iter().filter(|sql| judge(Engine::Postgres, sql).is_err()).count()
    });
    assert!(judged.unwrap().join().unwrap() >= 8);
}

#[test]
fn what_is_refused_is_named() {
    let why = |sql| judge(Engine::Postgres, sql).unwrap_err().to_string();
    assert_eq!(why("SELECT pg_sleep(1)"), "the function pg_sleep is not on the list of allowed functions");
    assert_eq!(why("DELETE FROM notes"), "only one SELECT statement may be run at a time");
    assert_eq!(why("SELECT * FROM pg_roles"), "the table pg_roles may not be read");
    assert!(why("SELECT * FROM notes FOR UPDATE").contains("FOR UPDATE"));
}

proptest! {
    /// Whatever stands in a literal stays in it: the text that is sent reads back as one query
    /// with the same literal.
    #[test]
    fn a_literal_is_never_more_than_a_literal(text in "\\PC{0,40}") {
        let sql = format!("SELECT '{}' AS x", text.replace('\'', "''"));
        for engine in [Engine::Postgres, Engine::MySql, Engine::Sqlite] {
            if let Ok(written) = judge(engine, &sql) {
                prop_assert_eq!(&written, &sql);
            }
        }
    }

    /// No statement that is let through holds a word of a second one.
    #[test]
    fn noise_is_read_or_refused(text in "[a-z0-9 ;'\"`/*#$()@\\-\n\\\\]{0,80}") {
        for engine in [Engine::Postgres, Engine::MySql, Engine::Sqlite] {
            if let Ok(written) = judge(engine, &format!("SELECT {text}")) {
                prop_assert_eq!(judge(engine, &written), Ok(written.clone()));
                prop_assert!(!written.contains("--") || written.contains(['\'', '"', '`', '$']), "{}", written);
            }
        }
    }
}
