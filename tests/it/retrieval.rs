//! The figures of retrieval: the real model, chunker, and search over judged sets.
//!
//! Minutes long, so not part of a plain run: `cargo test --test it retrieval -- --ignored --nocapture`.

use gristmill::chunk::{self, Chunker};
use gristmill::cli::eval::beir::Set;
use gristmill::cli::eval::{Line, Setting, compare, table};
use gristmill::config;
use gristmill::domain::{GenerationId, ResourceId, Syntax, WorkspaceId};
use gristmill::embed::Embedder;
use gristmill::store::chunks::{self, NewChunk};
use gristmill::store::search::Filters;
use gristmill::store::{self, tenants};
use sqlx::{PgPool, query_scalar};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data")
}

async fn embedder() -> Option<Embedder> {
    let settings = config::Embed {
        model: data().join("models/all-minilm-l6-v2-int8").to_string_lossy().into_owned(),
        onnxruntime: String::new(),
        sessions: 2,
        threads: 1,
        // Alone, a text's vector depends on nothing but the text, so the figures repeat.
        batch: 1,
        checkpoint: 64,
    };
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps");
    Embedder::open(&settings, &deps).await.inspect_err(|why| eprintln!("skipped: {why}")).ok()
}

/// A set as the product would hold it: each document a resource, cut and embedded.
struct Library {
    workspace: WorkspaceId,
    space: i32,
    documents: HashMap<ResourceId, String>,
    chunks: usize,
}

async fn ingest(
    db: &PgPool,
    embedder: &Embedder,
    name: &str,
    language: &str,
    set: &Set,
) -> anyhow::Result<Library> {
    let (size, overlap) = chunk::sizes(&config::Chunk { size: 0, overlap: 0 }, embedder.max_tokens());
    let chunker = Chunker::new(embedder.tokenizer(), size, overlap)?;
    let mut conn = db.acquire().await?;
    let workspace = tenants::ensure_workspace(&mut conn, name).await?;
    let space = chunks::ensure_space(&mut conn, embedder.space()).await?;
    let mut library = Library { workspace, space, documents: HashMap::new(), chunks: 0 };
    let (mut owners, mut texts) = (Vec::new(), Vec::new());
    for (place, document) in set.documents.iter().enumerate() {
        let body = document.body();
        for span in chunker.plan_str(&body, Syntax::Plain)? {
            owners.push((place, span));
            texts.push(body[span.start as usize..span.end as usize].to_owned());
        }
    }
    let vectors = embedder.embed(texts.clone()).await?;
    library.chunks = texts.len();
    let mut rows: HashMap<usize, Vec<NewChunk>> = HashMap::new();
    for (((place, span), content), vector) in owners.into_iter().zip(texts).zip(vectors) {
        let of = rows.entry(place).or_default();
        of.push(NewChunk {
            ord: of.len() as i32,
            content,
            sha256: [0; 32],
            tokens: span.tokens.max(1) as i32,
            start: span.start as i64,
            end: span.end as i64,
            pages: None,
            vector,
        });
    }
    for (place, rows) in rows {
        let resource: ResourceId =
            query_scalar("INSERT INTO gristmill.resources (workspace_id, name) VALUES ($1, $2) RETURNING id")
                .bind(workspace)
                .bind(&set.documents[place].id)
                .fetch_one(db)
                .await?;
        let generation: GenerationId = query_scalar(
            "INSERT INTO gristmill.generations (workspace_id, resource_id, space_id, status, done, total, finished_at)
             VALUES ($1, $2, $3, 'INDEXED', $4, $4, now()) RETURNING id",
        )
        .bind(workspace)
        .bind(resource)
        .bind(space)
        .bind(rows.len() as i32)
        .fetch_one(db)
        .await?;
        chunks::insert(&mut conn, generation, space, Some(language), &rows).await?;
        sqlx::query("UPDATE gristmill.resources SET live_generation = $2 WHERE id = $1")
            .bind(resource)
            .bind(generation)
            .execute(db)
            .await?;
        library.documents.insert(resource, set.documents[place].id.clone());
    }
    Ok(library)
}

async fn figures(
    db: &PgPool,
    embedder: &Embedder,
    library: &Library,
    set: &Set,
) -> anyhow::Result<Vec<Line>> {
    // One at a time, as a search does: dynamic quantisation makes a vector depend on its batch.
    let mut vectors = Vec::new();
    for question in &set.questions {
        vectors.extend(embedder.embed(vec![question.text.clone()]).await?);
    }
    let setting = Setting {
        space_id: library.space,
        vectors: &vectors,
        documents: &library.documents,
        filters: Filters::default(),
        candidates: 100,
        ef_search: 100,
        rrf_k: 60,
        alpha: 0.8,
    };
    let worker = store::pool((*db.connect_options()).clone(), "gristmill_worker", 1).await?;
    let mut tx = store::tenant(&worker, library.workspace).await?;
    Ok(compare(&mut tx, set, &setting).await?)
}

#[ignore = "minutes long"]
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn retrieval_is_as_good_as_it_was_measured(db: PgPool) -> anyhow::Result<()> {
    let Some(embedder) = embedder().await else { return Ok(()) };
    let mut sets = HashMap::new();
    for (name, language) in [("cranfield", "en"), ("xquad-en", "en"), ("xquad-de", "de")] {
        let folder = data().join("ir").join(name);
        if !folder.is_dir() {
            eprintln!("skipped: no {}", folder.display());
            return Ok(());
        }
        let set = Set::read(&folder)?;
        let library = ingest(&db, &embedder, name, language, &set).await?;
        eprintln!("{name}: {} documents, {} chunks", library.documents.len(), library.chunks);
        sets.insert(name, (set, library));
    }
    sqlx::query("ANALYZE").execute(&db).await?;
    // The floors of dense and hybrid, where one was promised.
    let cases = [
        ("cranfield", "cranfield", Some((0.407, 0.462))),
        ("xquad-en", "xquad-en", Some((0.932, 0.966))),
        ("xquad-de", "xquad-de", None),
        ("xquad-de", "xquad-en", None),
        ("xquad-en", "xquad-de", None),
    ];
    let mut low = Vec::new();
    for (asked, held, floors) in cases {
        let lines = figures(&db, &embedder, &sets[held].1, &sets[asked].0).await?;
        eprintln!("questions of {asked} over {held}\n{}", table(&lines));
        if let Some((dense, hybrid)) = floors {
            let convex = lines.last().expect("four lines");
            if lines[0].figures.ndcg_at_10 < dense || convex.figures.ndcg_at_10 < hybrid {
                low.push((asked, lines[0].clone(), convex.clone()));
            }
        }
    }
    assert!(low.is_empty(), "below the floor: {low:?}");
    Ok(())
}
