//! The one integration binary.

mod embed;
mod fetch;
mod objects;
mod queue;
mod scan;
mod schema;
mod world;
