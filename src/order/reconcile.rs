//! Orders that should have ended, and orders whose amounts do not add up (I7, I11).

use async_trait::async_trait;
use chrono::TimeDelta;

use super::machine::State;
use super::model::Amounts;
use super::service::{Expired, OrderService};
use super::store::{self, Due, Overdue};
use crate::db::{Database, DbFault};
use crate::ids::OrderId;
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, Search};

/// How long after its time an order may wait to be given up.
const PATIENCE: TimeDelta = TimeDelta::seconds(60);
/// Orders that are read at a time.
const PAGE: u64 = 500;

/// Drafts and unpaid orders that nobody gave up in time.
#[derive(Debug)]
pub struct OrdersOverdue {
    pub db: Database,
    pub clock: SharedClock,
    pub orders: OrderService,
}

#[async_trait]
impl Comparison for OrdersOverdue {
    fn name(&self) -> &'static str {
        "orders_overdue"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let until = self.clock.now() - PATIENCE;
        let mut differences = Vec::new();
        for (due, state) in [
            (Due::Drafts, State::Draft),
            (Due::Unpaid, State::AwaitingPayment),
            (Due::Open(None), State::AwaitingPayment),
        ] {
            let mut after = Overdue::FIRST;
            loop {
                let read =
                    move |connection| async move { store::due(&connection, due, until, after, PAGE).await };
                let page: Result<Vec<Overdue>, DbFault> = self.db.read(read).await;
                let page = page?;
                let Some(last) = page.last() else { break };
                after = *last;
                differences.extend(page.iter().map(|overdue| Found {
                    subject: overdue.order.to_string(),
                    expected: "given up, or paid".to_owned(),
                    found: state.to_string(),
                    detail: format!("Order {} is {state}, although its time is up.", overdue.order),
                    action: "expire",
                }));
            }
        }
        Ok(differences)
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<OrderId>() else { return Ok(None) };
        match self.orders.expire_one(id).await? {
            Expired { unclear: 1.., .. } => Err(ComparisonError::Outside(format!(
                "a gateway does not say whether it took money for order {id}"
            ))),
            Expired { cancelled: 1.., .. } => Ok(Some(format!("gave order {id} up"))),
            Expired { paid: 1.., .. } => Ok(Some(format!("order {id} is paid: its gateway had the money"))),
            Expired { .. } => Ok(None),
        }
    }
}

/// The amounts of each order add up, as [`Amounts`](super::model::Amounts) says.
#[derive(Debug)]
pub struct OrdersAmounts(pub Database);

/// An order that is to be paid differently from what it comes to.
struct Inconsistent {
    order: OrderId,
    amounts: Amounts,
}

impl Inconsistent {
    fn found(&self) -> Found {
        let Self { order, amounts } = self;
        let Amounts { goods_amount_minor, shipping_fee_minor, order_amount_minor, .. } = amounts;
        let Amounts { coupon_deduction_minor, balance_paid_minor, payable_minor, .. } = amounts;
        Found {
            subject: order.to_string(),
            expected: "amounts that add up, none negative".to_owned(),
            found: format!("{payable_minor} of {order_amount_minor} minor units to pay"),
            detail: format!(
                "Order {order} comes to {order_amount_minor} minor units, for goods of {goods_amount_minor} and shipping of \
                 {shipping_fee_minor}; {payable_minor} are to pay, after a coupon of {coupon_deduction_minor} and \
                 {balance_paid_minor} from the balance."
            ),
            action: LOOK_AT_IT,
        }
    }
}

const INCONSISTENT: Search<Inconsistent> = Search {
    table: "orders",
    sql: "SELECT o.id, o.goods_amount_minor, o.shipping_fee_minor, o.order_amount_minor, o.coupon_deduction_minor, \
        o.balance_paid_minor, o.payable_minor FROM orders AS o WHERE o.id > ? AND o.id <= ? \
        AND (o.order_amount_minor <> o.goods_amount_minor + o.shipping_fee_minor \
        OR o.payable_minor <> o.order_amount_minor - o.coupon_deduction_minor - o.balance_paid_minor \
        OR o.goods_amount_minor < 0 OR o.shipping_fee_minor < 0 OR o.coupon_deduction_minor < 0 \
        OR o.balance_paid_minor < 0 OR o.payable_minor < 0)",
    read: |row| {
        Ok(Inconsistent {
            order: OrderId(row.try_get("", "id")?),
            amounts: Amounts {
                goods_amount_minor: row.try_get("", "goods_amount_minor")?,
                shipping_fee_minor: row.try_get("", "shipping_fee_minor")?,
                order_amount_minor: row.try_get("", "order_amount_minor")?,
                coupon_deduction_minor: row.try_get("", "coupon_deduction_minor")?,
                balance_paid_minor: row.try_get("", "balance_paid_minor")?,
                payable_minor: row.try_get("", "payable_minor")?,
            },
        })
    },
};

#[async_trait]
impl Comparison for OrdersAmounts {
    fn name(&self) -> &'static str {
        "orders_amounts"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        Ok(INCONSISTENT.all(&self.0, &[]).await?.iter().map(Inconsistent::found).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(order) = subject.parse::<OrderId>() else { return Ok(None) };
        let still = INCONSISTENT.one(&self.0, order.0, &[]).await?;
        Ok(still.map(|order| order.found().detail))
    }
}
