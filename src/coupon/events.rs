//! What coupons tell the world.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{CouponId, OrderId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::ports::clock::Timestamp;
use crate::words::words;

words! {
    /// What a user's coupon is good for.
    CouponState, "state of a coupon" {
        Unused = "unused",
        Locked = "locked",
        Used = "used",
        Expired = "expired",
        Void = "void",
    }
}

/// `coupon.state_changed.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CouponStateChanged {
    pub coupon_id: CouponId,
    pub user_id: UserId,
    /// Null for a new coupon.
    pub from: Option<CouponState>,
    pub to: CouponState,
    /// The order that locks, uses or frees it.
    pub order_id: Option<OrderId>,
    /// The coupon's version since then.
    pub version: i64,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}
