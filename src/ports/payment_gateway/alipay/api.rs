//! Signed requests to Alipay and its signed answers.

use std::collections::{BTreeMap, HashMap};

use form_urlencoded::Serializer;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::rsa::{CannotSign, SigningKey, VerifyingKey};
use super::super::yuan::local_time;
use super::super::{GatewayError, InvalidSetting, LONGEST_ANSWER, shortened};
use super::AlipayConfig;
use crate::ports::clock::SharedClock;
use crate::ports::wire;

/// How much of an answer is told that cannot be believed, in bytes.
const LONGEST_QUOTE: usize = 500;

/// Alipay's interface, for one application.
#[derive(Debug)]
pub(super) struct Api {
    http: Client,
    url: Url,
    app_id: String,
    notify_url: String,
    key: SigningKey,
    alipay: VerifyingKey,
    clock: SharedClock,
}

/// What every answer begins with.
#[derive(Debug, Deserialize)]
struct Outcome {
    code: String,
    #[serde(default)]
    msg: String,
    sub_code: Option<String>,
    sub_msg: Option<String>,
}

impl Api {
    pub(super) fn new(config: &AlipayConfig, clock: SharedClock) -> Result<Self, InvalidSetting> {
        let invalid = |key| move |problem: String| InvalidSetting::new(key, problem);
        let address = invalid("payment.alipay.base_url");
        wire::check_url(&config.base_url).map_err(address)?;
        Ok(Self {
            http: wire::client(config.timeout).map_err(address)?,
            url: Url::parse(&config.base_url).map_err(|error| address(error.to_string()))?,
            app_id: config.app_id.clone(),
            notify_url: config.notify_url.clone(),
            key: SigningKey::parse(&config.private_key).map_err(invalid("payment.alipay.private_key"))?,
            alipay: VerifyingKey::parse(&config.public_key).map_err(invalid("payment.alipay.public_key"))?,
            clock,
        })
    }

    pub(super) fn app_id(&self) -> &str {
        &self.app_id
    }

    /// Alipay's public key.
    pub(super) fn alipay(&self) -> &VerifyingKey {
        &self.alipay
    }

    /// Asks for something and reads the signed answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        content: &Value,
    ) -> Result<T, GatewayError> {
        let mut params = self.signed(method, content)?;
        // In the address, where Alipay finds the charset before it reads the body.
        let content = params.remove("biz_content").unwrap_or_default();
        let body = Serializer::new(String::new()).append_pair("biz_content", &content).finish();
        let request = self.http.post(self.address(&params));
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded;charset=utf-8");
        let answer = wire::send(request.body(body), LONGEST_ANSWER).await?;
        if !answer.status.is_success() {
            return Err(GatewayError::Unclear(answer.status.to_string()));
        }
        let content = self.trusted(method, &answer.body)?;
        let unreadable = |error| GatewayError::Unclear(format!("unreadable answer: {error}"));
        let outcome: Outcome = serde_json::from_str(&content).map_err(unreadable)?;
        outcome.into_result()?;
        serde_json::from_str(&content).map_err(unreadable)
    }

    /// The address of a page for the customer.
    pub(super) fn page(&self, method: &str, content: &Value) -> Result<String, GatewayError> {
        Ok(self.address(&self.signed(method, content)?).into())
    }

    fn address(&self, params: &BTreeMap<&str, String>) -> Url {
        let mut url = self.url.clone();
        url.query_pairs_mut().extend_pairs(params);
        url
    }

    /// The parameters of a request, with the signature among them.
    fn signed(&self, method: &str, content: &Value) -> Result<BTreeMap<&'static str, String>, CannotSign> {
        let mut params = BTreeMap::from([
            ("app_id", self.app_id.clone()),
            ("method", method.to_owned()),
            ("format", "JSON".to_owned()),
            ("charset", "utf-8".to_owned()),
            ("sign_type", "RSA2".to_owned()),
            ("timestamp", local_time(self.clock.now())),
            ("version", "1.0".to_owned()),
            ("notify_url", self.notify_url.clone()),
            ("biz_content", content.to_string()),
        ]);
        params.retain(|_, value| !value.is_empty());
        params.insert("sign", self.key.sign(signed_text(&params).as_bytes())?);
        Ok(params)
    }

    /// The part of an answer that Alipay signed: its JSON, character by character as it came.
    fn trusted(&self, method: &str, body: &[u8]) -> Result<String, GatewayError> {
        let unclear = |what: &str| GatewayError::Unclear(what.to_owned());
        let parts: HashMap<String, &RawValue> =
            serde_json::from_slice(body).map_err(|_| unclear("the answer is no JSON object"))?;
        let name = method.replace('.', "_") + "_response";
        let content = match (parts.get(&name), parts.get("error_response")) {
            (Some(content), _) => content.get(),
            (None, Some(error)) => return Err(unclear(shortened(error.get(), LONGEST_QUOTE))),
            (None, None) => return Err(unclear("the answer is to another question")),
        };
        let signature = parts.get("sign").map(|sign| serde_json::from_str::<String>(sign.get()));
        let Some(Ok(signature)) = signature else {
            let quote = shortened(content, LONGEST_QUOTE);
            return Err(GatewayError::Unclear(format!("the answer is not signed: {quote}")));
        };
        // Alipay signs before it escapes slashes, or after: its own libraries try both.
        let signed = self.alipay.verify(content.as_bytes(), &signature)
            || self.alipay.verify(content.replace("\\/", "/").as_bytes(), &signature);
        if !signed {
            return Err(unclear("the answer is not signed by the payment gateway"));
        }
        Ok(content.to_owned())
    }
}

impl Outcome {
    /// Some codes are neither success nor refusal: 20000 for a fault of Alipay's, 10003 for what is not done yet.
    fn into_result(self) -> Result<(), GatewayError> {
        let Self { code, msg, sub_code, sub_msg } = self;
        let reason = sub_code.unwrap_or_else(|| code.clone());
        let message = sub_msg.unwrap_or(msg);
        let own_fault = reason.ends_with("SYSTEM_ERROR") || reason.starts_with("isp.");
        match code.as_str() {
            "10000" => Ok(()),
            "40001" | "40002" | "40003" | "40004" | "40006" if !own_fault => {
                Err(GatewayError::Refused { code: reason, message })
            }
            _ => Err(GatewayError::Unclear(format!("{code} {reason} {message}"))),
        }
    }
}

/// What is signed: `name=value`, sorted by name, with `&` between, values as they are.
pub(super) fn signed_text<K: AsRef<str>>(params: &BTreeMap<K, String>) -> String {
    let pairs = params.iter().map(|(name, value)| format!("{}={value}", name.as_ref()));
    pairs.collect::<Vec<_>>().join("&")
}
