//! A Postgres of the test's own that dies and comes back while workers are at it.

use crate::child::{Act, Child, Deed};
use crate::relay::Relay;
use crate::world::World;
use gristmill::config;
use gristmill::runtime::embedded_pg::EmbeddedPostgres;
use sqlx::PgPool;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);
const JOBS: i64 = 200;

/// Where the server of this test lies; the folder lives as long as the test.
fn embedded(data_dir: &Path) -> Option<config::Embedded> {
    let deps_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps");
    if !deps_dir.join("pg0/pg0").is_file() {
        eprintln!("skipped: no Postgres to start here (`make deps` brings it)");
        return None;
    }
    Some(config::Embedded { data_dir: data_dir.into(), deps_dir })
}

/// What `pg_ctl stop -m immediate` does.
fn stop_immediately(server: &EmbeddedPostgres) -> anyhow::Result<()> {
    let pid_file = std::fs::read_to_string(server.home.join("home/data/postmaster.pid"))?;
    let pid: i32 = pid_file.lines().next().unwrap_or_default().parse()?;
    // SAFETY: the pid is of the server that this test started, and it is the test's to end.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGQUIT) }, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_restart_of_postgres_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let Some(settings) = embedded(folder.path()) else { return Ok(()) };
    // What was committed must survive: no short cuts with fsync.
    let mut server = EmbeddedPostgres::start(&settings).await?;
    // The address stays; behind it the server comes back on another port.
    let relay = Relay::to(&server.url.parse()?).await?;
    let url = relay.address(&server.url);
    let admin = PgPool::connect(&url).await?;
    gristmill::MIGRATOR.run(&admin).await?;
    let world = World::new(admin).await?;
    for n in 0..JOBS {
        world.order(&Deed::new(n.to_string(), Act::Sleep { ms: 100 })).await?;
    }
    let workers = [Child::start(&url, folder.path(), &[])?, Child::start(&url, folder.path(), &[])?];
    let said = || format!("{}\n{}", workers[0].said(), workers[1].said());
    for done in [40, 100] {
        let sql = format!("SELECT count(*) >= {done} FROM gristmill.jobs WHERE state = 'DONE'");
        let waited = world.within(PATIENCE, "some are done", sql.leak()).await;
        anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", said());
        stop_immediately(&server)?;
        drop(server);
        server = EmbeddedPostgres::start(&settings).await?;
        relay.lead_to(&server.url.parse()?);
        // Whoever did not find back by now, and without a hand, is late.
        let found_back = "SELECT count(DISTINCT worker) = 2 FROM gristmill.jobs
                          WHERE started_at > pg_postmaster_start_time()";
        let waited = world.within(Duration::from_secs(10), "both workers are back", found_back).await;
        anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", said());
    }
    let over = "SELECT count(*) = 0 FROM gristmill.jobs WHERE finished_at IS NULL";
    let waited = world.within(PATIENCE, "all is over", over).await;
    anyhow::ensure!(waited.is_ok(), "{waited:?}\n{}", said());
    world.check_once(JOBS).await?;
    drop(workers);
    world.admin.close().await;
    let home = server.home.clone();
    server.stop().await?;
    if !home.starts_with(folder.path()) {
        std::fs::remove_dir_all(home)?;
    }
    Ok(())
}
