//! Balances and points: operators adjust them, orders use them, and they are what their entries add up to.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tombola::db::Database;
use tombola::ids::{OrderId, UserId};
use tombola::wallet::{Ledger, WalletError};

use crate::support::payments::{notice, order_of, pay, signed_notice};
use crate::support::shop::{self, Fate, order, tell_of};
use crate::support::{Answer, Client, Offer, START, TestApp, eventually, stories};

stories!(
    an_operator_adjusts_a_balance,
    what_an_order_took_goes_back_once,
    paid_orders_earn_points,
    a_late_payment_leaves_no_points,
    a_balance_is_never_spent_twice,
    a_spoilt_balance_is_counted_again,
);

async fn adjust(app: &TestApp, customer: &Client, amount_minor: i64) -> Value {
    let path = format!("/admin/users/{}/wallet-adjustments", customer.user_id);
    app.operator().await.post(&path, json!({"amount_minor": amount_minor, "reason": "a story"})).await.is(201)
}

async fn an_operator_adjusts_a_balance(app: &TestApp) {
    let (alice, bob, operator) =
        (app.customer("alice").await, app.customer("bob").await, app.operator().await);
    let path = format!("/admin/users/{}/wallet-adjustments", alice.user_id);
    let body = json!({"amount_minor": 5000, "reason": "welcome"});
    let request = || {
        let request = operator.request(reqwest::Method::POST, &path).json(&body);
        request.header("idempotency-key", "welcome")
    };
    let first = Answer::to(request()).await;
    let again = Answer::to(request()).await;
    assert!(again.is_replayed());
    let (first, again) = (first.is(201), again.is(201));
    assert_eq!(first, again);
    assert_eq!((&first["amount_minor"], &first["balance_minor"]), (&json!(5000), &json!(5000)));
    assert_eq!((&first["currency"], &first["user_id"]), (&json!("CNY"), &json!(alice.user_id)));

    assert_eq!(adjust(app, &alice, -1500).await["balance_minor"], 3500);
    let wish = |amount: i64| json!({"amount_minor": amount, "reason": "too much"});
    operator.post(&path, wish(-3501)).await.refused(409, "balance_insufficient");
    for amount in [0, 1_000_000_000_001, -1_000_000_000_001, i64::MIN] {
        let problem = operator.post(&path, wish(amount)).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], "/amount_minor");
    }
    operator.post(&path, wish(1_000_000_000_000)).await.refused(422, "validation_failed");
    let unknown = operator.post("/admin/users/7/wallet-adjustments", wish(1)).await;
    unknown.refused(404, "not_found");
    app.viewer().await.post(&path, wish(1)).await.refused(403, "forbidden");
    alice.post(&path, wish(1)).await.refused(403, "forbidden");

    let me = alice.get("/me").await.is(200);
    assert_eq!(
        (&me["balance_minor"], &me["points"], &me["currency"]),
        (&json!(3500), &json!(0), &json!("CNY"))
    );
    assert_eq!(me["red_dots"], json!({}));
    assert_eq!(bob.get("/me").await.is(200)["balance_minor"], 0);
    let mine = alice.get("/me/wallet-entries").await.is(200);
    let shown: Vec<_> = mine["items"].as_array().unwrap().iter().collect();
    let numbers: Vec<_> =
        shown.iter().map(|entry| (&entry["amount_minor"], &entry["balance_minor"])).collect();
    assert_eq!(numbers, [(&json!(-1500), &json!(3500)), (&json!(5000), &json!(5000))]);
    assert_eq!((&shown[1]["kind"], &shown[1]["reason"]), (&json!("adjustment"), &json!("welcome")));
    assert_eq!(shown[1]["order_id"], Value::Null);
    let list = format!("/admin/users/{}/wallet-entries", alice.user_id);
    assert_eq!(app.viewer().await.get(&list).await.is(200), mine);
    bob.get(&list).await.refused(403, "forbidden");
    assert_eq!(bob.get("/me/wallet-entries").await.is(200)["items"], json!([]));

    let changed = app.events(&alice.user_id, "wallet.changed.v1").await;
    let told: Vec<_> =
        changed.iter().map(|event| (&event["sequence"], &event["data"]["balance_minor"])).collect();
    assert_eq!(told, [(&json!(1), &json!(5000)), (&json!(2), &json!(3500))]);
}

async fn what_an_order_took_goes_back_once(app: &TestApp) {
    let alice = app.customer("alice").await;
    adjust(app, &alice, 1000).await;
    let (cancelled, refunded) = (order(&alice, 1), order(&alice, 2));
    for order in [&cancelled, &refunded] {
        app.execute(&format!(
            "INSERT INTO wallet_entry (id, user_id, reference_id, kind, amount_minor, balance_after_minor, created_at) \
             VALUES ({id}, {user}, {id}, 'pay', -300, 0, 1)",
            id = order.id,
            user = alice.user_id
        ))
        .await;
        let spent = "UPDATE wallet_account SET balance_minor = balance_minor - 300 WHERE user_id =";
        app.execute(&format!("{spent} {}", alice.user_id)).await;
    }
    let balance = async || alice.get("/me").await.is(200)["balance_minor"].as_i64().unwrap();
    assert_eq!(balance().await, 400);
    // Told twice, as other events, and together: once back.
    tell_of(app, &[(&cancelled, Fate::Cancelled), (&cancelled, Fate::Cancelled)]).await;
    eventually(async || balance().await == 700).await;
    tell_of(app, &[(&refunded, Fate::Refunded { shipped: true }), (&cancelled, Fate::Cancelled)]).await;
    eventually(async || balance().await == 1000).await;
    tell_of(app, &[(&refunded, Fate::Refunded { shipped: true })]).await;
    app.is_quiet().await;
    assert_eq!(balance().await, 1000);
    let mine = alice.get("/me/wallet-entries").await.is(200);
    let newest = &mine["items"][0];
    assert_eq!((&newest["kind"], &newest["amount_minor"]), (&json!("refund"), &json!(300)));
    assert_eq!(newest["order_id"], refunded.id.to_string());
    let run = app.operator().await.post("/admin/reconciliations", json!({})).await.is(201);
    assert_eq!(run["found"], 0, "{run}");
}

async fn paid_orders_earn_points(app: &TestApp) {
    let alice = app.customer("alice").await;
    let points = async || alice.get("/me").await.is(200)["points"].as_i64().unwrap();
    // 109.00 payable, a point each.
    let (kept, refunded, overtaken) = (order(&alice, 1), order(&alice, 2), order(&alice, 3));
    tell_of(app, &[(&kept, Fate::Paid), (&kept, Fate::Paid), (&refunded, Fate::Paid)]).await;
    eventually(async || points().await == 218).await;
    tell_of(app, &[(&overtaken, Fate::Refunded { shipped: false })]).await;
    tell_of(app, &[(&refunded, Fate::Refunded { shipped: false })]).await;
    eventually(async || points().await == 109).await;
    tell_of(app, &[(&overtaken, Fate::Paid), (&refunded, Fate::Paid)]).await;
    app.is_quiet().await;
    assert_eq!(points().await, 109);
    let told = app.events(&alice.user_id, "points.added.v1").await;
    assert_eq!(told.iter().map(|event| &event["data"]["points_total"]).collect::<Vec<_>>(), [109, 218]);
}

async fn a_spoilt_balance_is_counted_again(app: &TestApp) {
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    adjust(app, &alice, 1000).await;
    app.execute("UPDATE wallet_account SET balance_minor = 7, points = 3").await;
    let run = operator.post("/admin/reconciliations", json!({})).await.is(201);
    let difference = &run["differences"][0];
    assert_eq!((&run["found"], &difference["comparison"]), (&json!(1), &json!("wallet_balances")), "{run}");
    assert_eq!(difference["expected"], "1000 minor units and 0 points");
    let apply = format!("/admin/differences/{}/apply", difference["id"].as_str().unwrap());
    assert_eq!(operator.post(&apply, json!({})).await.is(200)["state"], "applied");
    let me = alice.get("/me").await.is(200);
    assert_eq!((&me["balance_minor"], &me["points"]), (&json!(1000), &json!(0)));
    assert_eq!(operator.post("/admin/reconciliations", json!({})).await.is(201)["found"], 0);
}

async fn a_late_payment_leaves_no_points(app: &TestApp) {
    let activity = app.running(Offer::of(2).at_price(9950)).await;
    let alice = app.customer("alice").await;
    let buy = async || alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    let (late, good) = (buy().await, buy().await);
    let opened = alice.post(&format!("/orders/{late}/payments"), json!({"channel": "sandbox"})).await.is(201);
    alice.post(&format!("/orders/{late}/cancel"), json!({})).await.is(200);
    let captured = notice(opened["payment"]["id"].as_str().unwrap(), "t-late", 9950);
    signed_notice(app, &captured).await.is(200);
    pay(app, &alice, &good, "t-good").await;
    order_of(&alice, &good).becomes("paid").await;
    app.is_quiet().await;
    // 99.50 paid: a point for each whole unit.
    assert_eq!(alice.get("/me").await.is(200)["points"], 99);
    alice.post(&format!("/orders/{good}/refunds"), json!({"reason": "too big"})).await.is(202);
    order_of(&alice, &good).becomes("refunded").await;
    app.is_quiet().await;
    assert_eq!(alice.get("/me").await.is(200)["points"], 0);
}

/// The account as orders' own transactions change it.
async fn ledger(app: &TestApp) -> (Database, Ledger) {
    let db = app.beside().await;
    (db, Ledger::new(shop::ids(), "CNY".parse().unwrap()))
}

async fn a_balance_is_never_spent_twice(app: &TestApp) {
    let alice = app.customer("alice").await;
    adjust(app, &alice, 1000).await;
    let (db, ledger) = ledger(app).await;
    let user = UserId(alice.user_id.parse().unwrap());
    // Thirty orders at once, each of them twice: there is enough for three.
    let pay = |number: i64| {
        let (db, ledger) = (db.clone(), ledger.clone());
        async move {
            let paying = db.transaction(move |tx| {
                let ledger = ledger.clone();
                async move { ledger.pay(&tx, START, OrderId(number), user, 300).await }
            });
            paying.await.map(|()| number)
        }
    };
    let paid = join_all((0..60).map(|number| pay(number / 2))).await;
    let mut orders = BTreeSet::new();
    for outcome in paid {
        match outcome {
            Ok(order) => drop(orders.insert(order)),
            Err(WalletError::Insufficient { balance_minor }) => assert!(balance_minor < 300),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(orders.len(), 3);
    assert_eq!(alice.get("/me").await.is(200)["balance_minor"], 100);
    assert_eq!(alice.get("/me/wallet-entries").await.is(200)["items"].as_array().unwrap().len(), 4);
    // What orders took goes back once, whoever says so, however often.
    let orders: Vec<OrderId> = orders.into_iter().map(OrderId).collect();
    join_all((0..10).map(|_| {
        let (db, ledger, orders) = (db.clone(), ledger.clone(), orders.clone());
        async move {
            let giving = db.transaction(move |tx| {
                let (ledger, orders) = (ledger.clone(), orders.clone());
                async move { ledger.give_back(&tx, START, &orders).await }
            });
            giving.await.unwrap();
        }
    }))
    .await;
    assert_eq!(alice.get("/me").await.is(200)["balance_minor"], 1000);
    assert_eq!(alice.get("/me/wallet-entries").await.is(200)["items"].as_array().unwrap().len(), 7);
    let run = app.operator().await.post("/admin/reconciliations", json!({})).await.is(201);
    assert_eq!(run["found"], 0, "{run}");
    db.close().await;
}
