//! The vector index of a space: when it comes, and that no answer changes with it.

use super::*;
use futures::future::try_join_all;
use gristmill::store::chunks::count_into_index;
use gristmill::store::search::explain;

/// More chunks than are compared one by one.
const MANY: usize = 5_100;

impl Shelf {
    /// Documents on an arc that begins in the east: the first chunks are the nearest.
    async fn add_an_arc(&self) -> anyhow::Result<Vec<String>> {
        let turn = |n: usize| {
            let angle = n as f32 / MANY as f32 * 3.0;
            [angle.cos(), angle.sin(), 0.0, 0.0]
        };
        let texts: Vec<String> = (0..MANY).map(|n| format!("stone {n}")).collect();
        let rows: Vec<(&str, [f32; 4])> =
            texts.iter().enumerate().map(|(n, text)| (text.as_str(), turn(n))).collect();
        for (number, of_document) in rows.chunks(30).enumerate() {
            self.add(&format!("book {number}"), Place::default(), of_document).await?;
        }
        query("ANALYZE gristmill.chunks").execute(&self.admin).await?;
        query("ANALYZE gristmill.resources").execute(&self.admin).await?;
        Ok(texts)
    }

    fn eastward(&self) -> Query<'static> {
        Query { mode: Mode::Dense(self.probe(&EAST)), candidates: 20, ..words("") }
    }

    async fn indexes(&self) -> anyhow::Result<i64> {
        let found = "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid::regclass::text LIKE '%chunks_hnsw_%'";
        Ok(query_scalar(found).fetch_one(&self.admin).await?)
    }
}

/// Above 5,000 chunks the vector index is asked; up to there each vector is compared.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_large_scope_is_searched_by_the_vector_index(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    let texts = shelf.add_an_arc().await?;
    assert!(count_into_index(&shelf.worker, shelf.space, MANY).await?);
    let question = shelf.eastward();

    let mut tx = shelf.tx().await?;
    let plan = explain(&mut tx, &question, false).await?;
    assert!(plan.contains("chunks_hnsw_"), "{plan}");
    let plan = explain(&mut tx, &question, true).await?;
    assert!(!plan.contains("chunks_hnsw_"), "{plan}");

    let hits = search(&mut tx, &question).await?;
    let found: Vec<&str> = hits.iter().map(|hit| hit.content.as_str()).collect();
    assert_eq!(found, texts[..10].iter().map(String::as_str).collect::<Vec<_>>());
    let ef: String = query_scalar("SELECT current_setting('hnsw.ef_search')").fetch_one(&mut *tx).await?;
    assert_eq!(ef, "100", "the index was asked, and as widely as the question says");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_space_gets_its_index_when_it_is_large_and_answers_stay_the_same(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    shelf.add_an_arc().await?;
    assert!(!count_into_index(&shelf.worker, shelf.space, 4_999).await?);
    assert_eq!(shelf.indexes().await?, 0, "below the number from which search asks it");
    let without = shelf.ask(&shelf.eastward()).await?;

    assert!(count_into_index(&shelf.worker, shelf.space, 1).await?);
    assert_eq!(shelf.indexes().await?, 1);
    assert_eq!(shelf.ask(&shelf.eastward()).await?, without);
    assert!(!count_into_index(&shelf.worker, shelf.space, MANY).await?, "it is made once");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn of_many_who_make_the_index_at_once_one_does(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    shelf.add_an_arc().await?;
    let made = try_join_all((0..4).map(|_| count_into_index(&shelf.worker, shelf.space, MANY))).await?;
    assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
    assert_eq!(shelf.indexes().await?, 1);
    Ok(())
}

/// Whoever writes chunks keeps the index from being begun; the job goes on, and the next count
/// makes it.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_index_that_cannot_begin_holds_nobody_up_and_is_made_later(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    shelf.add_an_arc().await?;
    let mut writer = shelf.tx().await?;
    query("LOCK TABLE gristmill.chunks IN ROW EXCLUSIVE MODE").execute(&mut *writer).await?;
    assert!(!count_into_index(&shelf.worker, shelf.space, MANY).await?);
    writer.commit().await?;
    assert!(count_into_index(&shelf.worker, shelf.space, 0).await?);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_space_whose_chunks_were_forgotten_gets_no_index_for_them(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    assert!(!count_into_index(&shelf.worker, shelf.space, MANY).await?);
    assert_eq!(shelf.indexes().await?, 0);
    let counted = "SELECT chunks_seen FROM gristmill.spaces";
    assert_eq!(query_scalar::<_, i64>(counted).fetch_one(&db).await?, 0, "it is counted from what is there");
    Ok(())
}
