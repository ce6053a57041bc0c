//! Parsed values: whoever holds one need not check it again.

use std::fmt;

use entities::orders;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine::{State, Status};
use crate::db::DbFault;
use crate::ids::{ActivityId, CouponId, GoodsId, OrderId, PaymentId, RefundId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::Currency;
use crate::ports::clock::{Timestamp, from_micros};
use crate::words::words;

words! {
    /// Where an order comes from.
    #[schema(as = OrderKind)]
    Kind, "kind of order" {
        Shop = "shop",
        FlashSale = "flash_sale",
    }
}

words! {
    /// Why an order was cancelled.
    CancelCause, "cause of a cancellation" {
        Customer = "customer",
        Operator = "operator",
        Timeout = "timeout",
        Failed = "failed",
    }
}

/// What was bought, at the price it had then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    /// Null for a flash sale that names no goods of the shop.
    pub goods_id: Option<GoodsId>,
    pub name: String,
    #[schema(minimum = 1)]
    pub quantity: i32,
    pub unit_price_minor: i64,
}

/// Where an order goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    #[schema(min_length = 1, max_length = 64)]
    pub consignee: String,
    #[schema(min_length = 1, max_length = 32)]
    pub phone: String,
    #[schema(min_length = 1, max_length = 256)]
    pub line: String,
}

/// How an order's amounts add up: `order = goods + shipping`, `payable = order - coupon - balance`, none negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Amounts {
    pub goods_amount_minor: i64,
    pub shipping_fee_minor: i64,
    pub order_amount_minor: i64,
    pub coupon_deduction_minor: i64,
    pub balance_paid_minor: i64,
    /// What is left for a gateway.
    pub payable_minor: i64,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub id: OrderId,
    pub user_id: UserId,
    pub kind: Kind,
    pub state: State,
    /// Raised by every change.
    pub version: i64,
    pub activity_id: Option<ActivityId>,
    /// JSON of `Vec<Line>`: read only where it is shown.
    pub items: String,
    /// JSON of [`Address`].
    pub address: Option<String>,
    pub amounts: Amounts,
    pub coupon_id: Option<CouponId>,
    pub currency: Currency,
    /// When a draft, or an order awaiting payment, is given up.
    pub due_at: Timestamp,
    pub paid_by: Option<PaymentId>,
    pub refund_from: Option<State>,
    pub cancel_cause: Option<CancelCause>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Order {
    /// What the machine decides by.
    pub fn status(&self, payment_open: bool) -> Status {
        Status {
            state: self.state,
            due_at: self.due_at,
            payable_minor: self.amounts.payable_minor,
            payment_open,
            paid_by: self.paid_by,
            refund_from: self.refund_from,
        }
    }

    /// Whether `user` may know of it: it is theirs, and confirmed (ORD-4).
    pub fn is_visible_to(&self, user: UserId) -> bool {
        self.user_id == user && !matches!(self.state, State::Draft | State::Invalid)
    }

    /// The order as it is shown.
    pub fn view(&self) -> Result<OrderView, DbFault> {
        let address = self.address.as_deref().map(serde_json::from_str).transpose()?;
        Ok(self.view_of(serde_json::from_str(&self.items)?, address))
    }

    /// The order as it is shown, given its lines and its address.
    pub(super) fn view_of(&self, items: Vec<Line>, address: Option<Address>) -> OrderView {
        OrderView {
            id: self.id,
            user_id: self.user_id,
            kind: self.kind,
            state: self.state,
            version: self.version,
            activity_id: self.activity_id,
            take_id: (self.kind == Kind::FlashSale).then_some(self.id),
            items,
            address,
            amounts: self.amounts,
            coupon_id: self.coupon_id,
            currency: self.currency,
            payment_due_at: self.due_at,
            cancel_cause: self.cancel_cause,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

impl TryFrom<orders::Model> for Order {
    type Error = DbFault;

    fn try_from(row: orders::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: OrderId(row.id),
            user_id: UserId(row.user_id),
            kind: row.kind.parse()?,
            state: row.state.parse()?,
            version: row.version,
            activity_id: row.activity_id.map(ActivityId),
            items: row.items,
            address: row.address,
            amounts: Amounts {
                goods_amount_minor: row.goods_amount_minor,
                shipping_fee_minor: row.shipping_fee_minor,
                order_amount_minor: row.order_amount_minor,
                coupon_deduction_minor: row.coupon_deduction_minor,
                balance_paid_minor: row.balance_paid_minor,
                payable_minor: row.payable_minor,
            },
            coupon_id: row.coupon_id.map(CouponId),
            currency: row.currency.parse().map_err(|_| DbFault::Missing("a known currency"))?,
            due_at: from_micros(row.due_at),
            paid_by: row.paid_payment_id.map(PaymentId),
            refund_from: row.refund_from.as_deref().map(str::parse).transpose()?,
            cancel_cause: row.cancel_cause.as_deref().map(str::parse).transpose()?,
            created_at: from_micros(row.created_at),
            updated_at: from_micros(row.updated_at),
        })
    }
}

/// An order as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OrderView {
    pub id: OrderId,
    pub user_id: UserId,
    pub kind: Kind,
    pub state: State,
    /// Raised by every change.
    pub version: i64,
    /// The flash sale it comes from.
    pub activity_id: Option<ActivityId>,
    /// The take it comes from.
    #[schema(value_type = Option<String>)]
    pub take_id: Option<OrderId>,
    pub items: Vec<Line>,
    pub address: Option<Address>,
    #[serde(flatten)]
    pub amounts: Amounts,
    pub coupon_id: Option<CouponId>,
    pub currency: Currency,
    /// Unpaid until then, it is cancelled.
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub payment_due_at: Timestamp,
    pub cancel_cause: Option<CancelCause>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// Who or what changed an order; the timeline shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Customer(UserId),
    Operator(UserId),
    /// Its time was up.
    Deadline,
    /// The steps of its creation.
    Creation,
    Payment(PaymentId),
    Refund(RefundId),
}

impl Cause {
    /// Why an order ends that is cancelled for this.
    pub fn of_cancellation(self) -> CancelCause {
        match self {
            Self::Customer(_) | Self::Payment(_) | Self::Refund(_) => CancelCause::Customer,
            Self::Operator(_) => CancelCause::Operator,
            Self::Deadline => CancelCause::Timeout,
            Self::Creation => CancelCause::Failed,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Customer(user) => write!(f, "customer {user}"),
            Self::Operator(user) => write!(f, "operator {user}"),
            Self::Deadline => f.write_str("deadline"),
            Self::Creation => f.write_str("creation"),
            Self::Payment(payment) => write!(f, "payment {payment}"),
            Self::Refund(refund) => write!(f, "refund {refund}"),
        }
    }
}

/// One line of an order's timeline.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TimelineEntry {
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The order's version since then.
    pub version: i64,
    #[serde(rename = "type")]
    #[schema(example = "paid")]
    pub event_type: String,
    /// Who or what did it.
    #[schema(example = "payment 117546623994691586")]
    pub cause: String,
    pub data: serde_json::Value,
}
