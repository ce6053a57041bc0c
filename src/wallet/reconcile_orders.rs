//! What orders took from balances, against what has become of them (REC-3).

use async_trait::async_trait;

use super::ledger::Ledger;
use crate::db::{Database, DbFault};
use crate::ids::OrderId;
use crate::order::machine::State;
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, Search, settled_before};

/// Each order holds its part from the balance until it comes to nothing, and no longer.
#[derive(Debug)]
pub struct BalancesAgainstOrders {
    pub db: Database,
    pub clock: SharedClock,
    pub ledger: Ledger,
}

/// An order that holds something else than it should.
struct Mismatch {
    order: OrderId,
    state: State,
    /// What it is to hold while it lives.
    part_minor: i64,
    taken_minor: i64,
    given_back_minor: i64,
}

impl Mismatch {
    fn is_over(&self) -> bool {
        matches!(self.state, State::Cancelled | State::Invalid | State::Refunded)
    }

    /// What was taken and did not come back does so. What a live order lacks may be spent by now, so that is for people.
    fn action(&self) -> &'static str {
        if self.is_over() && self.taken_minor > 0 && self.given_back_minor == 0 {
            "give_back"
        } else {
            LOOK_AT_IT
        }
    }

    fn found(&self) -> Found {
        let Self { order, state, part_minor, taken_minor, given_back_minor } = self;
        let due_minor = if self.is_over() { &0 } else { part_minor };
        Found {
            subject: order.to_string(),
            expected: format!("{due_minor} minor units held"),
            found: format!("{} minor units held, order {state}", taken_minor - given_back_minor),
            detail: format!(
                "Order {order} is {state}; {taken_minor} minor units were taken for it from the balance, and \
                 {given_back_minor} given back."
            ),
            action: self.action(),
        }
    }
}

/// Orders that are confirmed or over, and whose entries do not add up to what they hold. The key of the entries gives each
/// order one of either kind.
const MISMATCHES: Search<Mismatch> = Search {
    table: "orders",
    sql: "SELECT o.id, o.state, o.balance_paid_minor, p.amount_minor AS paid, b.amount_minor AS back FROM orders AS o \
        LEFT JOIN wallet_entry AS p ON p.reference_id = o.id AND p.user_id = o.user_id AND p.kind = 'pay' \
        LEFT JOIN wallet_entry AS b ON b.reference_id = o.id AND b.user_id = o.user_id AND b.kind = 'refund' \
        WHERE o.id > ? AND o.id <= ? \
        AND (o.state IN ('cancelled', 'invalid', 'refunded') AND o.updated_at < ? \
        AND COALESCE(p.amount_minor, 0) + COALESCE(b.amount_minor, 0) <> 0 \
        OR o.state IN ('awaiting_payment', 'paid', 'shipped', 'finished', 'refunding') \
        AND COALESCE(p.amount_minor, 0) + COALESCE(b.amount_minor, 0) <> -o.balance_paid_minor)",
    read: |row| {
        let entry = |name: &str| Ok::<i64, DbFault>(row.try_get::<Option<i64>>("", name)?.unwrap_or(0));
        Ok(Mismatch {
            order: OrderId(row.try_get("", "id")?),
            state: row.try_get::<String>("", "state")?.parse()?,
            part_minor: row.try_get("", "balance_paid_minor")?,
            taken_minor: -entry("paid")?,
            given_back_minor: entry("back")?,
        })
    },
};

#[async_trait]
impl Comparison for BalancesAgainstOrders {
    fn name(&self) -> &'static str {
        "orders_balances"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let mismatches = MISMATCHES.all(&self.db, &settled_before(&self.clock)).await?;
        Ok(mismatches.iter().map(Mismatch::found).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(order) = subject.parse::<OrderId>() else { return Ok(None) };
        let mismatch = MISMATCHES.one(&self.db, order.0, &settled_before(&self.clock)).await?;
        let Some(mismatch) = mismatch else { return Ok(None) };
        if mismatch.action() == LOOK_AT_IT {
            return Ok(Some(mismatch.found().detail));
        }
        let (ledger, clock) = (self.ledger.clone(), self.clock.clone());
        let giving = self.db.transaction(move |tx| {
            let (ledger, now) = (ledger.clone(), clock.now());
            async move { ledger.give_back(&tx, now, &[order]).await }
        });
        let given: Result<(), DbFault> = giving.await;
        given?;
        Ok(Some(format!("order {order} gave {} minor units back to the balance", mismatch.taken_minor)))
    }
}
