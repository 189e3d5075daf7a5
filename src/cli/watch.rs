//! Watching attachments on their way, and the table that tells how they ended.

use crate::context::Context;
use crate::domain::{AttachmentId, WorkspaceId};
use crate::store::reports::{Standing, standings};
use comfy_table::{Cell, Color, Table};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// Shows progress until every attachment is in a final state.
pub async fn until_final(
    ctx: &Context,
    workspace: WorkspaceId,
    ids: &[AttachmentId],
) -> anyhow::Result<Vec<Standing>> {
    let style = ProgressStyle::with_template("{bar:28} {pos}/{len} files  {msg}  {elapsed}")?;
    let bar = ProgressBar::new(ids.len() as u64).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    loop {
        let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
        let now = standings(&mut *tx, ids).await?;
        tx.commit().await?;
        let ended = now.iter().filter(|s| s.is_final()).count();
        bar.set_position(ended as u64);
        bar.set_message(stage(&now));
        if ended == now.len() {
            bar.finish_with_message("all in a final state");
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

/// What is going on, in a few words.
fn stage(now: &[Standing]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for standing in now.iter().filter(|s| !s.is_final()) {
        let stage = match (standing.status.as_str(), &standing.index) {
            ("SCANNING", Some(index)) => index.as_str(),
            (status, _) => status,
        };
        *counts.entry(stage.to_lowercase()).or_insert(0) += 1;
    }
    let done: i32 = now.iter().map(|s| s.done).sum();
    let total: i32 = now.iter().map(|s| s.total.unwrap_or_default()).sum();
    let stages: Vec<_> = counts.iter().map(|(stage, n)| format!("{n} {stage}")).collect();
    format!("{done}/{total} chunks  {}", stages.join(", "))
}

/// The ends as a table: file, type, state, index, chunks, and what to know.
pub fn table(ended: &[Standing]) -> Table {
    let mut table =
        crate::cli::table::table(["file", "type", "state", "index", "chunks", "seconds", "remark"]);
    for standing in ended {
        let color = match (standing.status.as_str(), standing.index.as_deref()) {
            ("READY", Some("INDEXED")) => Color::Green,
            ("READY", _) => Color::Yellow,
            _ => Color::Red,
        };
        table.add_row([
            Cell::new(standing.name.as_deref().unwrap_or("-")),
            Cell::new(standing.mime.as_deref().unwrap_or("-")),
            Cell::new(&standing.status).fg(color),
            Cell::new(standing.index.as_deref().unwrap_or("-")),
            Cell::new(standing.done),
            Cell::new(format!("{:.1}", standing.seconds)),
            Cell::new(remark(standing)),
        ]);
    }
    table
}

fn remark(standing: &Standing) -> String {
    if let (Some(code), Some(failure)) = (&standing.failure_code, &standing.failure) {
        return format!("{code}: {failure}");
    }
    match &standing.detail {
        Some(detail) if standing.index.as_deref() != Some("INDEXED") => {
            let text = detail.to_string();
            text.chars().take(120).collect()
        }
        _ => String::new(),
    }
}
