//! Where users are, as far as they said so.

use crate::domain::UserId;
use sqlx::PgConnection;

/// A user's place; each part only where it is known.
#[derive(Debug, Clone)]
pub struct Profile {
    pub lat: Option<f64>,
    pub lng: Option<f64>,
    pub city: Option<String>,
    pub region: Option<String>,
    pub country: Option<String>,
    pub timezone: Option<String>,
}

/// The profile of a user of the tenant.
pub async fn of_user(conn: &mut PgConnection, user: UserId) -> sqlx::Result<Option<Profile>> {
    sqlx::query_as!(
        Profile,
        "SELECT lat, lng, city, region, country, timezone FROM gristmill.profiles WHERE user_id = $1",
        user.0
    )
    .fetch_optional(conn)
    .await
}
