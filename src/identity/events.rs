//! What the identity of users tells the world.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::UserId;
use crate::messaging::outbox::serialize_rfc3339;

/// `user.first_login.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FirstLogin {
    pub user_id: UserId,
    /// How the user signed in: `dev`, `password`; there may be more.
    #[schema(value_type = String)]
    pub provider: Cow<'static, str>,
    #[serde(serialize_with = "serialize_rfc3339")]
    pub logged_in_at: DateTime<Utc>,
}
