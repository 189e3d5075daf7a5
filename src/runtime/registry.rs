//! The kinds of jobs a worker knows: from a stored name to code.

use crate::context::Context;
use crate::job::{Done, Job, JobError, Turn, Why};
use crate::queue::{Lane, Notice};
use crate::store::Tx;
use futures::future::BoxFuture;
use serde_json::Value;
use sqlx::PgPool;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

type Run =
    Box<dyn Fn(Arc<Context>, Turn, &Value) -> BoxFuture<'static, Result<Done, JobError>> + Send + Sync>;
type GaveUp =
    Box<dyn for<'a> Fn(&'a mut Tx, &'a Value, &'a Why) -> BoxFuture<'a, sqlx::Result<()>> + Send + Sync>;

/// One kind, its types erased.
pub struct Kind {
    pub(super) timeout: Duration,
    pub(super) run: Run,
    pub(super) gave_up: GaveUp,
    notice: Notice,
}

/// Every kind by its name.
#[derive(Default)]
pub struct Registry(HashMap<&'static str, Kind>);

impl Registry {
    #[must_use]
    pub fn with<J: Job>(mut self) -> Self {
        let run: Run = Box::new(|ctx, turn, payload| {
            let job = J::deserialize(payload);
            Box::pin(async move {
                let job = job.map_err(|error| {
                    JobError::fatal("bad_payload", anyhow::anyhow!("the payload of {}: {error}", J::KIND))
                })?;
                job.run(&ctx, &turn).await
            })
        });
        let gave_up: GaveUp = Box::new(|tx, payload, why| {
            Box::pin(async move {
                // A payload that cannot be read names no subject to tell.
                match J::deserialize(payload) {
                    Ok(job) => job.gave_up(tx, why).await,
                    Err(_) => Ok(()),
                }
            })
        });
        self.0.insert(J::KIND, Kind { timeout: J::TIMEOUT, run, gave_up, notice: Notice::of::<J>() });
        self
    }

    pub fn kinds(&self) -> Vec<String> {
        self.0.keys().map(|&kind| kind.to_owned()).collect()
    }

    /// Tells the database what these kinds are, so that they can be queued.
    pub async fn publish(&self, db: &PgPool) -> sqlx::Result<()> {
        let notices: Vec<Notice> = self.0.values().map(|kind| kind.notice.clone()).collect();
        crate::queue::publish(db, &notices, crate::store::migrations::newest()).await
    }

    /// Whether a person waits for jobs of this kind.
    pub(super) fn is_interactive(&self, kind: &str) -> bool {
        self.0.get(kind).is_some_and(|kind| kind.notice.lane == Lane::Interactive)
    }

    pub(super) fn get(&self, kind: &str) -> Option<&Kind> {
        self.0.get(kind)
    }
}

/// Every kind of work this program knows.
pub fn every_kind() -> Registry {
    use crate::jobs::{Embed, Extract, Fetch, Forget, Rescan, Scan, Tidy, ToolCall, ToolSync, UsageRollup};
    Registry::default()
        .with::<Fetch>()
        .with::<Scan>()
        .with::<Extract>()
        .with::<Embed>()
        .with::<Forget>()
        .with::<Tidy>()
        .with::<Rescan>()
        .with::<UsageRollup>()
        .with::<ToolCall>()
        .with::<ToolSync>()
}
