//! Alipay, against a server that checks and makes signatures with `openssl`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::HttpResponse;
use rstest::rstest;
use serde_json::json;

use super::keys::{MERCHANT, PLATFORM, STRANGER, inside};
use super::server::{Asked, Fault, Server};
use super::*;
use crate::ports::clock::ManualClock;
use crate::ports::payment_gateway::alipay::{Alipay, AlipayConfig};

pub(super) const PAYMENT: PaymentId = PaymentId(267432117862400);
pub(super) const NUMBER: &str = "2026060122001400000000000001";

pub(super) fn now() -> Timestamp {
    at("2026-06-01T02:00:00Z")
}

fn config() -> AlipayConfig {
    AlipayConfig {
        app_id: "2014072300007148".to_owned(),
        seller_id: "2088101106499364".to_owned(),
        private_key: inside(&MERCHANT.traditional()).into(),
        public_key: inside(&PLATFORM.public),
        notify_url: "https://shop.example/api/v1/payments/callbacks/alipay".to_owned(),
        timeout: Duration::from_millis(500),
        ..AlipayConfig::empty()
    }
}

pub(super) fn gateway(base_url: &str) -> Alipay {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = AlipayConfig { base_url: base_url.to_owned(), ..config() };
    Alipay::new(&config, Arc::new(ManualClock::new(now()))).unwrap()
}

/// What Alipay answers to method and content.
type Answers = Box<dyn Fn(&str, &Value) -> Value + Send + Sync>;

/// Alipay, which checks who asks.
pub(super) struct FakeAlipay {
    server: Server,
    /// Method and content of each request.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl FakeAlipay {
    /// Gives the answers one after the other, the last one for ever.
    fn answering(answers: Vec<Value>) -> Self {
        Self::with(answers, None)
    }

    fn with(answers: Vec<Value>, fault: Option<Fault>) -> Self {
        let answers = Mutex::new(answers);
        let next = move |_: &str, _: &Value| {
            let mut answers = answers.lock().unwrap();
            if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }
        };
        Self::start(Box::new(next), fault)
    }

    pub(super) fn keeping(answers: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        Self::start(Box::new(answers), None)
    }

    fn start(answers: Answers, fault: Option<Fault>) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let reply = move |asked: &Asked| {
            let (method, content) = authorized(asked);
            let response = respond(&method, &answers(&method, &content), fault);
            log.lock().unwrap().push((method, content));
            response
        };
        Self { server: Server::start(Arc::new(reply), fault == Some(Fault::Hang)), asked }
    }

    pub(super) fn gateway(&self) -> Alipay {
        gateway(&format!("{}/gateway.do", self.server.url))
    }

    fn last(&self) -> (String, Value) {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

/// Checks a request as the documents say: its signature is over all parameters, sorted, wherever they stand.
fn authorized(asked: &Asked) -> (String, Value) {
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded;charset=utf-8");
    let (path, query) = asked.path.split_once('?').unwrap();
    assert_eq!(path, "/gateway.do");
    checked(&format!("{query}&{}", asked.body))
}

fn checked(params: &str) -> (String, Value) {
    let mut params: BTreeMap<String, String> =
        form_urlencoded::parse(params.as_bytes()).into_owned().collect();
    let signature = params.remove("sign").unwrap();
    assert!(MERCHANT.signed(text(&params).as_bytes(), &signature), "{params:?}");
    for (name, value) in [
        ("app_id", "2014072300007148"),
        ("format", "JSON"),
        ("charset", "utf-8"),
        ("sign_type", "RSA2"),
        ("timestamp", "2026-06-01 10:00:00"),
        ("version", "1.0"),
        ("notify_url", "https://shop.example/api/v1/payments/callbacks/alipay"),
    ] {
        assert_eq!(params[name], value, "{name}");
    }
    assert_eq!(params.len(), 9);
    (params["method"].clone(), serde_json::from_str(&params["biz_content"]).unwrap())
}

pub(super) fn text(params: &BTreeMap<String, String>) -> String {
    params.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn respond(method: &str, content: &Value, fault: Option<Fault>) -> HttpResponse {
    let name = method.replace('.', "_") + "_response";
    // As Alipay writes it: slashes are escaped.
    let mut content = content.to_string().replace('/', "\\/");
    if fault == Some(Fault::SystemError) {
        content =
            json!({ "code": "40004", "msg": "Business Failed", "sub_code": "ACQ.SYSTEM_ERROR" }).to_string();
    }
    let key = if fault == Some(Fault::StrangersKey) { &STRANGER } else { &PLATFORM };
    let signature = key.sign(content.as_bytes());
    let body = match fault {
        Some(Fault::Down) => return HttpResponse::BadGateway().body("<html>"),
        Some(Fault::Garbage) => return HttpResponse::Ok().body("<html>"),
        Some(Fault::Redirect) => {
            return HttpResponse::Found().insert_header(("Location", "http://127.0.0.1:1/")).finish();
        }
        Some(Fault::Unsigned) => format!(r#"{{"{name}":{content}}}"#),
        Some(Fault::Reserialised) => {
            format!(r#"{{"{name}":{},"sign":"{signature}"}}"#, content.replacen(':', ": ", 1))
        }
        _ => format!(r#"{{"{name}":{content},"sign":"{signature}"}}"#),
    };
    HttpResponse::Ok().content_type("text/html;charset=utf-8").body(body)
}

pub(super) fn trade(status: &str) -> Value {
    json!({
        "code": "10000",
        "msg": "Success",
        "buyer_logon_id": "159****5620",
        "buyer_user_id": "2088101117955611",
        "out_trade_no": "267432117862400",
        "send_pay_date": "2026-06-01 09:59:58",
        "total_amount": "12.34",
        "trade_no": NUMBER,
        "trade_status": status,
    })
}

pub(super) fn unpaid(status: &str) -> Value {
    let mut trade = trade(status);
    trade.as_object_mut().unwrap().remove("send_pay_date");
    trade
}

pub(super) fn failed(code: &str, sub_code: &str) -> Value {
    json!({ "code": code, "msg": "Business Failed", "sub_code": sub_code, "sub_msg": "no" })
}

pub(super) fn captured(payer: &str) -> Capture {
    Capture {
        transaction_id: NUMBER.to_owned(),
        amount_minor: 1234,
        currency: cny(),
        payer: Some(payer.to_owned()),
        paid_at: at("2026-06-01T01:59:58Z"),
    }
}

#[actix_web::test]
async fn a_payment_by_qr_code_is_prepared() {
    let url = "https://qr.alipay.com/bavh4wjlxf12tper3a";
    let made =
        json!({ "code": "10000", "msg": "Success", "out_trade_no": "267432117862400", "qr_code": url });
    let fake = FakeAlipay::answering(vec![made]);
    let order = PaymentOrder { description: "茶 1/2 & more".to_owned(), ..order(PAYMENT.0) };
    assert_eq!(Value::Object(fake.gateway().create(&order).await.unwrap()), json!({ "qr_code": url }));
    let content = json!({
        "out_trade_no": "267432117862400",
        "total_amount": "12.34",
        "subject": "茶 1 2   more",
        "time_expire": "2026-06-01 10:30:00",
    });
    assert_eq!(fake.last(), ("alipay.trade.precreate".to_owned(), content));
}

#[actix_web::test]
async fn a_payment_by_page_is_a_signed_address() {
    let order = PaymentOrder { mode: Some(PaymentMode::Page), ..order(PAYMENT.0) };
    let params = gateway("https://openapi.alipay.com/gateway.do").create(&order).await.unwrap();
    let (base, query) = params["pay_url"].as_str().unwrap().split_once('?').unwrap();
    assert_eq!(base, "https://openapi.alipay.com/gateway.do");
    let (method, content) = checked(query);
    assert_eq!(method, "alipay.trade.page.pay");
    assert_eq!(content["product_code"], "FAST_INSTANT_TRADE_PAY");
    assert_eq!(content["total_amount"], "12.34");
}

#[rstest]
#[case(PaymentOrder { currency: "USD".parse().unwrap(), ..order(1) })]
#[case(PaymentOrder { mode: Some(PaymentMode::Native), ..order(1) })]
#[actix_web::test]
async fn what_does_not_fit_is_not_asked(#[case] order: PaymentOrder) {
    let gateway = gateway("http://127.0.0.1:1/gateway.do");
    assert!(matches!(gateway.create(&order).await, Err(GatewayError::Unfit(_))));
}

#[rstest]
#[case(trade("TRADE_SUCCESS"), Ok(GatewayState::Succeeded(captured("2088101117955611"))))]
#[case(trade("TRADE_FINISHED"), Ok(GatewayState::Succeeded(captured("2088101117955611"))))]
#[case(trade("TRADE_CLOSED"), Ok(GatewayState::Refunded(captured("2088101117955611"))))]
#[case(unpaid("TRADE_CLOSED"), Ok(GatewayState::Closed))]
#[case(unpaid("WAIT_BUYER_PAY"), Ok(GatewayState::Pending))]
#[case(unpaid("TRADE_SUCCESS"), Err(()))]
#[case(trade("TRADE_PENDING"), Err(()))]
#[case(failed("40004", "ACQ.TRADE_NOT_EXIST"), Ok(GatewayState::NotFound))]
#[case(failed("20000", "isp.unknow-error"), Err(()))]
#[case(failed("40004", "isp.unknow-error"), Err(()))]
#[case(failed("10003", ""), Err(()))]
#[actix_web::test]
async fn the_state_of_a_payment_is_asked(#[case] answer: Value, #[case] state: Result<GatewayState, ()>) {
    let fake = FakeAlipay::answering(vec![answer]);
    let asked = fake.gateway().query(PAYMENT).await;
    assert!(matches!(asked, Ok(_) | Err(GatewayError::Unclear(_))), "{asked:?}");
    assert_eq!(asked.map_err(|_| ()), state);
    assert_eq!(fake.last(), ("alipay.trade.query".to_owned(), json!({ "out_trade_no": "267432117862400" })));
    let other = fake.gateway().query(PaymentId(7)).await;
    assert!(matches!(other, Err(GatewayError::Unclear(_)) | Ok(GatewayState::NotFound)));
}

#[rstest]
#[case(vec![json!({ "code": "10000", "msg": "Success", "trade_no": NUMBER })], Ok(Closing::Closed))]
#[case(vec![failed("40004", "ACQ.TRADE_NOT_EXIST")], Ok(Closing::Unknown))]
#[case(
    vec![failed("40004", "ACQ.TRADE_STATUS_ERROR"), trade("TRADE_SUCCESS")],
    Ok(Closing::AlreadyPaid(captured("2088101117955611")))
)]
#[case(vec![failed("40004", "ACQ.TRADE_STATUS_ERROR"), unpaid("TRADE_CLOSED")], Ok(Closing::Closed))]
#[case(vec![failed("40004", "ACQ.REASON_ILLEGAL_STATUS"), unpaid("WAIT_BUYER_PAY")], Err(()))]
#[actix_web::test]
async fn a_payment_is_closed(#[case] answers: Vec<Value>, #[case] closing: Result<Closing, ()>) {
    let fake = FakeAlipay::answering(answers);
    let closed = fake.gateway().close(PAYMENT).await;
    assert!(matches!(closed, Ok(_) | Err(GatewayError::Unclear(_))), "{closed:?}");
    assert_eq!(closed.map_err(|_| ()), closing);
    assert_eq!(fake.asked.lock().unwrap()[0].0, "alipay.trade.close");
}

#[actix_web::test]
async fn money_goes_back() {
    let refunded = |fund_change: &str| json!({ "code": "10000", "msg": "Success", "fund_change": fund_change, "refund_fee": "2.34" });
    let fake = FakeAlipay::answering(vec![refunded("Y")]);
    let order = refund(9000, PAYMENT.0, 234);
    assert_eq!(fake.gateway().refund(&order).await, Ok(RefundState::Succeeded));
    let content = json!({
        "out_trade_no": "267432117862400",
        "refund_amount": "2.34",
        "out_request_no": "9000",
        "refund_reason": "order cancelled",
    });
    assert_eq!(fake.last(), ("alipay.trade.refund".to_owned(), content));

    // A repeat moves no money.
    let done = json!({ "code": "10000", "msg": "Success", "refund_status": "REFUND_SUCCESS", "refund_amount": "2.34" });
    let fake = FakeAlipay::answering(vec![refunded("N"), done]);
    assert_eq!(fake.gateway().refund(&order).await, Ok(RefundState::Succeeded));
    let content = json!({ "out_trade_no": "267432117862400", "out_request_no": "9000" });
    assert_eq!(fake.last(), ("alipay.trade.fastpay.refund.query".to_owned(), content));

    let nothing = json!({ "code": "10000", "msg": "Success" });
    let fake = FakeAlipay::answering(vec![refunded("N"), nothing]);
    assert_eq!(fake.gateway().refund(&order).await, Ok(RefundState::Processing));
    assert_eq!(fake.gateway().query_refund(PAYMENT, RefundId(9000)).await, Ok(RefundState::NotFound));

    let fake = FakeAlipay::answering(vec![failed("40004", "ACQ.REFUND_AMT_NOT_EQUAL_TOTAL")]);
    let refused = fake.gateway().refund(&order).await;
    assert!(matches!(refused, Err(GatewayError::Refused { code, .. }) if code.ends_with("EQUAL_TOTAL")));
    assert_eq!(fake.gateway().statement("2026-06-01".parse().unwrap()).await, Ok(None));
}

/// Whatever goes wrong on the way leaves open what happened.
#[actix_web::test]
async fn an_answer_that_is_not_clear_is_no_failure() {
    for fault in Fault::ALL {
        let fake = FakeAlipay::with(vec![trade("TRADE_SUCCESS")], Some(fault));
        let gateway = fake.gateway();
        let query = gateway.query(PAYMENT).await;
        assert!(matches!(query, Err(GatewayError::Unclear(_))), "{fault:?}: {query:?}");
        let close = gateway.close(PAYMENT).await;
        assert!(matches!(close, Err(GatewayError::Unclear(_))), "{fault:?}: {close:?}");
        let refund = gateway.refund(&refund(9000, PAYMENT.0, 234)).await;
        assert!(matches!(refund, Err(GatewayError::Unclear(_))), "{fault:?}: {refund:?}");
        let create = gateway.create(&order(PAYMENT.0)).await;
        assert!(matches!(create, Err(GatewayError::Unclear(_))), "{fault:?}: {create:?}");
    }
}

/// A key may come in any of the shapes that tools make.
#[test]
fn keys_are_read_in_every_usual_form() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let private = [
        MERCHANT.private.clone(),
        MERCHANT.traditional(),
        inside(&MERCHANT.private),
        inside(&MERCHANT.traditional()),
    ];
    let public = [PLATFORM.public.clone(), inside(&PLATFORM.public), PLATFORM.certificate("01")];
    for (private, public) in private.iter().zip(public.iter().cycle()) {
        let config =
            AlipayConfig { private_key: private.clone().into(), public_key: public.clone(), ..config() };
        Alipay::new(&config, Arc::new(ManualClock::new(now()))).unwrap();
    }
}

#[rstest]
#[case(AlipayConfig { seller_id: String::new(), ..config() }, "payment.alipay.seller_id", "is needed")]
#[case(AlipayConfig { private_key: "x".into(), ..config() }, "payment.alipay.private_key", "PEM")]
#[case(AlipayConfig { private_key: PLATFORM.public.clone().into(), ..config() }, "payment.alipay.private_key", "PEM")]
#[case(AlipayConfig { public_key: "x".to_owned(), ..config() }, "payment.alipay.public_key", "PEM")]
#[case(AlipayConfig { public_key: MERCHANT.private.clone(), ..config() }, "payment.alipay.public_key", "PEM")]
#[case(AlipayConfig { base_url: "alipay".to_owned(), ..config() }, "payment.alipay.base_url", "no URL")]
#[case(AlipayConfig { notify_url: "ftp://a".to_owned(), ..config() }, "payment.alipay.notify_url", "https://")]
fn a_setting_that_cannot_be_used_is_named(
    #[case] config: AlipayConfig,
    #[case] key: &str,
    #[case] problem: &str,
) {
    let error = Alipay::new(&config, Arc::new(ManualClock::new(now()))).unwrap_err();
    assert_eq!(error.key, key);
    assert!(error.problem.contains(problem), "{error}");
}
