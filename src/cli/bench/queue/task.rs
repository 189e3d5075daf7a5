//! What is asked of every system, ours and others: the same three tasks, of the same size.

/// One thing to measure, in a database of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Callers that enqueue one by one.
    Enqueue,
    /// A backlog, enqueued in bulk, is worked off.
    Drain,
    /// From the call that enqueues to the start of the job, at so many a second.
    Latency { rate: u64, seconds: u64 },
}

impl Task {
    /// Its name in an order to a driver.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Drain => "drain",
            Self::Latency { .. } => "latency",
        }
    }
}

/// How much of each task.
#[derive(Debug, Clone)]
pub struct Size {
    /// Jobs of a drain.
    pub jobs: usize,
    /// Jobs enqueued one by one.
    pub singles: usize,
    pub producers: usize,
    /// Places of our worker's bulk lane while it drains.
    pub concurrency: usize,
    /// A drain is cut off after so long; its rate is then that of what it got through.
    pub limit_seconds: u64,
}
