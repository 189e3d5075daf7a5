//! The end of a worker: jobs may finish, then go back to the queue, and nothing waits for ever.
//!
//! Before it a signal, after it the end of the process. A job that neither ends nor yields, a
//! database that is away: each step has its limit, and what could not be written is left to
//! the lease. All limits together are below the five seconds that supervisors are promised
//! beyond the grace.

use crate::queue::desk::{self, Outcome};
use crate::runtime::Worker;
use crate::store::line::in_time;
use anyhow::Context as _;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// For each step after the grace: jobs that were told to stop, ends to be written, the rest to
/// be handed back.
const STEP: Duration = Duration::from_millis(1300);
/// The same after a second signal.
const HASTY_STEP: Duration = Duration::from_millis(300);
/// For threads that a job still blocks when all is done.
const LAST: Duration = Duration::from_millis(300);

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Running jobs had their grace.
    InOrder,
    /// A second signal cut it short.
    InHaste,
}

/// Runs a program's work, then leaves; threads that a job still blocks are not waited for.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(LAST);
    ended
}

impl Worker {
    /// Stops claiming, lets jobs finish within the grace, then hands the rest back.
    pub async fn stop(self) {
        // Boxed: it would be a large part of every future that stops a worker.
        Box::pin(self.stop_or(CancellationToken::new())).await;
    }

    /// Works until a signal. The first lets jobs finish within the grace; the second hands
    /// them back at once; the third ends without a word to the queue.
    ///
    /// Signals and limits are watched on a thread of their own: jobs that block every thread of
    /// the program would otherwise keep it from hearing that it shall end. `ready` is called as
    /// soon as signals are heard; one that comes before ends the program without any order.
    pub async fn until_told(self, ready: impl FnOnce() + Send + 'static) -> anyhow::Result<Stopped> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("stop".into()).spawn(move || {
            // The receiver waits for exactly this.
            tell.send(runtime.block_on(self.watch(ready))).ok();
        })?;
        told.await.context("the thread that waits for signals died")?
    }

    async fn watch(self, ready: impl FnOnce()) -> anyhow::Result<Stopped> {
        let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        ready();
        next(&mut signals).await;
        tracing::info!("stopping: running jobs may finish; a second signal hands them back at once");
        let hurry = CancellationToken::new();
        let mut stopping = Box::pin(self.stop_or(hurry.clone()));
        tokio::select! {
            () = &mut stopping => return Ok(Stopped::InOrder),
            () = next(&mut signals) => {}
        }
        tracing::warn!("stopping at once: running jobs go back to the queue");
        hurry.cancel();
        tokio::select! {
            () = stopping => {}
            () = next(&mut signals) => {}
        }
        Ok(Stopped::InHaste)
    }

    async fn stop_or(mut self, hurry: CancellationToken) {
        let step = || if hurry.is_cancelled() { HASTY_STEP } else { STEP };
        for hands in &self.hands {
            hands.closing.cancel();
        }
        tokio::select! {
            () = all(&mut self.shells) => {}
            () = tokio::time::sleep(self.grace) => {}
            () = hurry.cancelled() => {}
        }
        for hands in &self.hands {
            hands.stop_all();
        }
        tokio::time::timeout(step(), all(&mut self.shells)).await.ok();
        // The ends that were reached are written; then the acknowledgements are over.
        self.last_call.cancel();
        tokio::time::timeout(step(), all(&mut self.acks)).await.ok();
        self.hand_back(step()).await;
        self.helpers.cancel();
        for keeper in self.keepers {
            let joined = tokio::task::spawn_blocking(move || keeper.join());
            tokio::time::timeout(LAST, joined).await.ok();
        }
    }

    /// Gives back what is still in hand: jobs that did not heed the stop, and ends that could
    /// not be written. The fence keeps a job that still runs from writing anything.
    async fn hand_back(&mut self, patience: Duration) {
        let left: Vec<_> = self.hands.iter().flat_map(|hands| hands.leases()).collect();
        if left.is_empty() {
            return;
        }
        let reason = "INTERRUPTED: the worker stopped and the job did not heed it";
        let batch: Vec<_> =
            left.iter().map(|lease| (*lease, Outcome::HandedBack { reason: reason.into() })).collect();
        let handed_back = async {
            let mut connection = self.farewell.take().await?;
            desk::acknowledge(&mut connection, &batch, self.backoff).await.map(|written| written.held)
        };
        match in_time(patience, handed_back).await {
            Ok(held) => tracing::warn!(jobs = held, "handed back jobs that did not end in time"),
            Err(error) => {
                tracing::error!(%error, jobs = left.len(), "jobs are left to their leases: nothing could be written");
            }
        }
    }
}

async fn all(tasks: &mut tokio::task::JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}
