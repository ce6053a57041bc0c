//! WeChat Pay, as far as stories need it: it takes money, and gives it back some time later.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tombola::config::Config;
use tombola::ports::clock::{Clock, ManualClock};

use super::gateway::{KEY, Key, Notice, Server};

/// Names the key that WeChat Pay signs with.
pub(crate) const SERIAL: &str = "PUB_KEY_ID_0119999999";
const APP: &str = "wxd678efh567hg6787";
const MERCHANT: &str = "1230000109";
const API_KEY: &str = "0123456789abcdef0123456789abcdef";

/// What WeChat Pay knows, by our numbers, in fen.
#[derive(Debug, Default)]
struct Ledger {
    paid: BTreeMap<String, i64>,
    returned: BTreeMap<String, i64>,
}

struct Shared {
    ledger: Mutex<Ledger>,
    clock: Arc<ManualClock>,
}

/// A server that answers as WeChat Pay does, until it is dropped.
pub(crate) struct FakeWechat {
    server: Server,
    shared: Arc<Shared>,
    public_key: NamedTempFile,
}

impl FakeWechat {
    /// Lives in the time of `clock`.
    pub(crate) async fn start(clock: Arc<ManualClock>) -> Self {
        let shared = Arc::new(Shared { ledger: Mutex::default(), clock });
        let data = Data::from(shared.clone());
        let server = Server::start(move |app| {
            app.app_data(data.clone()).default_service(web::to(answer));
        });
        let mut public_key = NamedTempFile::new().unwrap();
        public_key.write_all(KEY.public.as_bytes()).unwrap();
        Self { server: server.await, shared, public_key }
    }

    /// Makes it the WeChat Pay of a server.
    pub(crate) fn configure(&self, config: &mut Config) {
        let settings = &mut config.payment.wechat;
        settings.base_url.clone_from(&self.server.url);
        settings.mch_id = Some(MERCHANT.to_owned());
        settings.app_id = Some(APP.to_owned());
        settings.serial_no = Some("408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB".to_owned());
        settings.private_key = Some(KEY.private.clone().into());
        settings.api_v3_key = Some(API_KEY.into());
        settings.platform_keys =
            vec![format!("{SERIAL}={}", self.public_key.path().display()).parse().unwrap()];
        settings.notify_url = Some("https://shop.example/api/v1/payments/callbacks/wechat".to_owned());
    }

    /// A customer pays.
    pub(crate) fn pay(&self, payment: &str, amount_minor: i64) {
        self.shared.ledger.lock().unwrap().paid.insert(payment.to_owned(), amount_minor);
    }

    /// What it was asked to give back, by our numbers of the refunds.
    pub(crate) fn returned(&self) -> BTreeMap<String, i64> {
        self.shared.ledger.lock().unwrap().returned.clone()
    }
}

/// WeChat Pay's number for the capture of a payment.
pub(crate) fn transaction_id(payment: &str) -> String {
    format!("4200{payment}")
}

/// A captured payment.
pub(crate) fn transaction(payment: &str, amount_minor: i64) -> Value {
    json!({
        "appid": APP, "mchid": MERCHANT, "out_trade_no": payment, "transaction_id": transaction_id(payment),
        "trade_type": "NATIVE", "trade_state": "SUCCESS", "trade_state_desc": "支付成功", "bank_type": "CMC",
        "success_time": "2027-01-15T16:00:00+08:00", "payer": {"openid": "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"},
        "amount": {"total": amount_minor, "payer_total": amount_minor, "currency": "CNY", "payer_currency": "CNY"},
    })
}

/// A refund that has reached the customer.
pub(crate) fn refund(refund: &str, payment: &str, amount_minor: i64) -> Value {
    json!({
        "mchid": MERCHANT, "out_trade_no": payment, "transaction_id": transaction_id(payment),
        "out_refund_no": refund, "refund_id": "50300", "refund_status": "SUCCESS",
        "success_time": "2027-01-15T16:10:00+08:00", "user_received_account": "招商银行信用卡0403",
        "amount": {"total": amount_minor, "refund": amount_minor, "payer_total": amount_minor, "payer_refund": amount_minor},
    })
}

/// The body of a notice about `resource`, which is encrypted.
pub(crate) fn envelope(event_type: &str, resource: &Value) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, API_KEY.as_bytes()).unwrap());
    let mut text = resource.to_string().into_bytes();
    let nonce = Nonce::assume_unique_for_key(*b"fdasflkja484");
    key.seal_in_place_append_tag(nonce, Aad::from(b"transaction"), &mut text).unwrap();
    json!({
        "id": "EV-2018022511223320873", "create_time": "2027-01-15T16:00:00+08:00",
        "resource_type": "encrypt-resource", "event_type": event_type, "summary": "支付成功",
        "resource": {
            "original_type": "transaction", "algorithm": "AEAD_AES_256_GCM", "associated_data": "transaction",
            "nonce": "fdasflkja484", "ciphertext": BASE64_STANDARD.encode(text),
        },
    })
    .to_string()
}

/// `body`, signed at `seconds` of the Unix time.
pub(crate) fn signed(body: String, seconds: i64, key: &Key) -> Notice {
    let mut headers = signature(&body, seconds, key).to_vec();
    headers.push(("content-type", "application/json".to_owned()));
    Notice { channel: "wechat", headers, body }
}

fn signature(body: &str, seconds: i64, key: &Key) -> [(&'static str, String); 4] {
    let nonce = "c5ac7061fccab6bf3e254dcf98995b8c";
    [
        ("Wechatpay-Timestamp", seconds.to_string()),
        ("Wechatpay-Nonce", nonce.to_owned()),
        ("Wechatpay-Signature", key.sign(&format!("{seconds}\n{nonce}\n{body}\n"))),
        ("Wechatpay-Serial", SERIAL.to_owned()),
    ]
}

async fn answer(request: HttpRequest, body: Bytes, shared: Data<Shared>) -> HttpResponse {
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (status, answer) = shared.ledger.lock().unwrap().answer(request.method(), request.path(), &asked);
    let body = if answer.is_null() { String::new() } else { answer.to_string() };
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap());
    for header in signature(&body, shared.clock.now().timestamp(), &KEY) {
        response.insert_header(header);
    }
    response.content_type("application/json").body(body)
}

impl Ledger {
    fn answer(&mut self, method: &Method, path: &str, asked: &Value) -> (u16, Value) {
        let text = |member: &str| asked[member].as_str().unwrap().to_owned();
        let parts: Vec<&str> = path.trim_start_matches("/v3/").split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["pay", "transactions", "native"]) => {
                (200, json!({"code_url": format!("weixin://wxpay/bizpayurl?pr={}", text("out_trade_no"))}))
            }
            ("GET", ["pay", "transactions", "out-trade-no", payment]) => match self.paid.get(*payment) {
                Some(&amount) => (200, transaction(payment, amount)),
                None => problem(404, "ORDER_NOT_EXIST"),
            },
            ("POST", ["pay", "transactions", "out-trade-no", payment, "close"]) => {
                if self.paid.contains_key(*payment) { problem(400, "ORDERPAID") } else { (204, Value::Null) }
            }
            ("POST", ["refund", "domestic", "refunds"]) => {
                let refund = text("out_refund_no");
                self.returned.insert(refund.clone(), asked["amount"]["refund"].as_i64().unwrap());
                (200, json!({"out_refund_no": refund, "status": "PROCESSING"}))
            }
            _ => panic!("{method} {path} is not asked in stories"),
        }
    }
}

fn problem(status: u16, code: &str) -> (u16, Value) {
    (status, json!({"code": code, "message": "no"}))
}
