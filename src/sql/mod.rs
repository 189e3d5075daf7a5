//! sql
use crate::config;
use crate::guard::Guard;
/// x
pub struct Sql;
impl Sql {
    pub fn new(_s: &config::Sql, _g: Guard, _db: sqlx::PgPool) -> Self {
        Self
    }
}
