//! What is asked of gateways again and again, because no notice is certain to come.

use chrono::TimeDelta;
use futures_util::{StreamExt, stream};
use tracing::warn;

use super::model::RefundState;
use super::refund;
use super::service::PaymentService;
use crate::ids::PaymentId;
use crate::jobs::{Job, RunContext, Schedule, Summary};

/// How long a payment may be pending before its gateway is asked.
const PATIENCE: TimeDelta = TimeDelta::minutes(1);
/// Payments and refunds that are looked up at a time, and how many of them are asked about at once.
const PAGE: u64 = 100;
const AT_ONCE: usize = 16;

/// The job that asks about pending payments, and performs refunds that are approved and not done.
pub fn payment_queries(payments: PaymentService, schedule: Schedule) -> Job {
    Job::new("payment_queries", schedule, move |_: RunContext| {
        let payments = payments.clone();
        async move {
            let (mut settled, mut unclear, mut after) = (0, 0, PaymentId(0));
            loop {
                let page = payments.long_pending(PATIENCE, after, PAGE).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                let answers = stream::iter(page).map(|payment| {
                    let payments = &payments;
                    async move { payments.follow_up(&payment).await }
                });
                for answer in answers.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
                    match answer {
                        Ok(Some(_)) => settled += 1,
                        Ok(None) => {}
                        Err(error) => {
                            unclear += 1;
                            warn!(%error, "A pending payment stays pending");
                        }
                    }
                }
            }
            let (mut refunded, mut before) = (0, None);
            loop {
                let page =
                    payments.refunds(refund::Listing::in_state(RefundState::Approved, before, PAGE)).await?;
                let Some(last) = page.last() else { break };
                before = Some(last.id);
                let answers = stream::iter(page).map(|refund| {
                    let payments = &payments;
                    async move { (refund.id, payments.perform(refund.id).await) }
                });
                for (id, answer) in answers.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
                    match answer {
                        Ok(()) => refunded += 1,
                        Err(error) => warn!(refund.id = %id, %error, "Refund {id} is tried again"),
                    }
                }
            }
            Ok(match (settled, refunded, unclear) {
                (0, 0, 0) => Summary::NOTHING,
                _ => Summary::of(format!(
                    "settled {settled} payments, asked for {refunded} refunds, {unclear} unclear"
                )),
            })
        }
    })
}
