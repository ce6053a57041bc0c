//! Alipay, as far as stories need it: it takes money, gives it back, and may fall silent.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;

use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tombola::config::Config;

/// Signs for both sides: which key is whose is the business of the adapter's own tests.
static KEY: LazyLock<Key> = LazyLock::new(Key::generate);

struct Key {
    private: String,
    public: String,
    pair: RsaKeyPair,
}

impl Key {
    fn generate() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        let file = file.to_str().unwrap();
        openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", file]);
        let private = std::fs::read_to_string(file).unwrap();
        let public = openssl(&["pkey", "-in", file, "-pubout"]);
        let der = BASE64_STANDARD.decode(inside(&private)).unwrap();
        Self {
            pair: RsaKeyPair::from_pkcs8(&der).unwrap(),
            private: inside(&private),
            public: inside(&public),
        }
    }

    fn sign(&self, text: &str) -> String {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let random = SystemRandom::new();
        self.pair.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature).unwrap();
        BASE64_STANDARD.encode(signature)
    }
}

fn openssl(args: &[&str]) -> String {
    let output = Command::new("openssl").args(args).stderr(Stdio::null()).output();
    let output = output.expect("the openssl command is needed for this story");
    assert!(output.status.success(), "openssl {args:?} failed");
    String::from_utf8(output.stdout).unwrap()
}

/// What is between the lines of a PEM file.
fn inside(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

/// What Alipay knows, by our numbers.
#[derive(Debug, Default)]
struct Ledger {
    /// In yuan, as it is written there.
    paid: BTreeMap<String, String>,
    returned: BTreeMap<String, String>,
}

struct Shared {
    ledger: Mutex<Ledger>,
    silent: watch::Sender<bool>,
}

/// A server that answers as Alipay does, until it is dropped.
pub(crate) struct FakeAlipay {
    url: String,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
    _thread: JoinHandle<()>,
}

impl FakeAlipay {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared { ledger: Mutex::default(), silent: watch::Sender::new(false) });
        let (started, url) = oneshot::channel();
        let (stop, stopping) = oneshot::channel::<()>();
        let data = Data::from(shared.clone());
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new().app_data(data.clone()).default_service(web::to(answer))
                });
                let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
                started.send(format!("http://{}/gateway.do", server.addrs()[0])).unwrap();
                let server = server.run();
                let handle = server.handle();
                actix_web::rt::spawn(server);
                let _ = stopping.await;
                handle.stop(false).await;
            });
        });
        Self { url: url.await.unwrap(), shared, _stop: stop, _thread: thread }
    }

    /// Makes it the Alipay of a server.
    pub(crate) fn configure(&self, config: &mut Config) {
        let settings = &mut config.payment.alipay;
        settings.base_url.clone_from(&self.url);
        settings.app_id = Some("2014072300007148".to_owned());
        settings.seller_id = Some("2088101106499364".to_owned());
        settings.private_key = Some(KEY.private.clone().into());
        settings.public_key = Some(KEY.public.clone());
        settings.notify_url = Some("https://shop.example/api/v1/payments/callbacks/alipay".to_owned());
    }

    /// A customer pays.
    pub(crate) fn pay(&self, payment: &str, amount_minor: i64) {
        let yuan = format!("{}.{:02}", amount_minor / 100, amount_minor % 100);
        self.shared.ledger.lock().unwrap().paid.insert(payment.to_owned(), yuan);
    }

    /// It never heard of a payment.
    pub(crate) fn forget(&self, payment: &str) {
        self.shared.ledger.lock().unwrap().paid.remove(payment);
    }

    /// What it gave back, in yuan, by our numbers of the refunds.
    pub(crate) fn returned(&self) -> BTreeMap<String, String> {
        self.shared.ledger.lock().unwrap().returned.clone()
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
    let content = shared.ledger.lock().unwrap().answer(method, &asked).to_string();
    let name = method.replace('.', "_") + "_response";
    let body = format!(r#"{{"{name}":{content},"sign":"{}"}}"#, KEY.sign(&content));
    HttpResponse::Ok().content_type("application/json").body(body)
}

impl Ledger {
    fn answer(&mut self, method: &str, asked: &Value) -> Value {
        let text = |member: &str| asked[member].as_str().unwrap_or_default().to_owned();
        let payment = text("out_trade_no");
        let paid = self.paid.get(&payment);
        let mut answer = match (method, paid) {
            ("alipay.trade.precreate", _) => json!({"qr_code": format!("https://qr.alipay.com/{payment}")}),
            ("alipay.trade.close", Some(_)) => return refused("ACQ.TRADE_STATUS_ERROR"),
            (_, None) => return refused("ACQ.TRADE_NOT_EXIST"),
            ("alipay.trade.query", Some(amount)) => json!({
                "trade_no": format!("2027{payment}"), "trade_status": "TRADE_SUCCESS", "total_amount": amount,
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
