//! The schema's history, compiled in.

use std::borrow::Cow;

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

/// The newest migration this program knows.
pub fn newest() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}
