//! Gateways that are late, that take money twice, that say nothing (F39, F41, F42).

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::alipay::{self, FakeAlipay};
use crate::support::gateway::KEY;
use crate::support::payments::{ask_gateways, buy, notice, open, order_of, pay, signed_notice};
use crate::support::{Client, TestApp, eventually, stories};

stories!(
    a_notice_that_is_repeated_in_a_storm_is_obeyed_once,
    an_order_that_is_paid_twice_keeps_one_payment,
    nothing_is_guessed_while_a_gateway_is_silent,
    a_customer_who_was_faster_than_the_cancellation_has_paid,
    what_went_back_past_us_pays_for_nothing,
    another_way_to_pay_is_another_payment,
    a_payment_the_gateway_did_not_know_is_asked_about_once_more,
    a_payment_of_a_gateway_that_is_gone_is_settled_by_hand,
    a_refund_of_a_gateway_that_is_gone_is_settled_by_hand,
    a_payment_that_is_cancelled_while_it_is_prepared_is_closed_again,
);

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

async fn state_of(customer: &Client, order: &str) -> Value {
    customer.get(&format!("/orders/{order}")).await.is(200)["state"].clone()
}

async fn a_notice_that_is_repeated_in_a_storm_is_obeyed_once(app: &TestApp) {
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let body = notice(&open(&alice, &order, "sandbox").await, "t-1", 1234);
    let answers = futures_util::future::join_all((0..100).map(|_| signed_notice(app, &body))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(order_of(&alice, &order).becomes("paid").await["version"], 2);
    // Ten minutes later, signed anew.
    app.pass(TimeDelta::minutes(10));
    signed_notice(app, &body).await.is(200);
    app.is_quiet().await;
    assert_eq!(alice.get(&format!("/orders/{order}")).await.is(200)["version"], 2);
    assert_eq!(alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"], json!([]));
}

async fn an_order_that_is_paid_twice_keeps_one_payment(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let second = open(&alice, &order, "alipay").await;
    pay(app, &alice, &order, "t-1").await;
    order_of(&alice, &order).becomes("paid").await;

    alipay.pay(&second, 1234);
    let refunds = async || alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"].clone();
    ask_gateways(app).await;
    eventually(async || refunds().await[0]["state"] == "succeeded").await;
    ask_gateways(app).await;
    app.is_quiet().await;

    let refunds = refunds().await;
    let refund = &refunds[0];
    assert_eq!(refunds.as_array().unwrap().len(), 1);
    assert_eq!(
        (&refund["cause"], &refund["payment_id"], &refund["channel"]),
        (&json!("double_payment"), &json!(second), &json!("alipay"))
    );
    let returned = alipay.returned();
    assert_eq!(returned.into_iter().collect::<Vec<_>>(), [(text(&refund["id"]), "12.34".to_owned())]);
    assert_eq!(state_of(&alice, &order).await, "paid");
}

async fn nothing_is_guessed_while_a_gateway_is_silent(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let payment = open(&alice, &order, "alipay").await;
    let (unpaid, elsewhere) = (buy(app, &alice).await, buy(app, &alice).await);
    open(&alice, &elsewhere, "sandbox").await;

    alipay.fall_silent();
    app.pass(TimeDelta::minutes(31));
    // It keeps nobody else from the end.
    for other in [&unpaid, &elsewhere] {
        order_of(&alice, other).becomes("cancelled").await;
    }
    // It is overdue, and whether it is paid nobody knows: neither its customer nor the deadline ends it.
    let unclear = alice.post(&format!("/orders/{order}/cancel"), json!({})).await;
    unclear.refused(503, "dependency_unavailable");
    assert_eq!(state_of(&alice, &order).await, "awaiting_payment");
    let payments = alice.get(&format!("/orders/{order}/payments")).await.is(200);
    assert_eq!(
        (&payments["items"][0]["id"], &payments["items"][0]["state"]),
        (&json!(payment), &json!("pending"))
    );

    alipay.come_back();
    assert_eq!(order_of(&alice, &order).becomes("cancelled").await["cancel_cause"], "timeout");
    let payments = alice.get(&format!("/orders/{order}/payments")).await.is(200);
    assert_eq!(payments["items"][0]["state"], "closed");
}

async fn a_customer_who_was_faster_than_the_cancellation_has_paid(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let (cancelled, overdue) = (buy(app, &alice).await, buy(app, &alice).await);
    for order in [&cancelled, &overdue] {
        alipay.pay(&open(&alice, order, "alipay").await, 1234);
    }
    // Nobody told us; the gateway refuses to close what is paid, and is asked.
    alice.post(&format!("/orders/{cancelled}/cancel"), json!({})).await.refused(409, "order_not_cancellable");
    assert_eq!(state_of(&alice, &cancelled).await, "paid");
    app.pass(TimeDelta::minutes(31));
    order_of(&alice, &overdue).becomes("paid").await;
}

async fn what_went_back_past_us_pays_for_nothing(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let (asked, cancelled) = (buy(app, &alice).await, buy(app, &alice).await);
    for order in [&asked, &cancelled] {
        let payment = open(&alice, order, "alipay").await;
        alipay.pay(&payment, 1234);
        alipay.give_back(&payment);
    }
    let ended = alice.post(&format!("/orders/{cancelled}/cancel"), json!({})).await.is(200);
    assert_eq!(ended["state"], "cancelled");
    ask_gateways(app).await;
    let payment_of =
        async |order: &str| alice.get(&format!("/orders/{order}/payments")).await.is(200)["items"][0].clone();
    for order in [&asked, &cancelled] {
        eventually(async || payment_of(order).await["state"] == "failed").await;
    }
    app.is_quiet().await;
    assert_eq!(state_of(&alice, &asked).await, "awaiting_payment");
    assert!(alipay.returned().is_empty(), "it went back already");
}

async fn another_way_to_pay_is_another_payment(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let path = format!("/orders/{order}/payments");
    let opened = async |body: Value| text(&alice.post(&path, body).await.is(201)["payment"]["id"]);
    let code = opened(json!({"channel": "alipay", "mode": "precreate"})).await;
    assert_eq!(opened(json!({"channel": "alipay"})).await, code, "whichever way is open");
    let page = opened(json!({"channel": "alipay", "mode": "page"})).await;
    assert_ne!(page, code);
    assert_eq!(opened(json!({"channel": "alipay", "mode": "page"})).await, page);
    let states = async || {
        let payments = alice.get(&path).await.is(200);
        let items = payments["items"].as_array().unwrap().clone();
        items.iter().map(|payment| (text(&payment["id"]), text(&payment["state"]))).collect::<Vec<_>>()
    };
    assert_eq!(states().await, [(code, "closed".to_owned()), (page.clone(), "pending".to_owned())]);

    // A way that there is not leaves everything as it is.
    for mode in ["native", "jsapi"] {
        let unfit = json!({"channel": "alipay", "mode": mode});
        alice.post(&path, unfit).await.refused(422, "validation_failed");
    }
    assert_eq!(opened(json!({"channel": "alipay"})).await, page);

    // Who has paid meanwhile pays no second time.
    alipay.pay(&page, 1234);
    alice
        .post(&path, json!({"channel": "alipay", "mode": "precreate"}))
        .await
        .refused(409, "order_already_paid");
    order_of(&alice, &order).becomes("paid").await;
    assert_eq!(states().await[1], (page, "succeeded".to_owned()));
}

async fn a_payment_the_gateway_did_not_know_is_asked_about_once_more(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let payment = open(&alice, &order, "alipay").await;
    // Alipay knows a payment only once its customer has opened it, so there is nothing to close.
    let ended = alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
    assert_eq!(ended["state"], "cancelled");

    // The code is still good, and no notice of the capture arrives.
    alipay.pay(&payment, 1234);
    app.pass(TimeDelta::minutes(36));
    ask_gateways(app).await;
    let refunds = async || alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"].clone();
    eventually(async || refunds().await[0]["state"] == "succeeded").await;
    assert_eq!(refunds().await[0]["cause"], "late_payment");
    assert_eq!(alipay.returned().len(), 1);
    assert_eq!(state_of(&alice, &order).await, "cancelled");
}

async fn a_payment_of_a_gateway_that_is_gone_is_settled_by_hand(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let (cancelled, overdue) = (buy(app, &alice).await, buy(app, &alice).await);
    let (told, asked) = (open(&alice, &cancelled, "alipay").await, open(&alice, &overdue, "alipay").await);
    let reason = json!({"reason": "the contract with them has ended"});
    let settle = async |payment: &str| {
        operator.post(&format!("/admin/payments/{payment}/settle"), reason.clone()).await
    };
    let problem = settle(&told).await.refused(409, "transition_not_allowed");
    assert!(text(&problem["detail"]).contains("alipay says"), "{problem}");

    app.restart().await;
    let unclear = alice.post(&format!("/orders/{cancelled}/cancel"), json!({})).await;
    let problem = unclear.refused(503, "dependency_unavailable");
    let detail = text(&problem["detail"]);
    assert!(detail.contains("alipay, which is not set up") && detail.contains(&told), "{problem}");
    assert!(detail.contains("settle the payment by hand"), "{problem}");
    app.pass(TimeDelta::minutes(31));
    // The deadline is no better off.
    operator.post("/admin/jobs/overdue_payments/runs", json!({})).await;
    assert_eq!(state_of(&alice, &overdue).await, "awaiting_payment");

    let path = format!("/admin/payments/{told}/settle");
    app.viewer().await.post(&path, reason.clone()).await.refused(403, "forbidden");
    operator.post(&path, json!({})).await.refused(422, "validation_failed");
    operator.post("/admin/payments/1/settle", reason.clone()).await.refused(404, "not_found");
    let closed = settle(&told).await.is(200);
    assert_eq!((&closed["id"], &closed["state"]), (&json!(told), &json!("closed")));
    assert_eq!(settle(&told).await.is(200), closed, "a repeat changes nothing");
    let records = operator.get(&format!("/admin/payments/{told}/records")).await.is(200)["items"].clone();
    assert_eq!(records.as_array().unwrap().len(), 1, "{records}");
    assert_eq!((&records[0]["source"], &records[0]["outcome"]), (&json!("operator"), &json!("closed")));
    let who = operator.get("/me").await.is(200)["id"].clone();
    let body: Value = serde_json::from_str(records[0]["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["given_up"], json!({"by": who, "reason": reason["reason"]}));
    for (order, payment) in [(&cancelled, &told), (&overdue, &asked)] {
        settle(payment).await.is(200);
        order_of(&alice, order).becomes("cancelled").await;
    }

    // It is back, and both were paid after all: the one is told of, the other is asked about.
    app.restart_with(|config| alipay.configure(config)).await;
    for payment in [&told, &asked] {
        alipay.pay(payment, 1234);
    }
    alipay::notice(&told, 1234, &[], &KEY).told(app).await;
    ask_gateways(app).await;
    for (order, payment) in [(&cancelled, &told), (&overdue, &asked)] {
        let path = format!("/orders/{order}/refunds");
        let refund = async || alice.get(&path).await.is(200)["items"][0].clone();
        eventually(async || refund().await["state"] == "succeeded").await;
        let refund = refund().await;
        assert_eq!(
            (&refund["cause"], &refund["payment_id"]),
            (&json!("late_payment"), &json!(payment)),
            "{refund}"
        );
        settle(payment).await.refused(409, "transition_not_allowed");
    }
    assert_eq!(alipay.returned().len(), 2);
}

async fn a_refund_of_a_gateway_that_is_gone_is_settled_by_hand(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let order = buy(app, &alice).await;
    let payment = open(&alice, &order, "alipay").await;
    alipay.pay(&payment, 1234);
    alipay::notice(&payment, 1234, &[], &KEY).told(app).await;
    order_of(&alice, &order).becomes("paid").await;

    app.restart().await;
    let refunds = format!("/orders/{order}/refunds");
    alice.post(&refunds, json!({"reason": "It does not fit"})).await.is(202);
    app.is_quiet().await;
    ask_gateways(app).await;
    let refund = alice.get(&refunds).await.is(200)["items"][0].clone();
    assert_eq!(refund["state"], "approved");
    let letters = operator.get("/admin/dead-letters").await.is(200)["items"].clone();
    assert_eq!(letters, json!([]), "what is tried again is nothing to decide");

    let path = format!("/admin/refunds/{}/settle", text(&refund["id"]));
    let reason = json!({"reason": "paid out in the branch"});
    app.viewer().await.post(&path, reason.clone()).await.refused(403, "forbidden");
    alipay.fall_silent();
    app.restart_with(|config| alipay.configure(config)).await;
    let problem = operator.post(&path, reason.clone()).await.refused(409, "transition_not_allowed");
    assert!(text(&problem["detail"]).contains("alipay says"), "{problem}");
    app.restart().await;
    let settled = operator.post(&path, reason.clone()).await.is(200);
    assert_eq!((&settled["state"], &settled["note"]), (&json!("succeeded"), &reason["reason"]));
    assert_eq!(operator.post(&path, reason).await.is(200), settled, "a repeat changes nothing");
    order_of(&alice, &order).becomes("refunded").await;

    // The money went back once, so the gateway is not asked for it when it is set up again.
    alipay.come_back();
    app.restart_with(|config| alipay.configure(config)).await;
    ask_gateways(app).await;
    app.is_quiet().await;
    assert!(alipay.returned().is_empty());
}

async fn a_payment_that_is_cancelled_while_it_is_prepared_is_closed_again(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await;
    let path = format!("/orders/{order}/payments");

    alipay.hold_back();
    let opening = alice.post(&path, json!({"channel": "alipay"}));
    let cancelling = async {
        alipay.is_preparing().await;
        let cancelled = alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
        assert_eq!(cancelled["state"], "cancelled");
        assert_eq!(alipay.closed().len(), 1);
        alipay.say();
    };
    let (opened, ()) = futures_util::future::join(opening, cancelling).await;
    opened.refused(409, "order_not_payable");
    let payments = alice.get(&path).await.is(200)["items"].clone();
    assert_eq!((&payments[0]["state"], payments.as_array().unwrap().len()), (&json!("closed"), 1));
    let payment = text(&payments[0]["id"]);
    assert_eq!(alipay.closed(), [payment.clone(), payment], "once more, when it was known there");
}
