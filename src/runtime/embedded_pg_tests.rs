//! The embedded Postgres, started for real; skipped where `make deps` has not run.

use super::*;

/// A folder with these permissions, whatever the umask.
fn folder_with(mode: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    folder
}

/// A folder that `nobody` may enter.
fn open_folder() -> tempfile::TempDir {
    folder_with(0o755)
}

fn settings(data_dir: &Path) -> Option<config::Embedded> {
    let deps_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps");
    if !deps_dir.join("pg0/pg0").is_file() {
        eprintln!("skipped: `make deps` has not run");
        return None;
    }
    Some(config::Embedded { data_dir: data_dir.into(), deps_dir })
}

async fn show(url: &str, setting: &str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn it_is_shared_kept_and_stopped_by_the_last() {
    let folder = open_folder();
    let Some(settings) = settings(folder.path()) else { return };
    let first = EmbeddedPostgres::start(&settings).await.unwrap();
    let url = first.url.clone();
    assert!(!first.reused);
    assert_eq!(show(&url, "fsync").await, "on");
    assert_eq!(show(&url, "server_encoding").await, "UTF8");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE EXTENSION vector; CREATE TABLE kept AS SELECT '[1,2]'::vector AS v")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);

    let second = EmbeddedPostgres::start(&settings).await.unwrap();
    assert!(second.reused);
    assert_eq!(second.url, url);
    first.stop().await.unwrap();
    assert!(answers(&url).await, "the second still uses it");
    second.stop().await.unwrap();
    assert!(!answers(&url).await, "the last one stopped it");

    let again = EmbeddedPostgres::start_with(&settings, &[("fsync", "off")]).await.unwrap();
    assert_eq!(show(&again.url, "fsync").await, "off");
    let mut connection = PgConnection::connect(&again.url).await.unwrap();
    let kept: String =
        sqlx::query_scalar("SELECT v::text FROM kept").fetch_one(&mut connection).await.unwrap();
    assert_eq!(kept, "[1,2]");
    drop(connection);
    again.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_started_again() {
    let folder = open_folder();
    let Some(settings) = settings(folder.path()) else { return };
    let killed = EmbeddedPostgres::start(&settings).await.unwrap();
    let pid_file = killed.home.join("home/data/postmaster.pid");
    let pid: i32 = fs::read_to_string(pid_file).unwrap().lines().next().unwrap().parse().unwrap();
    // SAFETY: the pid is of the server started above, and it is this test's to end.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    drop(killed);

    let again = EmbeddedPostgres::start(&settings).await.unwrap();
    assert!(answers(&again.url).await);
    again.stop().await.unwrap();
}

#[tokio::test]
async fn missing_files_name_the_command_that_brings_them() {
    let folder = open_folder();
    let settings = config::Embedded { data_dir: folder.path().into(), deps_dir: folder.path().join("none") };
    let error = EmbeddedPostgres::start(&settings).await.err().unwrap();
    assert!(error.to_string().contains("make deps"), "{error}");
}

#[test]
fn the_password_is_made_once_and_for_its_owner_alone() {
    let folder = open_folder();
    let path = folder.path().join("password");
    let made = password(&path).unwrap();
    assert_eq!(made.len(), 48);
    assert_eq!(password(&path).unwrap(), made);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_folder_closed_to_others_is_not_used_for_nobody() {
    let closed = folder_with(0o700);
    let own = place(closed.path(), false).unwrap();
    assert_eq!(own, closed.path().join("postgres"));
    // SAFETY: geteuid reads one number of this process and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root starts it as another user");
        return;
    }
    let instead = place(closed.path(), true).unwrap();
    assert!(open_to_all(&instead), "{}", instead.display());
    assert!(!instead.starts_with(closed.path()));
    assert_eq!(place(closed.path(), true).unwrap(), instead, "the same place each time");
    fs::remove_dir_all(instead).unwrap();
}

#[test]
fn a_pid_of_another_program_is_stale_and_an_unknown_one_is_left_to_postgres() {
    let folder = open_folder();
    let path = folder.path().join("postmaster.pid");
    fs::write(&path, format!("{}\n", std::process::id())).unwrap();
    remove_stale_pid(&path);
    assert_eq!(path.exists(), !cfg!(target_os = "linux"));
    fs::write(&path, "999999999\n").unwrap();
    remove_stale_pid(&path);
    assert!(path.exists());
}

#[tokio::test]
async fn a_closed_folder_still_gets_a_working_server() {
    let folder = folder_with(0o700);
    let Some(settings) = settings(folder.path()) else { return };
    let server = EmbeddedPostgres::start(&settings).await.unwrap();
    assert!(answers(&server.url).await);
    let home = server.home.clone();
    server.stop().await.unwrap();
    if !home.starts_with(folder.path()) {
        fs::remove_dir_all(home).unwrap();
    }
}
