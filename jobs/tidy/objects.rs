//! Objects that no row names: the worker put them there and its transaction did not commit, or
//! somebody removed the row without `forget`.
//!
//! Looked for only where nobody but the worker writes (`tidy.orphan_prefixes`), and only when they
//! are old. A text is spared as long as an attachment has its bytes, whether or not it is named.
//! Accepted race: each is held against the rows right before it is deleted; to lose a text that is
//! needed, the same bytes would have to be scanned and extracted anew between those two requests,
//! and then `embed` fails and says so.

use super::{HOUR, Sweep};
use crate::domain::WorkspaceId;
use crate::job::JobError;
use crate::store::sweeps;
use std::time::SystemTime;

pub(super) async fn sweep(sweep: &mut Sweep<'_>) -> Result<(), JobError> {
    let mut tx = sweep.turn.begin(sweep.ctx).await?;
    let workspaces = sweeps::workspaces(&mut tx).await?;
    tx.commit().await?;
    for workspace in workspaces {
        for below in &sweep.ctx.settings.tidy.orphan_prefixes {
            let removed = below_prefix(sweep, workspace, below).await?;
            sweep.count("objects", removed);
        }
    }
    Ok(())
}

async fn below_prefix(sweep: &Sweep<'_>, workspace: WorkspaceId, below: &str) -> Result<i64, JobError> {
    let objects = &sweep.ctx.objects;
    let bucket = &sweep.ctx.settings.objects.bucket;
    let prefix = objects.tenant_key(workspace, below);
    let age = HOUR * sweep.ctx.settings.tidy.orphan_hours;
    let (mut removed, mut next) = (0, None);
    loop {
        let page = objects.page(bucket, &prefix, next).await?;
        let old = |at: SystemTime| at.elapsed().is_ok_and(|elapsed| elapsed >= age);
        let keys: Vec<String> = page
            .objects
            .into_iter()
            // A store that does not say when it was put there has none that is surely old.
            .filter(|object| object.modified.is_some_and(old))
            .filter(|object| objects.key_belongs(workspace, &object.key).is_ok())
            .map(|object| object.key)
            .collect();
        for key in unnamed(sweep, workspace, &keys).await? {
            if !unnamed(sweep, workspace, std::slice::from_ref(&key)).await?.is_empty() {
                objects.delete(bucket, &key).await?;
                removed += 1;
            }
        }
        next = page.next;
        if next.is_none() {
            return Ok(removed);
        }
    }
}

async fn unnamed(
    sweep: &Sweep<'_>,
    workspace: WorkspaceId,
    keys: &[String],
) -> Result<Vec<String>, JobError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut tx = sweep.turn.begin(sweep.ctx).await?;
    sweeps::visit(&mut tx, workspace).await?;
    let found = sweeps::unnamed(&mut tx, &sweep.ctx.settings.objects.bucket, keys).await?;
    tx.commit().await?;
    Ok(found)
}
