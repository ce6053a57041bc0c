//! Payments and refunds.

use entities::{payment, payment_record, refund};
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::DbFault;
use crate::ids::{OrderId, PaymentId, PaymentRecordId, RefundId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::Currency;
use crate::ports::clock::{Timestamp, from_micros};
use crate::ports::payment_gateway::{Channel, PaymentMode, PaymentParams};
use crate::words::words;

words! {
    /// What became of an attempt to pay.
    PaymentState, "state of a payment" {
        Pending = "pending",
        Succeeded = "succeeded",
        Failed = "failed",
        Closed = "closed",
    }
}

words! {
    /// How far money is on its way back.
    ///
    /// `requested` waits for an operator, `approved` for the gateway.
    RefundState, "state of a refund" {
        Requested = "requested",
        Approved = "approved",
        Succeeded = "succeeded",
        Failed = "failed",
        Rejected = "rejected",
    }
}

words! {
    /// Why money goes back.
    RefundCause, "cause of a refund" {
        Order = "order",
        LatePayment = "late_payment",
        DoublePayment = "double_payment",
    }
}

/// An attempt to pay an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub id: PaymentId,
    pub order_id: OrderId,
    pub user_id: UserId,
    pub channel: Channel,
    pub state: PaymentState,
    pub amount_minor: i64,
    pub currency: Currency,
    /// The gateway's name for the capture.
    pub transaction_id: Option<String>,
    /// Who paid, as the gateway names them.
    pub payer: Option<String>,
    pub wish: Wish,
    pub failure: Option<String>,
    pub created_at: Timestamp,
    pub settled_at: Option<Timestamp>,
    /// When its gateway is asked once more, although it ended here.
    pub recheck_at: Option<Timestamp>,
}

/// How a customer wants to pay through a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// None: the channel's usual way.
    pub mode: Option<PaymentMode>,
    /// Who is to pay, as the gateway names them.
    pub payer: Option<String>,
}

impl Wish {
    /// Whether what was prepared for `self` serves `other` too: gateways take no second order of one number in another
    /// mode.
    pub fn serves(&self, other: &Self) -> bool {
        (other.mode.is_none() || other.mode == self.mode)
            && (other.payer.is_none() || other.payer == self.payer)
    }
}

impl TryFrom<payment::Model> for Payment {
    type Error = DbFault;

    fn try_from(row: payment::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: PaymentId(row.id),
            order_id: OrderId(row.order_id),
            user_id: UserId(row.user_id),
            channel: row.channel.parse()?,
            state: row.state.parse()?,
            amount_minor: row.amount_minor,
            currency: row.currency.parse().map_err(|_| DbFault::Missing("a known currency"))?,
            transaction_id: row.transaction_id,
            payer: row.payer,
            wish: Wish { mode: row.mode.as_deref().map(str::parse).transpose()?, payer: row.wished_payer },
            failure: row.failure,
            created_at: from_micros(row.created_at),
            settled_at: row.settled_at.map(from_micros),
            recheck_at: row.recheck_at.map(from_micros),
        })
    }
}

/// An attempt to pay, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PaymentView {
    pub id: PaymentId,
    pub order_id: OrderId,
    pub state: PaymentState,
    pub amount_minor: i64,
    pub currency: Currency,
    pub channel: Channel,
    /// Why it came to nothing.
    pub failure: Option<String>,
    /// What the client needs in order to pay, in the gateway's own words; only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub params: Option<PaymentParams>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl From<Payment> for PaymentView {
    fn from(payment: Payment) -> Self {
        Self {
            id: payment.id,
            order_id: payment.order_id,
            state: payment.state,
            amount_minor: payment.amount_minor,
            currency: payment.currency,
            channel: payment.channel,
            failure: payment.failure,
            params: None,
            created_at: payment.created_at,
        }
    }
}

/// An attempt to pay, as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PaymentDetail {
    #[serde(flatten)]
    pub payment: PaymentView,
    pub user_id: UserId,
    /// How the customer wanted to pay; null: the channel's usual way.
    pub mode: Option<PaymentMode>,
    /// The gateway's name for the capture.
    pub transaction_id: Option<String>,
    /// Who paid, as the gateway names them.
    pub payer: Option<String>,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    pub settled_at: Option<Timestamp>,
}

impl From<Payment> for PaymentDetail {
    fn from(payment: Payment) -> Self {
        Self {
            user_id: payment.user_id,
            mode: payment.wish.mode,
            transaction_id: payment.transaction_id.clone(),
            payer: payment.payer.clone(),
            settled_at: payment.settled_at,
            payment: payment.into(),
        }
    }
}

/// Something new that a gateway said of a payment, or an operator in its place (PAY-3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PaymentRecord {
    pub id: PaymentRecordId,
    pub payment_id: PaymentId,
    /// How it came to be known: by a `callback`, as the answer to a `query` or a `close`, or from an `operator`.
    pub source: String,
    /// What the payment was from then on.
    pub outcome: PaymentState,
    /// Why it was not believed, and changed nothing; null if it was believed.
    pub contradiction: Option<String>,
    pub transaction_id: Option<String>,
    /// A callback as the gateway sent it; an answer as it was understood, in JSON.
    pub body: String,
    /// The headers that a callback was signed with, as a JSON object.
    pub headers: Option<String>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

impl TryFrom<payment_record::Model> for PaymentRecord {
    type Error = DbFault;

    fn try_from(row: payment_record::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: PaymentRecordId(row.id),
            payment_id: PaymentId(row.payment_id),
            source: row.kind,
            outcome: row.outcome.parse()?,
            contradiction: row.contradiction,
            transaction_id: row.transaction_id,
            body: row.body,
            headers: row.headers,
            at: from_micros(row.received_at),
        })
    }
}

/// A payment that waits for its customer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Opened {
    pub payment: PaymentView,
}

/// Money on its way back, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Refund {
    pub id: RefundId,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// Null if no gateway took part, or if it was rejected.
    pub payment_id: Option<PaymentId>,
    pub channel: Option<Channel>,
    /// Through the gateway.
    pub amount_minor: i64,
    /// To the user's balance.
    pub balance_minor: i64,
    pub currency: Currency,
    pub state: RefundState,
    pub cause: RefundCause,
    pub reason: String,
    pub failure: Option<String>,
    /// How an operator settled by hand what the gateway did not do.
    pub note: Option<String>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl TryFrom<refund::Model> for Refund {
    type Error = DbFault;

    fn try_from(row: refund::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: RefundId(row.id),
            order_id: OrderId(row.order_id),
            user_id: UserId(row.user_id),
            payment_id: row.payment_id.map(PaymentId),
            channel: row.channel.as_deref().map(str::parse).transpose()?,
            amount_minor: row.amount_minor,
            balance_minor: row.balance_minor,
            currency: row.currency.parse().map_err(|_| DbFault::Missing("a known currency"))?,
            state: row.state.parse()?,
            cause: row.cause.parse()?,
            reason: row.reason,
            failure: row.failure,
            note: row.note,
            created_at: from_micros(row.created_at),
            updated_at: from_micros(row.updated_at),
        })
    }
}

/// Money on its way back, as its customer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefundView {
    pub id: RefundId,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// Null if no gateway took part, or if it was rejected.
    pub payment_id: Option<PaymentId>,
    pub channel: Option<Channel>,
    /// Through the gateway.
    pub amount_minor: i64,
    /// To the user's balance.
    pub balance_minor: i64,
    pub currency: Currency,
    pub state: RefundState,
    pub cause: RefundCause,
    pub reason: String,
    /// Why it was rejected. What a gateway says of a refund that failed is for operators.
    pub failure: Option<String>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<Refund> for RefundView {
    fn from(refund: Refund) -> Self {
        let rejected = refund.state == RefundState::Rejected;
        Self {
            id: refund.id,
            order_id: refund.order_id,
            user_id: refund.user_id,
            payment_id: refund.payment_id,
            channel: refund.channel,
            amount_minor: refund.amount_minor,
            balance_minor: refund.balance_minor,
            currency: refund.currency,
            state: refund.state,
            cause: refund.cause,
            reason: refund.reason,
            failure: refund.failure.filter(|_| rejected),
            created_at: refund.created_at,
            updated_at: refund.updated_at,
        }
    }
}
