//! What time does to orders.

use super::service::{Expired, OrderService};
use crate::jobs::{Job, RunContext, Schedule, Summary};

/// The job that gives up orders whose time is up, through the same rules as everybody (ORD-13, ORD-14).
///
/// It runs often and looks by an index, so a deadline needs no timer that a crash could lose.
pub fn order_deadlines(orders: OrderService, schedule: Schedule) -> Job {
    Job::new("order_deadlines", schedule, move |_: RunContext| {
        let orders = orders.clone();
        async move {
            let Expired { cancelled, paid, unclear } = orders.expire_due().await?;
            Ok(match (cancelled, paid, unclear) {
                (0, 0, 0) => Summary::NOTHING,
                _ => {
                    Summary::of(format!("cancelled {cancelled} orders, found {paid} paid, {unclear} unclear"))
                }
            })
        }
    })
}
