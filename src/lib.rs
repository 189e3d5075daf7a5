//! Gristmill: the background worker of a chat product, inside Postgres transactions.
//!
//! Modules stand on floors (`tests/floors.rs`): a module names only floors below its own.

pub mod domain;

pub mod config;

pub mod guard;

pub mod api;
pub mod catalogue;
pub mod chunk;
pub mod embed;
pub mod extract;
pub mod fetch;
pub mod ground;
pub mod mcp;
pub mod oauth;
pub mod objects;
pub mod queue;
pub mod scan;
pub mod seal;
pub mod sql;
pub mod store;

pub mod context;

pub mod job;

#[path = "../jobs/mod.rs"]
pub mod jobs;

pub mod runtime;

pub mod cli;

pub use store::migrations::MIGRATOR;
