//! What ended orders still hold of goods, as when the event that they ended was lost (REC-3).

use async_trait::async_trait;

use super::returns::give_back;
use crate::db::{Database, DbFault};
use crate::ids::{Ids, OrderId};
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found, Search, settled_before};

/// Each order holds its goods until it ends before it is shipped, and no longer.
#[derive(Debug)]
pub struct GoodsAgainstOrders {
    pub db: Database,
    pub ids: Ids,
    pub clock: SharedClock,
}

/// Orders that ended before they were shipped, of whose sales one has not come back.
// "+ 0": as in sale.rs.
const HELD: Search<(OrderId, String)> = Search {
    table: "orders",
    sql: "SELECT o.id, o.state FROM orders AS o WHERE o.id > ? AND o.id <= ? AND o.updated_at < ? \
        AND (o.state IN ('cancelled', 'invalid') \
        OR o.state = 'refunded' AND o.refund_from NOT IN ('shipped', 'finished')) \
        AND EXISTS (SELECT 1 FROM goods_ledger AS s WHERE s.reference_id = o.id AND s.kind = 'sale' \
        AND NOT EXISTS (SELECT 1 FROM goods_ledger AS b WHERE b.reference_id = s.reference_id \
        AND b.goods_id + 0 = s.goods_id AND b.kind = 'return'))",
    read: |row| Ok((OrderId(row.try_get("", "id")?), row.try_get("", "state")?)),
};

#[async_trait]
impl Comparison for GoodsAgainstOrders {
    fn name(&self) -> &'static str {
        "orders_goods"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let held = HELD.all(&self.db, &settled_before(&self.clock)).await?;
        Ok(held
            .into_iter()
            .map(|(order, state)| Found {
                subject: order.to_string(),
                expected: "no goods are held for an order that ended".to_owned(),
                found: format!("goods held, order {state}"),
                detail: format!("Order {order} is {state}, and not all of its goods are free again."),
                action: "give_back",
            })
            .collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(order) = subject.parse::<OrderId>() else { return Ok(None) };
        if HELD.one(&self.db, order.0, &settled_before(&self.clock)).await?.is_none() {
            return Ok(None);
        }
        let (ids, clock) = (self.ids.clone(), self.clock.clone());
        let returning = self.db.transaction(move |tx| {
            let (ids, now) = (ids.clone(), clock.now());
            async move { give_back(&tx, &ids, now, &[order]).await }
        });
        let goods: Result<_, DbFault> = returning.await;
        Ok((!goods?.is_empty()).then(|| format!("order {order} gave its goods back")))
    }
}
