//! Files that must not become searchable, each with its reason; the worker goes on.

use super::*;
use crate::hostile::xlsx;
use crate::scan::clamd::{Manner, fake};
use crate::{fetch, scan};
use gristmill::runtime::{Registry, Worker};
use std::sync::atomic::Ordering;

impl World {
    async fn nothing_was_read(&self) -> anyhow::Result<()> {
        for table in [
            "SELECT count(*) FROM gristmill.chunks",
            "SELECT count(*) FROM gristmill.extractions",
            "SELECT count(*) FROM gristmill.generations WHERE finished_at IS NULL",
            "SELECT count(*) FROM gristmill.resources WHERE live_generation IS NOT NULL",
        ] {
            assert_eq!(self.count(table).await?, 0, "{table}");
        }
        Ok(())
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn eicar_is_quarantined_wherever_it_hides_and_nothing_of_it_is_read(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let mut ids = Vec::new();
    for (name, bytes) in scan::infected() {
        ids.push((name, world.upload(name, &bytes).await?));
    }
    world.work(every_kind).await?;
    for (name, id) in ids {
        assert_eq!(world.ended(id).await?, ended("QUARANTINED", "infected", "-"), "{name}");
        let reason = world.standing(id).await?.failure.unwrap_or_default();
        assert!(reason.contains("Eicar-Test-Signature"), "{name}: {reason}");
    }
    world.nothing_was_read().await?;
    assert_eq!(world.count("SELECT count(*) FROM gristmill.jobs WHERE kind = 'extract'").await?, 0);
    Ok(())
}

/// Within the scan's limits, and more than a child of 256 MiB can hold as a table.
fn large_cell() -> Vec<u8> {
    xlsx(&|sheet| {
        sheet.write_all(br#"<row r="1"><c r="A1" t="inlineStr"><is><t>"#).unwrap();
        for n in 0..5_000_000 {
            write!(sheet, "{n:08} ").unwrap();
        }
        sheet.write_all(b"</t></is></c></row>").unwrap();
    })
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn hostile_files_fail_with_a_reason_and_the_same_worker_goes_on(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.extract.memory_bytes = 256 << 20;
    settings.extract.cpu_seconds = 5;
    let world = World::with(db, settings).await?;
    let worker = Worker::start(&world.ctx, every_kind)?;
    let locked =
        b"From: a@b\nSubject: x\nContent-Type: multipart/encrypted; boundary=foo\n\n--foo\n\nhQ\n--foo--\n";
    let files = [
        ("bomb.zip", scan::zeros_in_zip(64 << 20), "unscannable"),
        ("nested.zip", scan::nested(10), "unscannable"),
        ("cut.zip", scan::zip_of(&[("a.txt", b"words and words")])[..40].to_vec(), "unscannable"),
        ("program.pdf", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0".to_vec(), "type_refused"),
        ("program", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0".to_vec(), "parser_unsupported"),
        ("secret.eml", locked.to_vec(), "parser_encrypted"),
        ("cut.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type".to_vec(), "parser_malformed"),
        (
            "nested.xml",
            format!("<?xml version=\"1.0\"?>{}", "<a>".repeat(300_000)).into_bytes(),
            "parser_limit_inflation",
        ),
        ("cell.xlsx", large_cell(), "parser_limit_memory"),
    ];
    let mut ids = Vec::new();
    for (name, bytes, code) in &files {
        ids.push((*name, world.upload(name, bytes).await?, *code));
    }
    let over = "SELECT bool_and(status IN ('READY', 'FAILED', 'QUARANTINED')) FROM gristmill.attachments";
    world.until("every hostile file has ended", over).await?;
    for (name, id, code) in ids {
        let (status, found, _) = world.ended(id).await?;
        let reason = world.standing(id).await?.failure.unwrap_or_default();
        assert_eq!((status.as_str(), found.as_str()), ("FAILED", code), "{name}: {reason}");
        assert!(reason.len() > 10, "{name}: {reason:?}");
    }
    world.nothing_was_read().await?;

    let honest = world.upload("next.txt", b"honest words").await?;
    world.until("the honest file has ended", over).await?;
    worker.stop().await;
    assert_eq!(world.ended(honest).await?, ended("READY", "-", "INDEXED"));
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn bytes_that_are_not_the_promised_ones_are_refused(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let key = |tail: &str| world.ctx.objects.tenant_key(world.workspace, tail);
    let (summed, sized) = (key("summed"), key("sized"));
    world.put(&summed, b"other words").await?;
    world.put(&sized, b"other words").await?;
    let promised = "a".repeat(64);
    let new = NewAttachment { sha256: Some(&promised), ..upload(world.bucket(), &summed, "a.txt") };
    let summed = world.attach(world.workspace, &new).await?;
    let sized = world.attach(world.workspace, &upload(world.bucket(), &sized, "b.txt")).await?;
    world.change("UPDATE gristmill.attachments SET size = 3 WHERE name = 'b.txt'").await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(summed).await?, ended("FAILED", "checksum_mismatch", "-"));
    assert_eq!(world.ended(sized).await?, ended("FAILED", "size_mismatch", "-"));
    world.nothing_was_read().await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_row_that_names_a_place_of_others_makes_the_worker_read_nothing(db: PgPool) -> anyhow::Result<()> {
    let mut world = World::new(db).await?;
    let mut conn = world.admin.acquire().await?;
    let other = gristmill::store::tenants::ensure_workspace(&mut conn, "other").await?;
    let own = world.ctx.objects.tenant_key(world.workspace, "a");
    let places = [
        (world.bucket().to_owned(), world.ctx.objects.tenant_key(other, "a"), "foreign_key"),
        (world.bucket().to_owned(), format!("{own}/../../{other}/a"), "foreign_key"),
        ("another-bucket".to_owned(), own, "foreign_bucket"),
    ];
    // In the store's place stands a decoy that counts who comes.
    let decoy = fetch::server("127.0.0.1", Vec::new()).await;
    world.restart(|settings| settings.objects.endpoint = format!("http://127.0.0.1:{}", decoy.port))?;
    for (bucket, key, code) in places {
        let id = world.attach(world.workspace, &upload(&bucket, &key, "a.txt")).await?;
        world.work(every_kind).await?;
        assert_eq!(world.ended(id).await?, ended("FAILED", code, "-"), "{bucket} {key}");
    }
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
    world.nothing_was_read().await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_object_that_never_comes_fails_after_its_attempts(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let key = world.ctx.objects.tenant_key(world.workspace, "missing");
    let id = world.attach(world.workspace, &upload(world.bucket(), &key, "a.txt")).await?;
    world.change("UPDATE gristmill.jobs SET max_attempts = 2").await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ended("FAILED", "gave_up", "-"));
    let reason = world.standing(id).await?.failure.unwrap_or_default();
    assert!(reason.contains("no such object") && reason.contains("attempt 2 of 2"), "{reason}");
    assert_eq!(world.words("SELECT attempts::text FROM gristmill.jobs WHERE state = 'DEAD'").await?, ["2"]);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn an_object_that_was_replaced_after_it_was_pinned_is_not_read(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let key = world.ctx.objects.tenant_key(world.workspace, "a");
    world.put(&key, b"the words that were seen").await?;
    let id = world.attach(world.workspace, &upload(world.bucket(), &key, "a.txt")).await?;
    let fetcher = Worker::start(&world.ctx, || Registry::default().with::<Fetch>())?;
    world.until("it is pinned", "SELECT bool_and(status = 'STORED') FROM gristmill.attachments").await?;
    fetcher.stop().await;
    world.put(&key, b"quite another content").await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ended("FAILED", "object_changed", "-"));
    world.nothing_was_read().await
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn without_the_required_scanner_files_wait_as_long_as_it_takes(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.scan.required = true;
    // A port that was free a moment ago: it refuses at once.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    settings.scan.clamd = free.to_string();
    let mut world = World::with(db, settings).await?;
    let id = world.upload("a.txt", b"honest words").await?;
    let waits =
        "SELECT bool_or(kind = 'scan' AND state = 'SCHEDULED' AND reason LIKE '%clamd%') FROM gristmill.jobs";
    // More often than an attempt is allowed.
    for _ in 0..7 {
        let worker = Worker::start(&world.ctx, every_kind)?;
        world.until("the scan waits", waits).await?;
        worker.stop().await;
        world
            .change("UPDATE gristmill.jobs SET run_at = now(), reason = NULL WHERE state = 'SCHEDULED'")
            .await?;
    }
    assert_eq!(world.ended(id).await?, ended("SCANNING", "-", "-"));
    world.nothing_was_read().await?;

    let (address, clamd) = fake(Manner::Says(b"stream: OK\0")).await;
    world.restart(|settings| settings.scan.clamd = address)?;
    world.work(every_kind).await?;
    clamd.abort();
    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    Ok(())
}
