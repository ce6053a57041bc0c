//! Alipay, as far as stories need it: it takes money, gives it back, and may fall silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use actix_web::web::{self, Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use form_urlencoded::Serializer;
use serde_json::{Value, json};
use tokio::sync::watch;
use tombola::config::Config;

use super::gateway::{KEY, Key, Notice, Server};

const APP: &str = "2014072300007148";
const SELLER: &str = "2088101106499364";

/// What Alipay knows, by our numbers.
#[derive(Debug, Default)]
struct Ledger {
    /// In yuan, as it is written there.
    paid: BTreeMap<String, String>,
    returned: BTreeMap<String, String>,
    given_back: BTreeSet<String>,
    /// In the order in which it was asked to.
    closed: Vec<String>,
}

struct Shared {
    ledger: Mutex<Ledger>,
    silent: watch::Sender<bool>,
    /// Whether it takes its time to prepare a payment, and how many it was asked for.
    slow: watch::Sender<bool>,
    preparing: watch::Sender<usize>,
}

/// A server that answers as Alipay does, until it is dropped.
pub(crate) struct FakeAlipay {
    server: Server,
    shared: Arc<Shared>,
}

impl FakeAlipay {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            ledger: Mutex::default(),
            silent: watch::Sender::new(false),
            slow: watch::Sender::new(false),
            preparing: watch::Sender::new(0),
        });
        let data = Data::from(shared.clone());
        let server = Server::start(move |app| {
            app.app_data(data.clone()).default_service(web::to(answer));
        });
        Self { server: server.await, shared }
    }

    /// Makes it the Alipay of a server.
    pub(crate) fn configure(&self, config: &mut Config) {
        let settings = &mut config.payment.alipay;
        settings.base_url = format!("{}/gateway.do", self.server.url);
        settings.app_id = Some(APP.to_owned());
        settings.seller_id = Some(SELLER.to_owned());
        settings.private_key = Some(KEY.private.clone().into());
        settings.public_key = Some(KEY.public.clone());
        settings.notify_url = Some("https://shop.example/api/v1/payments/callbacks/alipay".to_owned());
    }

    /// A customer pays.
    pub(crate) fn pay(&self, payment: &str, amount_minor: i64) {
        self.shared.ledger.lock().unwrap().paid.insert(payment.to_owned(), yuan(amount_minor));
    }

    /// The shop gives a customer's money back there, past us.
    pub(crate) fn give_back(&self, payment: &str) {
        self.shared.ledger.lock().unwrap().given_back.insert(payment.to_owned());
    }

    /// It never heard of a payment.
    pub(crate) fn forget(&self, payment: &str) {
        self.shared.ledger.lock().unwrap().paid.remove(payment);
    }

    /// What it gave back, in yuan, by our numbers of the refunds.
    pub(crate) fn returned(&self) -> BTreeMap<String, String> {
        self.shared.ledger.lock().unwrap().returned.clone()
    }

    /// The payments that it was asked to close, by our numbers, each as often as it was.
    pub(crate) fn closed(&self) -> Vec<String> {
        self.shared.ledger.lock().unwrap().closed.clone()
    }

    /// From now on it prepares payments and does not say so.
    pub(crate) fn hold_back(&self) {
        self.shared.slow.send_replace(true);
    }

    /// Waits until it is asked to prepare a payment.
    pub(crate) async fn is_preparing(&self) {
        self.shared.preparing.subscribe().wait_for(|count| *count > 0).await.unwrap();
    }

    /// Says what it has prepared.
    pub(crate) fn say(&self) {
        self.shared.slow.send_replace(false);
    }

    /// From now on it takes requests and answers none.
    pub(crate) fn fall_silent(&self) {
        self.shared.silent.send_replace(true);
    }

    /// It is back; what it was asked meanwhile is not answered as such.
    pub(crate) fn come_back(&self) {
        self.shared.silent.send_replace(false);
    }
}

/// Alipay's number for the capture of a payment.
pub(crate) fn trade_no(payment: &str) -> String {
    format!("2027{payment}")
}

fn yuan(amount_minor: i64) -> String {
    format!("{}.{:02}", amount_minor / 100, amount_minor % 100)
}

/// Tells that a payment was captured, but for `changes`.
pub(crate) fn notice(payment: &str, amount_minor: i64, changes: &[(&str, &str)], key: &Key) -> Notice {
    let (trade, amount) = (trade_no(payment), yuan(amount_minor));
    let mut fields = BTreeMap::from([
        ("notify_time", "2027-01-15 16:00:01"),
        ("notify_type", "trade_status_sync"),
        ("notify_id", "ac05099524730693a8b330c5ecf72da9786"),
        ("charset", "utf-8"),
        ("version", "1.0"),
        ("app_id", APP),
        ("auth_app_id", APP),
        ("trade_no", &trade),
        ("out_trade_no", payment),
        ("buyer_id", "2088101117955611"),
        ("seller_id", SELLER),
        ("trade_status", "TRADE_SUCCESS"),
        ("total_amount", &amount),
        ("subject", "月饼 & 100% tea"),
        ("gmt_create", "2027-01-15 15:59:50"),
        ("gmt_payment", "2027-01-15 16:00:00"),
    ]);
    fields.extend(changes.iter().copied());
    let text: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let signature = key.sign(&text.join("&"));
    let mut form = Serializer::new(String::new());
    form.extend_pairs(fields).append_pair("sign_type", "RSA2").append_pair("sign", &signature);
    let headers = vec![("content-type", "application/x-www-form-urlencoded; charset=utf-8".to_owned())];
    Notice { channel: "alipay", headers, body: form.finish() }
}

async fn answer(request: HttpRequest, body: Bytes, shared: Data<Shared>) -> HttpResponse {
    let mut silent = shared.silent.subscribe();
    if *silent.borrow_and_update() {
        let _ = silent.wait_for(|silent| !silent).await;
        return HttpResponse::BadGateway().finish();
    }
    let params = [request.query_string().as_bytes(), b"&", &body].concat();
    let params: BTreeMap<String, String> = form_urlencoded::parse(&params).into_owned().collect();
    let asked: Value = serde_json::from_str(&params["biz_content"]).unwrap();
    let method = &params["method"];
    if method == "alipay.trade.precreate" {
        shared.preparing.send_modify(|count| *count += 1);
        let _ = shared.slow.subscribe().wait_for(|slow| !slow).await;
    }
    let content = shared.ledger.lock().unwrap().answer(method, &asked).to_string();
    let name = method.replace('.', "_") + "_response";
    let body = format!(r#"{{"{name}":{content},"sign":"{}"}}"#, KEY.sign(&content));
    HttpResponse::Ok().content_type("application/json").body(body)
}

impl Ledger {
    fn answer(&mut self, method: &str, asked: &Value) -> Value {
        let text = |member: &str| asked[member].as_str().unwrap_or_default().to_owned();
        let payment = text("out_trade_no");
        if method == "alipay.trade.close" {
            self.closed.push(payment.clone());
        }
        let paid = self.paid.get(&payment);
        let mut answer = match (method, paid) {
            ("alipay.trade.precreate", _) => json!({"qr_code": format!("https://qr.alipay.com/{payment}")}),
            ("alipay.trade.close", Some(_)) => return refused("ACQ.TRADE_STATUS_ERROR"),
            (_, None) => return refused("ACQ.TRADE_NOT_EXIST"),
            ("alipay.trade.query", Some(amount)) => json!({
                "trade_no": trade_no(&payment), "total_amount": amount,
                "trade_status": if self.given_back.contains(&payment) { "TRADE_CLOSED" } else { "TRADE_SUCCESS" },
                "send_pay_date": "2027-01-15 16:00:00", "buyer_user_id": "2088101117955611",
            }),
            ("alipay.trade.refund", Some(_)) => {
                let new = self.returned.insert(text("out_request_no"), text("refund_amount")).is_none();
                json!({"fund_change": if new { "Y" } else { "N" }})
            }
            ("alipay.trade.fastpay.refund.query", Some(_)) => {
                let known = self.returned.contains_key(&text("out_request_no"));
                if known { json!({"refund_status": "REFUND_SUCCESS"}) } else { json!({}) }
            }
            (method, _) => panic!("{method} is not asked in stories"),
        };
        answer["code"] = "10000".into();
        answer["msg"] = "Success".into();
        answer["out_trade_no"] = payment.into();
        answer
    }
}

fn refused(sub_code: &str) -> Value {
    json!({"code": "40004", "msg": "Business Failed", "sub_code": sub_code})
}
