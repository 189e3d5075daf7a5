//! The one integration binary.

mod embed;
mod queue;
mod retrieval;
mod schema;
mod search;
mod world;
