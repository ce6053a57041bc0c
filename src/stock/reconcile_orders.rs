//! Takes of flash sales against their orders (I3, I8).

use async_trait::async_trait;

use super::model::TakeState;
use super::release::release_all;
use crate::db::{Database, DbFault};
use crate::ids::{ActivityId, Ids, TakeId};
use crate::order::machine::State;
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, Search, settled_before};

/// Each flash-sale order holds its token until it ends before it is shipped, and no longer.
#[derive(Debug)]
pub struct TakesAgainstOrders {
    pub db: Database,
    pub ids: Ids,
    pub clock: SharedClock,
}

/// A take and an order of one id that do not fit.
struct Mismatch {
    id: TakeId,
    activity: ActivityId,
    /// Its state; none if there is no such take.
    take: Option<String>,
    /// None if there is no such order.
    order: Option<State>,
}

impl Mismatch {
    /// A token is given back if nobody can ever pay for it; what was perhaps sold again is for people.
    fn action(&self) -> &'static str {
        let over = matches!(self.order, None | Some(State::Cancelled | State::Invalid | State::Refunded));
        let held = self.take.as_deref() == Some(TakeState::Unused.word());
        if held && over { "release" } else { LOOK_AT_IT }
    }

    fn found(&self) -> Found {
        let Self { id, activity, .. } = self;
        let take = self.take.as_deref().unwrap_or("missing");
        let order = self.order.map_or("missing", State::word);
        Found {
            subject: id.to_string(),
            expected: "a token for as long as the order has a claim to it".to_owned(),
            found: format!("take {take}, order {order}"),
            detail: format!("Of flash sale {activity}, take {id} is {take} while its order is {order}."),
            action: self.action(),
        }
    }
}

fn read(row: &sea_orm::QueryResult) -> Result<Mismatch, DbFault> {
    let order = row.try_get::<Option<String>>("", "order_state")?;
    Ok(Mismatch {
        id: TakeId(row.try_get("", "id")?),
        activity: ActivityId(row.try_get("", "activity_id")?),
        take: row.try_get("", "take_state")?,
        order: order.as_deref().map(str::parse).transpose()?,
    })
}

/// Takes that hold a token without an order that has a claim to it.
const HELD: Search<Mismatch> = Search {
    table: "take",
    sql: "SELECT t.id, t.activity_id, t.state AS take_state, o.state AS order_state FROM take AS t \
        JOIN activity AS a ON a.id = t.activity_id AND a.kind = 'flash_sale' \
        LEFT JOIN orders AS o ON o.id = t.id \
        WHERE t.id > ? AND t.id <= ? AND t.state <> 'released' AND (o.id IS NULL OR o.updated_at < ? \
        AND (o.state IN ('cancelled', 'invalid') \
        OR o.state = 'refunded' AND o.refund_from NOT IN ('shipped', 'finished')))",
    read,
};

/// Orders that have a claim to a token and do not hold it.
const NOT_HELD: Search<Mismatch> = Search {
    table: "orders",
    sql: "SELECT o.id, o.activity_id, t.state AS take_state, o.state AS order_state FROM orders AS o \
        LEFT JOIN take AS t ON t.id = o.id AND t.activity_id = o.activity_id \
        WHERE o.id > ? AND o.id <= ? AND o.kind = 'flash_sale' AND (t.id IS NULL OR t.state = 'released' \
        AND (o.state IN ('awaiting_payment', 'paid', 'shipped', 'finished', 'refunding') \
        OR o.state = 'refunded' AND o.refund_from IN ('shipped', 'finished')))",
    read,
};

#[async_trait]
impl Comparison for TakesAgainstOrders {
    fn name(&self) -> &'static str {
        "orders_stock"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let held = HELD.all(&self.db, &settled_before(&self.clock)).await?;
        let not_held = NOT_HELD.all(&self.db, &[]).await?;
        Ok(held.iter().chain(&not_held).map(Mismatch::found).collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<TakeId>() else { return Ok(None) };
        let mismatch = match HELD.one(&self.db, id.0, &settled_before(&self.clock)).await? {
            Some(held) => Some(held),
            None => NOT_HELD.one(&self.db, id.0, &[]).await?,
        };
        let Some(mismatch) = mismatch else { return Ok(None) };
        if mismatch.action() == LOOK_AT_IT {
            return Ok(Some(mismatch.found().detail));
        }
        let (ids, clock) = (self.ids.clone(), self.clock.clone());
        let releasing = self.db.transaction(move |tx| {
            let (ids, now) = (ids.clone(), clock.now());
            async move { release_all(&tx, &ids, now, &[(id, "reconciliation")].into()).await }
        });
        let released: Result<(), DbFault> = releasing.await;
        released?;
        Ok(Some(format!("take {id} gave its token back")))
    }
}
