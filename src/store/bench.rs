//! What `gristmill bench queue` needs of a server: databases that come and go, a lean table as
//! the ceiling, and measures. The worker itself never calls this.

use serde::Serialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

/// What a figure depends on besides us.
#[derive(Debug, Clone, Serialize)]
pub struct Server {
    pub version: String,
    pub fsync: String,
    pub synchronous_commit: String,
    pub shared_buffers: String,
}

/// The settings of the server that decide how fast it commits.
pub async fn server(conn: &mut PgConnection) -> sqlx::Result<Server> {
    let row = sqlx::query(
        "SELECT current_setting('server_version'), current_setting('fsync'),
                current_setting('synchronous_commit'), current_setting('shared_buffers')",
    )
    .fetch_one(conn)
    .await?;
    Ok(Server {
        version: row.get(0),
        fsync: row.get(1),
        synchronous_commit: row.get(2),
        shared_buffers: row.get(3),
    })
}

/// Makes an empty database; `name` is one of ours, made of letters, digits and underscores.
pub async fn create_database(conn: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(conn).await?;
    Ok(())
}

/// Drops every database whose name begins with `prefix`, whoever is still connected.
pub async fn drop_databases(conn: &mut PgConnection, prefix: &str) -> sqlx::Result<()> {
    let names = sqlx::query_scalar::<_, String>(
        "SELECT format('%I', datname) FROM pg_database WHERE starts_with(datname, $1)",
    )
    .bind(prefix)
    .fetch_all(&mut *conn)
    .await?;
    for name in names {
        let statement = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        sqlx::query(statement).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Writes out what earlier work left behind, so that it does not burden what is measured next.
pub async fn checkpoint(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("CHECKPOINT").execute(conn).await?;
    Ok(())
}

/// Gives the planner fresh statistics, as autovacuum would have in time.
pub async fn vacuum_analyze(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("VACUUM ANALYZE").execute(db).await?;
    Ok(())
}

/// Whether a job still waits or is at work.
pub async fn unfinished(db: &PgPool) -> sqlx::Result<bool> {
    let left = "SELECT EXISTS (SELECT FROM gristmill.jobs WHERE state = 'WAITING')
                    OR EXISTS (SELECT FROM gristmill.jobs WHERE state = 'RUNNING')";
    sqlx::query_scalar(left).fetch_one(db).await
}

/// The table of the bare loop: what a queue needs at the very least.
pub async fn lay_lean_table(db: &PgPool) -> sqlx::Result<()> {
    let statements = [
        "CREATE TABLE lean (
             id bigserial PRIMARY KEY, queue text NOT NULL, payload jsonb NOT NULL,
             status smallint NOT NULL DEFAULT 0, priority int NOT NULL DEFAULT 0,
             run_at timestamptz NOT NULL DEFAULT now(), attempts int NOT NULL DEFAULT 0,
             lock_by text, lock_at timestamptz, done_at timestamptz)",
        "CREATE INDEX lean_waiting ON lean (queue, priority DESC, run_at, id) WHERE status = 0",
    ];
    for statement in statements {
        sqlx::query(statement).execute(db).await?;
    }
    Ok(())
}

/// Puts payloads into the lean table in one statement.
pub async fn lean_fill(db: &PgPool, payloads: &[Value]) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO lean (queue, payload) SELECT 'noop', unnest($1::jsonb[])")
        .bind(payloads)
        .execute(db)
        .await?;
    Ok(())
}

/// Puts one payload into the lean table, and tells the listener if asked to.
pub async fn lean_put(db: &PgPool, payload: &Value, notify: bool) -> sqlx::Result<()> {
    let statement = if notify {
        "WITH put AS (INSERT INTO lean (queue, payload) VALUES ('noop', $1) RETURNING 1)
         SELECT pg_notify('lean', 'noop') FROM put"
    } else {
        "INSERT INTO lean (queue, payload) VALUES ('noop', $1)"
    };
    sqlx::query(statement).bind(payload).execute(db).await?;
    Ok(())
}

/// Takes up to `want` rows of the lean table.
pub async fn lean_claim(db: &PgPool, by: &str, want: i32) -> sqlx::Result<Vec<(i64, Value)>> {
    let statement = "WITH due AS (
            SELECT id FROM lean WHERE status = 0 AND queue = 'noop' AND run_at <= now()
            ORDER BY priority DESC, run_at, id LIMIT $1 FOR UPDATE SKIP LOCKED)
        UPDATE lean SET status = 1, lock_by = $2, lock_at = now(), attempts = attempts + 1
        FROM due WHERE lean.id = due.id RETURNING lean.id, lean.payload";
    sqlx::query_as(statement).bind(want).bind(by).fetch_all(db).await
}

/// Writes rows of the lean table down as done.
pub async fn lean_acknowledge(db: &PgPool, by: &str, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query("UPDATE lean SET status = 2, done_at = now() WHERE id = ANY ($1) AND lock_by = $2")
        .bind(ids)
        .bind(by)
        .execute(db)
        .await?;
    Ok(())
}

/// What the jobs take on disk, and what the statistics say of their rows.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Extent {
    pub rows: i64,
    pub dead_rows: i64,
    pub table_bytes: i64,
    pub index_bytes: i64,
}

/// The size of the jobs' table and its indexes.
pub async fn extent(db: &PgPool) -> sqlx::Result<Extent> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM gristmill.jobs), coalesce(s.n_dead_tup, 0),
                pg_table_size('gristmill.jobs'), pg_indexes_size('gristmill.jobs')
         FROM pg_stat_user_tables AS s WHERE s.relid = 'gristmill.jobs'::regclass",
    )
    .fetch_one(db)
    .await?;
    Ok(Extent { rows: row.get(0), dead_rows: row.get(1), table_bytes: row.get(2), index_bytes: row.get(3) })
}

/// Removes jobs that were over `age_seconds` ago, in batches; answers how many.
pub async fn prune(db: &PgPool, age_seconds: f64) -> sqlx::Result<i64> {
    let has_function: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'prune' AND pronamespace = 'gristmill'::regnamespace)",
    )
    .fetch_one(db)
    .await?;
    let statement = if has_function {
        "SELECT gristmill.prune($1 * interval '1 s', $1 * interval '1 s', 5000)"
    } else {
        "WITH gone AS (
             DELETE FROM gristmill.jobs WHERE id = ANY (ARRAY(
                 SELECT id FROM gristmill.jobs WHERE finished_at < now() - $1 * interval '1 s'
                 ORDER BY finished_at LIMIT 5000 FOR UPDATE SKIP LOCKED))
             RETURNING 1)
         SELECT count(*) FROM gone"
    };
    let mut pruned = 0;
    loop {
        let gone: i64 = sqlx::query_scalar(statement).bind(age_seconds).fetch_one(db).await?;
        pruned += gone;
        if gone == 0 {
            return Ok(pruned);
        }
    }
}

/// What autovacuum does to the jobs in its own time.
pub async fn vacuum_jobs(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("VACUUM (ANALYZE) gristmill.jobs").execute(db).await?;
    Ok(())
}

/// Jobs of a tenant that are over.
pub async fn finished(db: &PgPool, workspace: uuid::Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM gristmill.jobs WHERE workspace_id = $1 AND state = 'DONE'")
        .bind(workspace)
        .fetch_one(db)
        .await
}

/// What each of a tenant's jobs waited for its start, in seconds.
pub async fn waits(db: &PgPool, workspace: uuid::Uuid) -> sqlx::Result<Vec<f64>> {
    sqlx::query_scalar(
        "SELECT extract(epoch FROM started_at - created_at)::float8 FROM gristmill.jobs WHERE workspace_id = $1",
    )
    .bind(workspace)
    .fetch_all(db)
    .await
}

/// Makes jobs wait, spread over so many workspaces.
pub async fn flood(db: &PgPool, kind: &str, jobs: i64, workspaces: i64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO gristmill.jobs (workspace_id, kind, payload)
         SELECT ('00000000-0000-7000-8000-' || lpad((1 + n % $3)::text, 12, '0'))::uuid, $1, '{\"milliseconds\": 0}'
         FROM generate_series(1, $2) AS n",
    )
    .bind(kind)
    .bind(jobs)
    .bind(workspaces)
    .execute(db)
    .await?;
    Ok(())
}

/// How the database finds the next jobs of a workspace; the statement stands in `gristmill.claim`.
pub async fn claim_plan(db: &PgPool, kind: &str) -> sqlx::Result<String> {
    let statement = "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF)
        SELECT j.id FROM gristmill.jobs j
        WHERE j.state = 'WAITING' AND j.lane = 1 AND j.kind = $1
          AND j.workspace_id = '00000000-0000-7000-8000-000000000007'
        ORDER BY gristmill.turn(j.run_at, j.priority) LIMIT 4 FOR UPDATE SKIP LOCKED";
    let lines: Vec<String> = sqlx::query_scalar(statement).bind(kind).fetch_all(db).await?;
    Ok(lines.join("\n"))
}
