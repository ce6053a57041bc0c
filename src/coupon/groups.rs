//! What coupons make of their orders' fates.

use std::time::Duration;

use async_trait::async_trait;

use super::model::Fate;
use super::store;
use crate::db::Tx;
use crate::ids::{Ids, OrderId};
use crate::messaging::catalogue::EventType;
use crate::messaging::consumer::{Group, Handler, HandlerError};
use crate::messaging::envelope::{Envelope, Undecodable};
use crate::order::events::{Cancelled, Paid, Refunded};
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::GroupSpec;

/// The group that uses, frees and voids the coupons of orders.
pub fn orders(ids: Ids, clock: SharedClock) -> Group {
    let spec = GroupSpec {
        name: "coupon_orders",
        types: &[EventType::OrderPaid, EventType::OrderCancelled, EventType::OrderRefunded],
        ordered: false,
        max_batch: 500,
        linger: Duration::ZERO,
    };
    Group::new(spec, Orders { ids, clock })
}

#[derive(Debug)]
struct Orders {
    ids: Ids,
    clock: SharedClock,
}

#[async_trait]
impl Handler for Orders {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let mut in_order: Vec<&Envelope> = events.iter().collect();
        in_order.sort_by_key(|event| event.sequence);
        let fates = in_order.into_iter().map(fate).collect::<Result<Vec<_>, _>>()?;
        Ok(store::settle(tx, &self.ids, self.clock.now(), &fates).await?)
    }
}

fn fate(event: &Envelope) -> Result<(OrderId, Fate), Undecodable> {
    Ok(match event.known_type() {
        Some(EventType::OrderCancelled) => (event.payload::<Cancelled>()?.order_id, Fate::Cancelled),
        Some(EventType::OrderRefunded) => {
            let Refunded { order_id, shipped, .. } = event.payload()?;
            (order_id, Fate::Refunded { shipped })
        }
        _ => (event.payload::<Paid>()?.order_id, Fate::Paid),
    })
}
