//! Signed requests to WeChat Pay, and its signatures: over answers and notices alike.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::rsa::{CannotSign, SigningKey, VerifyingKey, nonce};
use super::super::{GatewayError, InvalidSetting, LONGEST_ANSWER, NoticeRefusal};
use super::{SIGNATURE, WechatPayConfig};
use crate::ports::clock::{SharedClock, Timestamp};
use crate::ports::wire::{self, Answer};

/// How old a signature of WeChat Pay may be, as in its own libraries.
const FRESH: Duration = Duration::from_secs(5 * 60);

/// How long a statement may take, which is as large as the day was good.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// What a serial number begins with that names a public key, not a certificate.
const PUBLIC_KEY: &str = "PUB_KEY_ID_";

/// Codes of answers that say "ask again" with whatever status.
const UNCLEAR: &[&str] =
    &["SYSTEM_ERROR", "SYSTEMERROR", "BANK_ERROR", "BANKERROR", "FREQUENCY_LIMITED", "RATELIMIT_EXCEEDED"];

/// WeChat Pay's interface, for one merchant.
#[derive(Debug)]
pub(super) struct Api {
    http: Client,
    base_url: String,
    mch_id: String,
    serial_no: String,
    key: SigningKey,
    platform: Platform,
    clock: SharedClock,
}

/// WeChat Pay's keys.
#[derive(Debug)]
pub(super) struct Platform(Vec<(String, VerifyingKey)>);

/// What an answer says that is no success.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    code: String,
    #[serde(default)]
    message: String,
}

impl Api {
    pub(super) fn new(config: &WechatPayConfig, clock: SharedClock) -> Result<Self, InvalidSetting> {
        wire::check_url(&config.base_url)
            .map_err(|problem| InvalidSetting::new("payment.wechat.base_url", problem))?;
        Ok(Self {
            http: wire::client(config.timeout)
                .map_err(|problem| InvalidSetting::new("payment.wechat.base_url", problem))?,
            base_url: config.base_url.trim_end_matches('/').to_owned(),
            mch_id: config.mch_id.clone(),
            serial_no: config.serial_no.clone(),
            key: SigningKey::parse(&config.private_key)
                .map_err(|problem| InvalidSetting::new("payment.wechat.private_key", problem))?,
            platform: Platform::new(&config.platform_keys)
                .map_err(|problem| InvalidSetting::new("payment.wechat.platform_keys", problem))?,
            clock,
        })
    }

    pub(super) fn merchant(&self) -> &str {
        &self.mch_id
    }

    pub(super) fn platform(&self) -> &Platform {
        &self.platform
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn sign(&self, text: &str) -> Result<String, CannotSign> {
        self.key.sign(text.as_bytes())
    }

    /// Asks for something and reads the signed answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, GatewayError> {
        let answer = self.trusted(self.send(method, path, body).await?)?;
        let unreadable = |error| GatewayError::Unclear(format!("unreadable answer: {error}"));
        serde_json::from_slice(&answer.body).map_err(unreadable)
    }

    /// Asks for something that is answered with nothing but success.
    pub(super) async fn tell(&self, method: Method, path: &str, body: &Value) -> Result<(), GatewayError> {
        match self.trusted(self.send(method, path, Some(body)).await?)? {
            Answer { status: StatusCode::NO_CONTENT, .. } => Ok(()),
            Answer { status, .. } => Err(GatewayError::Unclear(format!("unexpected answer: {status}"))),
        }
    }

    /// Asks for a file, which is not signed: its digest came before, in an answer that was.
    pub(super) async fn download(&self, path: &str) -> Result<Vec<u8>, GatewayError> {
        let request = self.request(Method::GET, path, None)?.timeout(DOWNLOAD_TIMEOUT);
        Ok(successful(wire::send(request, LONGEST_ANSWER).await?)?.body)
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, GatewayError> {
        Ok(wire::send(self.request(method, path, body)?, LONGEST_ANSWER).await?)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<RequestBuilder, GatewayError> {
        let url = Url::parse(&format!("{}{path}", self.base_url));
        let url = url.map_err(|error| GatewayError::Unfit(format!("no address: {error}")))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let authorization = self.authorization(&method, &url, &body)?;
        let request = self.http.request(method, url);
        let mut request = request.header(AUTHORIZATION, authorization).header(ACCEPT, "application/json");
        if let Some(serial) = self.platform.public_key() {
            // Without this header WeChat Pay signs with a certificate for as long as the merchant still has one.
            request = request.header("Wechatpay-Serial", serial);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        Ok(request)
    }

    fn authorization(&self, method: &Method, url: &Url, body: &str) -> Result<String, CannotSign> {
        let (time, nonce) = (self.now().timestamp(), nonce()?);
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let text = format!("{method}\n{}{query}\n{time}\n{nonce}\n{body}\n", url.path());
        let signature = self.sign(&text)?;
        let Self { mch_id, serial_no, .. } = self;
        Ok(format!(
            "WECHATPAY2-SHA256-RSA2048 mchid=\"{mch_id}\",nonce_str=\"{nonce}\",signature=\"{signature}\",\
             timestamp=\"{time}\",serial_no=\"{serial_no}\""
        ))
    }

    /// A successful answer, if WeChat Pay signed it.
    fn trusted(&self, answer: Answer) -> Result<Answer, GatewayError> {
        let answer = successful(answer)?;
        let verified = self.platform.verify(|name| answer.header(name), &answer.body, self.now());
        verified.map_err(|refusal| GatewayError::Unclear(format!("the answer is {refusal}")))?;
        Ok(answer)
    }
}

impl Platform {
    fn new(keys: &[(String, String)]) -> Result<Self, String> {
        let parse = |(serial, pem): &(String, String)| {
            let key = VerifyingKey::parse(pem).map_err(|problem| format!("{serial} {problem}"))?;
            match key.serial() {
                Some(other) if !other.eq_ignore_ascii_case(serial) => {
                    Err(format!("{serial} is a certificate with the serial number {other}"))
                }
                _ => Ok((serial.clone(), key)),
            }
        };
        match keys {
            [] => {
                Err("is needed: WeChat Pay's public key or certificate, from the merchant platform"
                    .to_owned())
            }
            keys => keys.iter().map(parse).collect::<Result<_, _>>().map(Self),
        }
    }

    /// The serial number of the key in use, if it is a public key.
    fn public_key(&self) -> Option<&str> {
        self.0.first().map(|(serial, _)| serial.as_str()).filter(|serial| serial.starts_with(PUBLIC_KEY))
    }

    /// Whether WeChat Pay signed `body` just now; `header` gives the values of its four headers.
    pub(super) fn verify<'h>(
        &self,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), NoticeRefusal> {
        let header = |name| {
            header(name).ok_or_else(|| NoticeRefusal::Forged(format!("there is no single {name} header")))
        };
        let [time, nonce, signature, serial] = SIGNATURE.map(header);
        let (time, nonce, signature, serial) = (time?, nonce?, signature?, serial?);
        let (_, key) = self
            .0
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(serial))
            .ok_or_else(|| NoticeRefusal::Forged(format!("no key has the serial number {serial:?}")))?;
        let text = [time.as_bytes(), b"\n", nonce.as_bytes(), b"\n", body, b"\n"].concat();
        if !key.verify(&text, signature) {
            return Err(NoticeRefusal::Forged("the signature does not fit".to_owned()));
        }
        let signed_at: i64 = time.parse().map_err(|_| NoticeRefusal::Stale)?;
        match now.timestamp().abs_diff(signed_at) <= FRESH.as_secs() {
            true => Ok(()),
            false => Err(NoticeRefusal::Stale),
        }
    }
}

/// An answer that says that what was asked for was done.
fn successful(answer: Answer) -> Result<Answer, GatewayError> {
    let status = answer.status;
    if status.is_success() {
        return Ok(answer);
    }
    let problem: Option<Problem> = serde_json::from_slice(&answer.body).ok();
    match problem {
        Some(Problem { code, message })
            if status.is_client_error()
                && !matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
                && !UNCLEAR.contains(&code.as_str()) =>
        {
            Err(GatewayError::Refused { code, message })
        }
        problem => {
            let Problem { code, message } = problem.unwrap_or_default();
            Err(GatewayError::Unclear(format!("{status} {code} {message}").trim().to_owned()))
        }
    }
}
