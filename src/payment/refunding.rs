//! The front door of refunds: operators decide, the gateway gives the money back, the order is told.

use tracing::error;

use super::machine::{Contradiction, refund_origins};
use super::model::{Refund, RefundCause, RefundState};
use super::service::{PaymentError, PaymentService};
use super::{refund, store};
use crate::db::{DbFault, Tx, fit};
use crate::idempotency::{self, Answered, RequestKey};
use crate::ids::{Ids, PaymentId, RefundId, UserId};
use crate::order::machine::Command;
use crate::order::model::Cause;
use crate::order::store::{self as orders, Policy, Step};
use crate::ports::clock::Timestamp;
use crate::ports::payment_gateway::{Channel, GatewayError, RefundOrder, RefundState as AtGateway};

impl PaymentService {
    /// Refunds in `state`, newest first.
    pub async fn refunds(&self, listing: refund::Listing) -> Result<Vec<Refund>, DbFault> {
        self.0.db.read(move |db| async move { refund::page(&db, listing).await }).await
    }

    /// An operator agrees to a refund, or has one that failed tried again.
    pub async fn approve(
        &self,
        by: UserId,
        id: RefundId,
        key: Option<RequestKey>,
    ) -> Result<Answered<Refund>, PaymentError> {
        let (ids, clock) = (self.0.ids.clone(), self.0.clock.clone());
        idempotency::once(&self.0.db, &self.0.clock, key, 200, move |tx| {
            let (ids, now) = (ids.clone(), clock.now());
            async move {
                let moved = refund::advance(&tx, id, RefundState::Approved, Some(by), None, now).await?;
                let refund = refund::find(&tx, id).await?.ok_or(PaymentError::NotFound)?;
                match (moved, refund.state) {
                    (true, _) => refund::announce_approved(&tx, &ids, &refund, now).await?,
                    (false, RefundState::Approved | RefundState::Succeeded) => {}
                    (false, state) => return Err(PaymentError::RefundSettled(state)),
                }
                Ok(refund)
            }
        })
        .await
    }

    /// An operator refuses a refund: the order is again what it was.
    pub async fn refuse(
        &self,
        by: UserId,
        id: RefundId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<Refund>, PaymentError> {
        let (ids, clock, policy) = (self.0.ids.clone(), self.0.clock.clone(), self.0.policy);
        idempotency::once(&self.0.db, &self.0.clock, key, 200, move |tx| {
            let (ids, now, reason) = (ids.clone(), clock.now(), reason.clone());
            async move {
                let before = refund::find(&tx, id).await?.ok_or(PaymentError::NotFound)?;
                let mut step = Step::new(before.order_id, Command::RefuseRefund, Cause::Operator(by));
                step.reason = Some(reason.clone());
                if before.state == RefundState::Rejected {
                    return Ok(before);
                }
                // Surplus money has to go back.
                if before.cause != RefundCause::Order {
                    return Err(PaymentError::RefundSettled(before.state));
                }
                // The order first, as everywhere; if the refund was decided meanwhile, both stay as they are.
                let answers = orders::advance(&tx, &ids, now, policy, &[step]).await?;
                let moved =
                    refund::advance(&tx, id, RefundState::Rejected, Some(by), Some(&reason), now).await?;
                let refund = refund::find(&tx, id).await?.ok_or(PaymentError::NotFound)?;
                if !moved || answers.iter().any(Result::is_err) {
                    return Err(PaymentError::RefundSettled(refund.state));
                }
                refund::announce_refused(&tx, &ids, &refund, reason, now).await?;
                Ok(refund)
            }
        })
        .await
    }

    /// An operator says that the money of a refund went back another way: some gateways close a refund for good, others
    /// are not set up here any more, and then only a person can give the money back. A gateway that still works on it is
    /// waited for.
    pub async fn settle_by_hand(
        &self,
        by: UserId,
        id: RefundId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<Refund>, PaymentError> {
        let (payments, ids, policy) = (self.clone(), self.0.ids.clone(), self.0.policy);
        idempotency::once(&self.0.db, &self.0.clock, key, 200, move |tx| {
            let (payments, ids, reason) = (payments.clone(), ids.clone(), reason.clone());
            async move {
                let now = payments.now();
                let order = refund::find(&tx, id).await?.ok_or(PaymentError::NotFound)?.order_id;
                // The order first, as everywhere. What is decided below stays so until the end.
                orders::lock_one(&tx, order).await?;
                let refund = refund::lock(&tx, id).await?.ok_or(PaymentError::NotFound)?;
                match (refund.state, refund.channel) {
                    (RefundState::Succeeded, _) => return Ok(refund),
                    (RefundState::Failed, _) => {}
                    (RefundState::Approved, Some(channel)) => payments.is_gone(channel)?,
                    (state, _) => return Err(PaymentError::RefundSettled(state)),
                }
                complete(&tx, &ids, now, policy, &refund, Some(by)).await?;
                refund::note(&tx, id, &reason).await?;
                refund::find(&tx, id).await?.ok_or(PaymentError::NotFound)
            }
        })
        .await
    }

    /// Gives the money of an approved refund back. A repeat does nothing more; while the gateway works on it, or does not
    /// say, the refund stays approved.
    pub async fn perform(&self, id: RefundId) -> Result<(), PaymentError> {
        let found = self.0.db.read(move |db| async move {
            let refund = refund::find(&db, id).await?.ok_or(PaymentError::NotFound)?;
            let payment = match refund.payment_id {
                Some(payment) => store::find(&db, payment).await?,
                None => None,
            };
            Ok::<_, PaymentError>((refund, payment))
        });
        let (refund, payment) = found.await?;
        if refund.state != RefundState::Approved {
            return Ok(());
        }
        let Some(payment) = payment else { return self.refund_stands(id, AtGateway::Succeeded).await };
        let wanted = RefundOrder {
            refund_id: id,
            payment_id: payment.id,
            transaction_id: payment.transaction_id.unwrap_or_default(),
            amount_minor: refund.amount_minor,
            total_minor: payment.amount_minor,
            currency: refund.currency,
            reason: refund.reason,
        };
        let gateway = self.gateway(payment.channel)?;
        let state = match gateway.refund(&wanted).await {
            Ok(state) => state,
            Err(GatewayError::Unclear(reason)) => return Err(GatewayError::Unclear(reason).into()),
            // What is refused now may have been done before, by a try whose answer was lost.
            Err(refused) => match gateway.query_refund(wanted.payment_id, id).await? {
                AtGateway::NotFound => AtGateway::Failed { reason: refused.to_string() },
                known => known,
            },
        };
        self.refund_stands(id, state).await
    }

    /// Notes what the gateway of `channel` told of a refund of `payment`, or answers why it cannot be true.
    pub(super) async fn refund_told(
        &self,
        id: RefundId,
        payment: PaymentId,
        channel: Channel,
        state: AtGateway,
    ) -> Result<Option<Contradiction>, PaymentError> {
        let found = self.0.db.read(move |db| async move { refund::find(&db, id).await }).await?;
        Ok(match found {
            Some(refund) if (refund.payment_id, refund.channel) == (Some(payment), Some(channel)) => {
                if (refund.state, &state) == (RefundState::Rejected, &AtGateway::Succeeded) {
                    Some(Contradiction::RefusedRefund)
                } else {
                    self.refund_stands(id, state).await?;
                    None
                }
            }
            _ => Some(Contradiction::Refund),
        })
    }

    /// Notes where a refund stands at the gateway.
    pub(super) async fn refund_stands(&self, id: RefundId, state: AtGateway) -> Result<(), PaymentError> {
        let (ids, clock, policy) = (self.0.ids.clone(), self.0.clock.clone(), self.0.policy);
        let failure = match state {
            AtGateway::NotFound | AtGateway::Processing => return Ok(()),
            AtGateway::Succeeded => None,
            AtGateway::Failed { reason } => Some(fit(&reason, 256)),
        };
        if let Some(reason) = &failure {
            error!(refund.id = %id, reason, "Refund {id} failed at the gateway; an operator has to look at it");
        }
        self.0
            .db
            .transaction(move |tx| {
                let (ids, now, failure) = (ids.clone(), clock.now(), failure.clone());
                async move { note_refund(&tx, &ids, now, policy, id, failure.as_deref()).await }
            })
            .await
    }
}

async fn note_refund(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    policy: Policy,
    id: RefundId,
    failure: Option<&str>,
) -> Result<(), PaymentError> {
    let refund = refund::find(tx, id).await?.ok_or(PaymentError::NotFound)?;
    if let Some(reason) = failure {
        refund::advance(tx, id, RefundState::Failed, None, Some(reason), now).await?;
        return Ok(());
    }
    if !refund_origins(RefundState::Succeeded).contains(&refund.state) {
        return Ok(());
    }
    complete(tx, ids, now, policy, &refund, None).await
}

/// The money is back, `by` hand or through the gateway.
async fn complete(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    policy: Policy,
    refund: &Refund,
    by: Option<UserId>,
) -> Result<(), PaymentError> {
    if refund.cause == RefundCause::Order {
        // The order first, as everywhere.
        let step = Step::new(refund.order_id, Command::CompleteRefund, Cause::Refund(refund.id));
        for answer in orders::advance(tx, ids, now, policy, &[step]).await? {
            answer.map_err(|_| DbFault::Missing("an order that is being refunded"))?;
        }
    }
    refund::advance(tx, refund.id, RefundState::Succeeded, by, None, now).await?;
    Ok(())
}
