//! (coming)

pub mod eval;
