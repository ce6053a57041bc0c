//! A gateway that only pretends: it takes no money and needs no account, so that a shop can be tried out whole.
//!
//! It has a [page to pay on](super::sandbox_page), signs what it tells like a real gateway, and remembers the
//! payments it saw in memory. What it does not know was not paid: that is every payment after a restart, and on another
//! node every payment of which that node was not told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Acknowledgement, Capture, Channel, Closing, GatewayError, GatewayState, Notice, NoticeHeaders,
    NoticeKind, NoticeRefusal, PaymentGateway, PaymentMode, PaymentOrder, PaymentParams, RefundOrder,
    RefundState,
};
use crate::ids::{PaymentId, RefundId};
use crate::money::Currency;
use crate::ports::clock::Timestamp;
use crate::words::words;

/// The header that carries the signature.
pub const SIGNATURE: &str = "Tombola-Signature";

/// How many seconds the time of a signature may differ from now.
const TOLERANCE_S: u64 = 300;

/// How many payments are remembered; older ones are forgotten, as all are after a restart.
const REMEMBERED: usize = 100_000;

/// How long after the payment was due a late success is told.
const LATE_BY: Duration = Duration::from_secs(5);

/// How many late successes may be waiting to be told.
const LATE_AT_ONCE: usize = 100;

words! {
    /// What the customer does on the sandbox's page.
    PayChoice, "way to pay in the sandbox" {
        Succeed = "succeed",
        Fail = "fail",
        Late = "late",
        Twice = "twice",
    }
}

/// The sandbox's settings.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    secret: SecretString,
    currency: Currency,
}

impl SandboxConfig {
    /// Signs with `secret`; all money is in `currency`.
    pub fn new(secret: SecretString, currency: Currency) -> Result<Self, String> {
        match secret.expose_secret() {
            "" => Err("is empty; make one with: openssl rand -base64 32".to_owned()),
            _ => Ok(Self { secret, currency }),
        }
    }

    /// Signs with a secret that only this process knows.
    pub fn random(currency: Currency) -> Result<Self, String> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| "no random numbers".to_owned())?;
        Self::new(URL_SAFE_NO_PAD.encode(bytes).into(), currency)
    }
}

/// The gateway that pretends.
#[derive(Debug)]
pub struct Sandbox {
    key: hmac::Key,
    currency: Currency,
    ledger: Mutex<Ledger>,
    late: Arc<Semaphore>,
}

/// What the sandbox tells the shop, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// How long to wait before it is told.
    pub delay: Duration,
    /// To be [signed](Sandbox::sign) when it is told.
    pub body: String,
}

/// A notice of the sandbox.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxNotice {
    payment_id: PaymentId,
    transaction_id: String,
    amount_minor: i64,
    result: PayResult,
}

words! {
    /// How a customer's attempt to pay ended.
    PayResult, "result of a payment" {
        Success = "success",
        Failure = "failure",
    }
}

/// The payments the sandbox remembers.
#[derive(Debug, Default)]
struct Ledger {
    payments: HashMap<PaymentId, Payment>,
    /// Oldest first.
    order: VecDeque<PaymentId>,
}

#[derive(Debug, Clone, Default)]
struct Payment {
    standing: Standing,
    refunds: BTreeMap<RefundId, i64>,
}

#[derive(Debug, Clone, Default)]
enum Standing {
    #[default]
    Pending,
    Paid(Capture),
    Failed,
    Closed,
}

impl Sandbox {
    /// A sandbox that has seen no payment.
    pub fn new(config: &SandboxConfig) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, config.secret.expose_secret().as_bytes()),
            currency: config.currency,
            ledger: Mutex::default(),
            late: Arc::new(Semaphore::new(LATE_AT_ONCE)),
        }
    }

    /// The value of the [`SIGNATURE`] header for `body`, sent at `now`.
    pub fn sign(&self, body: &[u8], now: Timestamp) -> String {
        let time = now.timestamp();
        let tag = hmac::sign(&self.key, &signed_text(&time.to_string(), body));
        format!("t={time},v1={}", hex::encode(tag))
    }

    /// A place among those that are told late, to be kept until it is told; none if all are taken.
    pub fn place_to_wait(&self) -> Option<OwnedSemaphorePermit> {
        self.late.clone().try_acquire_owned().ok()
    }

    /// The customer pays, or does not. What comes back is to be told to the shop; nothing if it is too late for that.
    pub fn pay(&self, order: &PaymentOrder, choice: PayChoice, now: Timestamp) -> Vec<Signal> {
        let PaymentOrder { payment_id, amount_minor, expires_at, .. } = order;
        let transaction_id = format!("sandbox-{payment_id}");
        let signal = |result: PayResult, delay| {
            let body = json!({
                "payment_id": payment_id,
                "transaction_id": transaction_id,
                "amount_minor": amount_minor,
                "result": result,
            });
            Signal { delay, body: body.to_string() }
        };
        let until_due = (*expires_at - now).to_std().unwrap_or_default();
        let success = signal(PayResult::Success, Duration::ZERO);
        let capture = self.captured(transaction_id.clone(), *amount_minor, now);
        let mut ledger = self.ledger();
        let payment = ledger.payment(*payment_id);
        let too_late = matches!(payment.standing, Standing::Closed) || until_due.is_zero();
        let paid = matches!(payment.standing, Standing::Paid(_));
        match choice {
            // Taken when it is told.
            PayChoice::Late => vec![signal(PayResult::Success, until_due + LATE_BY)],
            PayChoice::Succeed | PayChoice::Fail | PayChoice::Twice if too_late => Vec::new(),
            PayChoice::Fail if paid => Vec::new(),
            PayChoice::Succeed => {
                payment.capture(capture);
                vec![success]
            }
            PayChoice::Twice => {
                payment.capture(capture);
                vec![success.clone(), success]
            }
            PayChoice::Fail => {
                payment.fail();
                vec![signal(PayResult::Failure, Duration::ZERO)]
            }
        }
    }

    fn captured(&self, transaction_id: String, amount_minor: i64, paid_at: Timestamp) -> Capture {
        Capture { transaction_id, amount_minor, currency: self.currency, payer: None, paid_at }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `header` signs `body`, and when that was.
    fn verify(&self, header: &str, body: &[u8]) -> Result<i64, NoticeRefusal> {
        let forged = |why: &str| NoticeRefusal::Forged(why.to_owned());
        let mut time = None;
        let mut tags = Vec::new();
        for part in header.split(',') {
            match part.trim().split_once('=') {
                Some(("t", _)) if time.is_some() => return Err(forged("two times")),
                Some(("t", text)) => time = Some(text),
                Some(("v1", hex)) => tags.extend(unhex(hex)),
                _ => {}
            }
        }
        let time = time.ok_or_else(|| forged("no time"))?;
        let text = signed_text(time, body);
        if !tags.iter().any(|tag| hmac::verify(&self.key, &text, tag).is_ok()) {
            return Err(forged("no signature fits"));
        }
        time.parse().map_err(|_| forged("the time is no number"))
    }
}

#[async_trait]
impl PaymentGateway for Sandbox {
    fn channel(&self) -> Channel {
        Channel::Sandbox
    }

    fn fits(&self, mode: Option<PaymentMode>, _: Option<&str>) -> Result<(), GatewayError> {
        match mode {
            None => Ok(()),
            Some(mode) => Err(GatewayError::Unfit(format!("the sandbox has no mode {mode}"))),
        }
    }

    /// `pay_url`, on this server. There is no other way to pay.
    async fn create(&self, order: &PaymentOrder) -> Result<PaymentParams, GatewayError> {
        self.fits(order.mode, order.payer.as_deref())?;
        self.ledger().payment(order.payment_id);
        let url = format!("/pay/sandbox/{}", order.payment_id);
        Ok(PaymentParams::from_iter([("pay_url".to_owned(), Value::String(url))]))
    }

    async fn query(&self, payment_id: PaymentId) -> Result<GatewayState, GatewayError> {
        let ledger = self.ledger();
        Ok(ledger.payments.get(&payment_id).map_or(GatewayState::NotFound, Payment::state))
    }

    async fn close(&self, payment_id: PaymentId) -> Result<Closing, GatewayError> {
        let mut ledger = self.ledger();
        let payment = ledger.payment(payment_id);
        match &payment.standing {
            Standing::Paid(capture) => Ok(Closing::AlreadyPaid(capture.clone())),
            Standing::Pending | Standing::Failed | Standing::Closed => {
                payment.standing = Standing::Closed;
                Ok(Closing::Closed)
            }
        }
    }

    async fn refund(&self, order: &RefundOrder) -> Result<RefundState, GatewayError> {
        let mut ledger = self.ledger();
        let payment = ledger.payment(order.payment_id);
        let others = payment.refunds.iter().filter(|(id, _)| **id != order.refund_id);
        let given_back: i64 = others.map(|(_, amount_minor)| amount_minor).sum();
        if order.amount_minor > order.total_minor - given_back {
            let message =
                format!("only {} of {} are left", order.total_minor - given_back, order.total_minor);
            return Err(GatewayError::Refused { code: "not_enough".to_owned(), message });
        }
        payment.refunds.insert(order.refund_id, order.amount_minor);
        Ok(RefundState::Succeeded)
    }

    async fn query_refund(
        &self,
        payment_id: PaymentId,
        refund_id: RefundId,
    ) -> Result<RefundState, GatewayError> {
        let ledger = self.ledger();
        let payment = ledger.payments.get(&payment_id);
        let known = payment.is_some_and(|payment| payment.refunds.contains_key(&refund_id));
        Ok(if known { RefundState::Succeeded } else { RefundState::NotFound })
    }

    fn notice(&self, headers: &NoticeHeaders, body: &[u8], now: Timestamp) -> Result<Notice, NoticeRefusal> {
        let unsigned = || NoticeRefusal::Forged(format!("there is no single {SIGNATURE} header"));
        let signed_at = self.verify(headers.get(SIGNATURE).ok_or_else(unsigned)?, body)?;
        if now.timestamp().abs_diff(signed_at) > TOLERANCE_S {
            return Err(NoticeRefusal::Stale);
        }
        let malformed = |error: serde_json::Error| NoticeRefusal::Malformed(error.to_string());
        let told: SandboxNotice = serde_json::from_slice(body).map_err(malformed)?;
        if !is_transaction_id(&told.transaction_id) {
            let detail = "transaction_id: 1 to 64 characters, no control characters".to_owned();
            return Err(NoticeRefusal::Malformed(detail));
        }
        if told.amount_minor <= 0 {
            return Err(NoticeRefusal::Malformed("amount_minor: must be positive".to_owned()));
        }
        let SandboxNotice { payment_id, transaction_id, amount_minor, result } = told;
        let mut ledger = self.ledger();
        let payment = ledger.payment(payment_id);
        let kind = match result {
            PayResult::Success => {
                let capture = self.captured(transaction_id, amount_minor, now);
                payment.capture(capture.clone());
                NoticeKind::Paid(capture)
            }
            PayResult::Failure => {
                payment.fail();
                NoticeKind::Failed { reason: "the customer chose to fail".to_owned() }
            }
        };
        Ok(Notice { payment_id, kind })
    }

    fn acknowledge(&self) -> Acknowledgement {
        Acknowledgement { status: 200, content_type: "application/json", body: "{}" }
    }
}

impl Ledger {
    /// The payment, new if it is not remembered.
    fn payment(&mut self, id: PaymentId) -> &mut Payment {
        if !self.payments.contains_key(&id) {
            self.order.push_back(id);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.payments.remove(&oldest);
            }
        }
        self.payments.entry(id).or_default()
    }
}

impl Payment {
    /// Money that was taken stays taken, even if the payment was closed before.
    fn capture(&mut self, capture: Capture) {
        if !matches!(self.standing, Standing::Paid(_)) {
            self.standing = Standing::Paid(capture);
        }
    }

    fn fail(&mut self) {
        if matches!(self.standing, Standing::Pending) {
            self.standing = Standing::Failed;
        }
    }

    fn state(&self) -> GatewayState {
        match &self.standing {
            Standing::Paid(capture) if self.refunds.is_empty() => GatewayState::Succeeded(capture.clone()),
            Standing::Paid(capture) => GatewayState::Refunded(capture.clone()),
            Standing::Pending => GatewayState::Pending,
            Standing::Failed => GatewayState::Failed,
            Standing::Closed => GatewayState::Closed,
        }
    }
}

fn is_transaction_id(text: &str) -> bool {
    (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

fn signed_text(time: &str, body: &[u8]) -> Vec<u8> {
    [time.as_bytes(), b".", body].concat()
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| u8::try_from(high * 16 + low).ok()).collect()
}
