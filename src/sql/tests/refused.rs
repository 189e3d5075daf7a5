//! Whom a database tool does not talk to: powerful roles, the worker's own database, addresses
//! and credentials that do not belong together.

use super::*;

#[sqlx::test(migrations = false)]
async fn powerful_roles_are_refused(db: PgPool) {
    Shop::run(db, async |shop| {
        let (sql, role) = (shop.sql(), &shop.role);
        for (give, take) in [
            ("ALTER ROLE {} SUPERUSER", "ALTER ROLE {} NOSUPERUSER"),
            ("ALTER ROLE {} BYPASSRLS", "ALTER ROLE {} NOBYPASSRLS"),
            ("ALTER ROLE {} CREATEROLE", "ALTER ROLE {} NOCREATEROLE"),
            ("GRANT pg_read_server_files TO {}", "REVOKE pg_read_server_files FROM {}"),
            ("GRANT pg_monitor TO {}", "REVOKE pg_monitor FROM {}"),
            ("GRANT pg_read_all_settings TO {}", "REVOKE pg_read_all_settings FROM {}"),
            ("GRANT pg_read_all_stats TO {}", "REVOKE pg_read_all_stats FROM {}"),
            ("GRANT pg_signal_backend TO {}", "REVOKE pg_signal_backend FROM {}"),
            ("GRANT pg_execute_server_program TO {}", "REVOKE pg_execute_server_program FROM {}"),
        ] {
            let run = async |statement: &str| {
                sqlx::raw_sql(AssertSqlSafe(statement.replace("{}", role))).execute(&shop.db).await.unwrap();
            };
            run(give).await;
            let refused = sql.query(&shop.database(), "SELECT 1").await;
            run(take).await;
            assert!(matches!(refused, Err(SqlError::PowerfulRole(_))), "{give}: {refused:?}");
            assert!(sql.query(&shop.database(), "SELECT 1").await.is_ok(), "{take}");
        }
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn the_worker_s_own_database_is_never_a_target(db: PgPool) {
    Shop::run(db, async |shop| {
        let sql = Sql { own: shop.db.clone(), ..shop.sql() };
        // By its address, before any connection.
        let wrong = sql.query(&shop.database(), "SELECT 1").await.unwrap_err();
        assert!(matches!(wrong, SqlError::OwnDatabase) && !wrong.was_sent(), "{wrong:?}");
        // By another name of the host.
        let endpoint = shop.endpoint.replace("127.0.0.1", "localhost");
        let origin = shop.origin.replace("127.0.0.1", "localhost");
        let saved = Some(Saved { credential: &shop.credential, origin: &origin });
        let wrong = sql.query(&Database { endpoint: &endpoint, saved, ..shop.database() }, "SELECT 1").await;
        assert!(matches!(wrong, Err(SqlError::OwnDatabase)), "{wrong:?}");
        // Behind another port: told by what the database says of itself.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let real = shop.db.connect_options().get_port();
        let task = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", real)).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
            }
        });
        let endpoint = shop.endpoint.replace(&real.to_string(), &port.to_string());
        let origin = shop.origin.replace(&real.to_string(), &port.to_string());
        let saved = Some(Saved { credential: &shop.credential, origin: &origin });
        let behind = Database { endpoint: &endpoint, saved, ..shop.database() };
        let wrong = sql.query(&behind, "SELECT 1").await;
        assert!(matches!(wrong, Err(SqlError::OwnDatabase)), "{wrong:?}");
        // The way there does work: another worker's database answers over it.
        let output = shop.sql().query(&behind, "SELECT count(*) FROM notes").await.unwrap();
        assert_eq!(rows(&output), json!([[2]]));
        task.abort();
    })
    .await;
}

/// A listener that must hear nothing.
#[tokio::test]
async fn what_the_guard_or_the_credential_refuses_gets_no_connection() {
    let decoy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = decoy.local_addr().unwrap().port();
    let own = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
    let closed = Sql::new(&settings(), Guard::new(&[]), own.clone());
    let open = Sql::new(&settings(), guard(), own);
    let credential = basic("u", "canary-password");
    let elsewhere = Saved { credential: &credential, origin: "postgres://db.example:5432/shop" };
    let bearer = Credential::Bearer { token: SecretString::from("t") };
    let right = format!("postgres://127.0.0.1:{port}/shop");
    for (sql, scheme, saved) in [
        (&closed, "postgres", None),
        (&closed, "mysql", None),
        (&open, "postgres", Some(elsewhere)),
        (&open, "postgres", Some(Saved { credential: &bearer, origin: &right })),
        (&open, "mysql", Some(Saved { credential: &credential, origin: &right })),
    ] {
        let endpoint = format!("{scheme}://127.0.0.1:{port}/shop");
        let database = Database { endpoint: &endpoint, saved, workspace: WorkspaceId(uuid::Uuid::nil()) };
        let wrong = sql.query(&database, "SELECT 1").await.unwrap_err();
        assert!(!wrong.was_sent() && !wrong.is_transient(), "{wrong:?}");
        assert!(!format!("{wrong} {wrong:?}").contains("canary"), "{wrong:?}");
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), decoy.accept()).await.is_err());
}

/// Whatever address leads to it: a database with a worker in it is recognised by its tables.
#[sqlx::test]
async fn a_database_with_a_worker_in_it_is_refused(db: PgPool) {
    Shop::run(db, async |shop| {
        let wrong = shop.sql().query(&shop.database(), "SELECT 1").await;
        assert!(matches!(wrong, Err(SqlError::OwnDatabase)), "{wrong:?}");
    })
    .await;
}
