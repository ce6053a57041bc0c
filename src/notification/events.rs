//! What notifications tell the world.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{NotificationId, OrderId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::ports::clock::Timestamp;
use crate::words::words;

words! {
    /// What an order's customer is told (NTF-1).
    NotificationKind, "kind of notification" {
        OrderAwaitingPayment = "order_awaiting_payment",
        OrderPaid = "order_paid",
        OrderConfirmed = "order_confirmed",
        OrderFinished = "order_finished",
        OrderCancelled = "order_cancelled",
        OrderRefunded = "order_refunded",
        PaymentFailed = "payment_failed",
        PaymentReturned = "payment_returned",
        RefundRefused = "refund_refused",
    }
}

/// `notification.requested.v1`: to be sent where a channel is configured.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NotificationRequested {
    pub notification_id: NotificationId,
    pub user_id: UserId,
    pub kind: NotificationKind,
    pub order_id: Option<OrderId>,
    pub title: String,
    pub body: String,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}
