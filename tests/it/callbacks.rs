//! What WeChat Pay and Alipay post to the shop: obeyed once, whoever repeats it, and believed only from them and about
//! our money (F38, F39, F40).

use entities::payment_record;
use futures_util::future::join_all;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::support::alipay::{self, FakeAlipay};
use crate::support::gateway::{KEY, Notice, STRANGER};
use crate::support::payments::{ask_gateways, buy, open, order_of};
use crate::support::wechat::{self, FakeWechat};
use crate::support::{Client, TestApp, eventually, stories};

stories!(
    what_alipay_says_is_obeyed_once,
    what_alipay_did_not_say_is_not_believed,
    what_wechat_says_is_obeyed_once,
    what_wechat_did_not_say_is_not_believed,
    an_order_is_paid_and_refunded_through_wechat,
    a_refund_that_wechat_closed_is_settled_by_hand,
    what_gateways_said_is_kept,
);

const AMOUNT: i64 = 1234;
const THANKS_TO_WECHAT: &str = r#"{"code":"SUCCESS","message":"OK"}"#;

/// An order whose payment is open at a gateway.
struct Purchase {
    customer: Client,
    order: String,
    payment: String,
}

impl Purchase {
    async fn through(app: &TestApp, channel: &str) -> Self {
        let customer = app.customer("alice").await;
        let order = buy(app, &customer).await;
        let payment = open(&customer, &order, channel).await;
        Self { customer, order, payment }
    }

    async fn see(&self, what: &str) -> Value {
        self.customer.get(&format!("/orders/{}{what}", self.order)).await.is(200)
    }

    async fn becomes(&self, state: &str) -> Value {
        order_of(&self.customer, &self.order).becomes(state).await
    }

    /// What its gateway said of it, as it is kept.
    async fn records(&self, app: &TestApp) -> Vec<payment_record::Model> {
        let connection = app.database.connect().await;
        let of_payment = payment_record::Column::PaymentId.eq(self.payment.parse::<i64>().unwrap());
        let records =
            payment_record::Entity::find().filter(of_payment).order_by_asc(payment_record::Column::Id);
        let records = records.all(&connection).await.unwrap();
        connection.close().await.unwrap();
        records
    }

    /// Paid once, however often its gateway said so.
    async fn is_paid_once(&self, app: &TestApp) {
        assert_eq!(self.becomes("paid").await["version"], 2);
        app.is_quiet().await;
        assert_eq!(self.see("").await["version"], 2);
        assert_eq!(self.see("/refunds").await["items"], json!([]));
        let records = self.records(app).await;
        assert_eq!(records.iter().filter(|record| record.contradiction.is_none()).count(), 1, "{records:?}");
    }

    /// As if its gateway had said nothing, but for what was not believed and why, each thing once.
    async fn is_untouched(&self, app: &TestApp, contradictions: &[&str]) {
        app.is_quiet().await;
        let order = self.see("").await;
        assert_eq!((&order["state"], &order["version"]), (&json!("awaiting_payment"), &json!(1)));
        assert_eq!(self.see("/payments").await["items"][0]["state"], "pending");
        let records = self.records(app).await;
        let kept: Vec<_> =
            records.iter().map(|it| it.contradiction.as_deref().unwrap_or("believed")).collect();
        assert_eq!(kept, contradictions);
        assert!(records.iter().all(|it| it.kind == "callback" && it.outcome == "pending"), "{records:?}");
    }
}

/// A hundred times at once; each time the gateway reads `thanks`.
async fn tell_in_a_storm(app: &TestApp, notice: &Notice, thanks: &str) {
    for answer in join_all((0..100).map(|_| notice.told(app))).await {
        assert_eq!(answer, (200, thanks.to_owned()));
    }
}

async fn what_alipay_says_is_obeyed_once(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let purchase = Purchase::through(app, "alipay").await;
    let notice = |changes| alipay::notice(&purchase.payment, AMOUNT, changes, &KEY);

    // The customer looks at the code and has not paid.
    assert_eq!(notice(&[("trade_status", "WAIT_BUYER_PAY")]).told(app).await, (200, "success".to_owned()));
    purchase.is_untouched(app, &[]).await;

    tell_in_a_storm(app, &notice(&[]), "success").await;
    purchase.is_paid_once(app).await;
    // Three months later, when it cannot be refunded any more.
    let finished = notice(&[("trade_status", "TRADE_FINISHED"), ("notify_id", "another")]);
    assert_eq!(finished.told(app).await, (200, "success".to_owned()));
    purchase.is_paid_once(app).await;
}

async fn what_alipay_did_not_say_is_not_believed(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let (paid, purchase) = (Purchase::through(app, "alipay").await, Purchase::through(app, "alipay").await);
    let elsewhere = Purchase::through(app, "sandbox").await;
    alipay::notice(&paid.payment, AMOUNT, &[], &KEY).told(app).await;
    let notice = |changes: &[(&str, &str)]| alipay::notice(&purchase.payment, AMOUNT, changes, &KEY);

    let genuine = notice(&[]);
    let body = &genuine.body;
    for forged in [
        alipay::notice(&purchase.payment, AMOUNT, &[], &STRANGER).body,
        body.replace("total_amount=12.34", "total_amount=12.35"),
        body.replace("&sign=", "&unsigned="),
        format!("{body}&total_amount=0.01"),
        format!("{body}&extra=1"),
        String::new(),
    ] {
        genuine.saying(forged).refused(app, 401, "unauthenticated").await;
    }
    for change in [
        ("total_amount", "12.33"),
        ("total_amount", "1234.00"),
        ("app_id", "2014072300007149"),
        ("seller_id", "2088101106499365"),
        ("out_trade_no", "1"),
        ("out_trade_no", "TILL-7"),
        ("out_trade_no", &elsewhere.payment),
        ("trade_no", &alipay::trade_no(&paid.payment)),
    ] {
        notice(&[change]).refused(app, 422, "payment_mismatch").await;
    }
    notice(&[("total_amount", "12.345")]).refused(app, 400, "malformed_request").await;

    // As gateways repeat themselves.
    notice(&[("total_amount", "12.33"), ("notify_time", "2027-01-15 16:04:01")])
        .refused(app, 422, "payment_mismatch")
        .await;

    let contradictions = [
        "CNY 12.33 was captured, and CNY 12.34 is due",
        "CNY 1234.00 was captured, and CNY 12.34 is due",
        "it is about another merchant: another app_id",
        "it is about another merchant: another seller_id",
        "the transaction belongs to another payment",
    ];
    purchase.is_untouched(app, &contradictions).await;
    elsewhere.is_untouched(app, &["the payment is of another channel"]).await;
    let path = format!("/admin/payments/{}/records", purchase.payment);
    let first = app.viewer().await.get(&path).await.is(200)["items"][0].clone();
    assert_eq!((&first["contradiction"], &first["outcome"]), (&json!(contradictions[0]), &json!("pending")));
    assert_eq!(first["transaction_id"], alipay::trade_no(&purchase.payment));
    assert!(first["body"].as_str().unwrap().contains("total_amount=12.33"), "{first}");
    genuine.told(app).await;
    purchase.is_paid_once(app).await;
}

/// A notice of a captured payment, signed now.
fn paid_through_wechat(app: &TestApp, transaction: &Value) -> Notice {
    wechat::signed(wechat::envelope("TRANSACTION.SUCCESS", transaction), app.clock_seconds(), &KEY)
}

async fn what_wechat_says_is_obeyed_once(app: &TestApp) {
    let wechat = FakeWechat::start(app.clock.clone()).await;
    app.restart_with(|config| wechat.configure(config)).await;
    let purchase = Purchase::through(app, "wechat").await;
    let transaction = wechat::transaction(&purchase.payment, AMOUNT);

    tell_in_a_storm(app, &paid_through_wechat(app, &transaction), THANKS_TO_WECHAT).await;
    purchase.is_paid_once(app).await;
    // Ten minutes later, signed anew.
    app.pass(chrono::TimeDelta::minutes(10));
    let again = paid_through_wechat(app, &transaction).told(app).await;
    assert_eq!(again, (200, THANKS_TO_WECHAT.to_owned()));
    purchase.is_paid_once(app).await;
}

async fn what_wechat_did_not_say_is_not_believed(app: &TestApp) {
    let wechat = FakeWechat::start(app.clock.clone()).await;
    app.restart_with(|config| wechat.configure(config)).await;
    let (paid, purchase) = (Purchase::through(app, "wechat").await, Purchase::through(app, "wechat").await);
    let elsewhere = Purchase::through(app, "sandbox").await;
    paid_through_wechat(app, &wechat::transaction(&paid.payment, AMOUNT)).told(app).await;

    let transaction = wechat::transaction(&purchase.payment, AMOUNT);
    let genuine = paid_through_wechat(app, &transaction);
    let signed = |seconds: i64, key| wechat::signed(genuine.body.clone(), app.clock_seconds() + seconds, key);
    let with = |name: &str, change: &dyn Fn(&str) -> String| {
        let mut changed = genuine.clone();
        let header = changed.headers.iter_mut().find(|(known, _)| *known == name).unwrap();
        header.1 = change(&header.1);
        changed
    };
    let without = |name: &str| {
        let mut fewer = genuine.clone();
        fewer.headers.retain(|(known, _)| *known != name);
        fewer
    };
    let parsed: Value = serde_json::from_str(&genuine.body).unwrap();
    for forged in [
        signed(0, &STRANGER),
        signed(-301, &KEY),
        signed(301, &KEY),
        genuine.saying(genuine.body.replacen("EV-2", "EV-3", 1)),
        genuine.saying(serde_json::to_string_pretty(&parsed).unwrap()),
        with("Wechatpay-Timestamp", &|time| (time.parse::<i64>().unwrap() + 1).to_string()),
        with("Wechatpay-Nonce", &|nonce| nonce.replacen('c', "d", 1)),
        with("Wechatpay-Serial", &|serial| format!("{serial}0")),
        // What WeChat Pay sends to see whether anybody looks.
        with("Wechatpay-Signature", &|signature| format!("WECHATPAY/SIGNTEST/{signature}")),
        without("Wechatpay-Timestamp"),
        without("Wechatpay-Nonce"),
        without("Wechatpay-Signature"),
        without("Wechatpay-Serial"),
    ] {
        forged.refused(app, 401, "unauthenticated").await;
    }
    for (member, value) in [
        ("/amount/total", json!(1233)),
        ("/amount/currency", json!("USD")),
        ("/appid", json!("wx0")),
        ("/mchid", json!("1230000110")),
        ("/out_trade_no", json!("1")),
        ("/out_trade_no", json!("TILL-7")),
        ("/out_trade_no", json!(elsewhere.payment)),
        ("/transaction_id", json!(wechat::transaction_id(&paid.payment))),
    ] {
        let mut other = transaction.clone();
        *other.pointer_mut(member).unwrap() = value;
        paid_through_wechat(app, &other).refused(app, 422, "payment_mismatch").await;
    }

    let contradictions = [
        "CNY 12.33 was captured, and CNY 12.34 is due",
        "USD 12.34 was captured, and CNY 12.34 is due",
        "it is about another merchant: another appid or mchid",
        "the transaction belongs to another payment",
    ];
    purchase.is_untouched(app, &contradictions).await;
    elsewhere.is_untouched(app, &["the payment is of another channel"]).await;
    genuine.told(app).await;
    purchase.is_paid_once(app).await;
}

async fn an_order_is_paid_and_refunded_through_wechat(app: &TestApp) {
    let wechat = FakeWechat::start(app.clock.clone()).await;
    app.restart_with(|config| wechat.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let payments = format!("/orders/{order}/payments");
    let opened = alice.post(&payments, json!({"channel": "wechat", "mode": "native"})).await.is(201);
    let payment = opened["payment"]["id"].as_str().unwrap().to_owned();
    let code_url = format!("weixin://wxpay/bizpayurl?pr={payment}");
    assert_eq!(opened["payment"]["params"], json!({"code_url": code_url}));
    let purchase = Purchase { customer: alice.clone(), order, payment };

    wechat.pay(&purchase.payment, AMOUNT);
    paid_through_wechat(app, &wechat::transaction(&purchase.payment, AMOUNT)).told(app).await;
    purchase.is_paid_once(app).await;
    let headers = purchase.records(app).await[0].headers.clone();
    for name in ["Wechatpay-Timestamp", "Wechatpay-Nonce", "Wechatpay-Serial", "Wechatpay-Signature"] {
        assert!(headers.as_ref().is_some_and(|headers| headers.contains(name)), "{name} in {headers:?}");
    }

    let path = format!("/orders/{}/refunds", purchase.order);
    alice.post(&path, json!({"reason": "It does not fit"})).await.is(202);
    eventually(async || !wechat.returned().is_empty()).await;
    app.is_quiet().await;
    // It takes WeChat Pay some time, and only WeChat Pay says when that is over.
    let refund = purchase.see("/refunds").await["items"][0].clone();
    assert_eq!(
        (&refund["state"], &purchase.see("").await["state"]),
        (&json!("approved"), &json!("refunding"))
    );
    let refund = refund["id"].as_str().unwrap();
    let resource = wechat::refund(refund, &purchase.payment, AMOUNT);
    let notice = |event_type, resource: &Value, key| {
        wechat::signed(wechat::envelope(event_type, resource), app.clock_seconds(), key)
    };
    notice("REFUND.SUCCESS", &resource, &STRANGER).refused(app, 401, "unauthenticated").await;
    for (member, value) in [("mchid", "1230000110"), ("out_trade_no", "1"), ("out_refund_no", "1")] {
        let mut other = resource.clone();
        other[member] = value.into();
        notice("REFUND.SUCCESS", &other, &KEY).refused(app, 422, "payment_mismatch").await;
    }
    assert_eq!(purchase.see("").await["state"], "refunding");
    let records = purchase.records(app).await;
    assert_eq!(
        records.iter().filter_map(|record| record.contradiction.as_deref()).collect::<Vec<_>>(),
        ["it is about another merchant: another mchid", "there is no such refund of the payment"]
    );

    let refunded = notice("REFUND.SUCCESS", &resource, &KEY);
    tell_in_a_storm(app, &refunded, THANKS_TO_WECHAT).await;
    assert_eq!(purchase.becomes("refunded").await["version"], 4);
    // Late news change nothing.
    let mut closed = resource.clone();
    closed["refund_status"] = "CLOSED".into();
    notice("REFUND.CLOSED", &closed, &KEY).told(app).await;
    paid_through_wechat(app, &wechat::transaction(&purchase.payment, AMOUNT)).told(app).await;
    app.is_quiet().await;
    assert_eq!(purchase.see("").await["version"], 4);
    let refunds = purchase.see("/refunds").await["items"].clone();
    assert_eq!(refunds.as_array().unwrap().len(), 1);
    assert_eq!(refunds[0]["state"], "succeeded");
    assert_eq!(wechat.returned().into_iter().collect::<Vec<_>>(), [(refund.to_owned(), AMOUNT)]);
}

async fn a_refund_that_wechat_closed_is_settled_by_hand(app: &TestApp) {
    let wechat = FakeWechat::start(app.clock.clone()).await;
    app.restart_with(|config| wechat.configure(config)).await;
    let purchase = Purchase::through(app, "wechat").await;
    wechat.pay(&purchase.payment, AMOUNT);
    paid_through_wechat(app, &wechat::transaction(&purchase.payment, AMOUNT)).told(app).await;
    purchase.is_paid_once(app).await;
    let path = format!("/orders/{}/refunds", purchase.order);
    purchase.customer.post(&path, json!({"reason": "It does not fit"})).await.is(202);
    let refund = purchase.see("/refunds").await["items"][0]["id"].as_str().unwrap().to_owned();
    let settle = format!("/admin/refunds/{refund}/settle");
    let (operator, reason) = (app.operator().await, json!({"reason": "paid out in the branch"}));
    operator.post(&settle, reason.clone()).await.refused(409, "transition_not_allowed");

    let mut closed = wechat::refund(&refund, &purchase.payment, AMOUNT);
    closed["refund_status"] = "CLOSED".into();
    let envelope = wechat::envelope("REFUND.CLOSED", &closed);
    wechat::signed(envelope, app.clock_seconds(), &KEY).told(app).await;
    eventually(async || purchase.see("/refunds").await["items"][0]["state"] == "failed").await;
    let as_operators_see_it = async || {
        let list = format!("/admin/refunds?order_id={}", purchase.order);
        operator.get(&list).await.is(200)["items"][0].clone()
    };
    assert!(as_operators_see_it().await["failure"].is_string());
    assert_eq!(purchase.see("/refunds").await["items"][0]["failure"], Value::Null);
    operator.post(&settle, json!({})).await.refused(422, "validation_failed");
    for _ in 0..2 {
        let settled = operator.post(&settle, reason.clone()).await.is(200);
        assert_eq!(settled["state"], "succeeded");
        assert_eq!((&settled["note"], &settled["failure"]), (&json!("paid out in the branch"), &Value::Null));
    }
    assert_eq!(purchase.becomes("refunded").await["version"], 4);
    assert_eq!(as_operators_see_it().await["note"], "paid out in the branch");
    assert_eq!(purchase.see("/refunds").await["items"][0].get("note"), None);
    app.is_quiet().await;
}

async fn what_gateways_said_is_kept(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let told = Purchase::through(app, "alipay").await;
    let asked = Purchase::through(app, "alipay").await;
    let closed = Purchase::through(app, "alipay").await;

    let notice = alipay::notice(&told.payment, AMOUNT, &[], &KEY);
    notice.told(app).await;
    told.becomes("paid").await;
    closed.customer.post(&format!("/orders/{}/cancel", closed.order), json!({})).await.is(200);
    alipay.pay(&asked.payment, AMOUNT);
    ask_gateways(app).await;
    asked.becomes("paid").await;

    for (purchase, kind, outcome, words) in [
        (&told, "callback", "succeeded", &notice.body),
        (&asked, "query", "succeeded", &alipay::trade_no(&asked.payment)),
        (&closed, "close", "closed", &String::new()),
    ] {
        let records = purchase.records(app).await;
        let [record] = records.as_slice() else { panic!("one record of each: {records:?}") };
        assert_eq!((record.kind.as_str(), record.outcome.as_str()), (kind, outcome), "{record:?}");
        assert!(!record.body.is_empty() && record.body.contains(words), "{record:?}");
    }
}
