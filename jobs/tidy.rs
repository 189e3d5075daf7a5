//! `tidy`: the net behind everything else, by the clock.
//!
//! Every few minutes it removes what is over, gives back what the dead hold, and takes up what
//! nobody works on; once a day (`deep`) it also looks through the bucket. Each batch is a short
//! transaction of its own under the job's fence. It works across tenants: what it finds is found
//! by functions with the owner's rights, what it does to a tenant's rows is bound by the tenant.
//! Everything may run twice or beside itself. Accepted race: what becomes stuck, or old enough,
//! during a run is for the next one.

mod objects;
mod stuck;

use crate::context::Context;
use crate::domain::SYSTEM_WORKSPACE;
use crate::job::{Done, Job, JobError, Turn};
use crate::jobs::Forget;
use crate::queue::{Payload, enqueue};
use crate::store::events::{Event, announce};
use crate::store::{Tx, sweeps};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// A worker that was not seen for so long is not there.
const WORKER_UNSEEN: Duration = DAY;

/// Batches of one kind of row in one run; the rest is for the next, so that a run ends.
const MOST_BATCHES: usize = 1000;

/// Sweeps the house.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Tidy {
    /// Also what needs a look at every row or object.
    #[serde(default)]
    pub deep: bool,
}

impl Payload for Tidy {
    const KIND: &'static str = "tidy";
}

impl Job for Tidy {
    const TIMEOUT: Duration = Duration::from_hours(4);

    async fn run(&self, ctx: &Context, turn: &Turn) -> Result<Done, JobError> {
        let mut sweep = Sweep { ctx, turn, done: Map::new() };
        sweep.rows().await?;
        stuck::attachments(&mut sweep).await?;
        stuck::generations(&mut sweep).await?;
        if self.deep {
            sweep.deep().await?;
            objects::sweep(&mut sweep).await?;
        }
        sweep.tell(self.deep).await
    }
}

/// One run and what it has done so far.
struct Sweep<'a> {
    ctx: &'a Context,
    turn: &'a Turn,
    done: Map<String, Value>,
}

/// Repeats a sweep, each time in a transaction of its own, until a batch is not full.
macro_rules! drain {
    ($sweep:ident, $what:literal, |$tx:ident, $batch:ident| $step:expr) => {{
        let $batch = $sweep.ctx.settings.tidy.batch as i32;
        for _ in 0..MOST_BATCHES {
            let mut tx = $sweep.turn.begin($sweep.ctx).await?;
            let $tx = &mut *tx;
            let gone = $step.await?;
            tx.commit().await?;
            $sweep.count($what, gone);
            if gone < i64::from($batch) {
                break;
            }
        }
    }};
}

impl Sweep<'_> {
    fn count(&mut self, what: &str, more: i64) {
        if more > 0 {
            let so_far = self.done.get(what).and_then(Value::as_i64).unwrap_or_default();
            self.done.insert(what.to_owned(), (so_far + more).into());
        }
    }

    /// What is over by its own row.
    async fn rows(&mut self) -> Result<(), JobError> {
        let settings = &self.ctx.settings.tidy;
        let (done, dead) = (HOUR * settings.done_hours, DAY * settings.dead_days);
        let events = DAY * settings.events_days;
        drain!(self, "jobs", |tx, batch| sweeps::prune(tx, done, dead, batch));
        drain!(self, "logins", |tx, batch| sweeps::logins(tx, batch));
        drain!(self, "keys", |tx, batch| sweeps::keys(tx, batch));
        drain!(self, "reservations", |tx, batch| sweeps::reservations(tx, batch));
        drain!(self, "events", |tx, batch| sweeps::events(tx, events, batch));
        let stuck = MINUTE * settings.stuck_minutes;
        drain!(self, "expired_calls", |tx, batch| sweeps::expire_calls(tx, batch));
        drain!(self, "revived_calls", |tx, batch| sweeps::revive_calls(tx, stuck, batch));
        drain!(self, "affordable_calls", |tx, batch| sweeps::afford_calls(tx, batch));
        drain!(self, "reminded_calls", |tx, batch| sweeps::remind_calls(tx, batch));
        let mut tx = self.turn.begin(self.ctx).await?;
        let workers = sweeps::workers(&mut tx, WORKER_UNSEEN).await?;
        tx.commit().await?;
        self.count("workers", workers);
        let mut tx = self.turn.begin(self.ctx).await?;
        let turns = sweeps::limits(&mut tx).await?;
        tx.commit().await?;
        self.count("turns", turns);
        Ok(())
    }

    /// What takes a look at every row.
    async fn deep(&mut self) -> Result<(), JobError> {
        let age = HOUR * self.ctx.settings.tidy.orphan_hours;
        drain!(self, "leavings", |tx, batch| sweeps::leavings(tx, age, batch));
        let mut tx = self.turn.begin(self.ctx).await?;
        sweeps::prune_anew(&mut tx).await?;
        let batch = self.ctx.settings.tidy.batch as i32;
        let superseded = sweeps::superseded(&mut tx, HOUR, batch).await?;
        for &(workspace, generation) in &superseded {
            enqueue(&mut tx, workspace, &Forget::Generation(generation)).await?;
        }
        tx.commit().await?;
        self.count("superseded", superseded.len() as i64);
        Ok(())
    }

    /// Says what was done, if anything was, in the transaction that ends the job.
    async fn tell(self, deep: bool) -> Result<Done, JobError> {
        if self.done.is_empty() {
            return Ok(self.turn.nothing_to_write());
        }
        let body = Value::Object(self.done);
        tracing::info!(deep, %body, "tidied");
        let mut tx: Tx = self.turn.begin(self.ctx).await?;
        let event = Event::House { what: "tidied", job: self.turn.job(), body };
        announce(&mut tx, SYSTEM_WORKSPACE, &event).await?;
        self.turn.finish(tx).await
    }
}
