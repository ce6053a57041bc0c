//! What takes the customers' money: WeChat Pay, Alipay, or a sandbox that only pretends to.
//!
//! The gateway is the truth about money and this port only tells what it said: nothing here reads or writes the
//! database. Two rules shape it (RELIABILITY R22, D2):
//!
//! - A request that may or may not have been carried out is [`GatewayError::Unclear`], never a failure. Every request
//!   may be repeated: payments and refunds are known to the gateway by our ids.
//! - What a gateway sends is verified over the bytes as they came, and compared with our merchant account, before
//!   anything in it is believed. Whether it fits our payment (the amount, the currency) is for the caller to check.

pub mod alipay;
mod rsa;
pub mod sandbox;
pub mod sandbox_page;
#[cfg(test)]
pub(crate) mod tests;
pub mod wechat;
mod yuan;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::NaiveDate;
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use self::sandbox::Sandbox;
use crate::ids::{PaymentId, RefundId};
use crate::money::Currency;
use crate::ports::clock::Timestamp;
use crate::ports::wire::Unanswered;
use crate::words::words;

/// The longest answer that is read: a busy shop's statement of a day.
const LONGEST_ANSWER: usize = 256 << 20;
/// The longest text of a notice's signature that is kept, in bytes.
const LONGEST_SIGNATURE: usize = 4096;

words! {
    /// Whom a customer pays through.
    Channel, "payment channel" {
        Sandbox = "sandbox",
        Wechat = "wechat",
        Alipay = "alipay",
    }
}

words! {
    /// How a customer gets to the gateway.
    PaymentMode, "payment mode" {
        Native = "native",
        Jsapi = "jsapi",
        Precreate = "precreate",
        Page = "page",
    }
}

/// What a customer is to pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentOrder {
    pub payment_id: PaymentId,
    /// What the customer reads in the gateway's application.
    pub description: String,
    pub amount_minor: i64,
    pub currency: Currency,
    /// From then on the gateway takes no money for it.
    pub expires_at: Timestamp,
    /// Who pays, as the gateway knows them (an openid).
    pub payer: Option<String>,
    /// Unless given, what the channel usually does.
    pub mode: Option<PaymentMode>,
}

/// What the client needs in order to pay, in the gateway's own words.
pub type PaymentParams = Map<String, Value>;

/// Money that a gateway took for us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capture {
    /// The gateway's number for it.
    pub transaction_id: String,
    pub amount_minor: i64,
    pub currency: Currency,
    pub payer: Option<String>,
    pub paid_at: Timestamp,
}

impl Capture {
    /// Why a capture that went back past us pays for nothing.
    pub fn given_back(&self) -> String {
        format!("{} was captured and given back at the gateway", self.transaction_id)
    }
}

/// Where a payment stands at the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayState {
    /// The gateway does not know it: nothing was paid.
    NotFound,
    Pending,
    Succeeded(Capture),
    Failed,
    /// Nothing was paid, and nothing will be.
    Closed,
    /// It was paid, and all or a part of that was given back.
    Refunded(Capture),
}

/// How closing a payment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// The gateway takes no money for it any more; what it takes nevertheless is a late payment.
    Closed,
    /// The gateway does not know it, so there was nothing to close: nothing was paid, but a code that the customer has may
    /// still be paid until it expires.
    Unknown,
    /// The customer was faster.
    AlreadyPaid(Capture),
    /// It was paid, and all or a part of that was given back.
    Refunded(Capture),
}

impl GatewayState {
    /// How a close ended that the gateway refused with `refusal`.
    fn closing(self, refusal: &GatewayError) -> Result<Closing, GatewayError> {
        match self {
            Self::Succeeded(capture) => Ok(Closing::AlreadyPaid(capture)),
            Self::Refunded(capture) => Ok(Closing::Refunded(capture)),
            Self::Closed => Ok(Closing::Closed),
            Self::NotFound => Ok(Closing::Unknown),
            Self::Pending | Self::Failed => Err(GatewayError::Unclear(refusal.to_string())),
        }
    }
}

/// Money to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundOrder {
    pub refund_id: RefundId,
    pub payment_id: PaymentId,
    /// The gateway's number for the payment.
    pub transaction_id: String,
    pub amount_minor: i64,
    /// What was paid.
    pub total_minor: i64,
    pub currency: Currency,
    /// What the customer reads.
    pub reason: String,
}

/// Where a refund stands at the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefundState {
    /// The gateway does not know it: nothing was given back.
    NotFound,
    Processing,
    Succeeded,
    /// The gateway gave up, and a person has to look at it there.
    Failed {
        reason: String,
    },
}

/// Why a gateway did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GatewayError {
    /// Whether it did is unknown: no answer in time, a fault of its own, an answer that cannot be believed. Ask again.
    #[error("the payment gateway did not answer clearly: {0}")]
    Unclear(String),
    /// It understood and did nothing.
    #[error("the payment gateway refused: {code}: {message}")]
    Refused { code: String, message: String },
    /// It was not asked, because it does not do such things.
    #[error("the payment gateway cannot do this: {0}")]
    Unfit(String),
}

impl From<Unanswered> for GatewayError {
    fn from(unanswered: Unanswered) -> Self {
        Self::Unclear(unanswered.0)
    }
}

/// What a gateway tells us without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub payment_id: PaymentId,
    pub kind: NoticeKind,
}

/// What happened to a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticeKind {
    Paid(Capture),
    Failed {
        reason: String,
    },
    /// Nothing was paid, and nothing will be.
    Closed,
    /// Something of it was given back, or failed to be; without an id it was not us who asked for that.
    Refund {
        refund_id: Option<RefundId>,
        state: RefundState,
    },
    /// Nothing that matters: the customer is about to pay.
    Pending,
}

/// Why a notice is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoticeRefusal {
    /// Nobody who knows the gateway's key signed these bytes.
    #[error("not signed by the payment gateway: {0}")]
    Forged(String),
    /// It was signed too long ago, or in the future.
    #[error("signed at another time than now")]
    Stale,
    /// It is from the gateway and cannot be read.
    #[error("not a notice: {0}")]
    Malformed(String),
    /// It is from the gateway and about somebody else's money.
    #[error("about another merchant: {what}")]
    WrongMerchant {
        what: String,
        /// Ours, if its number is that of one.
        payment: Option<PaymentId>,
    },
}

impl NoticeRefusal {
    /// The notice is about the payment that another merchant, or another system of ours, gave this number.
    fn wrong_merchant(what: &str, number: Option<&str>) -> Self {
        let payment = number.and_then(|number| number.parse().ok());
        Self::WrongMerchant { what: what.to_owned(), payment }
    }
}

/// What the gateway wants to read once its notice is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    pub status: u16,
    pub content_type: &'static str,
    pub body: &'static str,
}

/// The headers of a notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoticeHeaders(Vec<(String, String)>);

impl NoticeHeaders {
    /// The value of `name`, in whatever case; none if it was sent twice, because then nobody knows which one counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }

    /// The headers that it takes to verify a notice of `channel` again later, as a JSON object; none if its signature is in
    /// the body. Others are not worth keeping, and some are secret; nor is what is longer than any signature.
    pub fn signature(&self, channel: Channel) -> Option<String> {
        let names: &[&str] = match channel {
            Channel::Sandbox => &[sandbox::SIGNATURE],
            Channel::Wechat => &wechat::SIGNATURE,
            Channel::Alipay => &[],
        };
        let found: Map<String, Value> =
            names.iter().filter_map(|name| Some(((*name).to_owned(), self.get(name)?.into()))).collect();
        (!found.is_empty())
            .then(|| Value::Object(found).to_string())
            .filter(|json| json.len() <= LONGEST_SIGNATURE)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for NoticeHeaders {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        Self(headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// A line of the gateway's statement of a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementLine {
    /// None if the number is none of ours: another system uses the same merchant account.
    pub payment_id: Option<PaymentId>,
    pub transaction_id: String,
    pub movement: Movement,
    pub currency: Currency,
}

/// Money that went to us or back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Movement {
    Captured {
        amount_minor: i64,
    },
    Refunded {
        refund_id: Option<RefundId>,
        amount_minor: i64,
        /// Whether it had reached the customer when the statement was made; a later one does not say.
        arrived: bool,
    },
}

/// Takes money and gives it back. Every request may be repeated: it then answers as before.
#[async_trait]
pub trait PaymentGateway: Send + Sync + fmt::Debug {
    /// Which one it is.
    fn channel(&self) -> Channel;

    /// Whether a payment can be made in `mode`, the usual one if none is named, by `payer`: what cannot is
    /// [`GatewayError::Unfit`]. Asks nobody.
    fn fits(&self, mode: Option<PaymentMode>, payer: Option<&str>) -> Result<(), GatewayError>;

    /// Prepares a payment and says how the customer makes it.
    async fn create(&self, order: &PaymentOrder) -> Result<PaymentParams, GatewayError>;

    /// Where a payment stands.
    async fn query(&self, payment_id: PaymentId) -> Result<GatewayState, GatewayError>;

    /// Makes sure that a payment cannot be made any more, unless it was.
    async fn close(&self, payment_id: PaymentId) -> Result<Closing, GatewayError>;

    /// Gives money back.
    async fn refund(&self, order: &RefundOrder) -> Result<RefundState, GatewayError>;

    /// Where a refund stands.
    async fn query_refund(
        &self,
        payment_id: PaymentId,
        refund_id: RefundId,
    ) -> Result<RefundState, GatewayError>;

    /// Reads what the gateway sent us, if it is the gateway, and about our merchant account.
    fn notice(&self, headers: &NoticeHeaders, body: &[u8], now: Timestamp) -> Result<Notice, NoticeRefusal>;

    /// The answer to a notice that was kept; any other answer makes the gateway repeat it.
    fn acknowledge(&self) -> Acknowledgement;

    /// What moved on `day`, by the gateway's own calendar. None if this gateway gives no statement that can be read, and
    /// refused if it gives none of `day`: then compare payment by payment, with [`query`](PaymentGateway::query).
    async fn statement(&self, _day: NaiveDate) -> Result<Option<Vec<StatementLine>>, GatewayError> {
        Ok(None)
    }
}

/// A setting of a gateway that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{key}` {problem}")]
pub struct InvalidSetting {
    pub key: &'static str,
    pub problem: String,
}

impl InvalidSetting {
    /// The setting `key`, and what is wrong with it.
    pub fn new(key: &'static str, problem: impl Into<String>) -> Self {
        Self { key, problem: problem.into() }
    }
}

/// The gateways of this server.
#[derive(Debug, Clone, Default)]
pub struct Gateways {
    sandbox: Option<Arc<Sandbox>>,
    others: Vec<Arc<dyn PaymentGateway>>,
}

impl Gateways {
    /// These and no others.
    pub fn new(sandbox: Option<Arc<Sandbox>>, others: Vec<Arc<dyn PaymentGateway>>) -> Self {
        Self { sandbox, others }
    }

    /// The gateway of `channel`, if it is set up.
    pub fn get(&self, channel: Channel) -> Option<Arc<dyn PaymentGateway>> {
        match channel {
            Channel::Sandbox => self.sandbox.clone().map(|sandbox| sandbox as Arc<dyn PaymentGateway>),
            Channel::Wechat | Channel::Alipay => {
                self.others.iter().find(|gateway| gateway.channel() == channel).cloned()
            }
        }
    }

    /// Those that take money: all but the sandbox, which forgets.
    pub fn with_money(&self) -> &[Arc<dyn PaymentGateway>] {
        &self.others
    }

    /// The sandbox, if it is on: it also has a page to pay on.
    pub fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        self.sandbox.as_ref()
    }
}

/// As much of `text` as fits into `bytes`.
fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
