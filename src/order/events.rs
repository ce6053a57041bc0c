//! What orders tell the world.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine::State;
use super::model::{CancelCause, Kind, Order};
use crate::ids::{ActivityId, CouponId, OrderId, PaymentId, RefundId, UserId};
use crate::messaging::catalogue::EventType;
use crate::messaging::envelope::{Envelope, Undecodable};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::Currency;
use crate::ports::clock::Timestamp;

/// Defines the events of an order: what all have in common, and what each adds.
macro_rules! order_events {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
        pub struct $name {
            pub order_id: OrderId,
            pub user_id: UserId,
            pub kind: Kind,
            /// The state since then.
            pub state: State,
            /// The order's version since then.
            pub version: i64,
            /// The flash sale it comes from; its take has the order's id.
            pub activity_id: Option<ActivityId>,
            pub order_amount_minor: i64,
            pub coupon_id: Option<CouponId>,
            pub coupon_deduction_minor: i64,
            pub balance_paid_minor: i64,
            pub payable_minor: i64,
            pub currency: Currency,
            $($(#[$field_doc])* pub $field: $type,)*
            #[serde(serialize_with = "serialize_rfc3339")]
            #[schema(value_type = String, format = DateTime)]
            pub at: Timestamp,
        }

        impl $name {
            /// `order` has just become what it is.
            pub fn new(order: &Order, $($field: $type),*) -> Self {
                Self {
                    order_id: order.id,
                    user_id: order.user_id,
                    kind: order.kind,
                    state: order.state,
                    version: order.version,
                    activity_id: order.activity_id,
                    order_amount_minor: order.amounts.order_amount_minor,
                    coupon_id: order.coupon_id,
                    coupon_deduction_minor: order.amounts.coupon_deduction_minor,
                    balance_paid_minor: order.amounts.balance_paid_minor,
                    payable_minor: order.amounts.payable_minor,
                    currency: order.currency,
                    $($field,)*
                    at: order.updated_at,
                }
            }
        }
    )+};
}

order_events! {
    /// `order.created.v1`: confirmed, and so visible to the customer.
    Created {
        /// Unpaid until then, it is cancelled.
        #[serde(serialize_with = "serialize_rfc3339")]
        #[schema(value_type = String, format = DateTime)]
        payment_due_at: Timestamp,
    }

    /// `order.paid.v1`.
    Paid {
        /// Null if coupon and balance left nothing to pay.
        payment_id: Option<PaymentId>,
    }

    /// `order.cancelled.v1`: everything it held goes back. State `invalid` if it was never confirmed: its customer has
    /// not seen it.
    Cancelled {
        cause: CancelCause,
    }

    /// `order.shipped.v1`.
    Shipped {}

    /// `order.finished.v1`.
    Finished {}

    /// `order.refunded.v1`: the money is back.
    Refunded {
        refund_id: RefundId,
        /// Whether the goods had left: then they do not come back by themselves.
        shipped: bool,
    }
}

/// How an order came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Cancelled,
    Refunded { shipped: bool },
}

/// The end of an order that came to nothing, as [`Cancelled`] and [`Refunded`] tell it to those who gave it something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    pub order_id: OrderId,
    pub kind: Kind,
    pub end: End,
}

impl Ending {
    /// The events that tell of it.
    pub const TYPES: &[EventType] = &[EventType::OrderCancelled, EventType::OrderRefunded];

    /// The end that `event` tells of.
    pub fn of(event: &Envelope) -> Result<Self, Undecodable> {
        match event.known_type() {
            Some(EventType::OrderCancelled) => {
                let Cancelled { order_id, kind, .. } = event.payload()?;
                Ok(Self { order_id, kind, end: End::Cancelled })
            }
            Some(EventType::OrderRefunded) => {
                let Refunded { order_id, kind, shipped, .. } = event.payload()?;
                Ok(Self { order_id, kind, end: End::Refunded { shipped } })
            }
            _ => Err(event.unexpected()),
        }
    }

    /// Whether the goods had left: then they do not come back by themselves.
    pub fn is_shipped(&self) -> bool {
        self.end == End::Refunded { shipped: true }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(EventType::OrderCancelled, Some(End::Cancelled))]
    #[case(EventType::OrderRefunded, Some(End::Refunded { shipped: true }))]
    #[case(EventType::OrderPaid, None)]
    fn an_ending_is_one_of_two_events(#[case] event_type: EventType, #[case] end: Option<End>) {
        let event = Envelope::parse(event_type.fixture().as_bytes()).unwrap();
        match Ending::of(&event) {
            Ok(ending) => assert_eq!(Some(ending.end), end),
            Err(refusal) => {
                assert!(matches!(refusal, Undecodable::Unexpected(_)), "{refusal}");
                assert_eq!(end, None);
            }
        }
    }
}
