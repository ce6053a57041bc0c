//! Users are told of their orders.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::lists::pages;
use crate::support::alipay::FakeAlipay;
use crate::support::payments::{ask_gateways, buy, notice, open, order_of, pay, signed_notice};
use crate::support::shop::{Fate, order, tell_of};
use crate::support::{Client, Offer, TestApp, eventually, stories};

stories!(
    an_orders_life_is_told,
    a_purchase_is_told,
    money_too_much_is_told,
    a_notification_is_read_by_its_user
);

async fn told(customer: &Client) -> Vec<Value> {
    let page = customer.get("/me/notifications?limit=100").await.is(200);
    page["items"].as_array().unwrap().clone()
}

async fn an_orders_life_is_told(app: &TestApp) {
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let (sent, cancelled, given_up) = (order(&alice, 1), order(&alice, 2), order(&alice, 3));
    let life = [Fate::Created, Fate::PaymentFailed, Fate::Paid, Fate::Shipped, Fate::Finished];
    for fate in life {
        tell_of(app, &[(&sent, fate)]).await;
    }
    let refunded = Fate::Refunded { shipped: true };
    tell_of(app, &[(&sent, refunded), (&cancelled, Fate::Cancelled), (&given_up, Fate::GivenUp)]).await;
    eventually(async || told(&alice).await.len() == 7).await;
    app.is_quiet().await;

    let notifications = told(&alice).await;
    assert_eq!(notifications.len(), 7);
    let of = |order: i64| {
        let order = order.to_string();
        let of_order = notifications.iter().filter(|told| told["order_id"] == *order);
        of_order.map(|told| told["kind"].as_str().unwrap()).collect::<BTreeSet<_>>()
    };
    let life = [
        "order_awaiting_payment",
        "order_confirmed",
        "order_finished",
        "order_paid",
        "order_refunded",
        "payment_failed",
    ];
    assert_eq!(of(sent.id.0), BTreeSet::from(life));
    assert_eq!(of(cancelled.id.0), BTreeSet::from(["order_cancelled"]));
    let body = |kind: &str| {
        let found = notifications.iter().find(|told| told["kind"] == kind).unwrap();
        found["body"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        body("order_awaiting_payment"),
        "Your order 1001 over CNY 119.00 is reserved for you. Please pay CNY 109.00 until 2027-01-15 08:30 UTC."
    );
    assert_eq!(
        body("order_cancelled"),
        "Your order 1002 was cancelled because it was not paid in time. CNY 5.00 went back to your balance."
    );
    assert_eq!(told(&bob).await, Vec::<Value>::new());
    assert_eq!(app.events(&alice.user_id, "notification.requested.v1").await.len(), 7);
    let by_three = pages(&alice, "/me/notifications", 3).await;
    assert_eq!(by_three.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
}

async fn a_purchase_is_told(app: &TestApp) {
    let activity = app.running(Offer::of(1).at_price(9900)).await;
    let alice = app.customer("alice").await;
    let order = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    pay(app, &alice, &order, "t-1").await;
    order_of(&alice, &order).becomes("paid").await;
    app.is_quiet().await;
    let notifications = told(&alice).await;
    let kinds: BTreeSet<&str> = notifications.iter().map(|told| told["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["order_awaiting_payment", "order_paid"]));
    assert!(notifications.iter().all(|told| told["order_id"] == *order), "{notifications:?}");
}

async fn money_too_much_is_told(app: &TestApp) {
    let alipay = FakeAlipay::start().await;
    app.restart_with(|config| alipay.configure(config)).await;
    let alice = app.customer("alice").await;
    let (cancelled, twice) = (buy(app, &alice).await, buy(app, &alice).await);
    let late = open(&alice, &cancelled, "sandbox").await;
    alice.post(&format!("/orders/{cancelled}/cancel"), json!({})).await.is(200);
    for _ in 0..2 {
        signed_notice(app, &notice(&late, "t-late", 1234)).await.is(200);
    }
    let second = open(&alice, &twice, "alipay").await;
    pay(app, &alice, &twice, "t-1").await;
    order_of(&alice, &twice).becomes("paid").await;
    alipay.pay(&second, 1234);
    ask_gateways(app).await;

    let returned = async |order: &str| {
        let told = told(&alice).await.into_iter();
        told.filter(|told| told["kind"] == "payment_returned" && told["order_id"] == *order)
            .collect::<Vec<_>>()
    };
    for (order, why) in [(&cancelled, "came after the order had ended"), (&twice, "was one too many")] {
        eventually(async || !returned(order).await.is_empty()).await;
        app.is_quiet().await;
        let returned = returned(order).await;
        assert_eq!(returned.len(), 1, "{returned:?}");
        assert_eq!(returned[0]["title"], "Your payment goes back");
        assert_eq!(
            returned[0]["body"],
            format!("Your payment of CNY 12.34 for order {order} {why}. It goes back the way you paid.")
        );
    }
}

async fn a_notification_is_read_by_its_user(app: &TestApp) {
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    tell_of(app, &[(&order(&alice, 1), Fate::Paid)]).await;
    eventually(async || told(&alice).await.len() == 1).await;
    let id = told(&alice).await[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/me/notifications/{id}/read");
    bob.post(&path, json!({})).await.refused(404, "not_found");
    app.nobody().post(&path, json!({})).await.refused(401, "unauthenticated");
    assert_eq!(told(&alice).await[0]["read_at"], Value::Null);
    let read = alice.post(&path, json!({})).await.is(200);
    assert_eq!(read["read_at"], "2027-01-15T08:00:00Z");
    app.pass(chrono::TimeDelta::minutes(1));
    assert_eq!(alice.post(&path, json!({})).await.is(200), read);
    assert_eq!(told(&alice).await, [read]);
    alice.post("/me/notifications/7/read", json!({})).await.refused(404, "not_found");
}
