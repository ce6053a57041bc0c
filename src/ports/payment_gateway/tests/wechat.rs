//! WeChat Pay, against a server that checks and makes signatures with `openssl`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rstest::rstest;
use serde_json::json;

use super::keys::{Key, MERCHANT, PLATFORM, STRANGER};
use super::server::{Asked, Fault, Server};
use super::*;
use crate::ports::clock::ManualClock;
use crate::ports::payment_gateway::wechat::{WechatPay, WechatPayConfig};

pub(super) const SERIAL: &str = "PUB_KEY_ID_0119999999";
pub(super) const CERTIFICATE: &str = "5157F09EFDC096DE15EBE81A47057A72";
pub(super) const API_KEY: &str = "0123456789abcdef0123456789abcdef";

pub(super) fn now() -> Timestamp {
    at("2026-06-01T10:00:00+08:00")
}

/// What WeChat Pay answers to method, path and body: a status and a body.
type Answers = Box<dyn Fn(&str, &str, &str) -> (u16, String) + Send + Sync>;

/// WeChat Pay, which checks who asks.
pub(super) struct FakeWechat {
    server: Server,
    /// Method, path and body of each request.
    asked: Arc<Mutex<Vec<(String, String, String)>>>,
}

impl FakeWechat {
    /// Gives the answers one after the other, the last one for ever.
    fn answering(answers: Vec<(u16, String)>) -> Self {
        Self::with(answers, None)
    }

    fn with(answers: Vec<(u16, String)>, fault: Option<Fault>) -> Self {
        let answers = Mutex::new(answers);
        let next = move |_: &str, _: &str, _: &str| {
            let mut answers = answers.lock().unwrap();
            if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }
        };
        Self::start(Box::new(next), fault)
    }

    pub(super) fn keeping(
        answers: impl Fn(&str, &str, &str) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        Self::start(Box::new(answers), None)
    }

    fn start(answers: Answers, fault: Option<Fault>) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let reply = move |asked: &Asked| {
            assert_authorized(asked);
            let Asked { method, path, body, .. } = asked;
            log.lock().unwrap().push((method.clone(), path.clone(), body.clone()));
            let (status, body) = answers(method, path, body);
            respond(status, body, fault)
        };
        Self { server: Server::start(Arc::new(reply), fault == Some(Fault::Hang)), asked }
    }

    pub(super) fn gateway(&self) -> WechatPay {
        let config = WechatPayConfig { base_url: self.server.url.clone(), ..config() };
        WechatPay::new(&config, Arc::new(ManualClock::new(now()))).unwrap()
    }

    /// The request before the last `back` ones.
    fn asked(&self, back: usize) -> (String, String, String) {
        let log = self.asked.lock().unwrap();
        log[log.len() - 1 - back].clone()
    }
}

pub(super) fn config() -> WechatPayConfig {
    WechatPayConfig {
        app_id: "wxd678efh567hg6787".to_owned(),
        mch_id: "1230000109".to_owned(),
        serial_no: "408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB".to_owned(),
        private_key: MERCHANT.private.clone().into(),
        api_v3_key: API_KEY.into(),
        platform_keys: vec![
            (SERIAL.to_owned(), PLATFORM.public.clone()),
            (CERTIFICATE.to_owned(), PLATFORM.certificate(CERTIFICATE)),
        ],
        notify_url: "https://shop.example/api/v1/payments/callbacks/wechat".to_owned(),
        timeout: Duration::from_millis(500),
        ..WechatPayConfig::empty()
    }
}

/// The request is signed as the document on signatures says.
fn assert_authorized(asked: &Asked) {
    let authorization = asked.header("authorization");
    let (scheme, rest) = authorization.split_once(' ').unwrap();
    assert_eq!(scheme, "WECHATPAY2-SHA256-RSA2048");
    let member = |name: &str| {
        let (_, rest) = rest.split_once(&format!("{name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    assert_eq!((member("mchid"), member("serial_no")), (config().mch_id, config().serial_no));
    assert_eq!(member("timestamp"), now().timestamp().to_string());
    let (time, nonce) = (member("timestamp"), member("nonce_str"));
    let text = format!("{}\n{}\n{time}\n{nonce}\n{}\n", asked.method, asked.path, asked.body);
    assert!(MERCHANT.signed(text.as_bytes(), &member("signature")), "{text}");
    assert_eq!((asked.header("accept"), asked.header("wechatpay-serial")), ("application/json", SERIAL));
    assert_eq!(asked.header("content-type") == "application/json", !asked.body.is_empty());
}

fn respond(status: u16, body: String, fault: Option<Fault>) -> HttpResponse {
    let status = StatusCode::from_u16(status).unwrap();
    let (status, body) = match fault {
        Some(Fault::Down) => (StatusCode::BAD_GATEWAY, "<html>".to_owned()),
        Some(Fault::Garbage) => (StatusCode::OK, "<html>".to_owned()),
        Some(Fault::Redirect) => (StatusCode::FOUND, String::new()),
        Some(Fault::SystemError) => {
            let problem = r#"{"code":"SYSTEM_ERROR","message":"try again"}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, problem.to_owned())
        }
        _ => (status, body),
    };
    let key = if fault == Some(Fault::StrangersKey) { &STRANGER } else { &PLATFORM };
    let (time, nonce) = (now().timestamp(), "c5ac7061fccab6bf3e254dcf98995b8c");
    let mut response = HttpResponse::build(status);
    if fault == Some(Fault::Redirect) {
        response.insert_header(("Location", "http://127.0.0.1:1/"));
    }
    if fault != Some(Fault::Unsigned) {
        for (name, value) in signature(key, SERIAL, time, nonce, body.as_bytes()) {
            response.insert_header((name, value));
        }
    }
    let body = if fault == Some(Fault::Reserialised) { body.replacen(':', ": ", 1) } else { body };
    response.content_type("application/json").body(body)
}

/// The headers that WeChat Pay sends along.
pub(super) fn signature(
    key: &Key,
    serial: &str,
    time: i64,
    nonce: &str,
    body: &[u8],
) -> [(&'static str, String); 4] {
    let text = [format!("{time}\n{nonce}\n").as_bytes(), body, b"\n"].concat();
    [
        ("Wechatpay-Timestamp", time.to_string()),
        ("Wechatpay-Nonce", nonce.to_owned()),
        ("Wechatpay-Signature", key.sign(&text)),
        ("Wechatpay-Serial", serial.to_owned()),
    ]
}

/// A transaction as answers and notices show it.
pub(super) fn transaction(state: &str) -> Value {
    json!({
        "appid": "wxd678efh567hg6787",
        "mchid": "1230000109",
        "out_trade_no": "267432117862400",
        "transaction_id": "1217752501201407033233368018",
        "trade_type": "NATIVE",
        "trade_state": state,
        "trade_state_desc": "支付成功",
        "bank_type": "CMC",
        "attach": "",
        "success_time": "2026-06-01T09:59:58+08:00",
        "payer": { "openid": "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o" },
        "amount": { "total": 1234, "payer_total": 1234, "currency": "CNY", "payer_currency": "CNY" },
    })
}

pub(super) fn captured() -> Capture {
    Capture {
        transaction_id: "1217752501201407033233368018".to_owned(),
        amount_minor: 1234,
        currency: cny(),
        payer: Some("oUpF8uMuAJO_M2pxb1Q9zNjWeS6o".to_owned()),
        paid_at: at("2026-06-01T01:59:58Z"),
    }
}

pub(super) const PAYMENT: PaymentId = PaymentId(267432117862400);

/// Before a payment is made there is little to say about it.
const UNPAID: &str = r#"{"mchid":"1230000109","out_trade_no":"267432117862400","trade_state":"NOTPAY","success_time":"","amount":{},"payer":{}}"#;

pub(super) fn problem(status: u16, code: &str) -> (u16, String) {
    (status, json!({ "code": code, "message": "no", "detail": {} }).to_string())
}

#[actix_web::test]
async fn a_native_payment_is_prepared() {
    let fake =
        FakeWechat::answering(vec![(200, r#"{"code_url":"weixin://wxpay/bizpayurl?pr=p4lpSuKzz"}"#.into())]);
    let order = PaymentOrder { description: "茶".repeat(50), ..order(PAYMENT.0) };
    let params = fake.gateway().create(&order).await.unwrap();
    assert_eq!(Value::Object(params), json!({ "code_url": "weixin://wxpay/bizpayurl?pr=p4lpSuKzz" }));
    let (method, path, body) = fake.asked(0);
    assert_eq!((method.as_str(), path.as_str()), ("POST", "/v3/pay/transactions/native"));
    let expected = json!({
        "appid": "wxd678efh567hg6787",
        "mchid": "1230000109",
        "description": "茶".repeat(42),
        "out_trade_no": "267432117862400",
        "time_expire": "2026-06-01T10:30:00+08:00",
        "notify_url": "https://shop.example/api/v1/payments/callbacks/wechat",
        "amount": { "total": 1234, "currency": "CNY" },
    });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
}

/// WeChat Pay takes characters of three bytes at most, and answers PARAM_ERROR to others for ever.
#[rstest]
#[case("🍵 茶 Tea\n🎉", Some("茶 Tea"))]
#[case("🀄\u{7}𠮷👩\u{200d}🍳 \u{fe0f}", None)]
#[case("", None)]
#[actix_web::test]
async fn texts_go_without_what_wechat_pay_refuses(#[case] text: &str, #[case] taken: Option<&str>) {
    let fake = FakeWechat::answering(vec![
        (200, r#"{"code_url":"weixin://wxpay"}"#.to_owned()),
        (200, r#"{"out_refund_no":"9000","status":"SUCCESS"}"#.to_owned()),
    ]);
    let gateway = fake.gateway();
    gateway.create(&PaymentOrder { description: text.to_owned(), ..order(7) }).await.unwrap();
    gateway.refund(&RefundOrder { reason: text.to_owned(), ..refund(9000, 7, 234) }).await.unwrap();
    let sent = |back| serde_json::from_str::<Value>(&fake.asked(back).2).unwrap();
    assert_eq!(sent(1)["description"], taken.unwrap_or("Payment 7"));
    assert_eq!(sent(0).get("reason").and_then(Value::as_str), taken);
}

/// A character that is left out takes no room.
#[actix_web::test]
async fn texts_are_shortened_last() {
    let fake = FakeWechat::answering(vec![(200, r#"{"code_url":"weixin://wxpay"}"#.to_owned())]);
    let description = format!("{}{}", "🎉".repeat(40), "茶".repeat(50));
    fake.gateway().create(&PaymentOrder { description, ..order(7) }).await.unwrap();
    let sent: Value = serde_json::from_str(&fake.asked(0).2).unwrap();
    assert_eq!(sent["description"], "茶".repeat(42));
}

#[actix_web::test]
async fn a_known_payer_pays_within_the_page() {
    let fake =
        FakeWechat::answering(vec![(200, r#"{"prepay_id":"wx201410272009395522657a690389285100"}"#.into())]);
    let order = PaymentOrder { payer: Some("oUpF8uMuAJO".to_owned()), ..order(PAYMENT.0) };
    let params = fake.gateway().create(&order).await.unwrap();
    let param = |name: &str| params[name].as_str().unwrap();
    assert_eq!(params.len(), 6);
    assert_eq!(param("package"), "prepay_id=wx201410272009395522657a690389285100");
    assert_eq!((param("signType"), param("appId")), ("RSA", "wxd678efh567hg6787"));
    let text = ["appId", "timeStamp", "nonceStr", "package"].map(param).join("\n") + "\n";
    assert!(MERCHANT.signed(text.as_bytes(), param("paySign")));
    let (_, path, body) = fake.asked(0);
    assert_eq!(path, "/v3/pay/transactions/jsapi");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["payer"], json!({ "openid": "oUpF8uMuAJO" }));
}

#[rstest]
#[case(PaymentOrder { currency: "USD".parse().unwrap(), ..order(1) })]
#[case(PaymentOrder { mode: Some(PaymentMode::Jsapi), ..order(1) })]
#[case(PaymentOrder { mode: Some(PaymentMode::Page), ..order(1) })]
#[actix_web::test]
async fn what_does_not_fit_is_not_asked(#[case] order: PaymentOrder) {
    let fake = FakeWechat::answering(vec![(200, "{}".to_owned())]);
    assert!(matches!(fake.gateway().create(&order).await, Err(GatewayError::Unfit(_))));
    assert!(fake.asked.lock().unwrap().is_empty());
}

#[rstest]
#[case((200, transaction("SUCCESS").to_string()), Ok(GatewayState::Succeeded(captured())))]
#[case((200, transaction("REFUND").to_string()), Ok(GatewayState::Refunded(captured())))]
#[case((200, transaction("NOTPAY").to_string()), Ok(GatewayState::Pending))]
#[case((200, transaction("USERPAYING").to_string()), Ok(GatewayState::Pending))]
#[case((200, UNPAID.to_owned()), Ok(GatewayState::Pending))]
#[case((200, transaction("CLOSED").to_string()), Ok(GatewayState::Closed))]
#[case((200, transaction("REVOKED").to_string()), Ok(GatewayState::Closed))]
#[case((200, transaction("PAYERROR").to_string()), Ok(GatewayState::Failed))]
#[case((200, transaction("PARTLY").to_string()), Err(()))]
#[case((200, transaction("SUCCESS").to_string().replace("267432117862400", "7")), Err(()))]
#[case((200, transaction("SUCCESS").to_string().replace("1230000109", "1")), Err(()))]
#[case((200, transaction("SUCCESS").to_string().replace("wxd678", "wxd679")), Err(()))]
#[case((200, transaction("SUCCESS").to_string().replace("success_time", "time")), Err(()))]
#[case((200, transaction("SUCCESS").to_string().replace("1234}", "12.34}")), Err(()))]
#[case(problem(404, "ORDER_NOT_EXIST"), Ok(GatewayState::NotFound))]
#[case(problem(429, "FREQUENCY_LIMITED"), Err(()))]
#[case(problem(400, "SYSTEM_ERROR"), Err(()))]
#[actix_web::test]
async fn the_state_of_a_payment_is_asked(
    #[case] answer: (u16, String),
    #[case] state: Result<GatewayState, ()>,
) {
    let fake = FakeWechat::answering(vec![answer]);
    let asked = fake.gateway().query(PAYMENT).await;
    assert!(matches!(asked, Ok(_) | Err(GatewayError::Unclear(_))), "{asked:?}");
    assert_eq!(asked.map_err(|_| ()), state);
    let path = "/v3/pay/transactions/out-trade-no/267432117862400?mchid=1230000109";
    assert_eq!(fake.asked(0), ("GET".to_owned(), path.to_owned(), String::new()));
}

#[actix_web::test]
async fn a_payment_is_closed() {
    let fake = FakeWechat::answering(vec![(204, String::new())]);
    assert_eq!(fake.gateway().close(PAYMENT).await, Ok(Closing::Closed));
    let path = "/v3/pay/transactions/out-trade-no/267432117862400/close";
    let body = r#"{"mchid":"1230000109"}"#;
    assert_eq!(fake.asked(0), ("POST".to_owned(), path.to_owned(), body.to_owned()));
}

#[rstest]
#[case("SUCCESS", Ok(Closing::AlreadyPaid(captured())))]
#[case("REFUND", Ok(Closing::Refunded(captured())))]
#[case("CLOSED", Ok(Closing::Closed))]
#[case("USERPAYING", Err(()))]
#[actix_web::test]
async fn a_close_that_was_refused_is_looked_into(#[case] state: &str, #[case] closing: Result<Closing, ()>) {
    let fake = FakeWechat::answering(vec![problem(400, "ORDERPAID"), (200, transaction(state).to_string())]);
    let closed = fake.gateway().close(PAYMENT).await;
    assert!(matches!(closed, Ok(_) | Err(GatewayError::Unclear(_))), "{closed:?}");
    assert_eq!(closed.map_err(|_| ()), closing);
    assert_eq!(fake.asked(0).0, "GET");
}

#[rstest]
#[case("SUCCESS", RefundState::Succeeded)]
#[case("PROCESSING", RefundState::Processing)]
#[case("CLOSED", RefundState::Failed { reason: "WeChat Pay closed the refund".to_owned() })]
#[actix_web::test]
async fn money_goes_back(#[case] status: &str, #[case] state: RefundState) {
    let answer = json!({ "refund_id": "503", "out_refund_no": "9000", "status": status }).to_string();
    let fake = FakeWechat::answering(vec![(200, answer)]);
    let order = RefundOrder { reason: "r".repeat(100), ..refund(9000, PAYMENT.0, 234) };
    assert_eq!(fake.gateway().refund(&order).await, Ok(state.clone()));
    let (_, path, body) = fake.asked(0);
    assert_eq!(path, "/v3/refund/domestic/refunds");
    let expected = json!({
        "transaction_id": "4200001",
        "out_refund_no": "9000",
        "reason": "r".repeat(80),
        "notify_url": "https://shop.example/api/v1/payments/callbacks/wechat",
        "amount": { "refund": 234, "total": 1234, "currency": "CNY" },
    });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    assert_eq!(fake.gateway().query_refund(PAYMENT, RefundId(9000)).await, Ok(state));
    assert_eq!(fake.asked(0).1, "/v3/refund/domestic/refunds/9000");
    let other = fake.gateway().query_refund(PAYMENT, RefundId(9001)).await;
    assert!(matches!(other, Err(GatewayError::Unclear(_))));
}

#[actix_web::test]
async fn a_refund_may_be_refused_or_not_known() {
    let fake = FakeWechat::answering(vec![problem(403, "NOT_ENOUGH"), problem(404, "RESOURCE_NOT_EXISTS")]);
    let refused = fake.gateway().refund(&refund(9000, PAYMENT.0, 234)).await;
    assert_eq!(
        refused,
        Err(GatewayError::Refused { code: "NOT_ENOUGH".to_owned(), message: "no".to_owned() })
    );
    assert_eq!(fake.gateway().query_refund(PAYMENT, RefundId(9000)).await, Ok(RefundState::NotFound));
}

/// Whatever goes wrong on the way leaves open what happened.
#[actix_web::test]
async fn an_answer_that_is_not_clear_is_no_failure() {
    for fault in Fault::ALL {
        let fake = FakeWechat::with(vec![(200, transaction("SUCCESS").to_string())], Some(fault));
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
    let nobody = WechatPayConfig { base_url: "http://127.0.0.1:1".to_owned(), ..config() };
    let nobody = WechatPay::new(&nobody, Arc::new(ManualClock::new(now()))).unwrap();
    assert!(matches!(nobody.query(PAYMENT).await, Err(GatewayError::Unclear(_))));
}

const HEADER: &str = "交易时间,公众账号ID,商户号,特约商户号,设备号,微信订单号,商户订单号,用户标识,交易类型,交易状态,付款银行,货币种类,应结订单金额,代金券金额,微信退款单号,商户退款单号,退款金额,充值券退款金额,退款类型,退款状态,商品名称,商户数据包,手续费,费率,订单金额,申请退款金额,费率备注";
const PAID_LINE: &str = "`2026-06-01 09:59:58,`wxd678efh567hg6787,`1230000109,`0,`,`1217752501201407033233368018,`267432117862400,`oUpF8uMu,`NATIVE,`SUCCESS,`CMC,`CNY,`12.34,`0.00,`0,`0,`0.00,`0.00,`,`,`Tea, green,`,`0.07000,`0.60%,`12.34,`0.00,`";
const REFUND_LINE: &str = "`2026-06-01 12:00:00,`wxd678efh567hg6787,`1230000109,`0,`,`1217752501201407033233368018,`267432117862400,`oUpF8uMu,`NATIVE,`REFUND,`CMC,`CNY,`0.00,`0.00,`503,`9000,`2.34,`0.00,`ORIGINAL,`SUCCESS,`Tea,`,`-0.01000,`0.60%,`0.00,`2.34,`";
const OTHER_LINE: &str = "`2026-06-01 12:00:01,`wx0,`1230000109,`0,`,`4200,`TILL-7,`o,`MICROPAY,`SUCCESS,`CMC,`CNY,`1.00,`0.00,`0,`0,`0.00,`0.00,`,`,`Tea,`,`0.00,`0.60%,`1.00,`0.00,`";
const TOTALS: &str = "总交易单数,应结订单总金额,退款总金额,充值券退款总金额,手续费总金额,订单总金额,申请退款总金额\r\n`3,`13.34,`2.34,`0.00,`0.06000,`13.34,`2.34\r\n";

fn sha1(text: &str) -> String {
    hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

fn bill(hash: &str) -> (u16, String) {
    let url = "https://api.mch.weixin.qq.com/v3/billdownload/file?token=6_A2";
    (200, json!({ "hash_type": "SHA1", "hash_value": hash, "download_url": url }).to_string())
}

#[actix_web::test]
async fn a_statement_lists_what_moved() {
    let file = format!("\u{feff}{HEADER}\r\n{PAID_LINE}\r\n{REFUND_LINE}\r\n{OTHER_LINE}\r\n{TOTALS}");
    let fake = FakeWechat::answering(vec![bill(&sha1(&file)), (200, file.clone())]);
    let day = "2026-06-01".parse().unwrap();
    let lines = fake.gateway().statement(day).await.unwrap().unwrap();
    let line = |payment_id, transaction_id: &str, movement| StatementLine {
        payment_id,
        transaction_id: transaction_id.to_owned(),
        movement,
        currency: cny(),
    };
    let number = "1217752501201407033233368018";
    let refunded = Movement::Refunded { refund_id: Some(RefundId(9000)), amount_minor: 234, arrived: true };
    assert_eq!(
        lines,
        [
            line(Some(PAYMENT), number, Movement::Captured { amount_minor: 1234 }),
            line(Some(PAYMENT), number, refunded),
            line(None, "4200", Movement::Captured { amount_minor: 100 }),
        ]
    );
    assert_eq!(fake.asked(1).1, "/v3/bill/tradebill?bill_date=2026-06-01&bill_type=ALL");
    assert_eq!(fake.asked(0).1, "/v3/billdownload/file?token=6_A2");

    let broken = [
        file.replace("12.34", "12.345"),
        file.replace("`wx0,", ""),
        file.replace("交易状态", "x"),
        file.replace("退款状态", "x"),
    ];
    for broken in broken {
        let fake = FakeWechat::answering(vec![bill(&sha1(&broken)), (200, broken)]);
        assert!(matches!(fake.gateway().statement(day).await, Err(GatewayError::Unclear(_))));
    }
    let fake = FakeWechat::answering(vec![bill(&sha1("another file")), (200, file)]);
    assert!(matches!(fake.gateway().statement(day).await, Err(GatewayError::Unclear(_))));
    let fake = FakeWechat::answering(vec![problem(400, "NO_STATEMENT_EXIST")]);
    assert_eq!(fake.gateway().statement(day).await, Ok(Some(Vec::new())));
    for (status, code) in [(400, "STATEMENT_CREATING"), (403, "NO_AUTH"), (404, "RESOURCE_NOT_EXISTS")] {
        let fake = FakeWechat::answering(vec![problem(status, code)]);
        let refused = fake.gateway().statement(day).await;
        assert!(matches!(refused, Err(GatewayError::Refused { .. })), "{refused:?}");
    }
}

/// A statement lists every refund that was asked for, also those whose money stays with the merchant.
#[rstest]
#[case("SUCCESS", Some(true))]
#[case("PROCESSING", Some(false))]
#[case("", Some(false))]
#[case("FAIL", None)]
#[case("CHANGE", None)]
#[case("CLOSED", None)]
#[actix_web::test]
async fn a_statement_tells_how_a_refund_stood(#[case] state: &str, #[case] arrived: Option<bool>) {
    let line = REFUND_LINE.replace("`ORIGINAL,`SUCCESS,", &format!("`ORIGINAL,`{state},"));
    let file = format!("\u{feff}{HEADER}\r\n{line}\r\n{TOTALS}");
    let fake = FakeWechat::answering(vec![bill(&sha1(&file)), (200, file)]);
    let lines = fake.gateway().statement("2026-06-01".parse().unwrap()).await.unwrap().unwrap();
    let movements: Vec<Movement> = lines.into_iter().map(|line| line.movement).collect();
    let refunded =
        |arrived| Movement::Refunded { refund_id: Some(RefundId(9000)), amount_minor: 234, arrived };
    assert_eq!(movements, arrived.map(refunded).into_iter().collect::<Vec<_>>());
}
