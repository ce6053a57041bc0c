//! The front door of payments: one method per use case.
//!
//! A gateway is never asked within a transaction, and what it says is settled in one ([`store::settle`]). Whoever asks
//! it may stop half-way: everything here may be asked again.

use std::fmt;
use std::sync::Arc;

use chrono::TimeDelta;
use thiserror::Error;
use tracing::{error, info, warn};

use super::machine::{Contradiction, Report, Said, Source};
use super::model::{Payment, PaymentDetail, PaymentRecord, PaymentState, Refund, RefundState};
use super::store::{Listing, Unsettled};
use super::{refund, store};
use crate::actors::batching::BatchSettings;
use crate::actors::lanes::{Desk, LaneError, Lanes};
use crate::db::{AsDbFault, Database, DbFault, Tx};
use crate::idempotency::{self, Answered, KeyRefusal, RequestKey};
use crate::ids::{Ids, NodeNumberLost, OrderId, PaymentId, PaymentRecordId, UserId};
use crate::order::machine::State;
use crate::order::model::Order;
use crate::order::store::{self as orders, Policy};
use crate::ports::clock::{SharedClock, Timestamp};
use crate::ports::payment_gateway::{
    Acknowledgement, Capture, Channel, Closing, GatewayError, GatewayState, Gateways, NoticeHeaders,
    NoticeKind, NoticeRefusal, PaymentGateway,
};

/// How long after the end of the time to pay a gateway may take money for what it did not know before: its clock is another.
const LATE_CAPTURE: TimeDelta = TimeDelta::minutes(5);

/// Why there is no payment, or no refund.
#[derive(Debug, Error)]
pub enum PaymentError {
    #[error("there is no such order, payment or refund")]
    NotFound,
    #[error("the order is {0}")]
    NotPayable(State),
    #[error("the time to pay is over")]
    TooLate,
    #[error("the order is paid")]
    AlreadyPaid,
    #[error("payments through {0} are not set up here")]
    ChannelOff(Channel),
    #[error("payment {payment} went through {channel}, which is not set up here any more")]
    GatewayGone { payment: PaymentId, channel: Channel },
    #[error("payments through {0} are set up here, and it can be asked")]
    GatewayDecides(Channel),
    #[error("the payment is {0}")]
    PaymentSettled(PaymentState),
    #[error("the refund is {0}")]
    RefundSettled(RefundState),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error("the gateway contradicts us: {0}")]
    Contradiction(Contradiction),
    #[error("the database is not available")]
    Unavailable,
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    NodeNumber(#[from] NodeNumberLost),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for PaymentError {
    fn db_fault(&self) -> Option<&DbFault> {
        if let Self::Db(fault) = self { Some(fault) } else { None }
    }
}

/// Why a notice was not obeyed.
#[derive(Debug, Error)]
pub enum NoticeError {
    #[error("payments through this channel are not set up here")]
    ChannelOff,
    #[error(transparent)]
    Refused(#[from] NoticeRefusal),
    #[error(transparent)]
    Contradiction(Contradiction),
    #[error(transparent)]
    Lane(LaneError<Contradiction>),
    #[error(transparent)]
    Payment(#[from] PaymentError),
}

/// What became of the open payments of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenPayments {
    /// No gateway will capture anything more.
    Closed,
    /// The customer was faster.
    Captured(PaymentId),
}

/// Settles what gateways say, in groups.
#[derive(Debug, Clone)]
struct SettlingDesk {
    ids: Ids,
    clock: SharedClock,
}

impl Desk for SettlingDesk {
    const NAME: &'static str = "payments";
    type Item = Arc<Report>;
    type Done = Payment;
    type Refusal = Contradiction;

    async fn settle(
        &self,
        tx: Tx,
        items: Arc<[Arc<Report>]>,
    ) -> Result<Vec<Result<Payment, Contradiction>>, DbFault> {
        let reports: Vec<Report> = items.iter().map(|report| report.as_ref().clone()).collect();
        store::settle(&tx, &self.ids, self.clock.now(), &reports).await
    }
}

/// Opens payments, settles them, gives money back. Clones share everything.
#[derive(Clone)]
pub struct PaymentService(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) db: Database,
    pub(super) ids: Ids,
    pub(super) clock: SharedClock,
    gateways: Gateways,
    pub(super) policy: Policy,
    lanes: Option<Lanes<SettlingDesk>>,
}

impl fmt::Debug for PaymentService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PaymentService").field("gateways", &self.0.gateways).finish_non_exhaustive()
    }
}

impl PaymentService {
    /// Without `settings` each statement is settled by itself: for a command, which has no actors.
    ///
    /// With them it must be called within an actix `System`.
    pub fn new(
        db: Database,
        ids: Ids,
        clock: SharedClock,
        gateways: Gateways,
        policy: Policy,
        settings: Option<BatchSettings>,
    ) -> Self {
        let desk = SettlingDesk { ids: ids.clone(), clock: clock.clone() };
        let lanes = settings.map(|settings| Lanes::new(db.clone(), settings, desk));
        Self(Arc::new(Inner { db, ids, clock, gateways, policy, lanes }))
    }

    /// The gateways it speaks to.
    pub fn gateways(&self) -> &Gateways {
        &self.0.gateways
    }

    /// The time it lives in.
    pub fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    pub(super) fn gateway(&self, channel: Channel) -> Result<Arc<dyn PaymentGateway>, PaymentError> {
        self.0.gateways.get(channel).ok_or(PaymentError::ChannelOff(channel))
    }

    fn gateway_of(&self, payment: &Payment) -> Result<Arc<dyn PaymentGateway>, PaymentError> {
        let (payment, channel) = (payment.id, payment.channel);
        self.0.gateways.get(channel).ok_or(PaymentError::GatewayGone { payment, channel })
    }

    /// The payments of `user`'s order, oldest first.
    pub async fn of_order(&self, user: UserId, order: OrderId) -> Result<Vec<Payment>, PaymentError> {
        self.visible(user, order).await?;
        Ok(self.0.db.read(move |db| async move { store::of_order(&db, order).await }).await?)
    }

    /// The refunds of `user`'s order, oldest first.
    pub async fn refunds_of(&self, user: UserId, order: OrderId) -> Result<Vec<Refund>, PaymentError> {
        self.visible(user, order).await?;
        Ok(self.0.db.read(move |db| async move { refund::all_of(&db, order).await }).await?)
    }

    /// A page of anybody's payments, newest first.
    pub async fn list(&self, listing: Listing) -> Result<Vec<Payment>, DbFault> {
        self.0.db.read(move |db| async move { store::page(&db, listing).await }).await
    }

    /// What its gateway said of a payment behind `after`, oldest first.
    pub async fn records(
        &self,
        payment: PaymentId,
        after: PaymentRecordId,
        limit: u64,
    ) -> Result<Vec<PaymentRecord>, PaymentError> {
        self.0
            .db
            .read(move |db| async move {
                store::find(&db, payment).await?.ok_or(PaymentError::NotFound)?;
                Ok(store::records(&db, payment, after, limit).await?)
            })
            .await
    }

    async fn visible(&self, user: UserId, order: OrderId) -> Result<Order, PaymentError> {
        let order = self.order(order).await?;
        if order.is_visible_to(user) { Ok(order) } else { Err(PaymentError::NotFound) }
    }

    async fn order(&self, id: OrderId) -> Result<Order, PaymentError> {
        let found = self.0.db.read(move |db| async move { orders::find(&db, id).await }).await?;
        found.ok_or(PaymentError::NotFound)
    }

    /// A payment and its order.
    pub async fn with_order(&self, id: PaymentId) -> Result<(Payment, Order), PaymentError> {
        self.0
            .db
            .read(move |db| async move {
                let payment = store::find(&db, id).await?.ok_or(PaymentError::NotFound)?;
                let order = orders::find(&db, payment.order_id).await?.ok_or(PaymentError::NotFound)?;
                Ok((payment, order))
            })
            .await
    }

    /// Obeys what a gateway sent us. The answer is for the gateway, and true: what it said is committed (PAY-6).
    pub async fn notice(
        &self,
        channel: Channel,
        headers: &NoticeHeaders,
        body: &[u8],
    ) -> Result<Acknowledgement, NoticeError> {
        let gateway = self.0.gateways.get(channel).ok_or(NoticeError::ChannelOff)?;
        let (payment, said) = match gateway.notice(headers, body, self.0.clock.now()) {
            Ok(notice) => {
                let payment = notice.payment_id;
                (payment, self.said(payment, channel, notice.kind).await?)
            }
            Err(NoticeRefusal::WrongMerchant { what, payment: Some(payment) }) => {
                (payment, Some(Said::Untrue(Contradiction::Merchant(what))))
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let Some(said) = said else { return Ok(gateway.acknowledge()) };
        let (body, headers) = (String::from_utf8_lossy(body).into_owned(), headers.signature(channel));
        match self.settle(Report { payment, channel, said, source: Source::Callback, body, headers }).await {
            Ok(_) => Ok(gateway.acknowledge()),
            Err(LaneError::Refused(contradiction)) => Err(NoticeError::Contradiction(contradiction)),
            Err(error) => Err(NoticeError::Lane(error)),
        }
    }

    /// What a notice says of `payment`, if anything; of a refund it is noted here, unless that cannot be true.
    async fn said(
        &self,
        payment: PaymentId,
        channel: Channel,
        kind: NoticeKind,
    ) -> Result<Option<Said>, PaymentError> {
        Ok(match kind {
            NoticeKind::Paid(capture) => Some(Said::Captured(capture)),
            NoticeKind::Failed { reason } => Some(Said::Failed { reason }),
            NoticeKind::Closed => Some(Said::Closed),
            NoticeKind::Pending | NoticeKind::Refund { refund_id: None, .. } => None,
            NoticeKind::Refund { refund_id: Some(refund), state } => {
                self.refund_told(refund, payment, channel, state).await?.map(Said::Untrue)
            }
        })
    }

    async fn settle(&self, report: Report) -> Result<Payment, LaneError<Contradiction>> {
        let (payment, channel) = (report.payment, report.channel);
        let settled = match &self.0.lanes {
            Some(lanes) => lanes.ask(payment.0, Arc::new(report)).await,
            None => self.settle_alone(report).await,
        };
        match &settled {
            Ok(settled) => info!(payment.id = %payment, "Payment {payment} is {}", settled.state),
            Err(LaneError::Refused(contradiction)) => alarm(payment, channel, contradiction),
            Err(fault) => {
                warn!(payment.id = %payment, error = %fault, "Payment {payment} is not settled yet");
            }
        }
        settled
    }

    async fn settle_alone(&self, report: Report) -> Result<Payment, LaneError<Contradiction>> {
        let (ids, clock, reports) = (self.0.ids.clone(), self.0.clock.clone(), [report]);
        let settling = self.0.db.transaction(move |tx| {
            let (ids, clock, reports) = (ids.clone(), clock.clone(), reports.clone());
            async move { store::settle(&tx, &ids, clock.now(), &reports).await }
        });
        let answers: Result<_, DbFault> = settling.await;
        let answer = answers.map_err(|_| LaneError::Unavailable)?.pop();
        answer.ok_or(LaneError::Unavailable)?.map_err(LaneError::Refused)
    }

    /// Asks the gateway where `payment` stands, and settles what it says; `None` if that is still open.
    pub async fn ask(&self, payment: &Payment) -> Result<Option<Payment>, PaymentError> {
        let said = match self.gateway_of(payment)?.query(payment.id).await? {
            // It never got there. While the order waits, its customer may still be on the way.
            GatewayState::Pending | GatewayState::NotFound => return Ok(None),
            GatewayState::Succeeded(capture) => Said::Captured(capture),
            GatewayState::Refunded(capture) => given_back(&capture),
            GatewayState::Failed => Said::Failed { reason: "the gateway says it failed".to_owned() },
            GatewayState::Closed => Said::Closed,
        };
        self.settle_answer(payment, said, Source::Query).await.map(Some)
    }

    /// Settles what a gateway answered when we asked.
    ///
    /// A capture that contradicts what is due pays for nothing, however often we ask: the payment failed, the order goes on
    /// or ends without it, and the money is for an operator to find out about (F40).
    async fn settle_answer(
        &self,
        payment: &Payment,
        said: Said,
        source: Source,
    ) -> Result<Payment, PaymentError> {
        let (id, channel) = (payment.id, payment.channel);
        let body = serde_json::to_string(&said).map_err(DbFault::from)?;
        let report = Report { payment: id, channel, said, source, body: body.clone(), headers: None };
        let settled = match self.settle(report).await {
            Err(LaneError::Refused(contradiction)) => {
                let said = Said::Failed { reason: contradiction.to_string() };
                self.settle(Report { payment: id, channel, said, source, body, headers: None }).await
            }
            settled => settled,
        };
        settled.map_err(|error| match error {
            LaneError::Refused(contradiction) => PaymentError::Contradiction(contradiction),
            LaneError::Unavailable | LaneError::Unserved(_) => PaymentError::Unavailable,
        })
    }

    /// What becomes of a payment that has been pending for long: its gateway is asked; once its order waits no more, it is
    /// closed there. One that ended here is closed there again. `None` if it stays pending.
    pub async fn follow_up(&self, payment: &Payment) -> Result<Option<Payment>, PaymentError> {
        match (payment.state, self.order(payment.order_id).await?.state) {
            (PaymentState::Pending, State::AwaitingPayment) => self.ask(payment).await,
            _ => self.close(payment).await.map(Some),
        }
    }

    /// Makes sure that nothing more is captured for `order`, so that what it holds can be given away (R22).
    ///
    /// Fails while a gateway does not say clearly how things stand: then nothing is known, and nothing may be given away.
    pub async fn close_open(&self, order: OrderId) -> Result<OpenPayments, PaymentError> {
        let payments = self.0.db.read(move |db| async move { store::of_order(&db, order).await }).await;
        let payments: Vec<Payment> = payments.map_err(|fault: DbFault| fault)?;
        let mut outcome = OpenPayments::Closed;
        for payment in payments {
            let settled = match payment.state {
                PaymentState::Pending => self.close(&payment).await?,
                PaymentState::Succeeded | PaymentState::Failed | PaymentState::Closed => payment,
            };
            if settled.state == PaymentState::Succeeded {
                outcome = OpenPayments::Captured(settled.id);
            }
        }
        Ok(outcome)
    }

    pub(super) async fn close(&self, payment: &Payment) -> Result<Payment, PaymentError> {
        let said = match self.gateway_of(payment)?.close(payment.id).await {
            Ok(Closing::Closed) => Said::Closed,
            Ok(Closing::Unknown) => {
                Said::Unknown { until: self.order(payment.order_id).await?.due_at + LATE_CAPTURE }
            }
            Ok(Closing::AlreadyPaid(capture)) => Said::Captured(capture),
            Ok(Closing::Refunded(capture)) => given_back(&capture),
            Err(unclear) => {
                warn!(payment.id = %payment.id, error = %unclear, "Closing payment {} is unclear: asking", payment.id);
                return self.ask(payment).await?.ok_or(unclear.into());
            }
        };
        self.settle_answer(payment, said, Source::Close).await
    }

    /// An operator says that a payment comes to nothing whose gateway is not set up here any more, so that its order can
    /// end. What a gateway that can be asked says is not an operator's to say.
    ///
    /// If it was captured nevertheless, that is a late payment: it is told by a notice, or when the gateway is asked, once it
    /// is set up again.
    pub async fn give_up(
        &self,
        by: UserId,
        id: PaymentId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<PaymentDetail>, PaymentError> {
        let payments = self.clone();
        idempotency::once(&self.0.db, &self.0.clock, key, 200, move |tx| {
            let (payments, said) = (payments.clone(), Said::GivenUp { by, reason: reason.clone() });
            async move {
                let payment = store::find(&tx, id).await?.ok_or(PaymentError::NotFound)?;
                match payment.state {
                    PaymentState::Closed => return Ok(payment.into()),
                    PaymentState::Pending => {}
                    state @ (PaymentState::Succeeded | PaymentState::Failed) => {
                        return Err(PaymentError::PaymentSettled(state));
                    }
                }
                let channel = payment.channel;
                payments.is_gone(channel)?;
                let body = serde_json::to_string(&said).map_err(DbFault::from)?;
                let report =
                    Report { payment: id, channel, said, source: Source::Operator, body, headers: None };
                let settled = store::settle(&tx, &payments.0.ids, payments.now(), &[report]).await?.pop();
                let settled = settled.ok_or(DbFault::Missing("an answer to a report"))?;
                match settled.map_err(PaymentError::Contradiction)? {
                    closed if closed.state == PaymentState::Closed => Ok(closed.into()),
                    faster => Err(PaymentError::PaymentSettled(faster.state)),
                }
            }
        })
        .await
    }

    /// An operator's word counts only where no gateway can be asked.
    pub(super) fn is_gone(&self, channel: Channel) -> Result<(), PaymentError> {
        match self.0.gateways.get(channel) {
            Some(_) => Err(PaymentError::GatewayDecides(channel)),
            None => Ok(()),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Payments through `channel` that its gateway has to be asked about, behind `after`.
    pub async fn unsettled(
        &self,
        why: Unsettled,
        channel: Channel,
        after: PaymentId,
        limit: u64,
    ) -> Result<Vec<Payment>, DbFault> {
        let read = move |db| async move { store::unsettled(&db, why, channel, after, limit).await };
        self.0.db.read(read).await
    }

    /// Lets what was accepted be settled.
    pub async fn stop(&self) {
        if let Some(lanes) = &self.0.lanes {
            lanes.stop().await;
        }
    }
}

/// Tells those who watch that a gateway and we disagree about money (F40).
fn alarm(payment: PaymentId, channel: Channel, contradiction: &Contradiction) {
    metrics::counter!("tombola_payment_contradictions_total", "channel" => channel.word()).increment(1);
    error!(payment.id = %payment, %channel, "The gateway contradicts us about payment {payment}: {contradiction}");
}

/// The shop gave it back past us, so it pays for nothing.
fn given_back(capture: &Capture) -> Said {
    Said::Failed { reason: capture.given_back() }
}
