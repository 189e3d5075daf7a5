//! Dealing with jobs: retry revives what a failure ended, explain says why one waits.
//!
//! Retries go through the whole pipeline: what was revived must end as if nothing had failed.

use crate::cli::{complained, gristmill, said};
use crate::ingest::upload;
use crate::world::{World, address, settings};
use gristmill::context::Context;
use gristmill::domain::{AttachmentId, JobId};
use gristmill::job::{Done, Job, JobError, Turn, Why};
use gristmill::jobs::{Embed, Extract, Fetch, Scan};
use gristmill::queue::{Lane, Payload};
use gristmill::runtime::{Registry, every_kind};
use gristmill::store::invariants::{self, Patience};
use gristmill::store::{Tx, jobs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::process::Output;
use std::time::Duration;
use uuid::Uuid;

mod cancel;
mod chain;
mod commands;
mod explain;
mod retry;

const PATIENCE: Patience = Patience { lease_seconds: 1.0, stuck_seconds: 0.0 };

/// A step whose surroundings are away: it fails as the real one does, and tells as it does.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
struct Away<J>(J);

impl<J: Job> Payload for Away<J> {
    const KIND: &'static str = J::KIND;
    const LANE: Lane = J::LANE;

    fn key(&self) -> Option<String> {
        self.0.key()
    }
}

impl<J: Job> Job for Away<J> {
    const TIMEOUT: Duration = J::TIMEOUT;

    async fn run(&self, _: &Context, _: &Turn) -> Result<Done, JobError> {
        Err(JobError::transient(anyhow::anyhow!("what {} needs is away", J::KIND)))
    }

    async fn gave_up(&self, tx: &mut Tx, why: &Why) -> sqlx::Result<()> {
        self.0.gave_up(tx, why).await
    }
}

/// Every kind, but what this one needs is away.
fn without(kind: &str) -> Registry {
    match kind {
        Fetch::KIND => every_kind().with::<Away<Fetch>>(),
        Scan::KIND => every_kind().with::<Away<Scan>>(),
        Extract::KIND => every_kind().with::<Away<Extract>>(),
        Embed::KIND => every_kind().with::<Away<Embed>>(),
        other => panic!("{other} is no step"),
    }
}

/// A world that gives up soon.
async fn hasty(db: PgPool) -> anyhow::Result<World> {
    let mut settings = settings();
    settings.queue.backoff_ceiling_seconds = 0.05;
    World::with(db, settings).await
}

impl World {
    /// The dead, oldest first.
    async fn dead(&self) -> anyhow::Result<Vec<jobs::Row>> {
        let ids = jobs::dead_ids(&self.admin, &jobs::Filter::default()).await?;
        Ok(jobs::get(&self.admin, &ids).await?)
    }

    async fn retry(&self, job: Uuid) -> anyhow::Result<(String, Option<Uuid>)> {
        let answer = jobs::retry(&self.ctx.db, job).await?;
        Ok((answer.outcome, answer.job))
    }

    /// The promises that the rows break now.
    async fn broken(&self) -> anyhow::Result<Vec<String>> {
        let found = invariants::check(&self.admin, PATIENCE, 10).await?;
        Ok(found.into_iter().map(|v| format!("{} {} {}", v.invariant, v.id, v.detail)).collect())
    }

    /// Every status that an attachment had, in order.
    async fn history(&self, of: AttachmentId) -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar(
            "SELECT to_status::text FROM gristmill.attachment_history WHERE attachment_id = $1 ORDER BY id",
        )
        .bind(of.0)
        .fetch_all(&self.admin)
        .await?)
    }

    fn gristmill(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let data = tempfile::tempdir()?;
        Ok(gristmill(arguments, data.path()).env("DATABASE_URL", address(&self.admin)).output()?)
    }
}
