//! Orders that are only told of: what consumers make of them, without a shop around them.

use std::sync::LazyLock;
use std::time::Duration;

use sea_orm::{EntityTrait, IntoActiveModel};
use tombola::ids::{BatchId, CouponId, EventId, Ids, OrderId, PaymentId, RefundId, UserId};
use tombola::messaging::outbox::Events;
use tombola::order::events::{Cancelled, Created, Finished, Paid, Refunded, Shipped};
use tombola::order::machine::State;
use tombola::order::model::{Amounts, CancelCause, Kind, Order};
use tombola::payment::events::PaymentFailed;
use tombola::ports::clock::{Clock, SystemClock};

use super::{Client, START, TestApp};

/// Ids of a node whose number no server of a story has.
pub(crate) fn ids() -> Ids {
    // One maker for all stories: two would make the same ids.
    static IDS: LazyLock<Ids> = LazyLock::new(|| Ids::new(1000, &SystemClock, Duration::from_hours(24)));
    IDS.clone()
}

/// What becomes of an order.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    Created,
    Paid,
    Shipped,
    Finished,
    Cancelled,
    /// A draft that came to nothing.
    GivenUp,
    Refunded {
        shipped: bool,
    },
    PaymentFailed,
}

/// An order of `customer` over 119.00, of which 109.00 are to be paid.
pub(crate) fn order(customer: &Client, number: i64) -> Order {
    Order {
        id: OrderId(1000 + number),
        user_id: UserId(customer.user_id.parse().unwrap()),
        kind: Kind::Shop,
        state: State::AwaitingPayment,
        version: 2,
        activity_id: None,
        items: "[]".to_owned(),
        address: None,
        amounts: Amounts {
            goods_amount_minor: 11900,
            shipping_fee_minor: 0,
            order_amount_minor: 11900,
            coupon_deduction_minor: 500,
            balance_paid_minor: 500,
            payable_minor: 10900,
        },
        coupon_id: None,
        currency: "CNY".parse().unwrap(),
        due_at: START + chrono::TimeDelta::minutes(30),
        paid_by: None,
        refund_from: None,
        cancel_cause: None,
        created_at: START,
        updated_at: START,
    }
}

/// `order` with a coupon.
pub(crate) fn with_coupon(order: Order, coupon: &str) -> Order {
    Order { coupon_id: Some(CouponId(coupon.parse().unwrap())), ..order }
}

/// Commits the events of these fates, together.
pub(crate) async fn tell_of(app: &TestApp, fates: &[(&Order, Fate)]) {
    let ids = ids();
    let mut events = Events::at(START);
    for (order, fate) in fates {
        push(&mut events, ids.next().unwrap(), order, *fate);
    }
    let count = i32::try_from(fates.len()).unwrap();
    let row = entities::outbox::Model {
        id: ids.next::<BatchId>().unwrap().0,
        events: events.into_json(),
        traceparent: None,
        created_at: tombola::ports::clock::to_micros(SystemClock.now()),
        sent_at: None,
        attempts: 0,
        retry_at: None,
        last_error: None,
        event_count: count,
        // Unknown, so every group looks.
        types: String::new(),
    };
    let connection = app.database.connect().await;
    let insert = entities::outbox::Entity::insert(row.into_active_model());
    insert.exec_without_returning(&connection).await.unwrap();
    connection.close().await.unwrap();
}

fn push(events: &mut Events, id: EventId, order: &Order, fate: Fate) {
    let as_of = |state| Order { state, version: order.version + 1, ..order.clone() };
    match fate {
        Fate::Created => events.push(id, &Created::new(order, order.due_at)),
        Fate::Paid => events.push(id, &Paid::new(&as_of(State::Paid), Some(PaymentId(1)))),
        Fate::Shipped => events.push(id, &Shipped::new(&as_of(State::Shipped))),
        Fate::Finished => events.push(id, &Finished::new(&as_of(State::Finished))),
        Fate::Cancelled => events.push(id, &Cancelled::new(&as_of(State::Cancelled), CancelCause::Timeout)),
        Fate::GivenUp => events.push(id, &Cancelled::new(&as_of(State::Invalid), CancelCause::Failed)),
        Fate::Refunded { shipped } => {
            events.push(id, &Refunded::new(&as_of(State::Refunded), RefundId(1), shipped))
        }
        Fate::PaymentFailed => events.push(
            id,
            &PaymentFailed {
                payment_id: PaymentId(1),
                order_id: order.id,
                user_id: order.user_id,
                channel: "sandbox".to_owned(),
                amount_minor: order.amounts.payable_minor,
                currency: order.currency,
                reason: "no cover".to_owned(),
                at: START,
            },
        ),
    }
    .unwrap();
}
