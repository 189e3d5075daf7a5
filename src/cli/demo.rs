//! `gristmill demo`: the main job end to end, on real documents and real parts.
//!
//! Documents are uploaded to a bucket, fetched, scanned, extracted, chunked and embedded by a
//! worker in this process; then three questions are answered with citations, and an agent calls
//! a tool of a real MCP server and the knowledge base.

mod agent;

use crate::cli::house::House;
use crate::cli::search::{Ask, answer, print_passages};
use crate::cli::{ingest, watch};
use crate::context::Context;
use crate::domain::{ToolId, WorkspaceId};
use crate::runtime::{Worker, every_kind};
use crate::store::reports::Standing;
use crate::store::tenants;
use anyhow::Context as _;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const QUESTIONS: &str = "questions.txt";
/// The knowledge base that the documents belong to.
const KNOWLEDGE_BASE: &str = "handbook";

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// A folder of documents; its `questions.txt`, if any, holds a question a line.
    #[arg(default_value = "demo")]
    documents: PathBuf,
}

impl Demo {
    pub async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let began = Instant::now();
        let ctx = house.context().await?;
        let (workspace, knowledge_base) = fresh_workspace(house).await?;
        let mut files = ingest::files_below(std::slice::from_ref(&self.documents))?;
        files.retain(|file| file.file_name().is_none_or(|name| name != QUESTIONS));
        anyhow::ensure!(!files.is_empty(), "{} holds no documents", self.documents.display());
        println!("Ingesting {} documents from {}", files.len(), self.documents.display());

        let worker = Worker::start(&ctx, every_kind)?;
        let into = ingest::Into { workspace, knowledge_base: Some(knowledge_base) };
        let mut ids = Vec::new();
        for file in &files {
            ids.push(ingest::file(&ctx, into, file).await?);
        }
        let ended = watch::until_final(&ctx, workspace, &ids).await;
        worker.stop().await;
        let ended = ended?;
        println!("{}", watch::table(&ended));
        let chunks: i32 = ended.iter().map(|s| s.done).sum();
        println!("{} files, {chunks} chunks, {:.1} s\n", ended.len(), began.elapsed().as_secs_f64());

        let questions = questions(&self.documents, &ended)?;
        for question in &questions {
            println!("? {question}");
            print_passages(&answer(&ctx, workspace, question, &Ask::hybrid(3)).await?);
            println!();
        }
        if let Some(question) = questions.first() {
            let scene = agent::Scene { workspace, knowledge_base: KNOWLEDGE_BASE, question };
            agent::play(house, &ctx, &scene).await?;
        }
        forget_runs_before(&ctx, house, workspace).await?;
        println!(
            "Now your own: `make demo DOCS=FOLDER`, or gristmill ingest FOLDER && gristmill search \"…\"   ({:.1} s in all)",
            began.elapsed().as_secs_f64()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Each run has a workspace of its own, so that it does all the work again.
async fn fresh_workspace(house: &House) -> anyhow::Result<(WorkspaceId, ToolId)> {
    let db = house.owner().await?;
    let name = format!("demo-{}", uuid::Uuid::now_v7());
    let mut conn = db.acquire().await?;
    let workspace = tenants::ensure_workspace(&mut conn, &name).await?;
    let knowledge_base = tenants::ensure_knowledge_base(&mut conn, workspace, KNOWLEDGE_BASE).await?;
    drop(conn);
    db.close().await;
    Ok((workspace, knowledge_base))
}

/// Removes what earlier runs left, rows and objects.
async fn forget_runs_before(ctx: &Context, house: &House, workspace: WorkspaceId) -> anyhow::Result<()> {
    let db = house.owner().await?;
    for old in tenants::delete_older(&db, "demo-", workspace).await? {
        for object in ctx.objects.list(&ctx.settings.objects.bucket, &ctx.objects.tenant_key(old, "")).await?
        {
            ctx.objects.delete(&ctx.settings.objects.bucket, &object.key).await?;
        }
    }
    db.close().await;
    Ok(())
}

/// The folder's questions, or one for each of the three largest documents.
fn questions(documents: &Path, ended: &[Standing]) -> anyhow::Result<Vec<String>> {
    let file = documents.join(QUESTIONS);
    if file.exists() {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        return Ok(lines.map(|line| line.split('\t').next().unwrap_or(line).to_owned()).collect());
    }
    let mut largest: Vec<_> = ended.iter().filter(|s| s.done > 0).collect();
    largest.sort_by_key(|s| std::cmp::Reverse(s.done));
    let name = |s: &&Standing| s.name.clone().unwrap_or_default();
    let titles = largest.iter().take(3).map(name);
    Ok(titles.map(|name| format!("What does {} say?", name.replace(['_', '-'], " "))).collect())
}
