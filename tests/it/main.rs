//! The one integration binary.

mod cli;
mod crash;
mod embed;
mod extract;
mod fetch;
mod helper_programs;
mod hostile;
mod ingest;
mod objects;
mod payloads;
mod queue;
mod retrieval;
mod scan;
mod schema;
mod search;
mod world;
