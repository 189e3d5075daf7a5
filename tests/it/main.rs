//! The one integration binary: a module for each part of the worker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod extract;
mod helper_programs;
mod hostile;
