//! Coupons against the orders that hold them, and orders against the coupons they were cheaper by (REC-3).

use async_trait::async_trait;
use entities::user_coupon;
use sea_orm::FromQueryResult;

use super::model::{Coupon, Fate};
use super::store;
use crate::db::{Database, DbFault};
use crate::ids::{CouponId, Ids, OrderId};
use crate::order::machine::State;
use crate::ports::clock::{SharedClock, Timestamp};
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, Search, settled_before};

/// Each coupon is what its order has made of it, and each order that a coupon made cheaper has that coupon.
#[derive(Debug)]
pub struct CouponsAgainstOrders {
    pub db: Database,
    pub ids: Ids,
    pub clock: SharedClock,
}

/// A coupon that names an order and is not what follows from it.
struct Stale {
    coupon: Coupon,
    order: OrderId,
    /// None if there is no such order.
    state: Option<State>,
    refund_from: Option<State>,
    /// Whether the order names it, too.
    is_its_own: bool,
}

impl Stale {
    /// What the order has told, or should have told, of itself.
    fn fate(&self) -> Option<Fate> {
        match self.state? {
            State::Paid | State::Shipped | State::Finished | State::Refunding => Some(Fate::Paid),
            State::Cancelled | State::Invalid => Some(Fate::Cancelled),
            State::Refunded => {
                let shipped = matches!(self.refund_from, Some(State::Shipped | State::Finished));
                Some(Fate::Refunded { shipped })
            }
            State::Draft | State::AwaitingPayment => None,
        }
    }

    /// The fate that makes of the coupon what it should be, if one does.
    fn settling(&self, now: Timestamp) -> Option<Fate> {
        let fate = self.fate().filter(|_| self.is_its_own)?;
        self.coupon.after(self.order, fate, now).map(|_| fate)
    }

    fn found(&self, now: Timestamp) -> Found {
        let Self { coupon, order, .. } = self;
        let (id, is) = (coupon.id, coupon.state);
        let state = self.state.map_or("missing", State::word);
        Found {
            subject: format!("coupon/{id}"),
            expected: "what follows from its order".to_owned(),
            found: format!("coupon {is}, order {state}"),
            detail: format!("Coupon {id} is {is} by order {order}, which is {state}."),
            action: if self.settling(now).is_some() { "settle" } else { LOOK_AT_IT },
        }
    }
}

const STALE: Search<Stale> = Search {
    table: "user_coupon",
    sql: "SELECT c.*, o.state AS order_state, o.refund_from, o.coupon_id FROM user_coupon AS c \
        LEFT JOIN orders AS o ON o.id = c.order_id \
        WHERE c.id > ? AND c.id <= ? AND c.order_id IS NOT NULL \
        AND (o.id IS NULL OR o.state <> 'draft' AND o.updated_at < ? \
        AND (o.coupon_id IS NULL OR o.coupon_id <> c.id OR c.state <> CASE \
        WHEN o.state = 'awaiting_payment' THEN 'locked' \
        WHEN o.state IN ('paid', 'shipped', 'finished', 'refunding') THEN 'used' \
        WHEN o.state = 'refunded' AND o.refund_from IN ('shipped', 'finished') THEN 'void' \
        ELSE 'of no order' END))",
    read: |row| {
        let coupon = Coupon::try_from(user_coupon::Model::from_query_result(row, "")?)?;
        let state = |name: &str| -> Result<Option<State>, DbFault> {
            row.try_get::<Option<String>>("", name)?.as_deref().map(str::parse).transpose()
        };
        Ok(Stale {
            order: OrderId(row.try_get("", "order_id")?),
            state: state("order_state")?,
            refund_from: state("refund_from")?,
            is_its_own: row.try_get::<Option<i64>>("", "coupon_id")? == Some(coupon.id.0),
            coupon,
        })
    },
};

/// An order that was made cheaper by a coupon that it does not hold.
struct Uncovered {
    order: OrderId,
    state: State,
    /// None if it names none.
    coupon: Option<CouponId>,
}

impl Uncovered {
    /// The coupon may be another order's by now.
    fn found(&self) -> Found {
        let Self { order, state, coupon } = self;
        let by = coupon.map_or_else(
            || "a coupon that it does not name".to_owned(),
            |coupon| format!("coupon {coupon}, which it does not hold"),
        );
        Found {
            subject: format!("order/{order}"),
            expected: "the coupon that made it cheaper".to_owned(),
            found: format!("not held, order {state}"),
            detail: format!("Order {order} is {state}, cheaper by {by}."),
            action: LOOK_AT_IT,
        }
    }
}

/// A coupon is locked before its order is confirmed, and free only when the order is over.
const UNCOVERED: Search<Uncovered> = Search {
    table: "orders",
    sql: "SELECT o.id, o.state, o.coupon_id FROM orders AS o \
        LEFT JOIN user_coupon AS c ON c.id = o.coupon_id AND c.order_id = o.id \
        WHERE o.id > ? AND o.id <= ? AND c.id IS NULL \
        AND (o.coupon_id IS NOT NULL OR o.coupon_deduction_minor <> 0) \
        AND (o.state IN ('awaiting_payment', 'paid', 'shipped', 'finished', 'refunding') \
        OR o.state = 'refunded' AND o.refund_from IN ('shipped', 'finished'))",
    read: |row| {
        Ok(Uncovered {
            order: OrderId(row.try_get("", "id")?),
            state: row.try_get::<String>("", "state")?.parse()?,
            coupon: row.try_get::<Option<i64>>("", "coupon_id")?.map(CouponId),
        })
    },
};

impl CouponsAgainstOrders {
    async fn settle(&self, stale: &Stale, fate: Fate) -> Result<String, ComparisonError> {
        let (ids, clock, order) = (self.ids.clone(), self.clock.clone(), stale.order);
        let settling = self.db.transaction(move |tx| {
            let (ids, now) = (ids.clone(), clock.now());
            async move { store::settle(&tx, &ids, now, &[(order, fate)]).await }
        });
        let settled: Result<(), DbFault> = settling.await;
        settled?;
        Ok(format!("coupon {} is what follows from order {order}", stale.coupon.id))
    }
}

#[async_trait]
impl Comparison for CouponsAgainstOrders {
    fn name(&self) -> &'static str {
        "orders_coupons"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let now = self.clock.now();
        let stale = STALE.all(&self.db, &settled_before(&self.clock)).await?;
        let uncovered = UNCOVERED.all(&self.db, &[]).await?;
        Ok(stale.iter().map(|stale| stale.found(now)).chain(uncovered.iter().map(Uncovered::found)).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Some((what, id)) = subject.split_once('/') else { return Ok(None) };
        let Ok(id) = id.parse::<CouponId>() else { return Ok(None) };
        if what == "order" {
            return Ok(UNCOVERED.one(&self.db, id.0, &[]).await?.map(|uncovered| uncovered.found().detail));
        }
        let stale = STALE.one(&self.db, id.0, &settled_before(&self.clock)).await?;
        let Some(stale) = stale else { return Ok(None) };
        let now = self.clock.now();
        match stale.settling(now) {
            Some(fate) => Ok(Some(self.settle(&stale, fate).await?)),
            None => Ok(Some(stale.found(now).detail)),
        }
    }
}
