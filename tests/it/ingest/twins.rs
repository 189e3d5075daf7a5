//! Attachments of the same bytes: what one of them needs is not taken by the end of the other.

use super::*;
use gristmill::domain::AttachmentStatus;
use gristmill::jobs::{Extract, Scan};
use gristmill::queue::Payload;
use gristmill::runtime::{Registry, Worker};
use gristmill::store::attachments::Stored;
use gristmill::store::verdicts::{self, Verdict};
use gristmill::store::{Tx, bytes};
use sha2::{Digest, Sha256};

const TEXT: &str = "words of a mill";

/// Somebody waits for a lock by name in this test's database, or the last `forget` is over.
const MET: &str = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
    OR EXISTS (SELECT FROM gristmill.jobs WHERE kind = 'forget' AND state = 'DONE')";

impl World {
    async fn tenant(&self) -> anyhow::Result<Tx> {
        Ok(gristmill::store::tenant(&self.ctx.db, self.workspace).await?)
    }

    async fn queue<P: Payload>(&self, job: &P) -> anyhow::Result<()> {
        let mut tx = self.tenant().await?;
        enqueue(&mut tx, self.workspace, job).await?;
        Ok(tx.commit().await?)
    }

    /// An attachment that waits for its scan, and that no job knows of.
    async fn add_unscanned(&self, name: &str, text: &str) -> anyhow::Result<AttachmentId> {
        let key = self.ctx.objects.tenant_key(self.workspace, &format!("uploads/{name}"));
        self.put(&key, text.as_bytes()).await?;
        let head = self.ctx.objects.head(self.bucket(), &key).await?;
        let mut tx = self.tenant().await?;
        let id = attachments::insert(&mut tx, self.workspace, &upload(self.bucket(), &key, name)).await?;
        let attachment = attachments::find(&mut *tx, id).await?.expect("it was just made");
        let stored = Stored { size: head.size as i64, etag: head.etag, ..Stored::default() };
        attachments::set_stored(&mut tx, &attachment, &stored).await?;
        attachments::advance(&mut tx, id, AttachmentStatus::Scanning).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Writes what `scan` writes in its last transaction.
    async fn scanned(&self, tx: &mut Tx, id: AttachmentId, text: &str) -> anyhow::Result<()> {
        let (sha256, size) = (sha256(text), text.len() as i64);
        bytes::lock(tx, self.workspace, &sha256).await?;
        attachments::set_truth(tx, id, &sha256, size, "text/plain").await?;
        let engine = self.ctx.scanner.engine().await?;
        let verdict = Verdict {
            sha256,
            outcome: "CLEAN".into(),
            engine: engine.name,
            signature_version: engine.signature_version,
            signature: None,
            detail: None,
            limits_hit: Vec::new(),
            detected_mime: "text/plain".into(),
            size,
        };
        verdicts::record(tx, self.workspace, &verdict).await?;
        enqueue(tx, self.workspace, &Extract { attachment: id }).await?;
        Ok(())
    }

    /// Works on one kind until `done`; somebody else holds these bytes until `met`.
    async fn work_beside(
        &self,
        (registry, other): (impl Fn() -> Registry, Tx),
        (met, done): (&'static str, &'static str),
        not_yet: &'static str,
    ) -> anyhow::Result<()> {
        let worker = Worker::start(&self.ctx, registry)?;
        let mut outcome = self.until("they met", met).await;
        if outcome.is_ok() && self.count(not_yet).await? != 0 {
            outcome = Err(anyhow::anyhow!("{not_yet}: written while another held the bytes"));
        }
        other.commit().await?;
        outcome = outcome.and(self.until("it is done", done).await);
        worker.stop().await;
        outcome
    }
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The moment that loses a text without the lock: a scan has found its bytes known and clean, and
/// before it commits, the only other attachment that has them is forgotten.
#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_twin_whose_scan_ends_while_the_first_is_forgotten_keeps_verdict_and_text(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let text = prose(3);
    let first = world.ingest("one.txt", text.as_bytes()).await?;
    let chunks = world.chunks(first).await?;
    let twin = world.add_unscanned("two.txt", &text).await?;
    let mut scan = world.tenant().await?;
    world.scanned(&mut scan, twin, &text).await?;
    world.queue(&Forget::Attachment(first)).await?;
    let forgotten = "SELECT count(*) = 1 FROM gristmill.jobs WHERE kind = 'forget' AND state = 'DONE'";
    world.work_beside((every_kind, scan), (MET, forgotten), "SELECT 0::bigint").await?;
    world.work(every_kind).await?;

    assert!(standings(&world.admin, &[first]).await?.is_empty());
    assert_eq!(world.ended(twin).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.chunks(twin).await?, chunks);
    assert_eq!(world.keys(world.workspace).await?.len(), 2, "its bytes and its text");
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn scan_extract_and_forget_wait_for_whoever_holds_their_bytes(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.add_unscanned("one.txt", TEXT).await?;
    let held = || async {
        let mut other = world.tenant().await?;
        bytes::lock(&mut other, world.workspace, &sha256(TEXT)).await?;
        anyhow::Ok(other)
    };
    world.queue(&Scan { attachment: id }).await?;
    let done = "SELECT count(*) = 1 FROM gristmill.verdicts";
    let not_yet = "SELECT count(*) FROM gristmill.verdicts";
    world.work_beside((|| Registry::default().with::<Scan>(), held().await?), (MET, done), not_yet).await?;

    let done = "SELECT count(*) = 1 FROM gristmill.extractions";
    let not_yet = "SELECT count(*) FROM gristmill.extractions";
    world
        .work_beside((|| Registry::default().with::<Extract>(), held().await?), (MET, done), not_yet)
        .await?;
    world.work(every_kind).await?;

    world.queue(&Forget::Attachment(id)).await?;
    let done = "SELECT count(*) = 0 FROM gristmill.extractions";
    let not_yet = "SELECT 1 - count(*) FROM gristmill.extractions";
    world.work_beside((every_kind, held().await?), (MET, done), not_yet).await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_text_that_comes_anew_lies_under_a_new_key(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let key = "SELECT key FROM gristmill.extractions";
    let first = world.ingest("one.txt", TEXT.as_bytes()).await?;
    let before = world.words(key).await?;
    world.queue(&Forget::Attachment(first)).await?;
    world.work(every_kind).await?;
    world.ingest("two.txt", TEXT.as_bytes()).await?;
    let after = world.words(key).await?;
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after, "so a late removal of the first cannot meet the second");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_attachment_forgotten_while_it_is_read_leaves_no_text(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.add_unscanned("one.txt", TEXT).await?;
    let mut scan = world.tenant().await?;
    world.scanned(&mut scan, id, TEXT).await?;
    scan.commit().await?;
    // Its row goes while `extract` waits to write: as `forget` removes it, under the lock.
    let mut forget = world.tenant().await?;
    bytes::lock(&mut forget, world.workspace, &sha256(TEXT)).await?;
    let worker = Worker::start(&world.ctx, every_kind)?;
    let met = world.until("they met", MET).await;
    attachments::delete(&mut forget, id).await?;
    forget.commit().await?;
    worker.stop().await;
    met?;
    world.work(every_kind).await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.extractions").await?, 0);
    assert_eq!(world.words("SELECT state::text FROM gristmill.jobs").await?, ["DONE"]);
    let left = world.keys(world.workspace).await?;
    assert!(left.len() == 1 && left[0].contains("uploads/"), "the upload alone, which is forget's: {left:?}");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_forget_that_died_after_its_rows_were_gone_removes_the_objects_when_it_is_back(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let gone = AttachmentId(Uuid::now_v7());
    let key = world.ctx.objects.tenant_key(world.workspace, "texts/a-1.txt");
    world.put(&key, TEXT.as_bytes()).await?;
    sqlx::query(
        "INSERT INTO gristmill.leftovers (workspace_id, attachment_id, objects, removed) VALUES ($1, $2, $3, $4)",
    )
    .bind(world.workspace.0)
    .bind(gone.0)
    .bind(json!([{ "bucket": world.bucket(), "key": key }]))
    .bind(json!({ "chunks": 7 }))
    .execute(&world.admin)
    .await?;
    world.queue(&Forget::Attachment(gone)).await?;
    world.work(every_kind).await?;
    assert!(world.keys(world.workspace).await?.is_empty());
    assert_eq!(world.count("SELECT count(*) FROM gristmill.leftovers").await?, 0);
    let told =
        world.words("SELECT body::text FROM gristmill.events WHERE type = 'attachment.forgotten'").await?;
    assert_eq!(told, [r#"{"chunks": 7}"#]);
    Ok(())
}

/// As if another worker held a job of this kind since an hour ago.
const HOLD: &str = "UPDATE gristmill.jobs SET state = 'RUNNING', finished_at = NULL,
    started_at = now() - interval '1 h', lease_until = now() + interval '1 h'";
const RELEASE: &str = "UPDATE gristmill.jobs SET state = 'WAITING', lease_until = NULL
    WHERE lease_until > now() + interval '30 min'";

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn of_twins_read_at_once_the_later_waits_for_the_text_of_the_earlier(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut ids = Vec::new();
    for name in ["one.txt", "two.txt"] {
        let id = world.add_unscanned(name, TEXT).await?;
        let mut scan = world.tenant().await?;
        world.scanned(&mut scan, id, TEXT).await?;
        scan.commit().await?;
        if ids.is_empty() {
            assert_eq!(world.change(HOLD).await?, 1);
        }
        ids.push(id);
    }
    let worker = Worker::start(&world.ctx, every_kind)?;
    let asked = "SELECT EXISTS (SELECT FROM gristmill.jobs WHERE kind = 'extract' AND state = 'SCHEDULED'
                                AND attempts = 0 AND reason LIKE '%the same bytes%')";
    let waited = world.until("the twin waits", asked).await;
    assert_eq!(world.change(RELEASE).await?, 1);
    worker.stop().await;
    waited?;
    world.work(every_kind).await?;
    for id in ids {
        assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn of_twins_embedded_at_once_the_later_waits_for_the_vectors_of_the_earlier(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let first = world.upload("one.txt", TEXT.as_bytes()).await?;
    let without_embed = || Registry::default().with::<Fetch>().with::<Scan>().with::<Extract>();
    let worker = Worker::start(&world.ctx, without_embed)?;
    let one = "SELECT count(*) = 1 FROM gristmill.jobs WHERE kind = 'embed'";
    let came = world.until("its embed is queued", one).await;
    worker.stop().await;
    came?;
    assert_eq!(
        world
            .change(
                "UPDATE gristmill.jobs SET state = 'RUNNING', started_at = now() - interval '1 h',
        lease_until = now() + interval '1 h' WHERE kind = 'embed'"
            )
            .await?,
        1
    );
    let twin = world.upload("two.txt", TEXT.as_bytes()).await?;
    let worker = Worker::start(&world.ctx, every_kind)?;
    let asked = "SELECT EXISTS (SELECT FROM gristmill.jobs WHERE kind = 'embed' AND state = 'SCHEDULED'
                                AND attempts = 0 AND reason LIKE '%the same text%')";
    let waited = world.until("the twin waits", asked).await;
    assert_eq!(world.change(RELEASE).await?, 1);
    worker.stop().await;
    waited?;
    world.work(every_kind).await?;
    for id in [first, twin] {
        assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    }
    Ok(())
}
