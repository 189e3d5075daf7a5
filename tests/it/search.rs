//! Search over hand-made chunks: scores, scopes, citations, and what must never be found.

mod vectors;

use gristmill::domain::{ConversationId, GenerationId, ResourceId, Space, ToolId, WorkspaceId};
use gristmill::store::chunks::{self, NewChunk};
use gristmill::store::search::{Filters, Fusion, Hit, MARKS, Mode, Probe, Query, highlight, search};
use gristmill::store::{self, Tx, tenants};
use serde_json::json;
use sqlx::{PgPool, query, query_scalar};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

const DIMENSIONS: u32 = 4;

/// A tenant with a vector space, and its database as the worker sees it.
struct Shelf {
    admin: PgPool,
    worker: PgPool,
    workspace: WorkspaceId,
    space: i32,
}

/// Where a document stands and how it is read.
#[derive(Default)]
struct Place<'a> {
    language: Option<&'a str>,
    tool: Option<ToolId>,
    conversation: Option<ConversationId>,
    metadata: serde_json::Value,
}

impl Shelf {
    async fn new(admin: &PgPool, name: &str) -> anyhow::Result<Self> {
        let worker = store::pool((*admin.connect_options()).clone(), "gristmill_worker", 4).await?;
        let mut conn = admin.acquire().await?;
        let workspace = tenants::ensure_workspace(&mut conn, name).await?;
        let space = Space { model: "hand".into(), revision: "1".into(), dimensions: DIMENSIONS };
        let space = chunks::ensure_space(&mut conn, &space).await?;
        Ok(Self { admin: admin.clone(), worker, workspace, space })
    }

    /// A document whose generation is live.
    async fn add(
        &self,
        name: &str,
        place: Place<'_>,
        texts: &[(&str, [f32; 4])],
    ) -> anyhow::Result<ResourceId> {
        let resource = ResourceId(
            query_scalar(
                "INSERT INTO gristmill.resources (workspace_id, name, tool_id, conversation_id, metadata)
                 VALUES ($1, $2, $3, $4, coalesce(nullif($5::jsonb, 'null'), '{}')) RETURNING id",
            )
            .bind(self.workspace)
            .bind(name)
            .bind(place.tool)
            .bind(place.conversation)
            .bind(&place.metadata)
            .fetch_one(&self.admin)
            .await?,
        );
        let generation = self.index(resource, place.language, texts).await?;
        self.flip(resource, generation).await?;
        Ok(resource)
    }

    /// A generation that is complete and not live.
    async fn index(
        &self,
        of: ResourceId,
        language: Option<&str>,
        texts: &[(&str, [f32; 4])],
    ) -> anyhow::Result<GenerationId> {
        let generation = GenerationId(
            query_scalar(
                "INSERT INTO gristmill.generations (workspace_id, resource_id, space_id, status, done, total, finished_at)
                 VALUES ($1, $2, $3, 'INDEXED', $4, $4, now()) RETURNING id",
            )
            .bind(self.workspace)
            .bind(of)
            .bind(self.space)
            .bind(texts.len() as i32)
            .fetch_one(&self.admin)
            .await?,
        );
        let mut start = 0;
        let mut rows = Vec::new();
        for (ord, (text, vector)) in (0..).zip(texts) {
            let end = start + text.len() as i64;
            rows.push(NewChunk {
                ord,
                content: (*text).to_owned(),
                sha256: [0; 32],
                tokens: 1,
                start,
                end,
                pages: Some((ord + 1, ord + 2)),
                vector: vector.to_vec(),
            });
            start = end;
        }
        let mut tx = self.tx().await?;
        chunks::insert(&mut tx, generation, self.space, language, &rows).await?;
        tx.commit().await?;
        Ok(generation)
    }

    async fn flip(&self, resource: ResourceId, to: GenerationId) -> anyhow::Result<()> {
        query("UPDATE gristmill.resources SET live_generation = $2 WHERE id = $1")
            .bind(resource)
            .bind(to)
            .execute(&self.admin)
            .await?;
        Ok(())
    }

    async fn tx(&self) -> anyhow::Result<Tx> {
        Ok(store::tenant(&self.worker, self.workspace).await?)
    }

    async fn ask(&self, question: &Query<'_>) -> anyhow::Result<Vec<Hit>> {
        Ok(search(&mut *self.tx().await?, question).await?)
    }

    fn probe<'a>(&self, vector: &'a [f32; 4]) -> Probe<'a> {
        Probe { space_id: self.space, vector }
    }
}

fn words(text: &str) -> Query<'_> {
    Query {
        text,
        mode: Mode::Lexical,
        filters: Filters::default(),
        top_k: 10,
        candidates: 50,
        ef_search: 100,
        per_document: 0,
        neighbours: 0,
    }
}

fn names(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.resource_name.as_str()).collect()
}

const EAST: [f32; 4] = [1.0, 0.0, 0.0, 0.0];
const NORTH: [f32; 4] = [0.0, 1.0, 0.0, 0.0];
const UP: [f32; 4] = [0.0, 0.0, 1.0, 0.0];

/// Texts of a few words, drawn without a source of chance: the same every run.
fn made_up(count: usize) -> Vec<String> {
    let vocabulary =
        ["alder", "birch", "cedar", "elm", "fir", "gorse", "hazel", "ivy", "juniper", "larch", "maple"];
    let mut state = 7_u64;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    (0..count)
        .map(|_| {
            let length = 1 + next(24);
            // Squared, so that early words are common and late ones rare.
            let word = |n: usize| vocabulary[n * n / vocabulary.len()];
            (0..length).map(|_| word(next(vocabulary.len()))).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// BM25 as the books have it, k1 0.9 and b 0.4.
fn reference(texts: &[String], question: &str) -> Vec<f64> {
    let split: Vec<Vec<&str>> = texts.iter().map(|text| text.split(' ').collect()).collect();
    let n = split.len() as f64;
    let mean = split.iter().map(Vec::len).sum::<usize>() as f64 / n;
    let asked: HashSet<&str> = question.split(' ').collect();
    split
        .iter()
        .map(|text| {
            let score = |word: &&str| {
                let tf = text.iter().filter(|w| *w == word).count() as f64;
                let df = split.iter().filter(|text| text.contains(word)).count() as f64;
                let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                idf * tf * 1.9 / (tf + 0.9 * (0.6 + 0.4 * text.len() as f64 / mean))
            };
            asked.iter().map(score).sum()
        })
        .collect()
}

async fn scores_are_the_reference(shelf: &Shelf, texts: &[String]) -> anyhow::Result<()> {
    let rows: Vec<(&str, [f32; 4])> = texts.iter().map(|text| (text.as_str(), EAST)).collect();
    shelf.add("trees", Place::default(), &rows).await?;
    for question in ["hazel", "ivy larch", "maple maple alder juniper", "birch unheard"] {
        let mut expected: Vec<f64> = reference(texts, question).into_iter().filter(|s| *s > 0.0).collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(40);
        let hits = shelf.ask(&Query { top_k: 40, ..words(question) }).await?;
        assert_eq!(hits.len(), expected.len(), "{question}");
        for (hit, expected) in hits.iter().zip(expected) {
            assert!((hit.score - expected).abs() < 1e-6, "{question}: {} is not {expected}", hit.score);
        }
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_lexical_score_is_bm25(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    scores_are_the_reference(&shelf, &made_up(120)).await
}

/// Above 4,000 chunks the postings are read from the index: the same numbers must come out, and
/// chunks of another tenant must not be counted.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_large_scope_is_scored_alike(db: PgPool) -> anyhow::Result<()> {
    let other = Shelf::new(&db, "other").await?;
    other.add("theirs", Place::default(), &[("hazel hazel ivy", EAST)]).await?;
    let shelf = Shelf::new(&db, "acme").await?;
    scores_are_the_reference(&shelf, &made_up(4_300)).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_word_is_found_in_the_forms_of_its_language(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    let german = Place { language: Some("de"), ..Place::default() };
    shelf.add("muehle", german, &[("Die Mühlen mahlten langsam", EAST)]).await?;
    let english = Place { language: Some("en-GB"), ..Place::default() };
    shelf.add("mill", english, &[("The mills were grinding slowly", EAST)]).await?;
    shelf.add("unknown", Place::default(), &[("grinding", EAST)]).await?;

    assert_eq!(names(&shelf.ask(&words("Mühle")).await?), ["muehle"]);
    let grinds = shelf.ask(&words("grinds")).await?;
    assert_eq!(names(&grinds), ["mill"], "a text of unknown language is not stemmed");
    assert_eq!(shelf.ask(&words("grinding")).await?.len(), 2);
    // A stop word of one language is none of the question, and no other word is lost.
    assert!(shelf.ask(&words("the die")).await?.is_empty());
    assert_eq!(names(&shelf.ask(&words("the die Mühle's \\ ' & | !")).await?), ["muehle"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn both_sides_are_fused_and_say_why(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    shelf.add("both", Place::default(), &[("a runner stone", [0.9, 0.1, 0.0, 0.0])]).await?;
    shelf.add("near", Place::default(), &[("the upper one turns", EAST)]).await?;
    shelf.add("named", Place::default(), &[("runner stone runner stone", NORTH)]).await?;
    shelf.add("neither", Place::default(), &[("a dam", [0.7, 0.7, 0.0, 0.0])]).await?;
    for fusion in [Fusion::ReciprocalRank { k: 60 }, Fusion::Convex { alpha: 0.5 }] {
        let question = Query { mode: Mode::Hybrid(shelf.probe(&EAST), fusion), ..words("runner stone") };
        let hits = shelf.ask(&question).await?;
        assert_eq!(hits.len(), 4);
        assert_eq!(hits[0].resource_name, "both", "{fusion:?}");
        let named = hits.iter().find(|hit| hit.resource_name == "named").expect("it is there");
        assert_eq!((named.lexical_rank, named.dense_rank), (Some(1), Some(4)));
        let near = hits.iter().find(|hit| hit.resource_name == "near").expect("it is there");
        assert_eq!((near.dense_rank, near.lexical_rank, near.lexical_score), (Some(1), None, None));
        assert!((near.dense_similarity.expect("in the space") - 1.0).abs() < 1e-6);
    }
    let ranks = Mode::Hybrid(shelf.probe(&EAST), Fusion::ReciprocalRank { k: 60 });
    let hits = shelf.ask(&Query { mode: ranks, ..words("runner stone") }).await?;
    assert!((hits[0].score - 2.0 / 62.0).abs() < 1e-9, "second on both sides");
    Ok(())
}

/// Only one candidate a side: the other's scores must be known of it all the same.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_candidate_of_one_side_has_the_score_of_the_other(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    shelf.add("near", Place::default(), &[("a stone that is one of many in the mill", EAST)]).await?;
    shelf.add("named", Place::default(), &[("stone", NORTH)]).await?;
    let mode = Mode::Hybrid(shelf.probe(&EAST), Fusion::Convex { alpha: 0.8 });
    let hits = shelf.ask(&Query { mode, candidates: 1, ..words("stone") }).await?;
    assert_eq!(names(&hits), ["near", "named"]);
    assert!(hits[0].lexical_score.is_some() && hits[0].lexical_rank.is_none(), "{:?}", hits[0]);
    assert!(hits[1].dense_similarity.is_some() && hits[1].dense_rank.is_none(), "{:?}", hits[1]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_filter_bounds_both_sides(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    let tool = ToolId(tool_of(&shelf).await?);
    let conversation = ConversationId(
        query_scalar("INSERT INTO gristmill.conversations (workspace_id) VALUES ($1) RETURNING id")
            .bind(shelf.workspace)
            .fetch_one(&db)
            .await?,
    );
    let texts = [("stone", EAST)];
    shelf.add("of tool", Place { tool: Some(tool), ..Place::default() }, &texts).await?;
    shelf.add("of talk", Place { conversation: Some(conversation), ..Place::default() }, &texts).await?;
    let tagged = Place { metadata: json!({"team": "mill", "year": 2026}), ..Place::default() };
    let tagged = shelf.add("tagged", tagged, &texts).await?;
    let cases = [
        (Filters { tool: Some(tool), ..Filters::default() }, vec!["of tool"]),
        (Filters { conversation: Some(conversation), ..Filters::default() }, vec!["of talk"]),
        (Filters { resource: Some(tagged), ..Filters::default() }, vec!["tagged"]),
        (Filters { metadata: Some(json!({"team": "mill"})), ..Filters::default() }, vec!["tagged"]),
        (Filters { metadata: Some(json!({"team": "dam"})), ..Filters::default() }, vec![]),
        (Filters { tool: Some(tool), resource: Some(tagged), ..Filters::default() }, vec![]),
    ];
    for (filters, expected) in cases {
        let probe = shelf.probe(&EAST);
        for mode in [Mode::Lexical, Mode::Dense(probe), Mode::Hybrid(probe, Fusion::Convex { alpha: 0.8 })] {
            let hits = shelf.ask(&Query { mode, filters: filters.clone(), ..words("stone") }).await?;
            assert_eq!(names(&hits), expected, "{mode:?} {filters:?}");
        }
    }
    Ok(())
}

async fn tool_of(shelf: &Shelf) -> anyhow::Result<Uuid> {
    Ok(query_scalar(
        r#"INSERT INTO gristmill.tools (workspace_id, name, type, custom_config)
           VALUES ($1, 'books', 'custom', '{"McpType": "knowledgebase"}') RETURNING id"#,
    )
    .bind(shelf.workspace)
    .fetch_one(&shelf.admin)
    .await?)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn only_the_live_generation_is_seen_and_counted(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    let book = shelf.add("book", Place::default(), &[("old stone", EAST)]).await?;
    let alone = shelf.ask(&words("stone")).await?;
    let next = shelf.index(book, None, &[("new stone", EAST), ("new wheel", NORTH)]).await?;
    assert_eq!(shelf.ask(&words("stone")).await?, alone, "what is built beside changes no score");

    shelf.flip(book, next).await?;
    let mode = Mode::Hybrid(shelf.probe(&EAST), Fusion::ReciprocalRank { k: 60 });
    let hits = shelf.ask(&Query { mode, ..words("old stone") }).await?;
    assert!(hits.iter().all(|hit| hit.generation == next) && hits.len() == 2, "{hits:?}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn another_tenants_chunks_never_come(db: PgPool) -> anyhow::Result<()> {
    let (ours, theirs) = (Shelf::new(&db, "ours").await?, Shelf::new(&db, "theirs").await?);
    assert_eq!(ours.space, theirs.space);
    ours.add("ours", Place::default(), &[("a wheel", NORTH)]).await?;
    let secret = theirs.add("theirs", Place::default(), &[("a stone", EAST)]).await?;
    let mode = Mode::Hybrid(ours.probe(&EAST), Fusion::Convex { alpha: 0.8 });
    assert_eq!(names(&ours.ask(&Query { mode, ..words("stone wheel") }).await?), ["ours"]);
    let named = Filters { resource: Some(secret), ..Filters::default() };
    assert!(ours.ask(&Query { mode, filters: named, ..words("stone") }).await?.is_empty());

    // Nor by the function itself, whatever it is asked to score beside; nor without a tenant.
    let chunk: Uuid = query_scalar("SELECT id FROM gristmill.chunks WHERE resource_id = $1")
        .bind(secret)
        .fetch_one(&db)
        .await?;
    let scored = "SELECT count(*) FROM gristmill.bm25('stone', 10, also => ARRAY[$1])";
    let found: i64 = query_scalar(scored).bind(chunk).fetch_one(&mut *ours.tx().await?).await?;
    assert_eq!(found, 0);
    let found: i64 = query_scalar(scored).bind(chunk).fetch_one(&ours.worker).await?;
    assert_eq!(found, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_hit_is_cited_and_comes_with_its_neighbours(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    let texts = [("one ", EAST), ("two ", EAST), ("three stones ", EAST), ("four", EAST)];
    let book = shelf.add("book", Place { language: Some("en"), ..Place::default() }, &texts).await?;
    let hits = shelf.ask(&Query { neighbours: 2, ..words("stone") }).await?;
    let whole: String = texts.iter().map(|text| text.0).collect();
    let hit = &hits[0];
    assert_eq!((hits.len(), hit.resource, hit.ord), (1, book, 2));
    assert_eq!(&whole[hit.start_byte as usize..hit.end_byte as usize], hit.content);
    assert_eq!((hit.page_first, hit.page_last), (Some(3), Some(4)));
    assert_eq!((hit.before.join("|"), hit.after.join("|")), ("one |two ".into(), "four".into()));

    let mut tx = shelf.tx().await?;
    let marked: HashMap<_, _> = highlight(&mut tx, "which stone?", &[hit.chunk]).await?;
    assert_eq!(marked[&hit.chunk].trim_end(), format!("three {}stones{}", MARKS.0, MARKS.1));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_document_takes_no_more_places_than_its_cap(db: PgPool) -> anyhow::Result<()> {
    let shelf = Shelf::new(&db, "acme").await?;
    shelf
        .add("long", Place::default(), &[("stone stone", EAST), ("stone", EAST), ("stone wheel", EAST)])
        .await?;
    shelf.add("short", Place::default(), &[("a wheel and no more than one stone", UP)]).await?;
    let all = shelf.ask(&words("stone")).await?;
    assert_eq!(names(&all), ["long", "long", "long", "short"]);
    let capped = shelf.ask(&Query { per_document: 1, top_k: 2, ..words("stone") }).await?;
    assert_eq!(names(&capped), ["long", "short"], "the cap comes before the cut");
    assert_eq!(capped[0].chunk, all[0].chunk, "its best chunk");
    Ok(())
}
