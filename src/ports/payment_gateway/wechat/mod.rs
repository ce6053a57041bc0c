//! WeChat Pay, API v3, as <https://pay.weixin.qq.com/doc/v3/merchant/4012062524> describes it for a merchant in China.
//!
//! We sign each request with the merchant's private key; WeChat Pay signs each successful answer and each notice with a
//! key of its own, which the configuration knows by its serial number. It has several while it replaces one.

mod api;
mod model;
mod notice;
mod statement;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{NaiveDate, SecondsFormat};
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use self::api::Api;
use self::model::{Prepaid, PrepaidNative, Refund, Transaction};
use super::rsa::{CannotSign, nonce};
use super::yuan::cny;
use super::{
    Acknowledgement, Channel, Closing, GatewayError, GatewayState, InvalidSetting, Notice, NoticeHeaders,
    NoticeRefusal, PaymentGateway, PaymentMode, PaymentOrder, PaymentParams, RefundOrder, RefundState,
    StatementLine, shortened,
};
use crate::ids::{PaymentId, RefundId};
use crate::ports::clock::{BEIJING, SharedClock, Timestamp};
use crate::ports::wire::{TIMEOUT, check_url};

/// Where WeChat Pay is.
pub const BASE_URL: &str = "https://api.mch.weixin.qq.com";

/// The headers that carry a signature: its time, its nonce, itself, and the serial number of its key.
pub(super) const SIGNATURE: [&str; 4] =
    ["Wechatpay-Timestamp", "Wechatpay-Nonce", "Wechatpay-Signature", "Wechatpay-Serial"];

/// The longest description, and the longest reason of a refund, in bytes.
const LONGEST_DESCRIPTION: usize = 127;
const LONGEST_REASON: usize = 80;

/// The settings of WeChat Pay.
#[derive(Debug, Clone)]
pub struct WechatPayConfig {
    pub base_url: String,
    pub app_id: String,
    pub mch_id: String,
    /// Of the merchant's certificate.
    pub serial_no: String,
    /// Of the merchant's certificate, in PEM.
    pub private_key: SecretString,
    /// Decrypts notices.
    pub api_v3_key: SecretString,
    /// WeChat Pay's keys, by serial number: certificates or public keys in PEM. The first one is in use.
    pub platform_keys: Vec<(String, String)>,
    pub notify_url: String,
    /// How long a request may take.
    pub timeout: Duration,
}

impl WechatPayConfig {
    /// Settings with nothing in them but WeChat Pay's address.
    pub fn empty() -> Self {
        Self {
            base_url: BASE_URL.to_owned(),
            app_id: String::new(),
            mch_id: String::new(),
            serial_no: String::new(),
            private_key: SecretString::default(),
            api_v3_key: SecretString::default(),
            platform_keys: Vec::new(),
            notify_url: String::new(),
            timeout: TIMEOUT,
        }
    }
}

/// WeChat Pay.
#[derive(Debug)]
pub struct WechatPay {
    api: Api,
    app_id: String,
    notify_url: String,
    secret: notice::ApiV3Key,
}

impl WechatPay {
    /// WeChat Pay for the merchant of `config`; asks nobody yet.
    pub fn new(config: &WechatPayConfig, clock: SharedClock) -> Result<Self, InvalidSetting> {
        let missing = |key| InvalidSetting::new(key, "is needed, because payment.wechat.mch_id is set");
        let given = [
            ("payment.wechat.app_id", &config.app_id),
            ("payment.wechat.serial_no", &config.serial_no),
            ("payment.wechat.notify_url", &config.notify_url),
        ];
        if let Some((key, _)) = given.into_iter().find(|(_, value)| value.is_empty()) {
            return Err(missing(key));
        }
        check_url(&config.notify_url)
            .map_err(|problem| InvalidSetting::new("payment.wechat.notify_url", problem))?;
        Ok(Self {
            api: Api::new(config, clock)?,
            app_id: config.app_id.clone(),
            notify_url: config.notify_url.clone(),
            secret: notice::ApiV3Key::new(&config.api_v3_key)
                .map_err(|problem| InvalidSetting::new("payment.wechat.api_v3_key", problem))?,
        })
    }

    /// What the customer's WeChat needs in order to open the payment within a page.
    fn jsapi(&self, prepay_id: &str) -> Result<PaymentParams, GatewayError> {
        let (time, nonce) = (self.api.now().timestamp().to_string(), nonce()?);
        let package = format!("prepay_id={prepay_id}");
        let text = format!("{}\n{time}\n{nonce}\n{package}\n", self.app_id);
        Ok(object(json!({
            "appId": self.app_id,
            "timeStamp": time,
            "nonceStr": nonce,
            "package": package,
            "signType": "RSA",
            "paySign": self.api.sign(&text)?,
        })))
    }

    fn ours(&self, transaction: &Transaction, payment_id: PaymentId) -> Result<GatewayState, GatewayError> {
        let same = transaction.out_trade_no == payment_id.to_string();
        if !same || !transaction.is_of(&self.app_id, self.api.merchant()) {
            return Err(GatewayError::Unclear("the answer is about another payment".to_owned()));
        }
        transaction.state().map_err(GatewayError::Unclear)
    }

    fn refund_state(refund: &Refund, refund_id: RefundId) -> Result<RefundState, GatewayError> {
        match refund.out_refund_no == refund_id.to_string() {
            true => refund.state().map_err(GatewayError::Unclear),
            false => Err(GatewayError::Unclear("the answer is about another refund".to_owned())),
        }
    }
}

#[async_trait]
impl PaymentGateway for WechatPay {
    fn channel(&self) -> Channel {
        Channel::Wechat
    }

    fn fits(&self, mode: Option<PaymentMode>, payer: Option<&str>) -> Result<(), GatewayError> {
        way(mode, payer).map(drop)
    }

    /// `code_url`, to be shown as a QR code (native), or what `WeixinJSBridge` takes (JSAPI, for a known payer).
    async fn create(&self, order: &PaymentOrder) -> Result<PaymentParams, GatewayError> {
        if order.currency != cny()? {
            return Err(GatewayError::Unfit("only CNY is taken".to_owned()));
        }
        let description = text(&order.description, LONGEST_DESCRIPTION);
        let mut request = json!({
            "appid": self.app_id,
            "mchid": self.api.merchant(),
            "description": description.unwrap_or_else(|| format!("Payment {}", order.payment_id)),
            "out_trade_no": order.payment_id,
            "time_expire": order.expires_at.with_timezone(&BEIJING).to_rfc3339_opts(SecondsFormat::Secs, false),
            "notify_url": self.notify_url,
            "amount": { "total": order.amount_minor, "currency": order.currency },
        });
        match way(order.mode, order.payer.as_deref())? {
            Way::Native => {
                let path = "/v3/pay/transactions/native";
                let prepaid: PrepaidNative = self.api.call(Method::POST, path, Some(&request)).await?;
                Ok(object(json!({ "code_url": prepaid.code_url })))
            }
            Way::Jsapi { openid } => {
                request["payer"] = json!({ "openid": openid });
                let path = "/v3/pay/transactions/jsapi";
                let prepaid: Prepaid = self.api.call(Method::POST, path, Some(&request)).await?;
                self.jsapi(&prepaid.prepay_id)
            }
        }
    }

    async fn query(&self, payment_id: PaymentId) -> Result<GatewayState, GatewayError> {
        let path = format!("/v3/pay/transactions/out-trade-no/{payment_id}?mchid={}", self.api.merchant());
        match self.api.call(Method::GET, &path, None).await {
            Ok(transaction) => self.ours(&transaction, payment_id),
            Err(GatewayError::Refused { code, .. }) if model::NOT_THERE.contains(&code.as_str()) => {
                Ok(GatewayState::NotFound)
            }
            Err(error) => Err(error),
        }
    }

    async fn close(&self, payment_id: PaymentId) -> Result<Closing, GatewayError> {
        let path = format!("/v3/pay/transactions/out-trade-no/{payment_id}/close");
        let request = json!({ "mchid": self.api.merchant() });
        let refusal = match self.api.tell(Method::POST, &path, &request).await {
            Ok(()) => return Ok(Closing::Closed),
            Err(refusal @ GatewayError::Refused { .. }) => refusal,
            Err(error) => return Err(error),
        };
        self.query(payment_id).await?.closing(&refusal)
    }

    async fn refund(&self, order: &RefundOrder) -> Result<RefundState, GatewayError> {
        let mut request = json!({
            "transaction_id": order.transaction_id,
            "out_refund_no": order.refund_id,
            "notify_url": self.notify_url,
            "amount": {
                "refund": order.amount_minor,
                "total": order.total_minor,
                "currency": order.currency,
            },
        });
        if let Some(reason) = text(&order.reason, LONGEST_REASON) {
            request["reason"] = reason.into();
        }
        let refund = self.api.call(Method::POST, "/v3/refund/domestic/refunds", Some(&request)).await?;
        Self::refund_state(&refund, order.refund_id)
    }

    async fn query_refund(&self, _: PaymentId, refund_id: RefundId) -> Result<RefundState, GatewayError> {
        let path = format!("/v3/refund/domestic/refunds/{refund_id}");
        match self.api.call(Method::GET, &path, None).await {
            Ok(refund) => Self::refund_state(&refund, refund_id),
            Err(GatewayError::Refused { code, .. }) if model::NOT_THERE.contains(&code.as_str()) => {
                Ok(RefundState::NotFound)
            }
            Err(error) => Err(error),
        }
    }

    fn notice(&self, headers: &NoticeHeaders, body: &[u8], now: Timestamp) -> Result<Notice, NoticeRefusal> {
        self.api.platform().verify(|name| headers.get(name), body, now)?;
        notice::read(body, &self.secret, &self.app_id, self.api.merchant())
    }

    fn acknowledge(&self) -> Acknowledgement {
        Acknowledgement {
            status: 200,
            content_type: "application/json",
            body: r#"{"code":"SUCCESS","message":"OK"}"#,
        }
    }

    /// The "trade bill", which is there from ten o'clock of the next day on, in Beijing.
    async fn statement(&self, day: NaiveDate) -> Result<Option<Vec<StatementLine>>, GatewayError> {
        statement::fetch(&self.api, day).await.map(Some)
    }
}

/// How a customer gets to WeChat Pay.
enum Way<'a> {
    Native,
    Jsapi { openid: &'a str },
}

fn way(mode: Option<PaymentMode>, payer: Option<&str>) -> Result<Way<'_>, GatewayError> {
    match (mode, payer) {
        (Some(PaymentMode::Native), _) | (None, None) => Ok(Way::Native),
        (Some(PaymentMode::Jsapi) | None, Some(openid)) => Ok(Way::Jsapi { openid }),
        (Some(PaymentMode::Jsapi), None) => {
            Err(GatewayError::Unfit("JSAPI needs the payer's openid".to_owned()))
        }
        (Some(mode @ (PaymentMode::Precreate | PaymentMode::Page)), _) => {
            Err(GatewayError::Unfit(format!("WeChat Pay has no mode {mode}")))
        }
    }
}

impl From<CannotSign> for GatewayError {
    fn from(CannotSign: CannotSign) -> Self {
        Self::Unfit("nothing can be signed here".to_owned())
    }
}

/// What WeChat Pay takes of `text`, if anything: it refuses control characters, and those of four bytes, as emoji are.
fn text(text: &str, longest: usize) -> Option<String> {
    // These put emoji together and say how they look, and are nothing without them.
    let joins = |c| matches!(c, '\u{200d}' | '\u{fe00}'..='\u{fe0f}');
    let taken = |c: &char| c.len_utf8() <= 3 && !c.is_control() && !joins(*c);
    let text: String = text.chars().filter(taken).collect();
    let text = shortened(text.trim(), longest).trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

fn object(value: Value) -> PaymentParams {
    match value {
        Value::Object(members) => members,
        _ => PaymentParams::new(),
    }
}
