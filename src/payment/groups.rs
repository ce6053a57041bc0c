//! What follows from a capture and from a refund, each in a consumer group of its own (PAY-7).

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use entities::payment_log;
use sea_orm::{ActiveValue::Set, EntityTrait};
use tracing::warn;

use super::events::{PaymentSucceeded, RefundApproved, RefundRequested};
use super::service::{PaymentError, PaymentService};
use crate::db::{self, Tx};
use crate::ids::{Ids, RefundId};
use crate::messaging::catalogue::EventType;
use crate::messaging::consumer::{Group, Handler, HandlerError, OutsideHandler};
use crate::messaging::envelope::Envelope;
use crate::order::machine::Command;
use crate::order::model::Cause;
use crate::order::store::{self as orders, Policy, Step};
use crate::ports::clock::{SharedClock, to_micros};
use crate::ports::event_bus::GroupSpec;
use crate::ports::payment_gateway::GatewayError;

/// Tells orders of their payments. What an order does not want goes back; an event that is not as the payment is pays
/// nothing and ends as a dead letter.
pub fn orders(ids: Ids, clock: SharedClock, policy: Policy) -> Group {
    let spec = GroupSpec::new("order_payments", &[EventType::PaymentSucceeded]);
    Group::new(spec, OrderPayments { ids, clock, policy })
}

#[derive(Debug)]
struct OrderPayments {
    ids: Ids,
    clock: SharedClock,
    policy: Policy,
}

#[async_trait]
impl Handler for OrderPayments {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let steps = events.iter().map(|event| {
            let paid: PaymentSucceeded = event.payload()?;
            let step =
                Step::new(paid.order_id, Command::Pay(paid.payment_id), Cause::Payment(paid.payment_id));
            Ok(Step { captured: Some((paid.amount_minor, paid.currency)), ..step })
        });
        let steps = steps.collect::<Result<Vec<_>, HandlerError>>()?;
        for answer in orders::advance(tx, &self.ids, self.clock.now(), self.policy, &steps).await? {
            answer.map_err(|refusal| HandlerError::Failed(refusal.to_string()))?;
        }
        Ok(())
    }
}

/// Keeps the log of captures.
pub fn log() -> Group {
    let spec = GroupSpec {
        linger: Duration::from_millis(100),
        ..GroupSpec::new("payment_log", &[EventType::PaymentSucceeded])
    };
    Group::new(spec, PaymentLog)
}

#[derive(Debug)]
struct PaymentLog;

#[async_trait]
impl Handler for PaymentLog {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let now = db::now_micros(tx).await?;
        let mut rows = BTreeMap::new();
        for event in events {
            let paid: PaymentSucceeded = event.payload()?;
            let row = payment_log::ActiveModel {
                payment_id: Set(paid.payment_id.0),
                order_id: Set(paid.order_id.0),
                user_id: Set(paid.user_id.0),
                channel: Set(paid.channel),
                transaction_id: Set(paid.transaction_id),
                amount_minor: Set(paid.amount_minor),
                currency: Set(paid.currency.to_string()),
                paid_at: Set(to_micros(paid.paid_at)),
                logged_at: Set(now),
            };
            rows.insert(paid.payment_id, row);
        }
        let inserted = payment_log::Entity::insert_many(rows.into_values()).exec_without_returning(tx).await;
        inserted.map_err(db::DbFault::from)?;
        Ok(())
    }
}

/// Performs approved refunds at the gateway.
pub fn refunds(payments: PaymentService) -> Group {
    let spec = GroupSpec {
        max_batch: 50,
        ..GroupSpec::new("payment_refunds", &[EventType::RefundRequested, EventType::RefundApproved])
    };
    Group::outside(spec, Refunds(payments))
}

#[derive(Debug)]
struct Refunds(PaymentService);

#[async_trait]
impl OutsideHandler for Refunds {
    async fn perform(&self, event: &Envelope) -> Result<(), HandlerError> {
        let refund: RefundId = match event.known_type() {
            Some(EventType::RefundApproved) => event.payload::<RefundApproved>()?.refund_id,
            Some(EventType::RefundRequested) => event.payload::<RefundRequested>()?.refund_id,
            _ => return Err(event.unexpected().into()),
        };
        match self.0.perform(refund).await {
            Ok(()) => Ok(()),
            // It stays approved, and the job asks again: a letter about it would outlive what it is about.
            Err(reason @ (PaymentError::Gateway(GatewayError::Unclear(_)) | PaymentError::ChannelOff(_))) => {
                warn!(refund.id = %refund, %reason, "Refund {refund} is tried again");
                Ok(())
            }
            Err(PaymentError::Db(fault)) => Err(HandlerError::Db(fault)),
            Err(error) => Err(HandlerError::Failed(error.to_string())),
        }
    }
}
