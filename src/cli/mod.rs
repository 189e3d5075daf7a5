//! (coming)

pub mod bench;
