//! The one integration binary.

mod queue;
mod schema;
mod world;
