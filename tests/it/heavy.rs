//! Tests that start processes: one at a time.

mod poison;
mod postgres;
mod stop;
