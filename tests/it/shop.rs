//! Orders of the shop: from the cart to the refund, and everything that can be wrong with them.

use chrono::TimeDelta;
use futures_util::future::join_all;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use crate::support::database::session;
use crate::support::payments::{order_of, pay};
use crate::support::{Client, TestApp, eventually, shared_stories, stories};

stories!(
    from_the_cart_to_the_refund,
    what_does_not_fit_is_refused_and_changes_nothing,
    the_last_unit_is_sold_once,
    one_coupon_and_one_balance_serve_one_order,
    what_is_not_paid_in_time_gives_everything_back,
    what_an_ended_order_still_holds_is_found_and_comes_back,
    nothing_left_to_pay_is_paid_at_once,
    a_repeated_order_is_one_order,
    a_refund_before_shipping_gives_everything_back,
);

/// On databases that lock rows.
mod shared {
    use super::*;

    shared_stories!(an_order_does_not_wait_for_another);

    async fn an_order_does_not_wait_for_another(app: &TestApp) {
        let shop = Shop::open(app).await;
        let goods = shop.goods(20000, 5).await;
        let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
        let theirs = text(&bob.post("/orders", wish(&goods, 1, 20000, 0)).await.is(201)["id"]);
        app.is_quiet().await;
        let holder = session(&app.database.url).await;
        let change = format!("UPDATE orders SET state = 'draft' WHERE id = {theirs}");
        for statement in ["BEGIN", &change] {
            holder.execute_unprepared(statement).await.unwrap();
        }

        alice.post("/orders", wish(&goods, 1, 20000, 0)).await.is(201);

        holder.execute_unprepared("ROLLBACK").await.unwrap();
        holder.close().await.unwrap();
        assert_eq!(shop.available(&goods).await, 3);
    }
}

/// Goods on sale, and customers with money.
pub(crate) struct Shop<'a> {
    app: &'a TestApp,
    pub(crate) operator: Client,
}

impl<'a> Shop<'a> {
    pub(crate) async fn open(app: &'a TestApp) -> Self {
        Self { app, operator: app.operator().await }
    }

    pub(crate) async fn goods(&self, price_minor: i64, stock: i64) -> String {
        let new = json!({"name": "Mooncakes", "price_minor": price_minor, "stock_total": stock});
        text(&self.operator.post("/admin/goods", new).await.is(201)["id"])
    }

    pub(crate) async fn credit(&self, customer: &Client, amount_minor: i64) {
        let path = format!("/admin/users/{}/wallet-adjustments", customer.user_id);
        self.operator.post(&path, json!({"amount_minor": amount_minor, "reason": "a gift"})).await.is(201);
    }

    pub(crate) async fn coupon(
        &self,
        customer: &Client,
        face_value_minor: i64,
        min_spend_minor: i64,
    ) -> String {
        let until = self.app.now() + TimeDelta::days(1);
        let new = json!({
            "name": "Welcome", "face_value_minor": face_value_minor, "min_spend_minor": min_spend_minor,
            "valid_until": until,
        });
        let path = format!("/admin/users/{}/coupons", customer.user_id);
        text(&self.operator.post(&path, new).await.is(201)["id"])
    }

    pub(crate) async fn available(&self, goods: &str) -> i64 {
        self.operator.get(&format!("/goods/{goods}")).await.is(200)["stock"]["available"].as_i64().unwrap()
    }
}

pub(crate) async fn balance(customer: &Client) -> i64 {
    customer.get("/me").await.is(200)["balance_minor"].as_i64().unwrap()
}

pub(crate) async fn coupon_state(customer: &Client) -> String {
    text(&customer.get("/me/coupons").await.is(200)["items"][0]["state"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// `quantity` units at `price`, sent for `shipping`.
pub(crate) fn wish(goods: &str, quantity: i64, price: i64, shipping: i64) -> Value {
    json!({
        "items": [{"goods_id": goods, "quantity": quantity, "unit_price_minor": price}],
        "shipping_fee_minor": shipping, "order_amount_minor": quantity * price + shipping,
        "address": {"consignee": "Alice", "phone": "123", "line": "1 Rabbit Hole"},
    })
}

pub(crate) fn with(mut wish: Value, member: &str, value: impl Into<Value>) -> Value {
    wish[member] = value.into();
    wish
}

async fn from_the_cart_to_the_refund(app: &TestApp) {
    let shop = Shop::open(app).await;
    let alice = app.customer("alice").await;
    let (cakes, tea) = (shop.goods(4000, 10).await, shop.goods(2500, 5).await);
    shop.credit(&alice, 3000).await;
    let coupon = shop.coupon(&alice, 1000, 5000).await;
    alice.put(&format!("/cart/items/{cakes}"), json!({"quantity": 2})).await.is(200);
    alice.put(&format!("/cart/items/{tea}"), json!({"quantity": 1})).await.is(200);
    assert_eq!(alice.get("/cart").await.is(200)["items"].as_array().unwrap().len(), 2);

    // 80.00 + 25.00 of goods are sent for nothing.
    let order = json!({
        "items": [
            {"goods_id": tea, "quantity": 1, "unit_price_minor": 2500},
            {"goods_id": cakes, "quantity": 2, "unit_price_minor": 4000},
        ],
        "shipping_fee_minor": 0, "order_amount_minor": 10500, "coupon_id": coupon, "balance_minor": 3000,
        "address": {"consignee": "Alice", "phone": "123", "line": "1 Rabbit Hole"},
    });
    let order = alice.post("/orders", order).await.is(201);
    assert_eq!((&order["state"], &order["kind"]), (&json!("awaiting_payment"), &json!("shop")));
    let amounts = [
        "goods_amount_minor",
        "shipping_fee_minor",
        "order_amount_minor",
        "coupon_deduction_minor",
        "balance_paid_minor",
        "payable_minor",
    ];
    let amounts: Vec<i64> = amounts.map(|amount| order[amount].as_i64().unwrap()).to_vec();
    assert_eq!(amounts, [10500, 0, 10500, 1000, 3000, 6500]);
    assert_eq!(order["address"]["line"], "1 Rabbit Hole");
    assert_eq!((shop.available(&cakes).await, shop.available(&tea).await), (8, 4));
    assert_eq!((balance(&alice).await, coupon_state(&alice).await.as_str()), (0, "locked"));

    let id = text(&order["id"]);
    pay(app, &alice, &id, "t-1").await;
    order_of(&alice, &id).becomes("paid").await;
    eventually(async || coupon_state(&alice).await == "used").await;
    eventually(async || alice.get("/me").await.is(200)["points"] == 65).await;
    shop.operator.post(&format!("/admin/orders/{id}/ship"), json!({})).await.is(200);
    shop.operator.post(&format!("/admin/orders/{id}/finish"), json!({})).await.is(200);

    alice.post(&format!("/orders/{id}/refunds"), json!({"reason": "stale"})).await.is(202);
    order_of(&alice, &id).becomes("refunded").await;
    app.is_quiet().await;
    // The goods have left: they do not come back by themselves, and the coupon was used.
    assert_eq!((balance(&alice).await, coupon_state(&alice).await.as_str()), (3000, "void"));
    assert_eq!(shop.available(&cakes).await, 8);
    assert_eq!(alice.get("/me").await.is(200)["points"], 0);
    let timeline = alice.get(&format!("/orders/{id}/timeline")).await.is(200);
    let types: Vec<String> =
        timeline["items"].as_array().unwrap().iter().map(|entry| text(&entry["type"])).collect();
    assert_eq!(types, ["drafted", "created", "paid", "shipped", "finished", "refund_requested", "refunded"]);
}

async fn what_does_not_fit_is_refused_and_changes_nothing(app: &TestApp) {
    let shop = Shop::open(app).await;
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let goods = shop.goods(4000, 3).await;
    shop.credit(&alice, 100).await;
    let coupon = shop.coupon(&alice, 1000, 5000).await;
    let fits = wish(&goods, 1, 4000, 1000);
    let cases = [
        (wish("1", 1, 4000, 1000), 422, "goods_not_found"),
        (wish(&goods, 1, 3999, 1000), 422, "price_mismatch"),
        (wish(&goods, 4, 4000, 0), 409, "stock_insufficient"),
        (wish(&goods, 1, 4000, 0), 422, "shipping_fee_mismatch"),
        (with(fits.clone(), "order_amount_minor", 4000), 422, "order_amount_mismatch"),
        (with(fits.clone(), "coupon_id", "1"), 422, "coupon_not_found"),
        // Goods for 50.00 are needed.
        (with(fits.clone(), "coupon_id", coupon.clone()), 409, "coupon_unusable"),
        (with(fits.clone(), "balance_minor", 101), 409, "balance_insufficient"),
        (with(fits.clone(), "balance_minor", 5001), 422, "order_amount_mismatch"),
        (with(fits.clone(), "balance_minor", -1), 422, "validation_failed"),
        (with(fits.clone(), "items", json!([])), 422, "validation_failed"),
        (wish(&goods, 0, 4000, 1000), 422, "validation_failed"),
        (with(fits.clone(), "state", "paid"), 422, "validation_failed"),
        (with(fits.clone(), "user_id", bob.user_id.clone()), 422, "validation_failed"),
        // In the order in which the documentation lists the members.
        (with(fits.clone(), "address", json!(["Alice", "123", "1 Rabbit Hole"])), 422, "validation_failed"),
        (with(fits.clone(), "items", json!([[goods, 1, 4000]])), 422, "validation_failed"),
    ];
    for (wish, status, code) in cases {
        alice.post("/orders", wish).await.refused(status, code);
    }
    bob.post("/orders", with(wish(&goods, 2, 4000, 1000), "coupon_id", coupon))
        .await
        .refused(422, "coupon_not_found");
    shop.operator.patch(&format!("/admin/goods/{goods}"), json!({"on_sale": false})).await.is(200);
    alice.post("/orders", fits).await.refused(422, "goods_not_found");

    shop.operator.patch(&format!("/admin/goods/{goods}"), json!({"on_sale": true})).await.is(200);
    assert_eq!((shop.available(&goods).await, balance(&alice).await), (3, 100));
    assert_eq!(coupon_state(&alice).await, "unused");
    assert_eq!(shop.operator.get("/admin/orders").await.is(200)["items"], json!([]));
}

async fn the_last_unit_is_sold_once(app: &TestApp) {
    let shop = Shop::open(app).await;
    let goods = shop.goods(20000, 5).await;
    let customers = app.customers(20).await;
    let placing = customers.iter().map(|customer| customer.post("/orders", wish(&goods, 1, 20000, 0)));

    let answers = join_all(placing).await;

    let sold = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(sold, 5);
    for answer in answers.into_iter().filter(|answer| answer.status != 201) {
        answer.refused(409, "stock_insufficient");
    }
    assert_eq!(shop.available(&goods).await, 0);
    app.is_quiet().await;
    // What came to nothing is not shown, and nothing of it remains.
    assert_eq!(shop.available(&goods).await, 0);
    let states = shop.operator.get("/admin/orders?limit=100").await.is(200);
    let waiting =
        states["items"].as_array().unwrap().iter().filter(|order| order["state"] == "awaiting_payment");
    assert_eq!(waiting.count(), 5);
}

async fn one_coupon_and_one_balance_serve_one_order(app: &TestApp) {
    let shop = Shop::open(app).await;
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let goods = shop.goods(20000, 100).await;
    let coupon = shop.coupon(&alice, 1000, 0).await;
    shop.credit(&bob, 5000).await;

    let by_coupon = with(wish(&goods, 1, 20000, 0), "coupon_id", coupon);
    let with_coupon = join_all((0..10).map(|_| alice.post("/orders", by_coupon.clone()))).await;
    let by_balance = with(wish(&goods, 1, 20000, 0), "balance_minor", 5000);
    let with_balance = join_all((0..10).map(|_| bob.post("/orders", by_balance.clone()))).await;

    for (answers, code) in [(with_coupon, "coupon_unusable"), (with_balance, "balance_insufficient")] {
        let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
        assert_eq!(made.len(), 1, "{code}");
        refused.into_iter().for_each(|answer| drop(answer.refused(409, code)));
    }
    app.is_quiet().await;
    assert_eq!((shop.available(&goods).await, balance(&bob).await), (98, 0));
    assert_eq!(coupon_state(&alice).await, "locked");
}

async fn what_is_not_paid_in_time_gives_everything_back(app: &TestApp) {
    let shop = Shop::open(app).await;
    let alice = app.customer("alice").await;
    let goods = shop.goods(6000, 1).await;
    shop.credit(&alice, 500).await;
    let coupon = shop.coupon(&alice, 1000, 0).await;
    let order = with(with(wish(&goods, 1, 6000, 1000), "coupon_id", coupon), "balance_minor", 500);
    let id = text(&alice.post("/orders", order).await.is(201)["id"]);
    assert_eq!((shop.available(&goods).await, balance(&alice).await), (0, 0));

    app.pass(TimeDelta::minutes(30));

    order_of(&alice, &id).becomes("cancelled").await;
    app.is_quiet().await;
    assert_eq!((shop.available(&goods).await, balance(&alice).await), (1, 500));
    assert_eq!(coupon_state(&alice).await, "unused");
    alice
        .post(&format!("/orders/{id}/refunds"), json!({"reason": "twice"}))
        .await
        .refused(409, "order_not_refundable");
}

async fn what_an_ended_order_still_holds_is_found_and_comes_back(app: &TestApp) {
    let shop = Shop::open(app).await;
    let goods = shop.goods(6000, 3).await;
    let order = app.customer("alice").await.post("/orders", wish(&goods, 2, 6000, 0)).await.is(201);
    let id = text(&order["id"]);
    // No event tells of it.
    let now = app.clock_seconds() * 1_000_000;
    app.execute(&format!(
        "UPDATE orders SET state = 'cancelled', version = version + 1, cancel_cause = 'operator', updated_at = {now} \
         WHERE id = {id}"
    ))
    .await;
    app.execute(&format!(
        "INSERT INTO order_event (order_id, version, event_type, cause, data, created_at) \
         SELECT id, version, 'cancelled', 'a story', '{{}}', {now} FROM orders WHERE id = {id}"
    ))
    .await;
    let reconcile = async || shop.operator.post("/admin/reconciliations", json!({})).await.is(201);
    // It may be on its way.
    assert_eq!(reconcile().await["found"], 0);
    app.pass(TimeDelta::seconds(61));

    let run = reconcile().await;
    let [found] = run["differences"].as_array().unwrap().as_slice() else { panic!("{run}") };
    assert_eq!((&found["comparison"], &found["action"]), (&json!("orders_goods"), &json!("give_back")));
    assert_eq!(found["subject"], order["id"]);
    let path = format!("/admin/differences/{}/apply", text(&found["id"]));
    assert_eq!(shop.operator.post(&path, json!({})).await.is(200)["state"], "applied");
    assert_eq!(shop.available(&goods).await, 3);
    assert_eq!(reconcile().await["found"], 0);
}

async fn nothing_left_to_pay_is_paid_at_once(app: &TestApp) {
    let shop = Shop::open(app).await;
    let alice = app.customer("alice").await;
    let goods = shop.goods(6000, 1).await;
    shop.credit(&alice, 10000).await;
    let coupon = shop.coupon(&alice, 1000, 0).await;
    let order = with(with(wish(&goods, 1, 6000, 1000), "coupon_id", coupon), "balance_minor", 6000);

    let order = alice.post("/orders", order).await.is(201);

    assert_eq!((&order["state"], &order["payable_minor"]), (&json!("paid"), &json!(0)));
    let id = text(&order["id"]);
    alice
        .post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"}))
        .await
        .refused(409, "order_already_paid");
    alice.post(&format!("/orders/{id}/refunds"), json!({"reason": "no"})).await.is(202);
    order_of(&alice, &id).becomes("refunded").await;
    app.is_quiet().await;
    assert_eq!((shop.available(&goods).await, balance(&alice).await), (1, 10000));
    assert_eq!(coupon_state(&alice).await, "unused");
}

async fn a_repeated_order_is_one_order(app: &TestApp) {
    let shop = Shop::open(app).await;
    let alice = app.customer("alice").await;
    let goods = shop.goods(20000, 10).await;
    let order = wish(&goods, 1, 20000, 0);

    let answers = join_all((0..10).map(|_| alice.post_once("/orders", order.clone(), "k"))).await;

    let made: Vec<String> =
        answers.iter().filter(|answer| answer.status == 201).map(|answer| text(&answer.body["id"])).collect();
    assert!(made.iter().all(|id| *id == made[0]), "{made:?}");
    for answer in answers.into_iter().filter(|answer| answer.status != 201) {
        answer.refused(409, "idempotency_in_progress");
    }
    let again = alice.post_once("/orders", order, "k").await;
    assert!(again.is_replayed());
    assert_eq!(text(&again.is(201)["id"]), made[0]);
    alice.post_once("/orders", wish(&goods, 2, 20000, 0), "k").await.refused(422, "idempotency_key_reused");
    assert_eq!(shop.available(&goods).await, 9);

    // What came to nothing is judged anew.
    alice.post_once("/orders", wish(&goods, 10, 20000, 0), "l").await.refused(409, "stock_insufficient");
    let more = json!({"delta": 1, "reason": "found one"});
    shop.operator.post(&format!("/admin/goods/{goods}/stock-adjustments"), more).await.is(201);
    alice.post_once("/orders", wish(&goods, 10, 20000, 0), "l").await.is(201);
}

async fn a_refund_before_shipping_gives_everything_back(app: &TestApp) {
    let shop = Shop::open(app).await;
    let alice = app.customer("alice").await;
    let goods = shop.goods(6000, 1).await;
    shop.credit(&alice, 500).await;
    let coupon = shop.coupon(&alice, 1000, 0).await;
    let order = with(with(wish(&goods, 1, 6000, 1000), "coupon_id", coupon), "balance_minor", 500);
    let id = text(&alice.post("/orders", order).await.is(201)["id"]);
    pay(app, &alice, &id, "t-1").await;
    order_of(&alice, &id).becomes("paid").await;

    for _ in 0..3 {
        alice.post(&format!("/orders/{id}/refunds"), json!({"reason": "too late"})).await;
    }

    order_of(&alice, &id).becomes("refunded").await;
    app.is_quiet().await;
    assert_eq!((shop.available(&goods).await, balance(&alice).await), (1, 500));
    assert_eq!(coupon_state(&alice).await, "unused");
    let refunds = alice.get(&format!("/orders/{id}/refunds")).await.is(200);
    let refunds = refunds["items"].as_array().unwrap();
    assert_eq!(refunds.len(), 1);
    assert_eq!((&refunds[0]["amount_minor"], &refunds[0]["balance_minor"]), (&json!(5500), &json!(500)));
}
