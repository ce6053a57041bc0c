//! What wallets tell the world.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{OrderId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::Currency;
use crate::ports::clock::Timestamp;
use crate::words::words;

words! {
    /// Why a balance changed.
    BalanceChange, "kind of change of a balance" {
        Pay = "pay",
        Refund = "refund",
        Adjustment = "adjustment",
    }
}

words! {
    /// Why points changed.
    PointsChange, "kind of change of points" {
        Earned = "earned",
        TakenBack = "taken_back",
        Adjustment = "adjustment",
    }
}

/// `wallet.changed.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WalletChanged {
    pub user_id: UserId,
    pub kind: BalanceChange,
    /// What was added; taken, if negative.
    pub amount_minor: i64,
    /// The balance since then.
    pub balance_minor: i64,
    pub currency: Currency,
    /// Null for an adjustment.
    pub order_id: Option<OrderId>,
    /// The wallet's version since then.
    pub version: i64,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// `points.added.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PointsAdded {
    pub user_id: UserId,
    pub order_id: OrderId,
    #[schema(minimum = 1)]
    pub points: i64,
    /// The user's points since then.
    pub points_total: i64,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}
