//! Gristmill: the background worker of a chat product, inside Postgres transactions.
//!
//! Modules stand on floors (`tests/floors.rs`): a module names only floors below its own.

use std::borrow::Cow;

pub mod domain;

pub mod config;

pub mod chunk;
pub mod embed;
pub mod extract;
pub mod fetch;
pub mod objects;
pub mod queue;
pub mod scan;
pub mod store;

pub mod context;

pub mod job;

#[path = "../jobs/mod.rs"]
pub mod jobs;

pub mod runtime;

pub mod cli;

const EMBEDDED: sqlx::migrate::Migrator = sqlx::migrate!();

/// The schema's migrations, run by `gristmill migrate` as the database's owner.
///
/// Their ledger lies in our schema, not in `public`: a product that has sqlx migrations of its
/// own in the same database would otherwise find ours in its ledger and refuse to go on.
// The fields are outside sqlx's promise of stability; its setters are not `const`.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate::Migrator {
    table_name: Cow::Borrowed("gristmill._sqlx_migrations"),
    create_schemas: Cow::Borrowed(&[Cow::Borrowed("gristmill")]),
    ..EMBEDDED
};
