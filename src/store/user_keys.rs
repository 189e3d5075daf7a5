//! Keys that users brought for model providers, sealed.

use crate::domain::{ConversationId, Sealed, UserId};
use sqlx::PgConnection;

/// The user's key for a provider (as the chat layer names it): the conversation's own, else the newest.
pub async fn of_user(
    conn: &mut PgConnection,
    (user, conversation): (UserId, ConversationId),
    provider: &str,
) -> sqlx::Result<Option<Sealed>> {
    let row = sqlx::query!(
        "SELECT k.api_key, k.iv, k.auth_tag, k.key_id FROM gristmill.user_keys k
         LEFT JOIN gristmill.conversations c ON c.user_key_id = k.id AND c.id = $2
         WHERE k.user_id = $1 AND k.provider::text = $3 AND k.retired_at IS NULL
         ORDER BY c.id IS NOT NULL DESC, k.is_default DESC, k.created_at DESC LIMIT 1",
        user.0,
        conversation.0,
        provider
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Sealed {
        ciphertext: row.api_key,
        iv: row.iv,
        auth_tag: row.auth_tag,
        key_id: row.key_id,
    }))
}
