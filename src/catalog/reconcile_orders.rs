//! What orders hold of goods, against what has become of them, as when the event that they ended was lost (REC-3).

use async_trait::async_trait;
use sea_orm::DbBackend;

use super::returns::{give_back, holds_units};
use crate::db::{Database, DbFault};
use crate::ids::{Ids, OrderId};
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, Search, settled_before};

/// Each order holds its goods until it ends before it is shipped, and no longer.
#[derive(Debug)]
pub struct GoodsAgainstOrders {
    pub db: Database,
    pub ids: Ids,
    pub clock: SharedClock,
}

/// Orders that ended before they were shipped, of whose sales one has not come back.
const HELD: Search<(OrderId, String)> = Search {
    table: "orders",
    sql: concat!(
        "SELECT o.id, o.state FROM orders AS o WHERE o.id > ? AND o.id <= ? AND o.updated_at < ? \
        AND (o.state IN ('cancelled', 'invalid') \
        OR o.state = 'refunded' AND o.refund_from NOT IN ('shipped', 'finished')) AND ",
        holds_units!()
    ),
    read: |row| Ok((OrderId(row.try_get("", "id")?), row.try_get("", "state")?)),
};

/// Orders with a claim to goods of which they hold less than a line says; the lines are `$lines`, each of `$units` of
/// `$goods`.
// "+ 0": as in sale.rs.
macro_rules! not_held {
    ($lines:literal, $goods:literal, $units:literal) => {
        Search {
            table: "orders",
            sql: concat!(
                "SELECT o.id, o.state FROM orders AS o WHERE o.id > ? AND o.id <= ? AND o.kind = 'shop' \
                 AND (o.state IN ('awaiting_payment', 'paid', 'shipped', 'finished', 'refunding') \
                 OR o.state = 'refunded' AND o.refund_from IN ('shipped', 'finished')) AND EXISTS (SELECT 1 FROM ",
                $lines,
                " AS l WHERE NOT EXISTS (SELECT 1 FROM goods_ledger AS s WHERE s.reference_id = o.id \
                 AND s.kind = 'sale' AND s.goods_id + 0 = ",
                $goods,
                " AND s.quantity = -",
                $units,
                ") OR EXISTS (SELECT 1 FROM goods_ledger AS b WHERE b.reference_id = o.id \
                 AND b.kind = 'return' AND b.goods_id + 0 = ",
                $goods,
                "))"
            ),
            read: |row| Ok((OrderId(row.try_get("", "id")?), row.try_get("", "state")?)),
        }
    };
}

fn not_held(backend: DbBackend) -> Search<(OrderId, String)> {
    match backend {
        DbBackend::Postgres => not_held!(
            "json_array_elements(o.items::json)",
            "(l.value ->> 'goods_id')::bigint",
            "(l.value ->> 'quantity')::int"
        ),
        DbBackend::MySql => not_held!(
            "JSON_TABLE(o.items, '$[*]' COLUMNS (goods BIGINT PATH '$.goods_id', units INT PATH '$.quantity'))",
            "l.goods",
            "l.units"
        ),
        _ => not_held!(
            "json_each(o.items)",
            "CAST(l.value ->> 'goods_id' AS INTEGER)",
            "CAST(l.value ->> 'quantity' AS INTEGER)"
        ),
    }
}

fn still_held((order, state): &(OrderId, String)) -> Found {
    Found {
        subject: order.to_string(),
        expected: "no goods are held for an order that ended".to_owned(),
        found: format!("goods held, order {state}"),
        detail: format!("Order {order} is {state}, and not all of its goods are free again."),
        action: "give_back",
    }
}

/// The goods may be sold to somebody else by now.
fn no_longer_held((order, state): &(OrderId, String)) -> Found {
    Found {
        subject: order.to_string(),
        expected: "all goods of its lines are held for an order".to_owned(),
        found: format!("goods not held, order {state}"),
        detail: format!("Order {order} is {state}, and not all of its goods are held for it."),
        action: LOOK_AT_IT,
    }
}

#[async_trait]
impl Comparison for GoodsAgainstOrders {
    fn name(&self) -> &'static str {
        "orders_goods"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let held = HELD.all(&self.db, &settled_before(&self.clock)).await?;
        let not_held = not_held(self.db.backend()).all(&self.db, &[]).await?;
        Ok(held.iter().map(still_held).chain(not_held.iter().map(no_longer_held)).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(order) = subject.parse::<OrderId>() else { return Ok(None) };
        if HELD.one(&self.db, order.0, &settled_before(&self.clock)).await?.is_none() {
            let not_held = not_held(self.db.backend()).one(&self.db, order.0, &[]).await?;
            return Ok(not_held.map(|order| no_longer_held(&order).detail));
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
