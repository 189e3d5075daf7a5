//! One tenant cannot see, name or change another's rows; the worker's role cannot lift that.

use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgPool;

use super::ACME;
use super::BIRCH;
use super::FOREIGN_KEY_VIOLATION;
use super::INSUFFICIENT_PRIVILEGE;
use super::insert_samples;
use super::names;
use super::refusal;
use super::run;
use super::tenant_tables;

/// Becomes the worker in a transaction of `workspace`, or of none.
fn worker(workspace: Option<&str>) -> String {
    let tenant = workspace.map(|id| format!("SET LOCAL gristmill.workspace = '{id}';")).unwrap_or_default();
    format!("SET LOCAL ROLE gristmill_worker; {tenant}")
}

async fn visible(db: &PgPool, table: &str, workspace: Option<&str>) -> sqlx::Result<i64> {
    let mut tx = db.begin().await?;
    run(&mut tx, &worker(workspace)).await?;
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM gristmill.{table}")))
        .fetch_one(&mut *tx)
        .await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_worker_sees_its_tenants_rows_in_every_table_and_no_others(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let tables = tenant_tables(&db).await?;
    assert!(tables.len() > 35, "{tables:?}");
    for table in tables.iter().map(String::as_str).chain(["workspaces", "usage_stats"]) {
        assert!(visible(&db, table, Some(ACME)).await? > 0, "{table} has no sample row, or hides it");
        assert_eq!(visible(&db, table, None).await?, 0, "{table} without a tenant");
        let foreign = i64::from(table == "workspaces");
        assert_eq!(visible(&db, table, Some(BIRCH)).await?, foreign, "{table} from another tenant");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_pooled_connection_keeps_no_tenant_after_its_transaction(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let mut conn = db.acquire().await?;
    for sql in ["BEGIN", &worker(Some(ACME)), "COMMIT", "BEGIN", &worker(None)] {
        run(&mut conn, sql).await?;
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM gristmill.users").fetch_one(&mut *conn).await?;
    run(&mut conn, "ROLLBACK").await?;
    assert_eq!(rows, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_worker_changes_nothing_of_another_tenant(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let mut tx = db.begin().await?;
    run(&mut tx, &worker(Some(BIRCH))).await?;
    for sql in ["DELETE FROM gristmill.chunks", "UPDATE gristmill.messages SET content_text = 'mine'"] {
        assert_eq!(run(&mut tx, sql).await?, 0, "{sql}");
    }
    let planted = run(
        &mut tx,
        &format!("INSERT INTO gristmill.events (workspace_id, type, subject, subject_id) VALUES ('{ACME}', 'a.b', 'x', '{ACME}')"),
    )
    .await;
    assert_eq!(refusal(planted), INSUFFICIENT_PRIVILEGE);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_row_cannot_name_a_row_of_another_tenant(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    // As owner, whom row-level security does not bind: the foreign key alone refuses.
    let mut tx = db.begin().await?;
    let planted = run(
        &mut tx,
        &format!(
            "INSERT INTO gristmill.messages (workspace_id, conversation_id, serial_number, role)
             SELECT '{BIRCH}', id, 9, 'user' FROM gristmill.conversations"
        ),
    )
    .await;
    assert_eq!(refusal(planted), FOREIGN_KEY_VIOLATION);

    let loose = names(
        &db,
        "SELECT con.conrelid::regclass || ' ' || con.conname FROM pg_constraint con
         WHERE con.contype = 'f' AND con.connamespace = 'gristmill'::regnamespace AND cardinality(con.conkey) = 1
           AND con.confrelid <> 'gristmill.workspaces'::regclass
           AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = con.conrelid AND a.attname = 'workspace_id')
           AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = con.confrelid AND a.attname = 'workspace_id')",
    )
    .await?;
    assert!(loose.is_empty(), "foreign keys without the workspace: {loose:?}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn every_tenant_table_has_row_security(db: PgPool) -> anyhow::Result<()> {
    let open = names(
        &db,
        "SELECT c.relname::text FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
         WHERE c.relnamespace = 'gristmill'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'jobs'
           AND NOT (c.relrowsecurity AND EXISTS (
               SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd = '*' AND p.polpermissive
                 AND pg_get_expr(p.polqual, c.oid) = '(workspace_id = gristmill.current_workspace())'
                 AND pg_get_expr(p.polwithcheck, c.oid) = '(workspace_id = gristmill.current_workspace())'))",
    )
    .await?;
    assert!(open.is_empty(), "without the policy: {open:?}");

    // A second permissive policy would widen the first; a view of its owner's rights would pass by it.
    let wider = names(
        &db,
        "SELECT polrelid::regclass::text FROM pg_policy WHERE polname <> 'tenant'
         UNION ALL
         SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'gristmill'::regnamespace AND c.relkind = 'v'
           AND NOT 'security_invoker=true' = ANY (coalesce(c.reloptions, '{}'))",
    )
    .await?;
    assert!(wider.is_empty(), "around the policy: {wider:?}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_worker_owns_nothing_and_passes_by_no_lock(db: PgPool) -> anyhow::Result<()> {
    let powers: (bool, bool, bool, bool, bool) = sqlx::query_as(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb,
                EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)
         FROM pg_roles r WHERE rolname = 'gristmill_worker'",
    )
    .fetch_one(&db)
    .await?;
    assert_eq!(powers, (false, false, false, false, false));

    let owned = names(
        &db,
        "SELECT relname::text FROM pg_class WHERE relowner = 'gristmill_worker'::regrole
         UNION ALL SELECT nspname::text FROM pg_namespace WHERE nspowner = 'gristmill_worker'::regrole
         UNION ALL SELECT proname::text FROM pg_proc WHERE proowner = 'gristmill_worker'::regrole",
    )
    .await?;
    assert!(owned.is_empty(), "{owned:?}");

    let excess = names(
        &db,
        "SELECT table_name || ' ' || privilege_type FROM information_schema.role_table_grants
         WHERE grantee IN ('gristmill_worker', 'PUBLIC') AND table_schema = 'gristmill'
           AND privilege_type NOT IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')",
    )
    .await?;
    assert!(excess.is_empty(), "{excess:?}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn what_the_worker_must_not_do_is_refused_by_right(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    for sql in [
        "UPDATE gristmill.attachment_history SET reason = 'none'",
        "DELETE FROM gristmill.attachment_history",
        "INSERT INTO gristmill.attachment_history (workspace_id, attachment_id, to_status)
         SELECT workspace_id, id, 'READY' FROM gristmill.attachments",
        "DELETE FROM gristmill.usages",
        "DELETE FROM gristmill.summaries",
        "DELETE FROM gristmill.tool_calls",
        "UPDATE gristmill.verdicts SET outcome = 'CLEAN'",
        "UPDATE gristmill.mcp_servers SET command = '/bin/sh'",
        "UPDATE gristmill.providers SET endpoint = 'https://evil.example'",
        "UPDATE gristmill.llm_connections SET base_url = 'https://evil.example'",
        "INSERT INTO gristmill.role_policies (workspace_id, role_id, policy_id)
         SELECT workspace_id, role_id, policy_id FROM gristmill.role_policies",
        "SELECT session_token FROM gristmill.sessions",
        "SELECT token FROM gristmill.verification_tokens",
        "TRUNCATE gristmill.chunks",
        "ALTER TABLE gristmill.chunks DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE gristmill.mine (id int)",
        "DROP POLICY tenant ON gristmill.chunks",
        "UPDATE gristmill._sqlx_migrations SET success = false",
    ] {
        let mut tx = db.begin().await?;
        run(&mut tx, &worker(Some(ACME))).await?;
        assert_eq!(refusal(run(&mut tx, sql).await), INSUFFICIENT_PRIVILEGE, "{sql}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_worker_removes_expired_logins_without_reading_them(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let mut tx = db.begin().await?;
    run(&mut tx, &worker(Some(ACME))).await?;
    for table in ["sessions", "verification_tokens"] {
        let removed = run(&mut tx, &format!("DELETE FROM gristmill.{table} WHERE expires < now()")).await?;
        assert_eq!(removed, 1, "{table}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_workspace_goes_with_all_its_rows(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    sqlx::query("DELETE FROM gristmill.workspaces WHERE external_id = 'acme'").execute(&db).await?;
    for table in tenant_tables(&db).await? {
        let left: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM gristmill.{table}")))
            .fetch_one(&db)
            .await?;
        assert_eq!(left, 0, "{table}");
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn every_foreign_key_is_found_by_an_index(db: PgPool) -> anyhow::Result<()> {
    let unindexed = names(
        &db,
        // `spaces` is never searched backwards: a vector space is not removed.
        "SELECT con.conrelid::regclass || ' ' || con.conname FROM pg_constraint con
         WHERE con.contype = 'f' AND con.connamespace = 'gristmill'::regnamespace
           AND con.confrelid <> 'gristmill.spaces'::regclass
           AND NOT EXISTS (
               SELECT FROM pg_index i WHERE i.indrelid = con.conrelid
                 AND (i.indkey[0] = con.conkey[cardinality(con.conkey)]
                      OR i.indkey[0] = con.conkey[1] AND i.indkey[1] = con.conkey[2]))",
    )
    .await?;
    assert!(unindexed.is_empty(), "{unindexed:?}");
    Ok(())
}

/// Temporary objects come first where a path does not name them: under a function with its owner's
/// rights, whoever may make one could put a table, or a type, of their own in place of ours.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn functions_with_a_path_of_their_own_look_through_temporary_objects_last(
    db: PgPool,
) -> anyhow::Result<()> {
    let open = names(
        &db,
        "SELECT oid::regprocedure::text FROM pg_proc
         WHERE pronamespace = 'gristmill'::regnamespace
           AND (prosecdef OR EXISTS (SELECT FROM unnest(proconfig) c WHERE c LIKE 'search_path=%'))
           AND NOT EXISTS (SELECT FROM unnest(proconfig) c WHERE c LIKE 'search_path=%, pg_temp')",
    )
    .await?;
    assert!(open.is_empty(), "open to temporary objects: {open:?}");
    Ok(())
}

/// Whoever may queue jobs may not run code as the schema's owner.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_type_of_the_callers_own_runs_nothing_in_functions_with_their_owners_rights(
    db: PgPool,
) -> anyhow::Result<()> {
    gristmill::runtime::every_kind().publish(&db).await?;
    let mut conn = db.acquire().await?;
    let mut conn = conn.begin().await?;
    for statement in [
        "INSERT INTO gristmill.workspaces (name) VALUES ('w')",
        "SELECT set_config('gristmill.workspace', (SELECT id::text FROM gristmill.workspaces WHERE name = 'w'), true)",
        "SET LOCAL ROLE gristmill_worker",
        "CREATE FUNCTION pg_temp.evil(t pg_catalog.text) RETURNS boolean LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'runs as %', current_user; END $$",
        "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.evil(VALUE))",
        "SELECT gristmill.enqueue('forget', jsonb_build_object('attachment', gen_random_uuid()))",
    ] {
        sqlx::query(statement).execute(&mut *conn).await?;
    }
    Ok(())
}
