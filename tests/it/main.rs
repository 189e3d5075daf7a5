//! The one integration binary.

mod crash;
mod embed;
mod extract;
mod fetch;
mod helper_programs;
mod hostile;
mod ingest;
mod objects;
mod queue;
mod retrieval;
mod scan;
mod schema;
mod search;
mod world;
