//! Alipay, as <https://opendocs.alipay.com/open/270> describes it for a merchant in China with public keys ("RSA2").
//!
//! Everything goes through one address, as parameters that we sign with the application's private key; Alipay signs its
//! answers and notices with its own. It writes money in yuan and time on the clock of Beijing.
//!
//! Alipay knows a payment only once the customer has opened it. Closing one that was not opened yet says so and closes
//! nothing; its time to pay does, and what is paid until then is a late payment.
//!
//! Its statement of a day is an archive of files in GBK, which is not read here: payments are compared one by one.

mod api;
mod notice;

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use self::api::Api;
use super::yuan::{cny, fen, local_time, parse_local_time, yuan};
use super::{
    Acknowledgement, Capture, Channel, Closing, GatewayError, GatewayState, InvalidSetting, Notice,
    NoticeHeaders, NoticeRefusal, PaymentGateway, PaymentMode, PaymentOrder, PaymentParams, RefundOrder,
    RefundState, shortened,
};
use crate::ids::{PaymentId, RefundId};
use crate::ports::clock::{SharedClock, Timestamp};
use crate::ports::wire::{TIMEOUT, check_url};

/// Where Alipay is.
pub const BASE_URL: &str = "https://openapi.alipay.com/gateway.do";

/// The longest subject, and the longest reason of a refund, in bytes.
const LONGEST_TEXT: usize = 256;

/// The answer about a payment that Alipay does not know.
const NOT_THERE: &str = "ACQ.TRADE_NOT_EXIST";

/// The settings of Alipay.
#[derive(Debug, Clone)]
pub struct AlipayConfig {
    pub base_url: String,
    pub app_id: String,
    /// The merchant's own number, which begins with 2088.
    pub seller_id: String,
    /// The application's, in PEM or in Base64.
    pub private_key: SecretString,
    /// Alipay's, in PEM or in Base64.
    pub public_key: String,
    pub notify_url: String,
    /// How long a request may take.
    pub timeout: Duration,
}

impl AlipayConfig {
    /// Settings with nothing in them but Alipay's address.
    pub fn empty() -> Self {
        Self {
            base_url: BASE_URL.to_owned(),
            app_id: String::new(),
            seller_id: String::new(),
            private_key: SecretString::default(),
            public_key: String::new(),
            notify_url: String::new(),
            timeout: TIMEOUT,
        }
    }
}

/// Alipay.
#[derive(Debug)]
pub struct Alipay {
    api: Api,
    seller_id: String,
}

#[derive(Debug, Deserialize)]
struct Precreated {
    qr_code: String,
}

#[derive(Debug, Deserialize)]
struct Trade {
    out_trade_no: String,
    trade_no: String,
    trade_status: String,
    total_amount: Option<String>,
    /// When it was paid.
    send_pay_date: Option<String>,
    buyer_user_id: Option<String>,
    buyer_open_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Refunded {
    #[serde(default)]
    fund_change: String,
}

#[derive(Debug, Deserialize)]
struct RefundQueried {
    refund_status: Option<String>,
}

impl Alipay {
    /// Alipay for the application of `config`; asks nobody yet.
    pub fn new(config: &AlipayConfig, clock: SharedClock) -> Result<Self, InvalidSetting> {
        let given = [
            ("payment.alipay.seller_id", &config.seller_id),
            ("payment.alipay.public_key", &config.public_key),
            ("payment.alipay.notify_url", &config.notify_url),
        ];
        if let Some((key, _)) = given.into_iter().find(|(_, value)| value.is_empty()) {
            return Err(InvalidSetting::new(key, "is needed, because payment.alipay.app_id is set"));
        }
        check_url(&config.notify_url)
            .map_err(|problem| InvalidSetting::new("payment.alipay.notify_url", problem))?;
        Ok(Self { api: Api::new(config, clock)?, seller_id: config.seller_id.clone() })
    }

    /// Where the trade stands; an error says what makes no sense.
    fn state(trade: &Trade, payment_id: PaymentId) -> Result<GatewayState, String> {
        if trade.out_trade_no != payment_id.to_string() {
            return Err("the answer is about another payment".to_owned());
        }
        let paid_at = trade.send_pay_date.as_deref().and_then(parse_local_time);
        let capture = || {
            let missing = |member: &str| format!("paid, without {member}");
            Ok::<_, String>(Capture {
                transaction_id: trade.trade_no.clone(),
                amount_minor: trade
                    .total_amount
                    .as_deref()
                    .and_then(fen)
                    .ok_or_else(|| missing("total_amount"))?,
                currency: cny().map_err(|error| error.to_string())?,
                payer: trade.buyer_user_id.clone().or_else(|| trade.buyer_open_id.clone()),
                paid_at: paid_at.ok_or_else(|| missing("send_pay_date"))?,
            })
        };
        Ok(match trade.trade_status.as_str() {
            "TRADE_SUCCESS" | "TRADE_FINISHED" => GatewayState::Succeeded(capture()?),
            // Closed without payment, or after all of it was given back.
            "TRADE_CLOSED" if paid_at.is_some() => GatewayState::Refunded(capture()?),
            "TRADE_CLOSED" => GatewayState::Closed,
            "WAIT_BUYER_PAY" => GatewayState::Pending,
            other => return Err(format!("unknown trade_status {other:?}")),
        })
    }
}

#[async_trait]
impl PaymentGateway for Alipay {
    fn channel(&self) -> Channel {
        Channel::Alipay
    }

    fn fits(&self, mode: Option<PaymentMode>, _: Option<&str>) -> Result<(), GatewayError> {
        way(mode).map(drop)
    }

    /// `qr_code`, to be shown as such (precreate), or `pay_url`, to be opened (page).
    async fn create(&self, order: &PaymentOrder) -> Result<PaymentParams, GatewayError> {
        if order.currency != cny()? {
            return Err(GatewayError::Unfit("only CNY is taken".to_owned()));
        }
        // These have a meaning of their own to Alipay.
        let subject = order.description.replace(['/', '=', '&'], " ");
        let mut content = json!({
            "out_trade_no": order.payment_id,
            "total_amount": yuan(order.amount_minor),
            "subject": shortened(&subject, LONGEST_TEXT),
            "time_expire": local_time(order.expires_at),
        });
        match way(order.mode)? {
            Way::Precreate => {
                let made: Precreated = self.api.call("alipay.trade.precreate", &content).await?;
                Ok(PaymentParams::from_iter([("qr_code".to_owned(), Value::String(made.qr_code))]))
            }
            Way::Page => {
                content["product_code"] = "FAST_INSTANT_TRADE_PAY".into();
                let url = self.api.page("alipay.trade.page.pay", &content)?;
                Ok(PaymentParams::from_iter([("pay_url".to_owned(), Value::String(url))]))
            }
        }
    }

    async fn query(&self, payment_id: PaymentId) -> Result<GatewayState, GatewayError> {
        let content = json!({ "out_trade_no": payment_id });
        match self.api.call("alipay.trade.query", &content).await {
            Ok(trade) => Self::state(&trade, payment_id).map_err(GatewayError::Unclear),
            Err(GatewayError::Refused { code, .. }) if code == NOT_THERE => Ok(GatewayState::NotFound),
            Err(error) => Err(error),
        }
    }

    async fn close(&self, payment_id: PaymentId) -> Result<Closing, GatewayError> {
        let content = json!({ "out_trade_no": payment_id });
        match self.api.call::<Value>("alipay.trade.close", &content).await {
            Ok(_) => Ok(Closing::Closed),
            Err(refusal @ GatewayError::Refused { .. }) => self.query(payment_id).await?.closing(&refusal),
            Err(error) => Err(error),
        }
    }

    async fn refund(&self, order: &RefundOrder) -> Result<RefundState, GatewayError> {
        let content = json!({
            "out_trade_no": order.payment_id,
            "refund_amount": yuan(order.amount_minor),
            "out_request_no": order.refund_id,
            "refund_reason": shortened(&order.reason, LONGEST_TEXT),
        });
        let refunded: Refunded = self.api.call("alipay.trade.refund", &content).await?;
        if refunded.fund_change == "Y" {
            return Ok(RefundState::Succeeded);
        }
        // No money moved just now: this may be a repeat of what was done, or not done yet.
        match self.query_refund(order.payment_id, order.refund_id).await {
            Ok(RefundState::NotFound) => Ok(RefundState::Processing),
            Ok(state) => Ok(state),
            // That the question is refused does not mean that the refund is.
            Err(refused) => Err(GatewayError::Unclear(refused.to_string())),
        }
    }

    async fn query_refund(
        &self,
        payment_id: PaymentId,
        refund_id: RefundId,
    ) -> Result<RefundState, GatewayError> {
        let content = json!({ "out_trade_no": payment_id, "out_request_no": refund_id });
        let queried = self.api.call::<RefundQueried>("alipay.trade.fastpay.refund.query", &content).await;
        match queried.map(|refund| refund.refund_status) {
            Ok(Some(status)) if status == "REFUND_SUCCESS" => Ok(RefundState::Succeeded),
            Ok(Some(status)) if !status.is_empty() => {
                Err(GatewayError::Unclear(format!("unknown refund_status {status:?}")))
            }
            Ok(_) => Ok(RefundState::NotFound),
            Err(GatewayError::Refused { code, .. }) if code == NOT_THERE => Ok(RefundState::NotFound),
            Err(error) => Err(error),
        }
    }

    /// Alipay's notices carry no time that could be checked: a repeat is known by its [`id`](Notice::id).
    fn notice(&self, _: &NoticeHeaders, body: &[u8], _: Timestamp) -> Result<Notice, NoticeRefusal> {
        let fields = notice::Fields::verified(body, self.api.alipay())?;
        notice::read(&fields, self.api.app_id(), &self.seller_id)
    }

    fn acknowledge(&self) -> Acknowledgement {
        Acknowledgement { status: 200, content_type: "text/plain", body: "success" }
    }
}

/// How a customer gets to Alipay.
enum Way {
    Precreate,
    Page,
}

fn way(mode: Option<PaymentMode>) -> Result<Way, GatewayError> {
    match mode {
        None | Some(PaymentMode::Precreate) => Ok(Way::Precreate),
        Some(PaymentMode::Page) => Ok(Way::Page),
        Some(mode @ (PaymentMode::Native | PaymentMode::Jsapi)) => {
            Err(GatewayError::Unfit(format!("Alipay has no mode {mode}")))
        }
    }
}
