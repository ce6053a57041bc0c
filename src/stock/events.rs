//! What the stock tells the world.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::changes::StockLevel;
use crate::ids::{ActivityId, TakeId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::ports::clock::Timestamp;

/// `activity.taken.v1`. Its time is text where it is written: all takes of a batch share it, so it is formatted once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(bound = "")]
pub struct Taken<T = Timestamp> {
    pub take_id: TakeId,
    pub activity_id: ActivityId,
    pub user_id: UserId,
    /// Which of the activity's tokens, 1..=stock.
    #[schema(minimum = 1)]
    pub token_no: i32,
    /// Which of the user's takes in this activity, from 1.
    #[schema(minimum = 1)]
    pub take_no: i32,
    #[schema(value_type = String, format = DateTime)]
    pub taken_at: T,
}

/// `activity.take_released.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(bound = "")]
pub struct TakeReleased<R = String> {
    pub take_id: TakeId,
    pub activity_id: ActivityId,
    pub user_id: UserId,
    /// The token that may be sold again.
    #[schema(minimum = 1)]
    pub token_no: i32,
    #[schema(minimum = 1)]
    pub take_no: i32,
    #[serde(serialize_with = "serialize_rfc3339")]
    pub released_at: DateTime<Utc>,
    #[schema(value_type = String)]
    pub reason: R,
}

/// `activity.stock_adjusted.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StockAdjusted {
    pub activity_id: ActivityId,
    /// Tokens that were added; withdrawn, if negative.
    pub delta: i32,
    pub reason: String,
    /// The stock since then.
    pub stock: StockLevel,
    /// The activity's version since then.
    pub version: i64,
    pub adjusted_by: UserId,
    #[serde(serialize_with = "serialize_rfc3339")]
    pub at: DateTime<Utc>,
}

/// `activity.sold_out.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SoldOut {
    pub activity_id: ActivityId,
    #[serde(serialize_with = "serialize_rfc3339")]
    pub at: DateTime<Utc>,
}
