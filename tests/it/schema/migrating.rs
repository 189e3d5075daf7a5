//! Migrations over rows, at the same time, twice, and beside a product's own.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use gristmill::MIGRATOR;
use sqlx::AssertSqlSafe;
use sqlx::PgPool;

use super::insert_samples;
use super::samples;

/// Rows of each table of ours, the ledger of migrations left out.
async fn counts(db: &PgPool) -> sqlx::Result<BTreeMap<String, i64>> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'gristmill'::regnamespace AND relkind IN ('r', 'p') AND relname <> '_sqlx_migrations'",
    )
    .fetch_all(db)
    .await?;
    let mut counts = BTreeMap::new();
    for table in tables {
        let rows = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM gristmill.{table}")))
            .fetch_one(db)
            .await?;
        counts.insert(table, rows);
    }
    Ok(counts)
}

/// Each migration runs over rows in all tables that stood before it.
#[sqlx::test(migrations = false)]
async fn every_migration_keeps_the_rows_that_lie_in_the_tables_before_it(db: PgPool) -> anyhow::Result<()> {
    let mut before = BTreeMap::new();
    for migration in MIGRATOR.iter() {
        MIGRATOR.run_to(migration.version, &db).await?;
        let after = counts(&db).await?;
        for (table, rows) in &before {
            assert!(after.get(table) >= Some(rows), "{table} after {}", migration.version);
        }
        let sql = samples(migration.version, &migration.description)?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db).await?;
        before = counts(&db).await?;
    }
    let empty: Vec<&String> = before.iter().filter(|(_, rows)| **rows == 0).map(|(table, _)| table).collect();
    assert!(empty.is_empty(), "tables without a sample row: {empty:?}");
    Ok(())
}

#[sqlx::test(migrations = false)]
async fn workers_that_start_together_migrate_once(db: PgPool) -> anyhow::Result<()> {
    try_join_all((0..4).map(|_| MIGRATOR.run(&db))).await?;
    let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM gristmill._sqlx_migrations WHERE success")
        .fetch_one(&db)
        .await?;
    assert_eq!(applied, i64::try_from(MIGRATOR.iter().count())?);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn migrating_again_changes_nothing(db: PgPool) -> anyhow::Result<()> {
    insert_samples(&db).await?;
    let before = counts(&db).await?;
    MIGRATOR.run(&db).await?;
    assert_eq!(counts(&db).await?, before);
    Ok(())
}

/// A product that runs sqlx migrations of its own in this database keeps its ledger to itself.
#[sqlx::test(migrations = false)]
async fn a_products_own_migrations_do_not_meet_ours(db: PgPool) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("0001_theirs.sql"), "CREATE TABLE theirs (id int)")?;
    let theirs = sqlx::migrate::Migrator::new(folder.path()).await?;
    for _ in 0..2 {
        theirs.run(&db).await?;
        MIGRATOR.run(&db).await?;
    }
    let in_public: Vec<i64> =
        sqlx::query_scalar("SELECT version FROM public._sqlx_migrations").fetch_all(&db).await?;
    assert_eq!(in_public, [1]);
    Ok(())
}
