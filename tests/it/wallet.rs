//! Balances and points: operators adjust them, orders use them, and they are what their entries add up to.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tombola::db::Database;
use tombola::ids::{OrderId, UserId};
use tombola::wallet::{Ledger, WalletError};

use crate::lists::pages;
use crate::support::payments::{notice, order_of, pay, signed_notice};
use crate::support::shop::{self, Fate, order, tell_of};
use crate::support::{Answer, Client, Offer, START, TestApp, eventually, stories};

stories!(
    an_operator_adjusts_a_balance,
    what_an_order_took_goes_back_once,
    paid_orders_earn_points,
    an_operator_adjusts_points,
    points_are_never_taken_twice,
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

async fn an_operator_adjusts_points(app: &TestApp) {
    let (alice, bob, operator) =
        (app.customer("alice").await, app.customer("bob").await, app.operator().await);
    let path = format!("/admin/users/{}/points-adjustments", alice.user_id);
    let once = async |points: i64| {
        let request = operator.request(reqwest::Method::POST, &path).header("idempotency-key", "sorry");
        Answer::to(request.json(&json!({"points": points, "reason": "sorry"}))).await
    };
    let (first, again) = (once(50).await, once(50).await);
    assert!(again.is_replayed());
    once(51).await.refused(422, "idempotency_key_reused");
    let (first, again) = (first.is(201), again.is(201));
    assert_eq!(first, again);
    let at = START.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    assert_eq!(
        first,
        json!({
            "id": first["id"], "user_id": alice.user_id, "points": 50, "points_total": 50, "created_at": at,
        })
    );

    // Earned between two adjustments: 109.00 payable, a point each; taken back is what is left of them.
    let order = order(&alice, 1);
    tell_of(app, &[(&order, Fate::Paid)]).await;
    let points = async || alice.get("/me").await.is(200)["points"].as_i64().unwrap();
    eventually(async || points().await == 159).await;
    let wish = |points: i64| json!({"points": points, "reason": "taken by hand"});
    operator.post(&path, wish(-160)).await.refused(409, "balance_insufficient");
    assert_eq!(operator.post(&path, wish(-100)).await.is(201)["points_total"], 59);
    tell_of(app, &[(&order, Fate::Refunded { shipped: false })]).await;
    eventually(async || points().await == 0).await;
    operator.post(&path, wish(-1)).await.refused(409, "balance_insufficient");

    for points in [0, 1_000_000_000_001, -1_000_000_000_001, i64::MIN] {
        let problem = operator.post(&path, wish(points)).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], "/points");
    }
    operator.post(&path, wish(1)).await.is(201);
    let problem = operator.post(&path, wish(1_000_000_000_000)).await.refused(422, "validation_failed");
    assert_eq!(problem["errors"][0]["pointer"], "/points");
    operator.post("/admin/users/7/points-adjustments", wish(1)).await.refused(404, "not_found");
    app.viewer().await.post(&path, wish(1)).await.refused(403, "forbidden");
    alice.post(&path, wish(1)).await.refused(403, "forbidden");
    app.nobody().post(&path, wish(1)).await.refused(401, "unauthenticated");

    let mine = alice.get("/me/points-entries").await.is(200);
    let shown = mine["items"].as_array().unwrap().iter();
    let shown: Vec<_> =
        shown.map(|entry| json!([entry["kind"], entry["points"], entry["points_total"]])).collect();
    assert_eq!(
        shown,
        [
            json!(["adjustment", 1, 1]),
            json!(["taken_back", -59, 0]),
            json!(["adjustment", -100, 59]),
            json!(["earned", 109, 159]),
            json!(["adjustment", 50, 50]),
        ]
    );
    let (earned, adjusted) = (&mine["items"][3], &mine["items"][4]);
    assert_eq!((&earned["order_id"], &earned["reason"]), (&json!(order.id.to_string()), &Value::Null));
    assert_eq!((&adjusted["order_id"], &adjusted["reason"]), (&Value::Null, &json!("sorry")));
    assert_eq!((&adjusted["id"], &adjusted["created_at"]), (&first["id"], &first["created_at"]));
    let list = format!("/admin/users/{}/points-entries", alice.user_id);
    assert_eq!(app.viewer().await.get(&list).await.is(200), mine);
    bob.get(&list).await.refused(403, "forbidden");
    assert_eq!(bob.get("/me/points-entries").await.is(200)["items"], json!([]));
    let by_two = pages(&alice, "/me/points-entries", 2).await;
    assert_eq!(by_two.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);

    // Only what an order brings is told.
    app.is_quiet().await;
    assert_eq!(app.events(&alice.user_id, "points.added.v1").await.len(), 1);
    let run = operator.post("/admin/reconciliations", json!({})).await.is(201);
    assert_eq!(run["found"], 0, "{run}");
}

async fn points_are_never_taken_twice(app: &TestApp) {
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let path = format!("/admin/users/{}/points-adjustments", alice.user_id);
    let adjust =
        async |points: i64| operator.post(&path, json!({"points": points, "reason": "a story"})).await;
    adjust(100).await.is(201);
    // Ten at once: there is enough for three.
    let answers = join_all((0..10).map(|_| adjust(-30))).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
    let mut left: Vec<i64> =
        taken.into_iter().map(|answer| answer.is(201)["points_total"].as_i64().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, [10, 40, 70]);
    for answer in refused {
        answer.refused(409, "balance_insufficient");
    }
    assert_eq!(alice.get("/me").await.is(200)["points"], 10);
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
