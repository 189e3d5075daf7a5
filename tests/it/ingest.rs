//! The whole way of an attachment through a real worker: fetch, scan, extract, embed.
//!
//! Objects lie in a real S3 server, texts come out of real extraction children; vectors are
//! word hashes, so that equal texts and shared words are all they tell.

use crate::world::{World, settings};
use gristmill::config::Ocr;
use gristmill::context::Context;
use gristmill::domain::{AttachmentId, Origin, WorkspaceId};
use gristmill::embed::Embedder;
use gristmill::jobs::{Fetch, Forget};
use gristmill::objects::Pin;
use gristmill::queue::enqueue;
use gristmill::runtime::every_kind;
use gristmill::store::attachments::{self, NewAttachment};
use gristmill::store::chunks;
use gristmill::store::reports::{Standing, standings};
use gristmill::store::search::{self, Filters, Fusion, Mode, Probe, Query};
use serde_json::json;
use sqlx::PgPool;
use std::sync::Arc;
use uuid::Uuid;

mod forget;
mod refused;
mod remote;
mod twins;

/// Several chunks of prose; a word of each paragraph is its own.
fn prose(paragraphs: usize) -> String {
    let paragraph = |n: usize| {
        format!(
            "Paragraph {n} tells of mill{n}. The upper stone is the runner; it turns over the bed \
             stone and grinds what the miller – a patient man – pours into its eye. "
        )
        .repeat(4)
    };
    (0..paragraphs).map(paragraph).collect::<Vec<_>>().join("\n\n")
}

pub fn upload<'a>(bucket: &'a str, key: &'a str, name: &'a str) -> NewAttachment<'a> {
    NewAttachment {
        origin: Origin::Upload,
        bucket,
        key,
        name: Some(name),
        mime: None,
        source_url: None,
        sha256: None,
        conversation: None,
    }
}

impl World {
    pub fn bucket(&self) -> &str {
        &self.ctx.settings.objects.bucket
    }

    /// Puts bytes into the bucket, as a browser with a signed URL does.
    pub async fn put(&self, key: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), bytes)?;
        self.ctx.objects.upload(self.bucket(), key, file.path(), None).await?;
        Ok(())
    }

    async fn get(&self, key: &str) -> anyhow::Result<Vec<u8>> {
        let file = tempfile::NamedTempFile::new()?;
        let pin = Pin { bucket: self.bucket().into(), key: key.into(), etag: None, version_id: None };
        self.ctx.objects.download(&pin, file.path()).await?;
        Ok(std::fs::read(file.path())?)
    }

    /// The keys of the objects that a tenant has in the bucket.
    async fn keys(&self, of: WorkspaceId) -> anyhow::Result<Vec<String>> {
        let listed = self.ctx.objects.list(self.bucket(), &self.ctx.objects.tenant_key(of, "")).await?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }

    /// The row and the job that a chat layer writes in one transaction.
    pub async fn attach(&self, of: WorkspaceId, new: &NewAttachment<'_>) -> anyhow::Result<AttachmentId> {
        let mut tx = gristmill::store::tenant(&self.ctx.db, of).await?;
        let attachment = attachments::insert(&mut tx, of, new).await?;
        enqueue(&mut tx, of, &Fetch { attachment }).await?;
        tx.commit().await?;
        Ok(attachment)
    }

    async fn upload_of(&self, of: WorkspaceId, name: &str, bytes: &[u8]) -> anyhow::Result<AttachmentId> {
        let key = self.ctx.objects.tenant_key(of, &format!("uploads/{}/{name}", Uuid::now_v7()));
        self.put(&key, bytes).await?;
        self.attach(of, &upload(self.bucket(), &key, name)).await
    }

    pub async fn upload(&self, name: &str, bytes: &[u8]) -> anyhow::Result<AttachmentId> {
        self.upload_of(self.workspace, name, bytes).await
    }

    /// Uploads, and works until nothing is left to do.
    pub async fn ingest(&self, name: &str, bytes: &[u8]) -> anyhow::Result<AttachmentId> {
        let id = self.upload(name, bytes).await?;
        self.work(every_kind).await?;
        Ok(id)
    }

    pub async fn standing(&self, id: AttachmentId) -> anyhow::Result<Standing> {
        Ok(standings(&self.admin, &[id]).await?.remove(0))
    }

    /// Status, failure's code and index of an attachment, to be compared at once.
    pub async fn ended(&self, id: AttachmentId) -> anyhow::Result<(String, String, String)> {
        let standing = self.standing(id).await?;
        let word = |word: Option<String>| word.unwrap_or_else(|| "-".into());
        Ok((standing.status, word(standing.failure_code), word(standing.index)))
    }

    /// The chunks of an attachment: place, text, and range in the stored text.
    pub async fn chunks(&self, of: AttachmentId) -> anyhow::Result<Vec<(i32, String, i64, i64)>> {
        Ok(sqlx::query_as(
            "SELECT c.ord, c.content, c.start_byte, c.end_byte FROM gristmill.chunks c
             JOIN gristmill.resources r ON r.id = c.resource_id AND r.live_generation = c.generation_id
             WHERE r.attachment_id = $1 ORDER BY c.ord",
        )
        .bind(of.0)
        .fetch_all(&self.admin)
        .await?)
    }

    pub async fn words(&self, sql: &'static str) -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar(sql).fetch_all(&self.admin).await?)
    }

    pub async fn change(&self, sql: &'static str) -> anyhow::Result<u64> {
        Ok(sqlx::query(sql).execute(&self.admin).await?.rows_affected())
    }
}

fn ended(status: &str, code: &str, index: &str) -> (String, String, String) {
    (status.into(), code.into(), index.into())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_text_becomes_searchable_and_each_step_is_told(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let text = prose(12);
    let id = world.ingest("mill.txt", text.as_bytes()).await?;

    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(
        world.words("SELECT to_status::text FROM gristmill.attachment_history ORDER BY id").await?,
        ["REQUESTED", "PLANNED", "UPLOADING", "STORED", "SCANNING", "READY"]
    );
    assert_eq!(
        world.words("SELECT type FROM gristmill.events ORDER BY id").await?,
        [
            "attachment.stored",
            "attachment.scanning",
            "index.chunking",
            "index.embedding",
            "index.indexed",
            "attachment.ready"
        ]
    );
    assert_eq!(
        world.words("SELECT kind FROM gristmill.jobs WHERE state = 'DONE' ORDER BY finished_at").await?,
        ["fetch", "scan", "extract", "embed"]
    );

    let stored = world.words("SELECT key FROM gristmill.extractions").await?;
    let stored = world.get(&stored[0]).await?;
    assert_eq!(stored, text.as_bytes(), "a plain text is its own extraction");
    let chunks = world.chunks(id).await?;
    assert!(chunks.len() > 3, "{} chunks", chunks.len());
    for (place, (ord, content, start, end)) in chunks.iter().enumerate() {
        assert_eq!(*ord, place as i32);
        assert_eq!(content.as_bytes(), &stored[*start as usize..*end as usize]);
    }
    let standing = world.standing(id).await?;
    assert_eq!((standing.done, standing.total), (chunks.len() as i32, Some(chunks.len() as i32)));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_same_bytes_are_neither_read_nor_embedded_twice(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let text = prose(6);
    let first = world.ingest("one.txt", text.as_bytes()).await?;
    // Vectors that no embedder gives, and no program that could read a file: what the twin has
    // now, it has from the first.
    world.change("UPDATE gristmill.chunks SET embedding = ('[1' || repeat(',0', 63) || ']')::vector").await?;
    let settings = world.ctx.settings.clone();
    let missing = "there/is/no/such/program".into();
    world.ctx = Arc::new(Context::with(settings, missing, world.ctx.db.clone(), Embedder::hashing(64))?);
    let twin = world.ingest("two.txt", text.as_bytes()).await?;

    assert_eq!(world.ended(twin).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.chunks(twin).await?, world.chunks(first).await?);
    assert_eq!(world.count("SELECT count(DISTINCT embedding) FROM gristmill.chunks").await?, 1);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 1);
    assert_eq!(world.keys(world.workspace).await?.len(), 3, "two uploads and one text");

    // Without the first, the missing program is missed.
    let other = world.ingest("other.txt", b"other words").await?;
    assert_eq!(world.ended(other).await?, ended("FAILED", "gave_up", "FAILED"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn twins_that_arrive_at_once_are_ready_and_their_text_is_stored_once(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let text = prose(6);
    let mut twins = Vec::new();
    for n in 0..6 {
        twins.push(world.upload(&format!("{n}.txt"), text.as_bytes()).await?);
    }
    world.work(every_kind).await?;
    let chunks = world.chunks(twins[0]).await?;
    for twin in twins {
        assert_eq!(world.ended(twin).await?, ended("READY", "-", "INDEXED"));
        assert_eq!(world.chunks(twin).await?, chunks);
    }
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 1);
    assert_eq!(world.keys(world.workspace).await?.len(), 7, "six uploads and one text");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_same_bytes_are_not_scanned_twice(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.ingest("one.txt", b"honest words").await?;
    let told = "UPDATE gristmill.verdicts SET outcome = 'UNSCANNABLE', detail = 'said before'";
    assert_eq!(world.change(told).await?, 1);
    let twin = world.ingest("two.txt", b"honest words").await?;
    assert_eq!(world.ended(twin).await?.1, "unscannable");
    assert_eq!(world.standing(twin).await?.failure.as_deref(), Some("said before"));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.verdicts").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn files_without_text_are_ready_and_say_why_nothing_is_found(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.extract.ocr = Ocr::Off;
    let world = World::with(db, settings).await?;
    let empty = world.upload("empty.txt", b"").await?;
    let blank = world.upload("blank.txt", b" \n\t\n").await?;
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0";
    let picture = world.upload("scan.png", png).await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(empty).await?, ended("READY", "-", "EMPTY"));
    assert_eq!(world.ended(blank).await?, ended("READY", "-", "EMPTY"));
    assert_eq!(world.ended(picture).await?, ended("READY", "-", "NEEDS_OCR"));
    assert_eq!(world.standing(picture).await?.detail, Some(json!({ "outcome": "NEEDS_OCR", "pages": [1] })));
    assert_eq!(world.count("SELECT count(*) FROM gristmill.chunks").await?, 0);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn broken_encodings_and_controls_are_mended_before_anything_is_stored(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let nul = world.upload("nul.txt", b"one\0 two\r\nthree\x07 \x93four\x94").await?;
    let cut =
        world.upload("cut.txt", "M\u{fc}hle und Stein \u{2013}".as_bytes().split_last().unwrap().1).await?;
    let wide: Vec<u8> = "\u{feff}Mühle".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let wide = world.upload("wide.txt", &wide).await?;
    world.work(every_kind).await?;
    for (id, first) in [(nul, "one two\nthree “four”"), (wide, "Mühle")] {
        assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
        assert_eq!(world.chunks(id).await?[0].1, first);
    }
    assert_eq!(world.ended(cut).await?, ended("READY", "-", "INDEXED"));
    assert!(world.chunks(cut).await?[0].1.contains("Stein"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_text_beyond_the_ceiling_is_searchable_in_part_and_says_so(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.extract.max_text_bytes = 1000;
    let world = World::with(db, settings).await?;
    let text = "grain and stone ".repeat(200);
    let id = world.ingest("long.txt", text.as_bytes()).await?;
    assert_eq!(world.ended(id).await?, ended("READY", "-", "PARTIAL"));
    let told = json!({ "outcome": "TRUNCATED", "kept_bytes": 1000, "total_bytes": text.len() });
    assert_eq!(world.standing(id).await?.detail, Some(told));
    assert!(!world.chunks(id).await?.is_empty());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_raised_ceiling_is_not_answered_with_the_text_that_was_cut(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    let usual = settings.extract.max_text_bytes;
    settings.extract.max_text_bytes = 1000;
    let mut world = World::with(db, settings).await?;
    let text = "grain and stone ".repeat(200);
    world.ingest("long.txt", text.as_bytes()).await?;
    world.restart(|settings| settings.extract.max_text_bytes = usual)?;
    let again = world.ingest("again.txt", text.as_bytes()).await?;
    assert_eq!(world.ended(again).await?, ended("READY", "-", "INDEXED"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn tenants_with_the_same_bytes_share_nothing(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut conn = world.admin.acquire().await?;
    let other = gristmill::store::tenants::ensure_workspace(&mut conn, "other").await?;
    let text = prose(3);
    let ours = world.upload("ours.txt", text.as_bytes()).await?;
    let theirs = world.upload_of(other, "theirs.txt", text.as_bytes()).await?;
    world.work(every_kind).await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 2);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.verdicts").await?, 2);

    for (tenant, own, foreign, name) in
        [(world.workspace, ours, theirs, "ours.txt"), (other, theirs, ours, "theirs.txt")]
    {
        let mut tx = gristmill::store::tenant(&world.ctx.db, tenant).await?;
        assert!(attachments::find(&mut *tx, own).await?.is_some());
        assert!(attachments::find(&mut *tx, foreign).await?.is_none());
        let space = chunks::ensure_space(&mut tx, world.ctx.embedder.space()).await?;
        let vector = world.ctx.embedder.embed(vec!["tells of mill2".into()]).await?.remove(0);
        let probe = Probe { space_id: space, vector: &vector };
        let query = Query {
            text: "mill2",
            mode: Mode::Hybrid(probe, Fusion::Convex { alpha: 0.5 }),
            filters: Filters::default(),
            top_k: 100,
            candidates: 100,
            ef_search: 100,
            per_document: 0,
            neighbours: 0,
        };
        let hits = search::search(&mut tx, &query).await?;
        assert_eq!(hits.len(), world.chunks(own).await?.len(), "every chunk of one's own, and no other");
        assert!(hits.iter().all(|hit| hit.resource_name == name));
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_of_one_tenant_does_not_touch_what_is_anothers(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut conn = world.admin.acquire().await?;
    let other = gristmill::store::tenants::ensure_workspace(&mut conn, "other").await?;
    let id = world.ingest("ours.txt", b"our words").await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, other).await?;
    enqueue(&mut tx, other, &Forget::Attachment(id)).await?;
    enqueue(&mut tx, other, &Fetch { attachment: id }).await?;
    tx.commit().await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.keys(world.workspace).await?.len(), 2);
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE state <> 'DONE'").await?, 0);
    Ok(())
}
