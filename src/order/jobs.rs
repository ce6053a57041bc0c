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
        Arc::new(Channel::ALL.iter().map(|channel| (*channel, Mutex::new(Overdue::FIRST))).collect());
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
    place: &Mutex<Overdue>,
) -> Result<Expired, DbFault> {
    let (mut expired, begun) = (Expired::default(), Instant::now());
    while begun.elapsed() < PATIENCE {
        let after = *place.lock().unwrap_or_else(PoisonError::into_inner);
        let next = orders.close_due(channel, after, &mut expired).await?;
        *place.lock().unwrap_or_else(PoisonError::into_inner) = next.unwrap_or(Overdue::FIRST);
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
