//! What lies behind a URL: brought through the guarded client, or not at all.

use super::*;
use crate::fetch::{ok, server};
use std::sync::atomic::Ordering;

fn remote<'a>(bucket: &'a str, key: &'a str, url: &'a str) -> NewAttachment<'a> {
    NewAttachment { origin: Origin::Remote, name: None, source_url: Some(url), ..upload(bucket, key, "") }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_remote_file_is_brought_into_the_bucket_and_read(db: PgPool) -> anyhow::Result<()> {
    let mut settings = settings();
    settings.fetch.allow = vec!["127.0.0.0/8".parse()?];
    let world = World::with(db, settings).await?;
    let text = prose(2);
    let headers = "content-disposition: attachment; filename=\"mill.txt\"\r\ncontent-type: text/plain\r\n";
    let server = server("127.0.0.1", vec![("/a", ok(headers, text.as_bytes()))]).await;
    let key = world.ctx.objects.tenant_key(world.workspace, "remote/a");
    let url = format!("http://127.0.0.1:{}/a", server.port);
    let id = world.attach(world.workspace, &remote(world.bucket(), &key, &url)).await?;
    world.work(every_kind).await?;

    assert_eq!(world.ended(id).await?, ended("READY", "-", "INDEXED"));
    assert_eq!(world.standing(id).await?.name.as_deref(), Some("mill.txt"));
    assert_eq!(world.get(&key).await?, text.as_bytes());
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_private_address_is_refused_before_anybody_is_asked(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let server = server("127.0.0.1", vec![("/a", ok("", b"a secret"))]).await;
    let key = world.ctx.objects.tenant_key(world.workspace, "remote/a");
    let url = format!("http://127.0.0.1:{}/a", server.port);
    let id = world.attach(world.workspace, &remote(world.bucket(), &key, &url)).await?;
    world.work(every_kind).await?;

    assert_eq!(world.ended(id).await?, ended("FAILED", "url_refused", "-"));
    assert!(world.standing(id).await?.failure.is_some_and(|reason| !reason.is_empty()));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    assert!(world.keys(world.workspace).await?.is_empty());
    Ok(())
}
