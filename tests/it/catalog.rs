//! Goods of the shop and carts: what operators change, what customers see.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::bad_input::{MALFORMED, all_are_refused, invalid, never_acceptable, with, without};
use crate::lists::pages;
use crate::support::{Answer, Client, START, TestApp, stories};

stories!(
    goods_are_created_and_shown,
    goods_are_edited,
    goods_may_belong_to_a_store,
    goods_off_sale_are_not_shown,
    goods_come_in_pages,
    goods_are_created_and_adjusted_once_per_key,
    stock_is_adjusted_but_never_below_what_is_free,
    adjustments_add_up_in_a_crowd,
    only_operators_change_goods,
    bad_goods_are_refused,
    a_cart_shows_the_prices_of_now,
    carts_are_their_users_own,
    a_cart_holds_a_hundred_goods,
    a_bad_cart_item_is_refused,
);

fn tea() -> Value {
    json!({"name": "Tea", "price_minor": 1999, "stock_total": 10})
}

/// The id of new goods.
async fn create(operator: &Client, goods: Value) -> String {
    operator.post("/admin/goods", goods).await.is(201)["id"].as_str().unwrap().to_owned()
}

async fn adjust(operator: &Client, goods: &str, delta: i64) -> Answer {
    let body = json!({"delta": delta, "reason": "a story"});
    operator.post(&format!("/admin/goods/{goods}/stock-adjustments"), body).await
}

async fn put(customer: &Client, goods: &str, quantity: i64) -> Answer {
    customer.put(&format!("/cart/items/{goods}"), json!({"quantity": quantity})).await
}

async fn goods_are_created_and_shown(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let mut body = tea();
    body["description"] = json!("Green.\nFrom the hills \u{1f343}");
    let created = operator.post("/admin/goods", body).await.is(201);
    let at = START.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    assert_eq!(
        created,
        json!({
            "id": created["id"], "name": "Tea", "description": "Green.\nFrom the hills \u{1f343}",
            "store_id": null, "price_minor": 1999, "currency": "CNY", "on_sale": true, "version": 1,
            "stock": {"total": 10, "available": 10}, "created_at": at, "updated_at": at,
        })
    );
    let id = created["id"].as_str().unwrap();
    assert_eq!(alice.get(&format!("/goods/{id}")).await.is(200), created);
    assert_eq!(alice.get("/goods").await.is(200), json!({"items": [created], "next_cursor": null}));
    assert_eq!(operator.get(&format!("/admin/goods/{id}")).await.is(200), created);
    assert_eq!(operator.get("/admin/goods").await.is(200)["items"], json!([created]));
    let empty = operator.post("/admin/goods", json!({"name": "Soon", "price_minor": 0, "stock_total": 0}));
    assert_eq!(empty.await.is(201)["stock"], json!({"total": 0, "available": 0}));
    for id in ["1", "0", "x", "-1"] {
        alice.get(&format!("/goods/{id}")).await.refused(404, "not_found");
    }
    app.nobody().get("/goods").await.refused(401, "unauthenticated");
}

async fn goods_are_edited(app: &TestApp) {
    let operator = app.operator().await;
    let goods = create(&operator, tea()).await;
    let path = format!("/admin/goods/{goods}");
    app.pass(chrono::TimeDelta::seconds(1));
    let edited = operator.patch(&path, json!({"price_minor": 2099})).await.is(200);
    assert_eq!((&edited["price_minor"], &edited["version"]), (&json!(2099), &json!(2)));
    assert_eq!((&edited["name"], &edited["stock"]["total"]), (&json!("Tea"), &json!(10)));
    assert!(edited["updated_at"].as_str() > edited["created_at"].as_str());

    let edit = json!({"name": "Green tea", "description": "Loose."});
    let edited = operator.patch(&path, edit.clone()).await.is(200);
    assert_eq!((&edited["name"], &edited["description"]), (&edit["name"], &edit["description"]));
    // What is so already stays so.
    assert_eq!(operator.patch(&path, edit).await.is(200), edited);
    assert_eq!(operator.patch(&path, json!({})).await.is(200), edited);
    operator.patch("/admin/goods/1", json!({})).await.refused(404, "not_found");
}

async fn goods_may_belong_to_a_store(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let store = |id: &str| json!({"store_id": id});
    let mut body = tea();
    body["store_id"] = json!("9223372036854775807");
    let created = operator.post("/admin/goods", body).await.is(201);
    assert_eq!(created["store_id"], "9223372036854775807");
    let id = created["id"].as_str().unwrap();
    assert_eq!(alice.get(&format!("/goods/{id}")).await.is(200), created);
    assert_eq!(alice.get("/goods").await.is(200)["items"], json!([created]));

    let path = format!("/admin/goods/{id}");
    assert_eq!(
        operator.patch(&path, json!({"price_minor": 5})).await.is(200)["store_id"],
        created["store_id"]
    );
    let moved = operator.patch(&path, store("17")).await.is(200);
    assert_eq!((&moved["store_id"], &moved["version"]), (&json!("17"), &json!(3)));
    assert_eq!(operator.patch(&path, store("17")).await.is(200), moved);
    let adjusted = adjust(&operator, id, 1).await.is(201);
    assert_eq!(adjusted["stock"]["total"], 11);
    let left = operator.patch(&path, json!({"store_id": null})).await.is(200);
    assert_eq!((&left["store_id"], &left["version"]), (&Value::Null, &json!(5)));
    assert_eq!(operator.get(&path).await.is(200), left);
}

async fn goods_off_sale_are_not_shown(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let (tea, cup) = (
        create(&operator, tea()).await,
        create(&operator, json!({"name": "Cup", "price_minor": 5, "stock_total": 1})).await,
    );
    put(&alice, &tea, 1).await.is(200);
    let hidden = operator.patch(&format!("/admin/goods/{tea}"), json!({"on_sale": false})).await.is(200);
    assert_eq!((&hidden["on_sale"], &hidden["version"]), (&json!(false), &json!(2)));

    alice.get(&format!("/goods/{tea}")).await.refused(404, "not_found");
    let shown = alice.get("/goods").await.is(200);
    assert_eq!((shown["items"].as_array().unwrap().len(), &shown["items"][0]["id"]), (1, &json!(cup)));
    assert_eq!(operator.get("/admin/goods").await.is(200)["items"].as_array().unwrap().len(), 2);
    // What lies in a cart stays there, and is not counted.
    let cart = alice.get("/cart").await.is(200);
    assert_eq!((&cart["items"][0]["on_sale"], &cart["goods_amount_minor"]), (&json!(false), &json!(0)));
    put(&alice, &tea, 2).await.refused(404, "not_found");

    operator.patch(&format!("/admin/goods/{tea}"), json!({"on_sale": true})).await.is(200);
    alice.get(&format!("/goods/{tea}")).await.is(200);
}

async fn goods_come_in_pages(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(create(&operator, tea()).await);
    }
    created.reverse();
    let (mut found, mut path) = (Vec::new(), "/goods?limit=2".to_owned());
    loop {
        let page = alice.get(&path).await.is(200);
        found.extend(
            page["items"].as_array().unwrap().iter().map(|goods| goods["id"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/goods?limit=2&cursor={cursor}");
    }
    assert_eq!(found, created);
    alice.get("/goods?colour=green").await.refused(422, "validation_failed");
}

async fn goods_are_created_and_adjusted_once_per_key(app: &TestApp) {
    let operator = app.operator().await;
    let once = async |path: &str, body: Value| {
        let request = operator.request(Method::POST, path).header("idempotency-key", "k");
        Answer::to(request.json(&body)).await
    };
    let (first, again) = (once("/admin/goods", tea()).await, once("/admin/goods", tea()).await);
    assert!(again.is_replayed() && !first.is_replayed());
    let goods = first.is(201);
    assert_eq!(again.is(201), goods);
    let path = format!("/admin/goods/{}/stock-adjustments", goods["id"].as_str().unwrap());
    let change = json!({"delta": 5, "reason": "found a box"});
    let (first, again) = (once(&path, change.clone()).await, once(&path, change).await);
    assert!(again.is_replayed() && !first.is_replayed());
    assert_eq!(again.is(201), first.is(201));
    once(&path, json!({"delta": 6, "reason": "found a box"})).await.refused(422, "idempotency_key_reused");
    let all = operator.get("/admin/goods").await.is(200);
    assert_eq!((all["items"].as_array().unwrap().len(), &all["items"][0]["stock"]["total"]), (1, &json!(15)));
}

async fn stock_is_adjusted_but_never_below_what_is_free(app: &TestApp) {
    let operator = app.operator().await;
    let goods = create(&operator, tea()).await;
    let adjusted = adjust(&operator, &goods, 5).await.is(201);
    let members = ["id", "goods_id", "delta", "reason", "stock", "created_at"];
    assert!(members.iter().all(|member| !adjusted[member].is_null()), "{adjusted}");
    assert_eq!(adjusted["stock"], json!({"total": 15, "available": 15}));
    adjust(&operator, &goods, -16).await.refused(409, "stock_insufficient");
    let problem = adjust(&operator, &goods, i64::from(i32::MAX)).await.refused(422, "validation_failed");
    assert_eq!(problem["errors"][0]["pointer"], "/delta");
    assert_eq!(adjust(&operator, &goods, -15).await.is(201)["stock"], json!({"total": 0, "available": 0}));
    adjust(&operator, &goods, -1).await.refused(409, "stock_insufficient");
    adjust(&operator, "1", 1).await.refused(404, "not_found");

    let moved = app.viewer().await.get(&format!("/admin/goods/{goods}/stock-entries")).await.is(200);
    assert_eq!(moved["items"][1]["id"], adjusted["id"]);
    let moved: Vec<Value> = moved["items"]
        .as_array()
        .unwrap()
        .iter()
        .cloned()
        .map(|mut entry| {
            let members = entry.as_object_mut().unwrap();
            assert!(members.remove("id").is_some() && members.remove("created_at").is_some());
            entry
        })
        .collect();
    let by = &operator.user_id;
    assert_eq!(
        moved,
        [
            json!({"kind": "adjustment", "quantity": -15, "order_id": null, "reason": "a story", "made_by": by}),
            json!({"kind": "adjustment", "quantity": 5, "order_id": null, "reason": "a story", "made_by": by}),
            json!({"kind": "opening", "quantity": 10, "order_id": null, "reason": null, "made_by": by}),
        ]
    );
    let by_two = pages(&operator, &format!("/admin/goods/{goods}/stock-entries"), 2).await;
    assert_eq!(by_two.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    operator.get("/admin/goods/1/stock-entries").await.refused(404, "not_found");
}

async fn adjustments_add_up_in_a_crowd(app: &TestApp) {
    let operator = app.operator().await;
    let goods = create(&operator, tea()).await;
    let deltas = [4, -3, 8, -30, -2, 5, -7, 6, -1, -9];
    let answers = join_all(deltas.map(|delta| adjust(&operator, &goods, delta))).await;
    let done = answers.into_iter().zip(deltas).filter_map(|(answer, delta)| match answer.status {
        201 => Some(delta),
        _ => {
            answer.refused(409, "stock_insufficient");
            None
        }
    });
    let total = 10 + done.sum::<i64>();
    let stock = operator.get(&format!("/admin/goods/{goods}")).await.is(200)["stock"].clone();
    assert_eq!(stock, json!({"total": total, "available": total}));
}

async fn only_operators_change_goods(app: &TestApp) {
    let (operator, viewer, alice) = (app.operator().await, app.viewer().await, app.customer("alice").await);
    let goods = create(&operator, tea()).await;
    viewer.get("/admin/goods").await.is(200);
    viewer.get(&format!("/admin/goods/{goods}")).await.is(200);
    alice.get("/admin/goods").await.refused(403, "forbidden");
    alice.get(&format!("/admin/goods/{goods}")).await.refused(403, "forbidden");
    for client in [&viewer, &alice] {
        client.post("/admin/goods", tea()).await.refused(403, "forbidden");
        client.patch(&format!("/admin/goods/{goods}"), json!({})).await.refused(403, "forbidden");
        adjust(client, &goods, 1).await.refused(403, "forbidden");
    }
    app.nobody().post("/admin/goods", tea()).await.refused(401, "unauthenticated");
}

async fn bad_goods_are_refused(app: &TestApp) {
    let operator = app.operator().await;
    let goods = create(&operator, tea()).await;
    let (long_name, long_text) = (format!("\"{}\"", "界".repeat(129)), format!("\"{}\"", "界".repeat(2001)));
    let values = || {
        [
            ("name", "\"\"", "/name"),
            ("name", "\" \"", "/name"),
            ("name", "\"a\\u0000b\"", "/name"),
            ("name", "null", "/name"),
            ("name", long_name.as_str(), "/name"),
            ("description", "7", "/description"),
            ("description", "null", "/description"),
            ("description", "\"a\\u0000b\"", "/description"),
            ("description", long_text.as_str(), "/description"),
            ("price_minor", "-1", "/price_minor"),
            ("price_minor", "1.5", "/price_minor"),
            ("price_minor", "\"5\"", "/price_minor"),
            ("price_minor", "null", "/price_minor"),
            ("price_minor", "1000000000001", "/price_minor"),
            ("price_minor", "9223372036854775808", "/price_minor"),
            ("store_id", "7", "/store_id"),
            ("store_id", "\"\"", "/store_id"),
            ("store_id", "\"-7\"", "/store_id"),
            ("store_id", "\"9223372036854775808\"", "/store_id"),
            ("currency", "\"EUR\"", "/currency"),
            ("version", "7", "/version"),
            ("available", "7", "/available"),
        ]
    };
    let rows = values().into_iter().chain([
        ("stock_total", "-1", "/stock_total"),
        ("stock_total", "2147483648", "/stock_total"),
        ("stock_total", "null", "/stock_total"),
        ("on_sale", "true", "/on_sale"),
    ]);
    let rows = rows.map(|(member, text, pointer)| (with(&tea(), member, text), invalid(pointer)));
    let missing = ["name", "price_minor", "stock_total"].map(|member| (without(&tea(), member), member));
    let missing: Vec<_> = missing.iter().map(|(body, member)| (body.clone(), format!("/{member}"))).collect();
    let missing = missing.iter().map(|(body, pointer)| (body.clone(), invalid(pointer)));
    // Its bodies may be longer than most.
    let never = || never_acceptable().into_iter().filter(|(body, _)| body.len() != 5 * 1024);
    all_are_refused(app, &operator, Method::POST, "/admin/goods", rows.chain(missing).chain(never())).await;

    let rows =
        values().into_iter().chain([("stock_total", "7", "/stock_total"), ("on_sale", "1", "/on_sale")]);
    let rows = rows.map(|(member, text, pointer)| (with(&json!({}), member, text), invalid(pointer)));
    let path = format!("/admin/goods/{goods}");
    all_are_refused(app, &operator, Method::PATCH, &path, rows.chain(never())).await;

    let good = json!({"delta": 1, "reason": "x"});
    let rows = ["0", "null", "1.5", "\"1\"", "2147483648"]
        .map(|delta| (with(&good, "delta", delta), invalid("/delta")));
    let rows = rows.into_iter().chain([
        (with(&good, "reason", "\" \""), invalid("/reason")),
        (without(&good, "reason"), invalid("/reason")),
        (with(&good, "price_minor", "1"), invalid("/price_minor")),
    ]);
    let path = format!("/admin/goods/{goods}/stock-adjustments");
    all_are_refused(app, &operator, Method::POST, &path, rows.chain(never_acceptable())).await;
}

async fn a_cart_shows_the_prices_of_now(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let empty = json!({"items": [], "next_cursor": null, "goods_amount_minor": 0, "currency": "CNY"});
    assert_eq!(alice.get("/cart").await.is(200), empty);

    let tea = create(&operator, tea()).await;
    let cup = create(&operator, json!({"name": "Cup", "price_minor": 500, "stock_total": 1})).await;
    let item = put(&alice, &tea, 2).await.is(200);
    assert_eq!(
        item,
        json!({
            "goods_id": tea, "name": "Tea", "quantity": 2, "unit_price_minor": 1999, "amount_minor": 3998,
            "currency": "CNY", "on_sale": true, "available": 10, "added_at": item["added_at"],
        })
    );
    app.pass(chrono::TimeDelta::seconds(1));
    // More than there is may be wished for.
    put(&alice, &cup, 999).await.is(200);
    assert_eq!(put(&alice, &tea, 3).await.is(200)["added_at"], item["added_at"]);
    operator.patch(&format!("/admin/goods/{tea}"), json!({"price_minor": 1000})).await.is(200);
    adjust(&operator, &tea, -4).await.is(201);

    let cart = alice.get("/cart").await.is(200);
    let shown: Vec<Value> = ["goods_id", "quantity", "unit_price_minor", "amount_minor", "available"]
        .map(|member| cart["items"][0][member].clone())
        .to_vec();
    assert_eq!(shown, [json!(tea), json!(3), json!(1000), json!(3000), json!(6)]);
    assert_eq!(cart["items"][1]["goods_id"], json!(cup));
    assert_eq!(cart["goods_amount_minor"], json!(3000 + 999 * 500));

    for _ in 0..2 {
        alice.delete(&format!("/cart/items/{cup}")).await.is(204);
    }
    assert_eq!(alice.get("/cart").await.is(200)["items"].as_array().unwrap().len(), 1);
    put(&alice, "1", 1).await.refused(404, "not_found");
    alice.delete("/cart/items/x").await.refused(404, "not_found");
}

async fn carts_are_their_users_own(app: &TestApp) {
    let (operator, alice, bob) =
        (app.operator().await, app.customer("alice").await, app.customer("bob").await);
    let goods = create(&operator, tea()).await;
    put(&alice, &goods, 2).await.is(200);
    assert_eq!(bob.get("/cart").await.is(200)["items"], json!([]));
    bob.delete(&format!("/cart/items/{goods}")).await.is(204);
    put(&bob, &goods, 7).await.is(200);
    assert_eq!(alice.get("/cart").await.is(200)["items"][0]["quantity"], json!(2));
    app.nobody().get("/cart").await.refused(401, "unauthenticated");
    put(&app.nobody(), &goods, 1).await.refused(401, "unauthenticated");
}

async fn a_cart_holds_a_hundred_goods(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let goods = join_all((0..104).map(|_| create(&operator, tea()))).await;
    for goods in &goods[..98] {
        put(&alice, goods, 1).await.is(200);
    }
    let answers = join_all(goods[98..].iter().map(|goods| put(&alice, goods, 1))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 2);
    for answer in answers.into_iter().filter(|answer| answer.status != 200) {
        answer.refused(409, "cart_full");
    }
    put(&alice, &goods[0], 2).await.is(200);
    assert_eq!(alice.get("/cart").await.is(200)["items"].as_array().unwrap().len(), 100);
    alice.delete(&format!("/cart/items/{}", goods[0])).await.is(204);
    put(&alice, &goods[0], 1).await.is(200);
}

async fn a_bad_cart_item_is_refused(app: &TestApp) {
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let goods = create(&operator, tea()).await;
    let quantities = ["0", "-1", "1000", "2147483648", "1.5", "\"1\"", "null"];
    let rows = quantities.map(|quantity| (with(&json!({}), "quantity", quantity), invalid("/quantity")));
    let rows = rows.into_iter().chain([
        (b"{}".to_vec(), invalid("/quantity")),
        (b"{\"quantity\":1,\"unit_price_minor\":1}".to_vec(), invalid("/unit_price_minor")),
        (b"{\"quantity\":01}".to_vec(), MALFORMED),
    ]);
    let path = format!("/cart/items/{goods}");
    all_are_refused(app, &alice, Method::PUT, &path, rows.chain(never_acceptable())).await;
}
