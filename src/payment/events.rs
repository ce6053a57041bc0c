//! What payments tell the world.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::RefundCause;
use crate::ids::{OrderId, PaymentId, RefundId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::Currency;
use crate::ports::clock::Timestamp;

/// `payment.succeeded.v1`: the gateway has captured the money, whatever the order makes of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PaymentSucceeded {
    pub payment_id: PaymentId,
    pub order_id: OrderId,
    pub user_id: UserId,
    #[schema(example = "wechat")]
    pub channel: String,
    /// The gateway's name for the capture.
    pub transaction_id: String,
    pub amount_minor: i64,
    pub currency: Currency,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub paid_at: Timestamp,
}

/// `payment.failed.v1`: the attempt came to nothing; the order can still be paid by another.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PaymentFailed {
    pub payment_id: PaymentId,
    pub order_id: OrderId,
    pub user_id: UserId,
    #[schema(example = "wechat")]
    pub channel: String,
    pub amount_minor: i64,
    pub currency: Currency,
    pub reason: String,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// `refund.requested.v1`: money is to go back; approved already, or waiting for an operator.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefundRequested {
    pub refund_id: RefundId,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// Null if no gateway took part.
    pub payment_id: Option<PaymentId>,
    /// Through the gateway.
    pub amount_minor: i64,
    /// To the user's balance.
    pub balance_minor: i64,
    pub currency: Currency,
    pub cause: RefundCause,
    pub reason: String,
    /// Whether an operator still has to agree.
    pub awaits_approval: bool,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// `refund.approved.v1`: an operator agreed; the money goes back now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefundApproved {
    pub refund_id: RefundId,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// Through the gateway.
    pub amount_minor: i64,
    /// To the user's balance.
    pub balance_minor: i64,
    pub currency: Currency,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// `refund.refused.v1`: an operator did not agree; the order is again what it was.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefundRefused {
    pub refund_id: RefundId,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// As the operator gave it; the customer sees it in the order's timeline.
    pub reason: String,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}
