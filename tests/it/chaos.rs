//! Faults at every place they can strike: nothing is lost, nothing doubled, nothing left half done.
//!
//! `sweep` strikes at the N-th message between Postgres and the worker, for each N; `storm`
//! strikes at random for minutes; `frozen` shows what the fence is for. A seeded sample runs with all tests; `make chaos` runs both
//! in full. Without `make deps` these tests say so and pass.

mod frozen;
mod storm;
mod sweep;

/// What decides where faults strike, when somebody wants it decided.
fn seed() -> Option<u64> {
    std::env::var("GRISTMILL_CHAOS_SEED").ok()?.parse().ok()
}
