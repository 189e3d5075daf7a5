//! The one integration binary.

mod embed;
mod queue;
mod schema;
mod world;
