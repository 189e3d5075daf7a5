//! The opened handles every job works with.

use crate::config::Config;
use sqlx::PgPool;

/// The handles, opened once.
pub struct Context {
    pub settings: Config,
    pub db: PgPool,
}
