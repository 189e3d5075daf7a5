//! The database: server, extensions, schema, role, clock, and how the queue in it stands.

use super::{Findings, within};
use crate::cli::house::House;
use crate::cli::operate;
use crate::cli::table::span;
use crate::domain::Space;
use crate::runtime::every_kind;
use crate::store::doctor;
use chrono::{TimeDelta, Utc};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};

/// `UNIQUE NULLS NOT DISTINCT` came with it.
const OLDEST_SERVER: i32 = 150_000;
/// Beyond this logs of two machines no longer tell what came first.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::seconds(2);
/// An S3 server refuses signatures that are a quarter of an hour off.
const CLOCKS_FAIL: TimeDelta = TimeDelta::minutes(5);
/// Workers tell of themselves more often than this.
const SEEN_SECONDS: f64 = 120.0;
/// A queue this far behind wants more workers.
const BEHIND_SECONDS: f64 = 900.0;

/// Everything about the database. `model` is the space whose vectors this program makes.
pub async fn look(house: &House, fault: Option<String>, model: Option<&Space>, findings: &mut Findings) {
    let Some(url) = &house.settings.database.url else {
        let todo = "`make deps` brings the embedded Postgres; or set DATABASE_URL";
        return findings.failed("database", fault.unwrap_or_default(), todo);
    };
    let mut conn = match within(PgConnection::connect(url.expose_secret())).await {
        Ok(conn) => conn,
        Err(error) => {
            let todo = "start it, or correct DATABASE_URL";
            let says = format!("{} cannot be reached: {error}", operate::database(house));
            return findings.failed("database", says, todo);
        }
    };
    if let Some(fault) = fault {
        findings.failed("schema", fault, "the message says what the migration met");
    }
    if let Err(error) = look_at(house, &mut conn, model, findings).await {
        findings.failed("database", error.to_string(), "the schema is not what this program expects");
    }
    conn.close().await.ok();
}

async fn look_at(
    house: &House,
    conn: &mut PgConnection,
    model: Option<&Space>,
    findings: &mut Findings,
) -> sqlx::Result<()> {
    server(house, conn, findings).await?;
    extensions(conn, findings).await?;
    clock(conn, findings).await?;
    role(house, conn, findings).await?;
    doctor::see_as(conn, &house.settings.database.role).await?;
    let has_schema = schema(conn, findings).await?;
    if has_schema {
        queue(conn, findings).await?;
        schedules(conn, findings).await?;
        spaces(conn, model, findings).await?;
        super::servers::look(house, conn, findings).await?;
    }
    Ok(())
}

async fn server(house: &House, conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    let server = doctor::server(conn).await?;
    let says = format!("PostgreSQL {} at {}, as {}", server.version, operate::database(house), server.login);
    let free = i64::from(server.max_connections) - server.connections;
    // The pool, a keeper for each lane, a listener, and a command beside them.
    let wanted = i64::from(house.settings.database.max_connections) + 4;
    if server.number < OLDEST_SERVER {
        findings.failed("database", says, "PostgreSQL 15 is the oldest that works");
    } else if free < wanted {
        let todo = format!("{free} connections are free, a worker may want {wanted}: raise max_connections");
        findings.warning("database", says, todo);
    } else {
        findings.ok("database", says);
    }
    Ok(())
}

async fn extensions(conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for name in ["vector", "btree_gin"] {
        match doctor::extension(conn, name).await? {
            (Some(version), _) => there.push(format!("{name} {version}")),
            (None, true) => missing.push(format!("`gristmill migrate` as owner creates {name}")),
            (None, false) => missing.push(format!("install {name} on the server")),
        }
    }
    if missing.is_empty() {
        findings.ok("extensions", there.join(", "));
    } else {
        findings.failed("extensions", format!("there: {}", there.join(", ")), missing.join("; "));
    }
    Ok(())
}

async fn schema(conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<bool> {
    let Some(applied) = doctor::applied(conn).await? else {
        findings.failed("schema", "there is none", "run `gristmill migrate` as the owner of the database");
        return Ok(false);
    };
    let (mut missing, mut changed) = (Vec::new(), Vec::new());
    for migration in crate::MIGRATOR.iter() {
        match applied.iter().find(|(version, ..)| *version == migration.version) {
            Some((_, checksum, true)) if *checksum == *migration.checksum => {}
            Some((_, _, true)) => changed.push(migration.version.to_string()),
            _ => missing.push(migration.version.to_string()),
        }
    }
    let newer = applied.iter().filter(|(version, ..)| !crate::MIGRATOR.version_exists(*version)).count();
    let says = format!("{} migrations", applied.len());
    if !changed.is_empty() {
        let todo = format!(
            "migration {} is not the one of this program: it was built from other sources",
            changed.join(", ")
        );
        findings.failed("schema", says, todo);
    } else if !missing.is_empty() {
        findings.failed(
            "schema",
            format!("{says}; missing: {}", missing.join(", ")),
            "run `gristmill migrate`",
        );
    } else if newer > 0 {
        findings.warning(
            "schema",
            format!("{says}, {newer} newer than this program"),
            "bring this program up to date",
        );
    } else {
        findings.ok("schema", format!("{says}, up to date"));
    }
    Ok(true)
}

async fn role(house: &House, conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    let name = &house.settings.database.role;
    let Some(role) = doctor::role(conn, name).await? else {
        findings.failed(
            "role",
            format!("there is no role {name}"),
            "`gristmill migrate` creates gristmill_worker",
        );
        return Ok(());
    };
    let mut wrong = Vec::new();
    if role.superuser || role.bypasses {
        wrong.push(format!("row-level security does not bind it: ALTER ROLE {name} NOSUPERUSER NOBYPASSRLS"));
    }
    if role.owns > 0 {
        wrong
            .push(format!("it owns {} tables, and so may unlock them: give them to another role", role.owns));
    }
    if role.open_tables > 0 {
        wrong.push(format!(
            "row-level security is off on {} tables: ALTER TABLE … ENABLE it",
            role.open_tables
        ));
    }
    if !role.may_take {
        wrong.push(format!("the login cannot take it: GRANT {name} TO the login"));
    } else if let Err(error) = doctor::try_role(conn, name).await {
        wrong.push(format!("the login cannot take it: {error}"));
    }
    if wrong.is_empty() {
        findings.ok("role", format!("{name} owns nothing, and row-level security binds it"));
    } else {
        findings.failed("role", name.clone(), wrong.join("; "));
    }
    Ok(())
}

async fn clock(conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    let before = Utc::now();
    let theirs = doctor::clock(conn).await?;
    // The answer was made somewhere between the two.
    let ours = before + (Utc::now() - before) / 2;
    let apart = (theirs - ours).abs();
    let says = format!("the database's and this machine's differ by {}", span(apart.as_seconds_f64()));
    let todo =
        "leases go by the database alone; log lines and signatures for S3 do not: synchronise the clocks";
    if apart > CLOCKS_FAIL {
        findings.failed("clock", says, todo);
    } else if apart > CLOCKS_DIFFER {
        findings.warning("clock", says, todo);
    } else {
        findings.ok("clock", says);
    }
    Ok(())
}

async fn queue(conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    let Some(queue) = doctor::queue(conn).await? else { return Ok(()) };
    let alive: Vec<_> = doctor::workers(conn)
        .await?
        .map(|all| all.into_iter().filter(|worker| worker.seconds_ago < SEEN_SECONDS).collect())
        .unwrap_or_default();
    let idle: Vec<_> = every_kind()
        .kinds()
        .into_iter()
        .chain(queue.waiting_kinds)
        .filter(|kind| !alive.iter().any(|worker| worker.kinds.contains(kind)))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let names: Vec<_> =
        alive.iter().map(|worker| format!("{} {} on {}", worker.name, worker.version, worker.host)).collect();
    if alive.is_empty() {
        findings.warning(
            "workers",
            "none was seen in the last 2 minutes",
            "start `gristmill worker` or `gristmill up`",
        );
    } else if idle.is_empty() {
        findings.ok("workers", names.join(", "));
    } else {
        let todo = format!("no worker does {}", idle.join(", "));
        findings.warning("workers", names.join(", "), todo);
    }

    let says = format!(
        "{} waiting, {} running, {} parked, {} dead",
        queue.waiting, queue.running, queue.parked, queue.dead
    );
    let mut todo = Vec::new();
    if queue.dead > 0 {
        todo.push("`gristmill jobs dead` says what of, and --retry tries them again".to_owned());
    }
    if queue.lapsed > 0 {
        todo.push(format!("{} leases have lapsed: a worker that runs takes them back", queue.lapsed));
    }
    if queue.oldest_waiting_seconds > BEHIND_SECONDS {
        let oldest = span(queue.oldest_waiting_seconds);
        todo.push(format!("the oldest has been due for {oldest}: `gristmill jobs explain` says why"));
    }
    if todo.is_empty() {
        findings.ok("queue", says);
    } else {
        findings.warning("queue", says, todo.join("; "));
    }
    Ok(())
}

async fn schedules(conn: &mut PgConnection, findings: &mut Findings) -> sqlx::Result<()> {
    let Some(on) = doctor::schedules(conn).await? else { return Ok(()) };
    let problems: Vec<_> = on
        .iter()
        .filter_map(|(name, problem)| problem.as_ref().map(|problem| format!("{name}: {problem}")))
        .collect();
    let names: Vec<_> = on.iter().map(|(name, _)| name.as_str()).collect();
    if on.is_empty() {
        findings.warning("schedules", "none is on", "a worker that starts adds its own");
    } else if problems.is_empty() {
        findings.ok("schedules", names.join(", "));
    } else {
        findings.warning("schedules", names.join(", "), problems.join("; "));
    }
    Ok(())
}

async fn spaces(conn: &mut PgConnection, model: Option<&Space>, findings: &mut Findings) -> sqlx::Result<()> {
    let Some(model) = model else { return Ok(()) };
    let others = doctor::spaces_in_use(conn).await?;
    let others: Vec<_> = others
        .into_iter()
        .filter(|(name, revision)| (name, revision) != (&model.model, &model.revision))
        .collect();
    if !others.is_empty() {
        let names: Vec<_> = others.into_iter().map(|(name, _)| name).collect();
        let says = format!("texts are indexed by {} too", names.join(", "));
        findings.warning(
            "index",
            says,
            format!("a search by {} finds them by their words alone: index them anew", model.model),
        );
    }
    Ok(())
}
