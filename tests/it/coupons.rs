//! Coupons: operators give them, orders hold and use them, time ends them.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tombola::coupon::model::Unusable;
use tombola::coupon::{CouponError, Spend, store};
use tombola::ids::{CouponId, OrderId, UserId};

use crate::support::shop::{self, Fate, order, tell_of, with_coupon};
use crate::support::{Answer, Client, START, TestApp, eventually, stories};

stories!(
    an_operator_gives_a_coupon_and_makes_it_void,
    two_orders_never_hold_one_coupon,
    a_coupon_follows_its_order,
    a_coupon_expires,
);

fn five_off() -> Value {
    json!({
        "name": "Five off", "face_value_minor": 500, "min_spend_minor": 2000,
        "valid_until": START + TimeDelta::days(1),
    })
}

async fn give(app: &TestApp, customer: &Client) -> String {
    let path = format!("/admin/users/{}/coupons", customer.user_id);
    let given = app.operator().await.post(&path, five_off()).await.is(201);
    given["id"].as_str().unwrap().to_owned()
}

async fn coupons(customer: &Client, query: &str) -> Vec<Value> {
    let page = customer.get(&format!("/me/coupons{query}")).await.is(200);
    page["items"].as_array().unwrap().clone()
}

async fn state(customer: &Client, coupon: &str) -> (String, Value) {
    let coupons = coupons(customer, "").await;
    let found = coupons.iter().find(|found| found["id"] == coupon).unwrap();
    (found["state"].as_str().unwrap().to_owned(), found["order_id"].clone())
}

/// Lets an order hold a coupon, as the order's own transaction does.
async fn lock(app: &TestApp, coupon: &str, order: i64) {
    let lock = format!(
        "UPDATE user_coupon SET state = 'locked', order_id = {order}, version = 2 WHERE id = {coupon}"
    );
    app.execute(&lock).await;
}

async fn an_operator_gives_a_coupon_and_makes_it_void(app: &TestApp) {
    let (alice, bob, operator) =
        (app.customer("alice").await, app.customer("bob").await, app.operator().await);
    let path = format!("/admin/users/{}/coupons", alice.user_id);
    let request =
        || operator.request(reqwest::Method::POST, &path).json(&five_off()).header("idempotency-key", "once");
    let given = Answer::to(request()).await.is(201);
    let again = Answer::to(request()).await;
    assert!(again.is_replayed());
    assert_eq!(again.is(201), given);
    let id = given["id"].as_str().unwrap();
    assert_eq!(
        given,
        json!({
            "id": id, "name": "Five off", "state": "unused", "face_value_minor": 500, "min_spend_minor": 2000,
            "currency": "CNY", "valid_from": "2027-01-15T08:00:00.000000Z", "valid_until": "2027-01-16T08:00:00.000000Z",
            "order_id": null, "created_at": "2027-01-15T08:00:00.000000Z",
        })
    );
    assert_eq!(coupons(&alice, "").await, std::slice::from_ref(&given));
    assert_eq!(coupons(&alice, "?state=used").await, Vec::<Value>::new());
    assert_eq!(coupons(&bob, "").await, Vec::<Value>::new());
    assert_eq!(app.viewer().await.get(&path).await.is(200)["items"], json!([given]));
    assert_eq!(operator.get(&format!("{path}?state=used")).await.is(200)["items"], json!([]));

    for (member, value, pointer) in [
        ("name", json!(" "), "/name"),
        ("face_value_minor", json!(0), "/face_value_minor"),
        ("min_spend_minor", json!(-1), "/min_spend_minor"),
        ("valid_until", json!(START), "/valid_until"),
        ("valid_from", json!(START + TimeDelta::days(1)), "/valid_until"),
        ("valid_for", json!(3), "/valid_for"),
    ] {
        let mut body = five_off();
        body[member] = value;
        let problem = operator.post(&path, body).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    operator.post("/admin/users/7/coupons", five_off()).await.refused(404, "not_found");
    app.viewer().await.post(&path, five_off()).await.refused(403, "forbidden");

    let void = format!("/admin/coupons/{id}/void");
    alice.post(&void, json!({"reason": "why not"})).await.refused(403, "forbidden");
    operator.post(&void, json!({})).await.refused(422, "validation_failed");
    for _ in 0..2 {
        let voided = operator.post(&void, json!({"reason": "given by mistake"})).await.is(200);
        assert_eq!(voided["state"], "void");
    }
    operator.post("/admin/coupons/7/void", json!({"reason": "x"})).await.refused(404, "not_found");
    assert_eq!(coupons(&alice, "?state=void").await.len(), 1);
    let told = app.events(id, "coupon.state_changed.v1").await;
    let told: Vec<_> = told.iter().map(|event| (&event["data"]["from"], &event["data"]["to"])).collect();
    assert_eq!(told, [(&Value::Null, &json!("unused")), (&json!("unused"), &json!("void"))]);
}

async fn a_coupon_follows_its_order(app: &TestApp) {
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let mut held = Vec::new();
    for number in 0..4 {
        let coupon = give(app, &alice).await;
        let order = with_coupon(order(&alice, number), &coupon);
        lock(app, &coupon, order.id.0).await;
        held.push((coupon, order));
    }
    let [paid, cancelled, returned, shipped] = held.as_slice() else { unreachable!() };
    let is = async |coupon: &str, expected: &str| state(&alice, coupon).await.0 == expected;
    let void = format!("/admin/coupons/{}/void", paid.0);
    operator.post(&void, json!({"reason": "held"})).await.refused(409, "transition_not_allowed");

    tell_of(app, &[(&paid.1, Fate::Paid), (&cancelled.1, Fate::GivenUp), (&returned.1, Fate::Paid)]).await;
    eventually(async || is(&paid.0, "used").await && is(&cancelled.0, "unused").await).await;
    assert_eq!(state(&alice, &paid.0).await.1, paid.1.id.to_string());
    assert_eq!(state(&alice, &cancelled.0).await.1, Value::Null);
    // Another order holds what was freed; a late word of the first order changes nothing.
    lock(app, &cancelled.0, 4711).await;
    tell_of(app, &[(&cancelled.1, Fate::Paid), (&cancelled.1, Fate::Cancelled)]).await;

    tell_of(app, &[(&returned.1, Fate::Refunded { shipped: false })]).await;
    // The refund overtakes the payment.
    tell_of(app, &[(&shipped.1, Fate::Refunded { shipped: true })]).await;
    eventually(async || is(&returned.0, "unused").await && is(&shipped.0, "void").await).await;
    tell_of(app, &[(&returned.1, Fate::Paid), (&shipped.1, Fate::Paid), (&paid.1, Fate::Paid)]).await;
    app.is_quiet().await;
    assert_eq!(state(&alice, &returned.0).await, ("unused".to_owned(), Value::Null));
    assert_eq!(state(&alice, &shipped.0).await.0, "void");
    assert_eq!(state(&alice, &cancelled.0).await, ("locked".to_owned(), json!("4711")));
    let told = app.events(&paid.0, "coupon.state_changed.v1").await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((&told[1]["data"]["to"], &told[1]["data"]["version"]), (&json!("used"), &json!(3)));
}

async fn a_coupon_expires(app: &TestApp) {
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let (unused, held) = (give(app, &alice).await, give(app, &alice).await);
    let order = with_coupon(order(&alice, 1), &held);
    lock(app, &held, order.id.0).await;
    app.pass(TimeDelta::days(1));
    operator.post("/admin/jobs/coupon_expiry/runs", json!({})).await.is(202);
    eventually(async || state(&alice, &unused).await.0 == "expired").await;
    assert_eq!(state(&alice, &held).await.0, "locked");
    // What is freed too late is of no use any more.
    tell_of(app, &[(&order, Fate::Cancelled)]).await;
    eventually(async || state(&alice, &held).await.0 == "expired").await;
    let told = app.events(&unused, "coupon.state_changed.v1").await;
    assert_eq!(told[1]["data"]["to"], "expired");
}

async fn two_orders_never_hold_one_coupon(app: &TestApp) {
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let given = give(app, &alice).await;
    let (coupon, user) = (CouponId(given.parse().unwrap()), UserId(alice.user_id.parse().unwrap()));
    let (db, ids) = (app.beside().await, shop::ids());
    let spend = Spend { goods_amount_minor: 2000, order_amount_minor: 3000 };
    let lock = |order: i64, user: UserId, spend: Spend| {
        let (db, ids) = (db.clone(), ids.clone());
        async move {
            let locking = db.transaction(move |tx| {
                let ids = ids.clone();
                async move { store::lock(&tx, &ids, START, OrderId(order), user, coupon, spend).await }
            });
            locking.await.map(|deduction| (order, deduction))
        }
    };
    let stranger = lock(1, UserId(bob.user_id.parse().unwrap()), spend).await;
    assert!(matches!(stranger, Err(CouponError::NotFound)), "{stranger:?}");
    let little = lock(1, user, Spend { goods_amount_minor: 1999, ..spend }).await;
    assert!(matches!(little, Err(CouponError::Unusable(Unusable::MinSpend(2000)))), "{little:?}");
    // Ten orders at once, each of them twice.
    let mut held = BTreeSet::new();
    for outcome in join_all((0..20).map(|number| lock(1 + number / 2, user, spend))).await {
        match outcome {
            Ok((order, deduction)) => {
                assert_eq!(deduction, 500);
                held.insert(order);
            }
            Err(CouponError::Unusable(Unusable::Locked)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let holder = held.pop_first().unwrap();
    assert!(held.is_empty(), "{held:?} hold it, too");
    assert_eq!(state(&alice, &given).await, ("locked".to_owned(), json!(holder.to_string())));
    assert_eq!(app.events(&given, "coupon.state_changed.v1").await.len(), 2);
    db.close().await;
}
