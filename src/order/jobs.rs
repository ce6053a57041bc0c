//! What time does to orders.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::service::{Expired, OrderService};
use super::store::Overdue;
use crate::db::DbFault;
use crate::jobs::{Job, RunContext, Schedule, Summary};
use crate::ports::payment_gateway::Channel;

/// How long a run asks a gateway, after which the next run goes on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a gateway is left alone at most, after it was unclear about all that it was asked.
const LONGEST_REST: Duration = Duration::from_secs(15);

/// How far the questions to one gateway have come.
#[derive(Debug, Clone, Copy)]
struct Place {
    after: Overdue,
    /// What was found since the first order.
    found: Expired,
    rest: Duration,
    rest_until: Instant,
}

impl Place {
    fn first() -> Self {
        Self {
            after: Overdue::FIRST,
            found: Expired::default(),
            rest: Duration::ZERO,
            rest_until: Instant::now(),
        }
    }

    /// Goes on behind `next`, or begins anew: after a rest that doubles for as long as nothing is clear.
    fn go_on(&mut self, next: Option<Overdue>, found: Expired, now: Instant) {
        self.found = [self.found, found].into_iter().sum();
        let Some(next) = next else {
            let Expired { cancelled, paid, unclear } = self.found;
            let rest = match (cancelled + paid, unclear) {
                (0, 1..) => (self.rest * 2).clamp(Duration::from_secs(1), LONGEST_REST),
                _ => Duration::ZERO,
            };
            *self = Self { rest, rest_until: now + rest, ..Self::first() };
            return;
        };
        self.after = next;
    }
}

/// The job that gives up orders whose time is up, through the same rules as everybody (ORD-13, ORD-14).
///
/// It runs often and looks by an index, so a deadline needs no timer that a crash could lose. It asks no gateway.
pub fn order_deadlines(orders: OrderService, schedule: Schedule) -> Job {
    Job::new("order_deadlines", schedule, move |_: RunContext| {
        let orders = orders.clone();
        async move { Ok(summary(orders.expire_due().await?)) }
    })
}

/// The job that gives up overdue orders with open payments, once their gateways have closed these (R22).
///
/// The gateways are asked side by side, and each run goes on behind the orders that the one before it came to: neither a
/// gateway that is silent nor an order that stays unclear keeps others from their end.
pub fn overdue_payments(orders: OrderService, schedule: Schedule) -> Job {
    let places: Arc<Vec<_>> =
        Arc::new(Channel::ALL.iter().map(|channel| (*channel, Mutex::new(Place::first()))).collect());
    Job::new("overdue_payments", schedule, move |_: RunContext| {
        let (orders, places) = (orders.clone(), places.clone());
        async move {
            let closing = places.iter().map(|(channel, place)| close_due(&orders, *channel, place));
            Ok(summary(try_join_all(closing).await?.into_iter().sum()))
        }
    })
}

async fn close_due(
    orders: &OrderService,
    channel: Channel,
    place: &Mutex<Place>,
) -> Result<Expired, DbFault> {
    let (mut expired, begun) = (Expired::default(), Instant::now());
    while begun.elapsed() < PATIENCE {
        let at = *place.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < at.rest_until {
            break;
        }
        let mut found = Expired::default();
        let next = orders.close_due(channel, at.after, &mut found).await?;
        expired = [expired, found].into_iter().sum();
        place.lock().unwrap_or_else(PoisonError::into_inner).go_on(next, found, Instant::now());
        if next.is_none() {
            break;
        }
    }
    Ok(expired)
}

fn summary(expired: Expired) -> Summary {
    let Expired { cancelled, paid, unclear } = expired;
    match (cancelled, paid, unclear) {
        (0, 0, 0) => Summary::NOTHING,
        _ => Summary::of(format!("cancelled {cancelled} orders, found {paid} paid, {unclear} unclear")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNCLEAR: Expired = Expired { cancelled: 0, paid: 0, unclear: 1 };

    /// How long the place rests after a pass that found this.
    fn rest(place: &mut Place, found: Expired) -> u64 {
        let now = Instant::now();
        place.go_on(Some(Overdue::FIRST), found, now);
        place.go_on(None, Expired::default(), now);
        (place.rest_until - now).as_secs()
    }

    #[test]
    fn a_gateway_that_is_unclear_is_asked_less_and_less_often() {
        let mut place = Place::first();
        let rests: Vec<u64> = (0..6).map(|_| rest(&mut place, UNCLEAR)).collect();
        assert_eq!(rests, [1, 2, 4, 8, 15, 15]);
        assert_eq!(rest(&mut place, Expired { cancelled: 1, ..UNCLEAR }), 0);
        assert_eq!(rest(&mut place, UNCLEAR), 1);
        assert_eq!(rest(&mut place, Expired::default()), 0);
    }
}
