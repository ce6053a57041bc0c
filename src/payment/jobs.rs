//! What is asked of gateways again and again, because no notice is certain to come.

use chrono::TimeDelta;
use futures_util::future::try_join_all;
use futures_util::{StreamExt, stream};
use tracing::warn;

use super::model::RefundState;
use super::refund;
use super::service::PaymentService;
use super::store::Unsettled;
use crate::db::DbFault;
use crate::ids::PaymentId;
use crate::jobs::{Job, RunContext, Schedule, Summary};
use crate::ports::payment_gateway::Channel;

/// How long a payment may be pending before its gateway is asked.
const PATIENCE: TimeDelta = TimeDelta::minutes(1);
/// Payments and refunds that are looked up at a time, and how many of them are asked about at once.
const PAGE: u64 = 100;
const AT_ONCE: usize = 16;

/// What a gateway answered about payments.
#[derive(Debug, Default)]
struct Asked {
    settled: u64,
    unclear: u64,
}

/// The job that asks about payments that are pending or ended unseen by their gateway, and performs refunds that are
/// approved and not done. A gateway that is silent keeps neither the others' payments nor refunds waiting.
pub fn payment_queries(payments: PaymentService, schedule: Schedule) -> Job {
    Job::new("payment_queries", schedule, move |_: RunContext| {
        let payments = payments.clone();
        async move {
            let asking = try_join_all(Channel::ALL.iter().map(|&channel| ask_about(&payments, channel)));
            let (asked, refunded) = tokio::try_join!(asking, perform_approved(&payments))?;
            let settled: u64 = asked.iter().map(|asked| asked.settled).sum();
            let unclear: u64 = asked.iter().map(|asked| asked.unclear).sum();
            Ok(match (settled, refunded, unclear) {
                (0, 0, 0) => Summary::NOTHING,
                _ => Summary::of(format!(
                    "settled {settled} payments, asked for {refunded} refunds, {unclear} unclear"
                )),
            })
        }
    })
}

/// Asks the gateway of `channel` about every payment that is not settled for good.
async fn ask_about(payments: &PaymentService, channel: Channel) -> Result<Asked, DbFault> {
    let now = payments.now();
    let (mut asked, mut unclear) = (Asked::default(), None);
    // What an operator gave up, and what else ended here, can wait for a gateway that is not set up.
    let recheck = payments.gateways().get(channel).map(|_| Unsettled::RecheckBy(now));
    for why in recheck.into_iter().chain([Unsettled::PendingSince(now - PATIENCE)]) {
        let mut after = PaymentId(0);
        loop {
            let page = payments.unsettled(why, channel, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            let answers = stream::iter(page).map(|payment| async move { payments.follow_up(&payment).await });
            for answer in answers.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
                match answer {
                    Ok(Some(_)) => asked.settled += 1,
                    Ok(None) => {}
                    Err(error) => {
                        asked.unclear += 1;
                        unclear = Some(error);
                    }
                }
            }
        }
    }
    if let Some(error) = unclear {
        let count = asked.unclear;
        warn!(%channel, %error, "{count} payments through {channel} are asked about again: {error}");
    }
    Ok(asked)
}

/// Performs the refunds that are approved; tells how many.
async fn perform_approved(payments: &PaymentService) -> Result<u64, DbFault> {
    let (mut performed, mut before) = (0, None);
    loop {
        let page = payments.refunds(refund::Listing::in_state(RefundState::Approved, before, PAGE)).await?;
        let Some(last) = page.last() else { return Ok(performed) };
        before = Some(last.id);
        let answers =
            stream::iter(page).map(|refund| async move { (refund.id, payments.perform(refund.id).await) });
        for (id, answer) in answers.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match answer {
                Ok(()) => performed += 1,
                Err(error) => warn!(refund.id = %id, %error, "Refund {id} is tried again"),
            }
        }
    }
}
