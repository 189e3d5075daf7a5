//! `gristmill ingest`: local files or URLs become attachments of a knowledge base; also the
//! way in of `demo` and `eval-docs`.
//!
//! The bytes are uploaded first; attachment, resource and the `fetch` job then appear in one
//! transaction, as a chat layer would write them.

use crate::context::Context;
use crate::domain::{AttachmentId, Origin, ToolId, WorkspaceId};
use crate::jobs::Fetch;
use crate::queue::enqueue;
use crate::store::attachments::NewAttachment;
use crate::store::{attachments, resources};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Where ingested files go.
#[derive(Debug, Clone, Copy)]
pub struct Into {
    pub workspace: WorkspaceId,
    pub knowledge_base: Option<ToolId>,
}

/// Uploads one file and asks for its ingest.
pub async fn file(ctx: &Context, into: Into, path: &Path) -> anyhow::Result<AttachmentId> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a file needs a name in UTF-8")?;
    let key = new_key(ctx, into.workspace, name);
    let bucket = &ctx.settings.objects.bucket;
    ctx.objects.upload(bucket, &key, path, None).await.with_context(|| path.display().to_string())?;
    let new = NewAttachment { origin: Origin::Upload, key: &key, ..named(bucket, name) };
    ask(ctx, into, &new).await
}

/// Asks for the ingest of what lies behind a URL.
pub async fn url(ctx: &Context, into: Into, url: &str) -> anyhow::Result<AttachmentId> {
    let path = url::Url::parse(url).with_context(|| format!("{url:?} is no URL"))?;
    let name = path.path_segments().and_then(|mut parts| parts.next_back()).filter(|s| !s.is_empty());
    let key = new_key(ctx, into.workspace, name.unwrap_or("remote"));
    let bucket = &ctx.settings.objects.bucket;
    let new = NewAttachment {
        origin: Origin::Remote,
        key: &key,
        source_url: Some(url),
        name: None,
        ..named(bucket, "")
    };
    ask(ctx, into, &new).await
}

fn named<'a>(bucket: &'a str, name: &'a str) -> NewAttachment<'a> {
    NewAttachment {
        origin: Origin::Upload,
        bucket,
        key: "",
        name: Some(name),
        mime: None,
        source_url: None,
        sha256: None,
        conversation: None,
    }
}

fn new_key(ctx: &Context, workspace: WorkspaceId, name: &str) -> String {
    // A name may hold anything; the key keeps the end of it, in what every store takes, and
    // short enough for the embedded one (see the keys of texts in `jobs/extract.rs`).
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' })
        .rev()
        .take(40)
        .collect();
    let safe: String = safe.chars().rev().collect();
    ctx.objects
        .tenant_key(workspace, &format!("uploads/{}/{}", uuid::Uuid::now_v7(), safe.trim_start_matches('.')))
}

async fn ask(ctx: &Context, into: Into, new: &NewAttachment<'_>) -> anyhow::Result<AttachmentId> {
    let mut tx = crate::store::tenant(&ctx.db, into.workspace).await?;
    let attachment = attachments::insert(&mut tx, into.workspace, new).await?;
    let name = new.name.or(new.source_url).unwrap_or("attachment");
    resources::insert(&mut tx, into.workspace, attachment, name, into.knowledge_base).await?;
    enqueue(&mut tx, into.workspace, &Fetch { attachment }).await?;
    tx.commit().await?;
    Ok(attachment)
}

/// The files below these paths, folders walked in the order of their names.
pub fn files_below(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let kind = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        if kind.is_dir() {
            let entries = std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.path()));
            let mut inside = entries.collect::<std::io::Result<Vec<_>>>()?;
            inside
                .retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
            inside.sort();
            files.extend(files_below(&inside)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}
