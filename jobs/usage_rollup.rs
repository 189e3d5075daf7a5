//! `usage_rollup`: holds every budget against its ledger, by the clock.
//!
//! Spending is counted where it is settled, so there is nothing to add up here; what can be done
//! is to see whether the counters agree with the rows they were counted from. A difference is a
//! fault of a program or of a hand: it is told, once a day, and nothing is mended in silence.

use crate::context::Context;
use crate::job::{Done, Job, JobError, Turn};
use crate::queue::Payload;
use crate::store::events::{self, Event};
use crate::store::{budgets, sweeps};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Compares every budget with its usage rows and reservations.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UsageRollup {}

impl Payload for UsageRollup {
    const KIND: &'static str = "usage_rollup";
}

impl Job for UsageRollup {
    const TIMEOUT: Duration = Duration::from_mins(30);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let mut tx = turn.begin(ctx).await?;
        let differences = budgets::differences(&mut tx).await?;
        tx.commit().await?;
        for difference in &differences {
            let mut tx = turn.begin(ctx).await?;
            sweeps::visit(&mut tx, difference.workspace).await?;
            let event = Event::Budget { id: difference.budget, body: difference.body() };
            if !events::told_today(&mut tx, &event).await? {
                tracing::error!(budget = %difference.budget, body = %difference.body(), "a budget differs from its ledger");
                events::announce(&mut tx, difference.workspace, &event).await?;
            }
            tx.commit().await?;
        }
        Ok(turn.nothing_to_write())
    }
}
