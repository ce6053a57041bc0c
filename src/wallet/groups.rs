//! What wallets make of an order's fate.

use std::time::Duration;

use async_trait::async_trait;

use super::ledger::Ledger;
use super::points::Earning;
use crate::db::Tx;
use crate::messaging::catalogue::EventType;
use crate::messaging::consumer::{Group, Handler, HandlerError};
use crate::messaging::envelope::Envelope;
use crate::order::events::{Ending, Paid, Refunded};
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::GroupSpec;

/// Nobody waits for points.
const GATHERED: Duration = Duration::from_millis(50);

/// The group that gives back what a cancelled or refunded order took from a balance.
pub fn balances(ledger: Ledger, clock: SharedClock) -> Group {
    let spec = GroupSpec::new("wallet_orders", Ending::TYPES);
    Group::new(spec, GiveBack { ledger, clock })
}

#[derive(Debug)]
struct GiveBack {
    ledger: Ledger,
    clock: SharedClock,
}

#[async_trait]
impl Handler for GiveBack {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let orders = events.iter().map(|event| Ending::of(event).map(|ending| ending.order_id));
        let orders = orders.collect::<Result<Vec<_>, _>>()?;
        Ok(self.ledger.give_back(tx, self.clock.now(), &orders).await?)
    }
}

/// The group that gives `per_major` points for each whole unit captured for a paid order, and takes them back when its
/// money is back.
pub fn points(ledger: Ledger, clock: SharedClock, per_major: i64) -> Group {
    let spec = GroupSpec {
        linger: GATHERED,
        ..GroupSpec::new("points_orders", &[EventType::OrderPaid, EventType::OrderRefunded])
    };
    Group::new(spec, Points { ledger, clock, per_major })
}

#[derive(Debug)]
struct Points {
    ledger: Ledger,
    clock: SharedClock,
    per_major: i64,
}

#[async_trait]
impl Handler for Points {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let (mut earnings, mut refunded) = (Vec::new(), Vec::new());
        for event in events {
            match event.known_type() {
                Some(EventType::OrderPaid) => {
                    let paid: Paid = event.payload()?;
                    let whole = paid.payable_minor / paid.currency.minor_per_major();
                    let earning =
                        Earning { order: paid.order_id, user: paid.user_id, points: whole * self.per_major };
                    earnings.extend(Some(earning).filter(|earning| earning.points > 0));
                }
                Some(EventType::OrderRefunded) => {
                    let event: Refunded = event.payload()?;
                    refunded.extend((event.payable_minor > 0).then_some((event.order_id, event.user_id)));
                }
                _ => return Err(event.unexpected().into()),
            }
        }
        // What is refunded in this very batch was paid before, in whatever order the two came.
        let now = self.clock.now();
        self.ledger.earn(tx, now, &earnings).await?;
        Ok(self.ledger.take_back(tx, now, &refunded).await?)
    }
}
