//! Orders, payments, refunds, tokens and what orders hold that do not agree: found, named, and mended with one call.

use chrono::TimeDelta;
use serde_json::{Value, json};
use tombola::jobs::Schedule;

use crate::shop::{Shop, balance, coupon_state, wish, with};
use crate::support::alipay::FakeAlipay;
use crate::support::payments::{notice, order_of, pay, signed_notice};
use crate::support::{Answer, Client, Offer, TestApp, eventually, stories};

stories!(
    a_capture_of_which_no_order_was_told,
    an_order_that_nobody_paid,
    a_token_that_an_ended_order_still_holds,
    a_balance_that_an_ended_order_still_holds,
    a_live_order_without_its_part_from_the_balance,
    a_coupon_that_does_not_follow_its_order,
    a_coupon_that_an_ended_order_still_holds,
    an_order_without_the_coupon_that_made_it_cheaper,
    goods_that_a_live_order_does_not_hold,
    amounts_that_do_not_add_up,
    an_order_that_outlived_its_time,
    a_capture_that_was_not_believed,
    a_refund_that_does_not_get_done,
    a_refund_that_is_not_what_was_captured,
    a_gateway_that_says_otherwise,
);

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// What one run finds: the comparison, the action and the id of each difference.
async fn differences(app: &TestApp) -> Vec<(String, String, String)> {
    let run = reconcile(app).await;
    assert_eq!(run["failed"], Value::Null, "{run}");
    let of = |difference: &Value| {
        (text(&difference["comparison"]), text(&difference["action"]), text(&difference["id"]))
    };
    run["differences"].as_array().unwrap().iter().map(of).collect()
}

async fn reconcile(app: &TestApp) -> Value {
    app.operator().await.post("/admin/reconciliations", json!({})).await.is(201)
}

async fn apply(app: &TestApp, difference: &str) -> Answer {
    app.operator().await.post(&format!("/admin/differences/{difference}/apply"), json!({})).await
}

/// The one difference there is, applied; what became of it.
async fn apply_only(app: &TestApp, comparison: &str, action: &str) -> Value {
    let found = differences(app).await;
    let [(found_by, proposed, id)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((found_by.as_str(), proposed.as_str()), (comparison, action));
    apply(app, id).await.is(200)
}

struct Bought {
    activity: String,
    order: String,
}

async fn buy(app: &TestApp, customer: &Client) -> Bought {
    let activity = app.running(Offer::of(1).at_price(1234)).await;
    let order = text(&customer.take(&activity).await.is(201)["order"]["id"]);
    Bought { activity, order }
}

async fn open(customer: &Client, order: &str, channel: &str) -> String {
    let body = json!({"channel": channel});
    text(&customer.post(&format!("/orders/{order}/payments"), body).await.is(201)["payment"]["id"])
}

/// Captures a payment behind everybody's back: no event tells of it.
async fn capture(app: &TestApp, payment: &str, transaction: &str) {
    app.execute(&format!(
        "UPDATE payment SET state = 'succeeded', transaction_id = '{transaction}', settled_at = {} WHERE id = {payment}",
        app.clock_seconds() * 1_000_000
    ))
    .await;
}

async fn a_capture_of_which_no_order_was_told(app: &TestApp) {
    let alice = app.customer("alice").await;
    let (waiting, cancelled) = (buy(app, &alice).await.order, buy(app, &alice).await.order);
    let (first, second) =
        (open(&alice, &waiting, "sandbox").await, open(&alice, &cancelled, "sandbox").await);
    alice.post(&format!("/orders/{cancelled}/cancel"), json!({})).await.is(200);
    app.is_quiet().await;
    capture(app, &first, "t-1").await;
    capture(app, &second, "t-2").await;
    // It may be on its way.
    assert_eq!(differences(app).await, []);
    app.pass(TimeDelta::seconds(61));

    let found = differences(app).await;
    assert_eq!(found.len(), 2, "{found:?}");
    for (comparison, action, id) in &found {
        assert_eq!((comparison.as_str(), action.as_str()), ("orders_payments", "tell_order"));
        assert_eq!(apply(app, id).await.is(200)["state"], "applied");
    }
    order_of(&alice, &waiting).becomes("paid").await;
    let refund =
        async || alice.get(&format!("/orders/{cancelled}/refunds")).await.is(200)["items"][0].clone();
    eventually(async || refund().await["state"] == "succeeded").await;
    assert_eq!(refund().await["cause"], "late_payment");
    let again = alice.post(&format!("/orders/{cancelled}/payments"), json!({"channel": "sandbox"})).await;
    again.refused(409, "order_not_payable");
    assert_eq!(differences(app).await, []);
}

async fn an_order_that_nobody_paid(app: &TestApp) {
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await.order;
    app.execute(&format!("UPDATE orders SET state = 'paid' WHERE id = {order}")).await;

    // Nobody but a person can tell what is right: it is looked at again, and stays.
    let looked_at = apply_only(app, "orders_payments", "look_at_it").await;
    assert_eq!((&looked_at["state"], &looked_at["settled_at"]), (&json!("open"), &Value::Null));
    assert!(looked_at["outcome"].as_str().unwrap().contains("no payment"), "{looked_at}");
    app.execute(&format!("UPDATE orders SET state = 'awaiting_payment' WHERE id = {order}")).await;
    assert_eq!(apply(app, looked_at["id"].as_str().unwrap()).await.is(200)["state"], "gone");
    assert_eq!(differences(app).await, []);
}

async fn a_token_that_an_ended_order_still_holds(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Bought { activity, order } = buy(app, &alice).await;
    let now = app.clock_seconds() * 1_000_000;
    app.execute(&format!(
        "UPDATE orders SET state = 'cancelled', version = 2, cancel_cause = 'operator', updated_at = {now} WHERE id = {order}"
    ))
    .await;
    app.execute(&format!(
        "INSERT INTO order_event (order_id, version, event_type, cause, data, created_at) \
         VALUES ({order}, 2, 'cancelled', 'a story', '{{}}', {now})"
    ))
    .await;
    assert_eq!(differences(app).await, []);
    app.pass(TimeDelta::seconds(61));
    assert_eq!(apply_only(app, "orders_stock", "release").await["state"], "applied");
    assert_eq!(app.remaining(&activity).await, 1);
    app.is_quiet().await;
    assert_eq!(differences(app).await, []);

    // The other way round: an order without its token, which may be somebody else's by now.
    let sold = text(&alice.take(&activity).await.is(201)["order"]["id"]);
    let spoil =
        |live: &str, state: &str| format!("UPDATE take SET {live}, state = '{state}' WHERE id = {sold}");
    app.execute(&spoil("live_token = NULL, live_take_no = NULL", "released")).await;
    let found = differences(app).await;
    let named: Vec<(&str, &str)> =
        found.iter().map(|(by, action, _)| (by.as_str(), action.as_str())).collect();
    assert!(named.contains(&("orders_stock", "look_at_it")), "{named:?}");
    app.execute(&spoil("live_token = token_no, live_take_no = take_no", "unused")).await;
    assert_eq!(differences(app).await, []);
}

/// An order over 60.00, sent for 10.00, of which 5.00 are from the balance of 9.00.
async fn buy_from_balance(app: &TestApp, customer: &Client) -> String {
    let shop = Shop::open(app).await;
    let goods = shop.goods(6000, 1).await;
    shop.credit(customer, 900).await;
    let order = with(wish(&goods, 1, 6000, 1000), "balance_minor", 500);
    text(&customer.post("/orders", order).await.is(201)["id"])
}

/// Changes a balance together with its entries, behind everybody's back.
async fn spoil_balance(app: &TestApp, customer: &Client, entries: &str, change_minor: i64) {
    app.execute(entries).await;
    app.execute(&format!(
        "UPDATE wallet_account SET balance_minor = balance_minor + {change_minor} WHERE user_id = {}",
        customer.user_id
    ))
    .await;
}

async fn a_balance_that_an_ended_order_still_holds(app: &TestApp) {
    let alice = app.customer("alice").await;
    let order = buy_from_balance(app, &alice).await;
    alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
    app.is_quiet().await;
    assert_eq!(balance(&alice).await, 900);
    let undone = format!("DELETE FROM wallet_entry WHERE kind = 'refund' AND reference_id = {order}");
    spoil_balance(app, &alice, &undone, -500).await;
    // It may be on its way.
    assert_eq!(differences(app).await, []);
    app.pass(TimeDelta::seconds(61));
    assert_eq!(apply_only(app, "orders_balances", "give_back").await["state"], "applied");
    assert_eq!(balance(&alice).await, 900);
    app.is_quiet().await;
    assert_eq!(differences(app).await, []);

    // What came back is not all that was taken.
    let less = |by: i64| {
        format!(
            "UPDATE wallet_entry SET amount_minor = amount_minor - {by} WHERE kind = 'refund' AND reference_id = {order}"
        )
    };
    spoil_balance(app, &alice, &less(200), -200).await;
    let looked_at = apply_only(app, "orders_balances", "look_at_it").await;
    assert_eq!((&looked_at["state"], &looked_at["expected"]), (&json!("open"), &json!("0 minor units held")));
    assert_eq!(looked_at["found"], "200 minor units held, order cancelled");
    spoil_balance(app, &alice, &less(-200), 200).await;
    assert_eq!(differences(app).await, []);
}

async fn a_live_order_without_its_part_from_the_balance(app: &TestApp) {
    let alice = app.customer("alice").await;
    let order = buy_from_balance(app, &alice).await;
    let turned = |from: &str, to: &str| {
        format!("UPDATE wallet_entry SET kind = '{to}' WHERE kind = '{from}' AND reference_id = {order}")
    };
    app.execute(&turned("pay", "adjustment")).await;
    let looked_at = apply_only(app, "orders_balances", "look_at_it").await;
    assert_eq!((&looked_at["state"], &looked_at["subject"]), (&json!("open"), &json!(order)));
    assert_eq!(looked_at["found"], "0 minor units held, order awaiting_payment");
    app.execute(&turned("adjustment", "pay")).await;
    assert_eq!(apply(app, looked_at["id"].as_str().unwrap()).await.is(200)["state"], "gone");

    pay(app, &alice, &order, "t-1").await;
    order_of(&alice, &order).becomes("paid").await;
    app.is_quiet().await;
    let given_back = format!(
        "INSERT INTO wallet_entry (id, user_id, reference_id, kind, amount_minor, balance_after_minor, created_at) \
         SELECT 7, user_id, reference_id, 'refund', 500, 900, created_at FROM wallet_entry \
         WHERE kind = 'pay' AND reference_id = {order}"
    );
    spoil_balance(app, &alice, &given_back, 500).await;
    assert_eq!(apply_only(app, "orders_balances", "look_at_it").await["state"], "open");
    spoil_balance(app, &alice, "DELETE FROM wallet_entry WHERE id = 7", -500).await;
    assert_eq!(differences(app).await, []);
}

/// An order over 60.00, sent for 10.00, with a coupon for 5.00; and the coupon.
async fn buy_with_coupon(app: &TestApp, customer: &Client) -> (String, String) {
    let shop = Shop::open(app).await;
    let goods = shop.goods(6000, 1).await;
    let coupon = shop.coupon(customer, 500, 0).await;
    let order = with(wish(&goods, 1, 6000, 1000), "coupon_id", coupon.clone());
    (text(&customer.post("/orders", order).await.is(201)["id"]), coupon)
}

/// The coupon is `state` by what one run finds and applies, though somebody wrote what `set` says.
async fn settles(app: &TestApp, customer: &Client, set: &str, state: &str) {
    app.execute(&format!("UPDATE user_coupon SET {set}")).await;
    // It may be on its way.
    assert_eq!(differences(app).await, []);
    app.pass(TimeDelta::seconds(61));
    assert_eq!(apply_only(app, "orders_coupons", "settle").await["state"], "applied");
    assert_eq!(coupon_state(customer).await, state);
    app.is_quiet().await;
}

async fn a_coupon_that_does_not_follow_its_order(app: &TestApp) {
    let alice = app.customer("alice").await;
    let (order, _) = buy_with_coupon(app, &alice).await;
    pay(app, &alice, &order, "t-1").await;
    order_of(&alice, &order).becomes("paid").await;
    app.is_quiet().await;
    settles(app, &alice, "state = 'locked', used_at = NULL", "used").await;

    app.operator().await.post(&format!("/admin/orders/{order}/ship"), json!({})).await.is(200);
    alice.post(&format!("/orders/{order}/refunds"), json!({"reason": "stale"})).await.is(202);
    order_of(&alice, &order).becomes("refunded").await;
    app.is_quiet().await;
    assert_eq!(coupon_state(&alice).await, "void");
    settles(app, &alice, "state = 'used'", "void").await;
    assert_eq!(differences(app).await, []);
}

async fn a_coupon_that_an_ended_order_still_holds(app: &TestApp) {
    let alice = app.customer("alice").await;
    let (order, coupon) = buy_with_coupon(app, &alice).await;
    app.execute(&format!("UPDATE user_coupon SET order_id = 7 WHERE id = {coupon}")).await;
    let found = differences(app).await;
    let named: Vec<(&str, &str)> =
        found.iter().map(|(by, action, _)| (by.as_str(), action.as_str())).collect();
    assert_eq!(named, [("orders_coupons", "look_at_it"); 2]);
    let looked_at = apply(app, &found[0].2).await.is(200);
    assert_eq!(looked_at["found"], "coupon locked, order missing");
    app.execute(&format!("UPDATE user_coupon SET order_id = {order} WHERE id = {coupon}")).await;
    assert_eq!(apply(app, &found[0].2).await.is(200)["state"], "gone");

    alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
    app.is_quiet().await;
    settles(app, &alice, &format!("state = 'locked', order_id = {order}"), "unused").await;
    assert_eq!(differences(app).await, []);
}

async fn an_order_without_the_coupon_that_made_it_cheaper(app: &TestApp) {
    let alice = app.customer("alice").await;
    let (order, coupon) = buy_with_coupon(app, &alice).await;
    app.execute(&format!("UPDATE user_coupon SET state = 'unused', order_id = NULL WHERE id = {coupon}"))
        .await;
    let looked_at = apply_only(app, "orders_coupons", "look_at_it").await;
    assert_eq!(
        (&looked_at["state"], &looked_at["subject"]),
        (&json!("open"), &json!(format!("order/{order}")))
    );
    assert!(
        looked_at["outcome"].as_str().unwrap().contains(&format!("coupon {coupon}, which")),
        "{looked_at}"
    );
    app.execute(&format!("UPDATE orders SET coupon_id = NULL WHERE id = {order}")).await;
    assert_eq!(apply_only(app, "orders_coupons", "look_at_it").await["state"], "open");
    app.execute(&format!("UPDATE orders SET coupon_id = {coupon} WHERE id = {order}")).await;
    app.execute(&format!("UPDATE user_coupon SET state = 'locked', order_id = {order} WHERE id = {coupon}"))
        .await;
    assert_eq!(apply(app, looked_at["id"].as_str().unwrap()).await.is(200)["state"], "gone");
    assert_eq!(differences(app).await, []);
}

async fn goods_that_a_live_order_does_not_hold(app: &TestApp) {
    let shop = Shop::open(app).await;
    let alice = app.customer("alice").await;
    let (cakes, tea) = (shop.goods(6000, 3).await, shop.goods(5000, 3).await);
    let mut both = wish(&cakes, 2, 6000, 0);
    let line = json!({"goods_id": tea, "quantity": 1, "unit_price_minor": 5000});
    both["items"].as_array_mut().unwrap().push(line);
    let order = text(&alice.post("/orders", with(both, "order_amount_minor", 17000)).await.is(201)["id"]);
    assert_eq!(differences(app).await, []);

    // The stock still adds up: the sale is somebody else's.
    let moved = |from: &str, to: &str| {
        format!(
            "UPDATE goods_ledger SET reference_id = {to} WHERE kind = 'sale' AND reference_id = {from} AND goods_id = {tea}"
        )
    };
    app.execute(&moved(&order, "7")).await;
    let looked_at = apply_only(app, "orders_goods", "look_at_it").await;
    assert_eq!((&looked_at["state"], &looked_at["subject"]), (&json!("open"), &json!(order)));
    assert_eq!(looked_at["found"], "goods not held, order awaiting_payment");
    app.execute(&moved("7", &order)).await;
    assert_eq!(apply(app, looked_at["id"].as_str().unwrap()).await.is(200)["state"], "gone");

    pay(app, &alice, &order, "t-1").await;
    order_of(&alice, &order).becomes("paid").await;
    app.is_quiet().await;
    let free = |units: i64| format!("UPDATE goods SET available = available + {units} WHERE id = {cakes}");
    app.execute(&format!(
        "INSERT INTO goods_ledger (id, goods_id, reference_id, kind, quantity, created_at) \
         VALUES (7, {cakes}, {order}, 'return', 2, 0)"
    ))
    .await;
    app.execute(&free(2)).await;
    assert_eq!(apply_only(app, "orders_goods", "look_at_it").await["state"], "open");
    app.execute("DELETE FROM goods_ledger WHERE id = 7").await;
    app.execute(&free(-2)).await;
    assert_eq!(differences(app).await, []);
}

async fn amounts_that_do_not_add_up(app: &TestApp) {
    let alice = app.customer("alice").await;
    let order = buy_from_balance(app, &alice).await;
    for amount in ["payable_minor", "order_amount_minor", "goods_amount_minor"] {
        let more = |by: i64| format!("UPDATE orders SET {amount} = {amount} + {by} WHERE id = {order}");
        app.execute(&more(100)).await;
        let looked_at = apply_only(app, "orders_amounts", "look_at_it").await;
        assert_eq!((&looked_at["state"], &looked_at["subject"]), (&json!("open"), &json!(order)));
        app.execute(&more(-100)).await;
        assert_eq!(apply(app, looked_at["id"].as_str().unwrap()).await.is(200)["state"], "gone");
    }
    assert_eq!(differences(app).await, []);
}

async fn an_order_that_outlived_its_time(app: &TestApp) {
    app.restart_with(|config| {
        config.jobs.schedules.order_deadlines = Schedule::OnDemand;
        config.jobs.schedules.overdue_payments = Schedule::OnDemand;
    })
    .await;
    let alice = app.customer("alice").await;
    let Bought { activity, order } = buy(app, &alice).await;
    open(&alice, &order, "sandbox").await;
    app.pass(TimeDelta::minutes(31) - TimeDelta::seconds(1));
    assert_eq!(differences(app).await, []);
    app.pass(TimeDelta::seconds(1));
    assert_eq!(apply_only(app, "orders_overdue", "expire").await["state"], "applied");
    let cancelled = order_of(&alice, &order).becomes("cancelled").await;
    assert_eq!(cancelled["cancel_cause"], "timeout");
    eventually(async || app.remaining(&activity).await == 1).await;
    assert_eq!(differences(app).await, []);
}

async fn a_capture_that_was_not_believed(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await.order;
    let payment = open(&alice, &order, "alipay").await;
    // It is asked, and names another amount: the order ends without that money, which nobody gives back.
    alipay.pay(&payment, 1);
    alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
    app.is_quiet().await;
    let unbelieved = apply_only(app, "payment_contradictions", "look_at_it").await;
    assert_eq!(unbelieved["state"], "open");
    let records = app.operator().await.get(&format!("/admin/payments/{payment}/records")).await.is(200);
    assert_eq!(unbelieved["subject"], records["items"][0]["id"], "{records}");
    let detail = text(&unbelieved["detail"]);
    assert!(detail.contains("CNY 0.01 was captured, and CNY 12.34 is due"), "{detail}");

    app.pass(TimeDelta::days(7));
    assert_eq!(apply(app, unbelieved["id"].as_str().unwrap()).await.is(200)["state"], "gone");
}

async fn a_refund_that_does_not_get_done(app: &TestApp) {
    app.restart_with(|config| config.jobs.schedules.payment_queries = Schedule::OnDemand).await;
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await.order;
    let payment = open(&alice, &order, "sandbox").await;
    alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
    signed_notice(app, &notice(&payment, "t-1", 1234)).await.is(200);
    let state =
        async || alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"][0]["state"].clone();
    eventually(async || state().await == "succeeded").await;
    app.is_quiet().await;

    app.execute("UPDATE refund SET state = 'approved'").await;
    app.pass(TimeDelta::minutes(10));
    assert_eq!(differences(app).await, []);
    app.pass(TimeDelta::seconds(1));
    assert_eq!(apply_only(app, "refunds_stuck", "perform").await["state"], "applied");
    assert_eq!(state().await, "succeeded");

    app.execute("UPDATE refund SET state = 'failed', failure = 'the account is empty'").await;
    let failed = apply_only(app, "refunds_stuck", "look_at_it").await;
    assert_eq!(failed["state"], "open");
    assert!(failed["detail"].as_str().unwrap().contains("the account is empty"), "{failed}");
    let refund = alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"][0]["id"].clone();
    let approve = format!("/admin/refunds/{}/approve", refund.as_str().unwrap());
    app.operator().await.post(&approve, json!({})).await.is(200);
    eventually(async || state().await == "succeeded").await;
    assert_eq!(apply(app, failed["id"].as_str().unwrap()).await.is(200)["state"], "gone");
}

async fn a_refund_that_is_not_what_was_captured(app: &TestApp) {
    let alice = app.customer("alice").await;
    let order = buy(app, &alice).await.order;
    pay(app, &alice, &order, "t-1").await;
    order_of(&alice, &order).becomes("paid").await;
    alice.post(&format!("/orders/{order}/refunds"), json!({"reason": "too small"})).await.is(202);
    order_of(&alice, &order).becomes("refunded").await;
    app.is_quiet().await;
    assert_eq!(differences(app).await, []);

    app.execute("UPDATE refund SET amount_minor = amount_minor + 1").await;
    let looked_at = apply_only(app, "orders_payments", "look_at_it").await;
    assert_eq!((&looked_at["state"], &looked_at["found"]), (&json!("open"), &json!("1235 minor units")));
    assert_eq!(looked_at["expected"], "1234 minor units, as captured");
    app.execute("UPDATE refund SET amount_minor = amount_minor - 1").await;
    assert_eq!(apply(app, looked_at["id"].as_str().unwrap()).await.is(200)["state"], "gone");
    assert_eq!(differences(app).await, []);
}

async fn a_gateway_that_says_otherwise(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let (kept, returned) = (buy(app, &alice).await.order, buy(app, &alice).await.order);
    let mut payments = Vec::new();
    for order in [&kept, &returned] {
        let payment = open(&alice, order, "alipay").await;
        alipay.pay(&payment, 1234);
        payments.push(payment);
    }
    app.pass(TimeDelta::minutes(2));
    app.operator().await.post("/admin/jobs/payment_queries/runs", json!({})).await;
    for order in [&kept, &returned] {
        order_of(&alice, order).becomes("paid").await;
    }
    alice.post(&format!("/orders/{returned}/refunds"), json!({"reason": "too small"})).await.is(202);
    order_of(&alice, &returned).becomes("refunded").await;
    assert_eq!(differences(app).await, []);

    alipay.forget(&payments[0]);
    let looked_at = apply_only(app, "gateway_alipay", "look_at_it").await;
    assert_eq!((&looked_at["state"], &looked_at["found"]), (&json!("open"), &json!("unknown")));
    assert_eq!(looked_at["subject"], format!("capture/{}", payments[0]));

    // A gateway that is down hides nothing else.
    alipay.fall_silent();
    let bob = app.customer("bob").await;
    let order = buy(app, &bob).await.order;
    pay(app, &bob, &order, "t-1").await;
    order_of(&bob, &order).becomes("paid").await;
    app.execute(&format!("UPDATE orders SET paid_payment_id = NULL WHERE id = {order}")).await;
    app.pass(TimeDelta::minutes(2));
    let run = reconcile(app).await;
    assert!(run["failed"].as_str().is_some_and(|failed| failed.starts_with("gateway_alipay: ")), "{run}");
    assert!(run["differences"].as_array().unwrap().iter().all(|of| of["comparison"] == "orders_payments"));
    assert_eq!(run["found"], 2, "{run}");
    let payment = bob.get(&format!("/orders/{order}/payments")).await.is(200)["items"][0]["id"].clone();
    let payment = payment.as_str().unwrap();
    app.execute(&format!("UPDATE orders SET paid_payment_id = {payment} WHERE id = {order}")).await;
    alipay.come_back();
    alipay.pay(&payments[0], 1234);
    let again = apply(app, looked_at["id"].as_str().unwrap()).await.is(200);
    assert_eq!(again["state"], "gone");
    assert_eq!(differences(app).await, []);
}
