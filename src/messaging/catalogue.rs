//! Every event on one page: its type, the payload it carries and whom it is about.
//!
//! Types are past tense, owner first, version last. A version only gains optional members; another change is a new
//! version with a payload of its own, sent beside the old one. `tests/fixtures/events` holds an example of each version:
//! it is what subscribers were promised, so it never changes.

use std::fmt;

use serde::Serialize;
#[cfg(test)]
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::activity::events::StateChanged;
use crate::coupon::events::CouponStateChanged;
use crate::identity::events::FirstLogin;
use crate::notification::events::NotificationRequested;
use crate::order::events::{Cancelled, Created, Finished, Paid, Refunded, Shipped};
use crate::payment::events::{
    PaymentFailed, PaymentSucceeded, RefundApproved, RefundRefused, RefundRequested,
};
use crate::stock::events::{SoldOut, StockAdjusted, TakeReleased, Taken};
use crate::wallet::events::{PointsAdded, WalletChanged};

/// The payload of one type of event: its `data`. Only the types of this page are.
pub trait Event: Serialize {
    /// What happened.
    const TYPE: EventType;

    /// The id of the aggregate it happened to.
    fn subject(&self) -> impl fmt::Display;

    /// The aggregate's version since it happened, where it has one: later is greater, but not every version has an event.
    fn sequence(&self) -> Option<i64>;
}

/// Defines the events: `/// What happened. Name: "type" = Payload, about its_member;`, and `sequence its_member` if the
/// aggregate has a version. Where the payload is generic, its parameter stands for how whoever writes it holds its text.
macro_rules! catalogue {
    ($($(#[doc = $doc:literal])+ $name:ident: $word:literal = $payload:ident $(<$time:ident>)?,
        about $subject:ident $(, sequence $sequence:ident)?;)+) => {
        /// Names what happened; also the routing key.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventType {
            $($(#[doc = $doc])+ $name,)+
        }

        $(impl$(<$time: Serialize>)? Event for $payload$(<$time>)? {
            const TYPE: EventType = EventType::$name;

            fn subject(&self) -> impl fmt::Display {
                self.$subject
            }

            fn sequence(&self) -> Option<i64> {
                [$(self.$sequence)?].first().copied()
            }
        })+

        impl EventType {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The type as subscribers see it.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }

            /// The type that subscribers see as `word`.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)+ _ => None }
            }

            /// What happened, in a sentence.
            pub fn summary(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim(),)+ }
            }

            /// The member of the payload that is the subject.
            pub const fn subject_member(self) -> &'static str {
                match self { $(Self::$name => stringify!($subject),)+ }
            }

            /// The member of the payload that is the sequence.
            pub fn sequence_member(self) -> Option<&'static str> {
                match self { $(Self::$name => [$(stringify!($sequence))?].first().copied(),)+ }
            }

            /// The whole event as JSON, as it was promised.
            pub const fn fixture(self) -> &'static str {
                match self {
                    $(Self::$name => include_str!(concat!("../../tests/fixtures/events/", $word, ".json")),)+
                }
            }

            /// The payload's schema; those it refers to are added to `others`.
            pub fn schema(self, others: &mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema> {
                match self {
                    $(Self::$name => {
                        <$payload as ToSchema>::schemas(others);
                        <$payload as PartialSchema>::schema()
                    })+
                }
            }

            /// `data` as today's code reads it and writes it again.
            #[cfg(test)]
            fn rewritten(self, data: &RawValue) -> Result<serde_json::Value, serde_json::Error> {
                match self {
                    $(Self::$name => serde_json::to_value(serde_json::from_str::<$payload>(data.get())?),)+
                }
            }
        }
    };
}

catalogue! {
    /// An activity came into being, or went from one state to another.
    ActivityStateChanged: "activity.state_changed.v1" = StateChanged, about activity_id, sequence version;

    /// An operator added tokens to an activity's stock, or withdrew some.
    ActivityStockAdjusted: "activity.stock_adjusted.v1" = StockAdjusted, about activity_id, sequence version;

    /// A user took one token of an activity.
    ActivityTaken: "activity.taken.v1" = Taken<T>, about activity_id;

    /// A take was given back: its token may be sold again.
    ActivityTakeReleased: "activity.take_released.v1" = TakeReleased<R>, about activity_id;

    /// The last token of an activity was taken. Told again if tokens came back and were taken too.
    ActivitySoldOut: "activity.sold_out.v1" = SoldOut, about activity_id;

    /// An order was made and confirmed.
    OrderCreated: "order.created.v1" = Created, about order_id, sequence version;

    /// Nothing is left to pay.
    OrderPaid: "order.paid.v1" = Paid, about order_id, sequence version;

    /// An order was cancelled, or never confirmed: all it held goes back.
    OrderCancelled: "order.cancelled.v1" = Cancelled, about order_id, sequence version;

    /// An order is on its way to the customer.
    OrderShipped: "order.shipped.v1" = Shipped, about order_id, sequence version;

    /// An order has reached its customer.
    OrderFinished: "order.finished.v1" = Finished, about order_id, sequence version;

    /// An order's money is back.
    OrderRefunded: "order.refunded.v1" = Refunded, about order_id, sequence version;

    /// A gateway captured money for an order.
    PaymentSucceeded: "payment.succeeded.v1" = PaymentSucceeded, about order_id;

    /// An attempt to pay came to nothing.
    PaymentFailed: "payment.failed.v1" = PaymentFailed, about order_id;

    /// Money is to go back.
    RefundRequested: "refund.requested.v1" = RefundRequested, about order_id;

    /// An operator agreed to a refund.
    RefundApproved: "refund.approved.v1" = RefundApproved, about order_id;

    /// An operator refused a refund.
    RefundRefused: "refund.refused.v1" = RefundRefused, about order_id;

    /// A balance changed.
    WalletChanged: "wallet.changed.v1" = WalletChanged, about user_id, sequence version;

    /// A user got points for a paid order.
    PointsAdded: "points.added.v1" = PointsAdded, about user_id;

    /// A user's coupon changed hands or state.
    CouponStateChanged: "coupon.state_changed.v1" = CouponStateChanged, about coupon_id, sequence version;

    /// A user is to be told something.
    NotificationRequested: "notification.requested.v1" = NotificationRequested, about user_id;

    /// A user logged in for the first time.
    UserFirstLogin: "user.first_login.v1" = FirstLogin, about user_id;
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::messaging::envelope::Envelope;

    fn fixture(event: EventType) -> (Envelope, Value) {
        let json = event.fixture();
        (Envelope::parse(json.as_bytes()).unwrap(), serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_type_is_found_by_its_word_and_has_a_version() {
        for &event in EventType::ALL {
            assert_eq!(EventType::parse(event.word()), Some(event));
            let (name, version) = event.word().rsplit_once(".v").unwrap();
            assert!(name.contains('.') && version.parse::<u32>().is_ok_and(|version| version > 0), "{event}");
        }
        assert_eq!(EventType::parse("activity.taken"), None);
    }

    #[test]
    fn every_event_is_written_as_its_fixture_promises() {
        for &event in EventType::ALL {
            let (envelope, promised) = fixture(event);
            assert_eq!(envelope.known_type(), Some(event));
            assert_eq!(serde_json::from_slice::<Value>(&envelope.to_json()).unwrap(), promised, "{event}");
            assert_eq!(event.rewritten(&envelope.data).unwrap(), promised["data"], "{event}");
            assert_eq!(promised["subject"], promised["data"][event.subject_member()], "{event}");
            assert_eq!(
                envelope.sequence,
                event.sequence_member().and_then(|member| promised["data"][member].as_i64()),
                "{event}"
            );
        }
    }

    #[test]
    fn a_reader_ignores_members_it_does_not_know() {
        for &event in EventType::ALL {
            let (mut envelope, promised) = fixture(event);
            let more = envelope.data.get().replacen('{', r#"{"later": {"version": [1]},"#, 1);
            envelope.data = RawValue::from_string(more).unwrap();
            assert_eq!(event.rewritten(&envelope.data).unwrap(), promised["data"], "{event}");
        }
    }

    #[test]
    fn a_fixture_shows_every_member() {
        for &event in EventType::ALL {
            let (_, promised) = fixture(event);
            let schema = serde_json::to_value(event.schema(&mut Vec::new())).unwrap();
            let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(members(&schema["properties"]), members(&promised["data"]), "{event}");
        }
    }
}
