//! What coupons make of their orders' fates.

use async_trait::async_trait;

use super::model::Fate;
use super::store;
use crate::db::Tx;
use crate::ids::{Ids, OrderId};
use crate::messaging::catalogue::EventType;
use crate::messaging::consumer::{Group, Handler, HandlerError};
use crate::messaging::envelope::{Envelope, Undecodable};
use crate::order::events::{End, Ending, Paid};
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::GroupSpec;

/// The group that uses, frees and voids the coupons of orders.
pub fn orders(ids: Ids, clock: SharedClock) -> Group {
    let spec = GroupSpec::new(
        "coupon_orders",
        &[EventType::OrderPaid, EventType::OrderCancelled, EventType::OrderRefunded],
    );
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
    if event.known_type() == Some(EventType::OrderPaid) {
        return Ok((event.payload::<Paid>()?.order_id, Fate::Paid));
    }
    let Ending { order_id, end, .. } = Ending::of(event)?;
    let fate = match end {
        End::Cancelled => Fate::Cancelled,
        End::Refunded { shipped } => Fate::Refunded { shipped },
    };
    Ok((order_id, fate))
}
