//! Orders of flash sales: bought, paid, not paid, cancelled, refunded.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::payments::{SECRET, buy, notice, order_of, pay, raw_notice, signature, signed_notice};
use crate::support::{Answer, Offer, TestApp, eventually, stories};

stories!(
    a_flash_sale_is_bought_and_paid,
    a_flash_sale_is_sent_where_its_customer_says,
    the_largest_address_is_taken_however_it_is_spelt,
    an_unpaid_order_gives_its_token_back,
    a_cancelled_order_gives_its_token_back,
    money_that_comes_too_late_goes_back,
    a_notice_is_obeyed_once,
    a_notice_that_contradicts_us_is_refused,
    a_paid_order_is_refunded_before_it_is_shipped,
    a_shipped_order_keeps_its_token_when_it_is_refunded,
    an_operator_has_to_agree_where_that_is_configured,
    an_order_is_its_customers_alone,
    requests_with_a_key_are_answered_again,
);

async fn a_flash_sale_is_bought_and_paid(app: &TestApp) {
    let activity = app.running(Offer::of(3).at_price(9900)).await;
    let alice = app.customer("alice").await;

    let bought = alice.take(&activity).await.is(201);

    let order = &bought["order"];
    assert_eq!(order["state"], "awaiting_payment");
    assert_eq!(order["id"], bought["take"]["id"]);
    assert_eq!(order["payable_minor"], 9900);
    assert_eq!(order["currency"], "CNY");
    assert_eq!(order["items"][0]["unit_price_minor"], 9900);
    let id = order["id"].as_str().unwrap();
    assert_eq!(alice.get(&format!("/orders/{id}")).await.is(200), *order);

    pay(app, &alice, id, "t-1").await;
    order_of(&alice, id).becomes("paid").await;
    let timeline = alice.get(&format!("/orders/{id}/timeline")).await.is(200);
    let types: Vec<&str> =
        timeline["items"].as_array().unwrap().iter().map(|entry| entry["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["created", "paid"]);

    let operator = app.operator().await;
    assert_eq!(
        operator.post(&format!("/admin/orders/{id}/ship"), json!({})).await.is(200)["state"],
        "shipped"
    );
    let finished = operator.post(&format!("/admin/orders/{id}/finish"), json!({})).await.is(200);
    assert_eq!((&finished["state"], &finished["version"]), (&json!("finished"), &json!(4)));
    alice.post(&format!("/orders/{id}/cancel"), json!({})).await.refused(409, "order_not_cancellable");
    operator.release(bought["take"]["id"].as_str().unwrap()).await.refused(409, "transition_not_allowed");
}

async fn a_flash_sale_is_sent_where_its_customer_says(app: &TestApp) {
    let activity = app.running(Offer::of(2).at_price(100)).await;
    let (alice, bob, operator) =
        (app.customer("alice").await, app.customer("bob").await, app.operator().await);
    let order = alice.take(&activity).await.is(201)["order"].clone();
    assert_eq!(order["address"], Value::Null);
    let id = order["id"].as_str().unwrap();
    let address = format!("/orders/{id}/address");
    let home = json!({"consignee": "Alice", "phone": "555-0100", "line": "1 Moon Street"});
    alice.put(&address, json!({"consignee": " ", "phone": "1"})).await.refused(422, "validation_failed");
    bob.put(&address, home.clone()).await.refused(404, "not_found");
    for _ in 0..2 {
        let sent = alice.put(&address, home.clone()).await.is(200);
        assert_eq!((&sent["address"], &sent["version"]), (&home, &json!(2)));
    }
    pay(app, &alice, id, "t-1").await;
    order_of(&alice, id).becomes("paid").await;
    let work = json!({"consignee": "Alice", "phone": "555-0101", "line": "2 Sun Street"});
    let moved = operator.put(&format!("/admin{address}"), work.clone()).await.is(200);
    assert_eq!((&moved["address"], &moved["state"], &moved["version"]), (&work, &json!("paid"), &json!(4)));
    let shipped = operator.post(&format!("/admin/orders/{id}/ship"), json!({})).await.is(200);
    assert_eq!(shipped["address"], work);
    alice.put(&address, home).await.refused(409, "transition_not_allowed");

    let timeline = alice.get(&format!("/orders/{id}/timeline")).await.is(200);
    let types: Vec<&str> =
        timeline["items"].as_array().unwrap().iter().map(|entry| entry["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["created", "address_set", "paid", "address_set", "shipped"]);
}

async fn the_largest_address_is_taken_however_it_is_spelt(app: &TestApp) {
    let alice = app.customer("alice").await;
    let path = format!("/orders/{}/address", buy(app, &alice).await);
    let faces = |count: usize| r"\ud83d\ude00".repeat(count);
    let address = |line: usize| {
        let body =
            format!(r#"{{"consignee":"{}","phone":"{}","line":"{}"}}"#, faces(64), faces(32), faces(line));
        let request = alice.request(reqwest::Method::PUT, &path).header("content-type", "application/json");
        Answer::to(request.body(body))
    };
    let sent = address(256).await.is(200);
    assert_eq!(sent["address"]["line"], "😀".repeat(256));
    let problem = address(257).await.refused(422, "validation_failed");
    assert_eq!(problem["errors"][0]["pointer"], "/line");
    address(600).await.refused(413, "body_too_large");
}

async fn an_unpaid_order_gives_its_token_back(app: &TestApp) {
    let activity = app.running(Offer::of(1).limit(1).at_price(100)).await;
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let first = alice.take(&activity).await.is(201);
    let id = first["order"]["id"].as_str().unwrap();
    bob.take(&activity).await.refused(409, "sold_out");

    app.pass(TimeDelta::minutes(29));
    assert_eq!(alice.get(&format!("/orders/{id}")).await.is(200)["state"], "awaiting_payment");
    app.pass(TimeDelta::minutes(1));
    let cancelled = order_of(&alice, id).becomes("cancelled").await;
    assert_eq!(cancelled["cancel_cause"], "timeout");
    alice
        .post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"}))
        .await
        .refused(409, "order_not_payable");

    eventually(async || bob.take(&activity).await.status == 201).await;
    // The limit counts what is held.
    alice.take(&activity).await.refused(409, "sold_out");
    assert_eq!(alice.my_takes().await[0].state, "released");
}

async fn a_cancelled_order_gives_its_token_back(app: &TestApp) {
    let activity = app.running(Offer::of(1).limit(1).at_price(100)).await;
    let alice = app.customer("alice").await;
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    // A payment that is open is closed first.
    alice.post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"})).await.is(201);

    let cancelled =
        alice.post(&format!("/orders/{id}/cancel"), json!({"reason": "changed my mind"})).await.is(200);
    assert_eq!((&cancelled["state"], &cancelled["cancel_cause"]), (&json!("cancelled"), &json!("customer")));
    // Again: the same answer, no second effect.
    assert_eq!(alice.post(&format!("/orders/{id}/cancel"), json!({})).await.is(200), cancelled);
    let payments = alice.get(&format!("/orders/{id}/payments")).await.is(200);
    assert_eq!(payments["items"][0]["state"], "closed");

    eventually(async || alice.take(&activity).await.status == 201).await;
    assert_eq!(app.remaining(&activity).await, 0);
}

async fn money_that_comes_too_late_goes_back(app: &TestApp) {
    let activity = app.running(Offer::of(1).at_price(100)).await;
    let alice = app.customer("alice").await;
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    let opened = alice.post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"})).await.is(201);
    let payment = opened["payment"]["id"].as_str().unwrap();
    alice.post(&format!("/orders/{id}/cancel"), json!({})).await.is(200);

    let body = notice(payment, "t-late", 100);
    for _ in 0..2 {
        signed_notice(app, &body).await.is(200);
    }

    let refunds = async || alice.get(&format!("/orders/{id}/refunds")).await.is(200)["items"].clone();
    eventually(async || refunds().await[0]["state"] == "succeeded").await;
    let refunds = refunds().await;
    assert_eq!(refunds.as_array().unwrap().len(), 1);
    assert_eq!((&refunds[0]["cause"], &refunds[0]["amount_minor"]), (&json!("late_payment"), &json!(100)));
    let order = alice.get(&format!("/orders/{id}")).await.is(200);
    assert_eq!(order["state"], "cancelled");
}

async fn a_notice_is_obeyed_once(app: &TestApp) {
    let activity = app.running(Offer::of(1).at_price(100)).await;
    let alice = app.customer("alice").await;
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    let opened = alice.post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"})).await.is(201);
    let body = notice(opened["payment"]["id"].as_str().unwrap(), "t-1", 100);

    let answers = futures_util::future::join_all((0..50).map(|_| signed_notice(app, &body))).await;

    assert!(answers.iter().all(|answer| answer.status == 200));
    let paid = order_of(&alice, &id).becomes("paid").await;
    assert_eq!(paid["version"], 2);
    alice
        .post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"}))
        .await
        .refused(409, "order_already_paid");
    let refunds = alice.get(&format!("/orders/{id}/refunds")).await.is(200);
    assert_eq!(refunds["items"], json!([]));
}

async fn a_notice_that_contradicts_us_is_refused(app: &TestApp) {
    let activity = app.running(Offer::of(2).at_price(100)).await;
    let alice = app.customer("alice").await;
    let buy = async || {
        let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
        let opened =
            alice.post(&format!("/orders/{id}/payments"), json!({"channel": "sandbox"})).await.is(201);
        (id, opened["payment"]["id"].as_str().unwrap().to_owned())
    };
    let ((first, payment), (second, other)) = (buy().await, buy().await);

    let refused = async |body: &Value, status, code| signed_notice(app, body).await.refused(status, code);
    refused(&notice(&payment, "t-1", 99), 422, "payment_mismatch").await;
    refused(&notice("1", "t-1", 100), 422, "payment_mismatch").await;
    signed_notice(app, &notice(&payment, "t-1", 100)).await.is(200);
    // Another capture of the same payment, and the same capture for another payment.
    refused(&notice(&payment, "t-2", 100), 422, "payment_mismatch").await;
    refused(&notice(&other, "t-1", 100), 422, "payment_mismatch").await;
    // Nobody signed these.
    let body = notice(&other, "t-3", 100).to_string();
    let stale = app.clock_seconds() - 301;
    for signature in [
        "",
        "t=1,v1=00",
        &signature("another secret", app.clock_seconds(), &body),
        &signature(SECRET, stale, &body),
    ] {
        raw_notice(app, &body, signature).await.refused(401, "unauthenticated");
    }
    raw_notice(app, "{}", &signature(SECRET, app.clock_seconds(), "{}"))
        .await
        .refused(400, "malformed_request");

    order_of(&alice, &first).becomes("paid").await;
    assert_eq!(alice.get(&format!("/orders/{second}")).await.is(200)["state"], "awaiting_payment");
    // To the sandbox that other payment is captured all the same. It pays for nothing, and holds nothing up.
    alice.post(&format!("/orders/{second}/cancel"), json!({})).await.is(200);
    let payments = alice.get(&format!("/orders/{second}/payments")).await.is(200);
    let why = "the transaction belongs to another payment";
    assert_eq!(
        (&payments["items"][0]["state"], &payments["items"][0]["failure"]),
        (&json!("failed"), &json!(why))
    );
}

async fn a_paid_order_is_refunded_before_it_is_shipped(app: &TestApp) {
    let activity = app.running(Offer::of(1).limit(1).at_price(100)).await;
    let alice = app.customer("alice").await;
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    alice
        .post(&format!("/orders/{id}/refunds"), json!({"reason": "early"}))
        .await
        .refused(409, "order_not_refundable");
    pay(app, &alice, &id, "t-1").await;
    order_of(&alice, &id).becomes("paid").await;

    let refunding =
        alice.post(&format!("/orders/{id}/refunds"), json!({"reason": "It does not fit"})).await.is(202);
    assert_eq!(refunding["state"], "refunding");
    order_of(&alice, &id).becomes("refunded").await;
    alice
        .post(&format!("/orders/{id}/refunds"), json!({"reason": "again"}))
        .await
        .refused(409, "already_refunded");
    eventually(async || alice.take(&activity).await.status == 201).await;
}

async fn a_shipped_order_keeps_its_token_when_it_is_refunded(app: &TestApp) {
    let activity = app.running(Offer::of(1).at_price(100)).await;
    let alice = app.customer("alice").await;
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    pay(app, &alice, &id, "t-1").await;
    order_of(&alice, &id).becomes("paid").await;
    app.operator().await.post(&format!("/admin/orders/{id}/ship"), json!({})).await.is(200);

    alice.post(&format!("/orders/{id}/refunds"), json!({"reason": "broken"})).await.is(202);
    order_of(&alice, &id).becomes("refunded").await;
    app.is_quiet().await;
    assert_eq!(alice.my_takes().await[0].state, "unused");
    assert_eq!(app.remaining(&activity).await, 0);
}

async fn an_operator_has_to_agree_where_that_is_configured(app: &TestApp) {
    app.restart_with(|config| config.order.refund_approval = true).await;
    let activity = app.running(Offer::of(2).at_price(100)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let bought = async |transaction: &str| {
        let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
        pay(app, &alice, &id, transaction).await;
        order_of(&alice, &id).becomes("paid").await;
        alice.post(&format!("/orders/{id}/refunds"), json!({"reason": "too big"})).await.is(202);
        let refund = alice.get(&format!("/orders/{id}/refunds")).await.is(200)["items"][0].clone();
        assert_eq!(refund["state"], "requested");
        (id, refund["id"].as_str().unwrap().to_owned())
    };
    let ((refused, first), (agreed, second)) = (bought("t-1").await, bought("t-2").await);

    let path = format!("/admin/refunds/{first}/refuse");
    assert_eq!(operator.post(&path, json!({"reason": "worn"})).await.is(200)["state"], "rejected");
    assert_eq!(alice.get(&format!("/orders/{refused}")).await.is(200)["state"], "paid");
    operator
        .post(&format!("/admin/refunds/{first}/approve"), json!({}))
        .await
        .refused(409, "transition_not_allowed");
    app.is_quiet().await;
    let told = alice.get("/me/notifications").await.is(200)["items"].clone();
    assert_eq!((&told[0]["kind"], &told[0]["order_id"]), (&json!("refund_refused"), &json!(refused)));
    assert_eq!(told[0]["body"], format!("The refund of your order {refused} was refused: worn."));
    // Asked again, the operator may think better of it.
    alice.post(&format!("/orders/{refused}/refunds"), json!({"reason": "still"})).await.is(202);
    let refunds = alice.get(&format!("/orders/{refused}/refunds")).await.is(200)["items"].clone();
    assert_eq!((&refunds[0]["state"], &refunds[1]["state"]), (&json!("rejected"), &json!("requested")));
    assert_eq!((&refunds[0]["failure"], &refunds[1]["failure"]), (&json!("worn"), &Value::Null));
    let third = refunds[1]["id"].as_str().unwrap();
    operator.post(&format!("/admin/refunds/{third}/approve"), json!({})).await.is(200);
    order_of(&alice, &refused).becomes("refunded").await;

    assert_eq!(
        operator.post(&format!("/admin/refunds/{second}/approve"), json!({})).await.is(200)["state"],
        "approved"
    );
    order_of(&alice, &agreed).becomes("refunded").await;
}

async fn an_order_is_its_customers_alone(app: &TestApp) {
    let activity = app.running(Offer::of(1).at_price(100)).await;
    let (alice, mallory) = (app.customer("alice").await, app.customer("mallory").await);
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();

    for path in ["", "/timeline", "/payments", "/refunds"] {
        mallory.get(&format!("/orders/{id}{path}")).await.refused(404, "not_found");
    }
    mallory.post(&format!("/orders/{id}/cancel"), json!({})).await.refused(404, "not_found");
    mallory.post(&format!("/orders/{id}/refunds"), json!({"reason": "mine"})).await.refused(404, "not_found");
    let channel = json!({"channel": "sandbox"});
    mallory.post(&format!("/orders/{id}/payments"), channel).await.refused(404, "not_found");
    mallory.post(&format!("/admin/orders/{id}/ship"), json!({})).await.refused(403, "forbidden");
    assert_eq!(mallory.get("/me/orders").await.is(200)["items"], json!([]));
    assert_eq!(alice.get("/me/orders").await.is(200)["items"][0]["id"], json!(id));
    assert_eq!(
        app.viewer().await.get(&format!("/admin/orders/{id}")).await.is(200)["state"],
        "awaiting_payment"
    );
}

async fn requests_with_a_key_are_answered_again(app: &TestApp) {
    let activity = app.running(Offer::of(1).at_price(100)).await;
    let alice = app.customer("alice").await;
    let id = alice.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();

    let payments = format!("/orders/{id}/payments");
    let opened = alice.post_once(&payments, json!({"channel": "sandbox"}), "p").await;
    let again = alice.post_once(&payments, json!({"channel": "sandbox"}), "p").await;
    assert_eq!((again.status, again.is_replayed()), (201, true));
    assert_eq!(opened.body["payment"]["id"], again.body["payment"]["id"]);
    alice.post_once(&payments, json!({"channel": "wechat"}), "p").await.refused(422, "validation_failed");
    // Also when the payment has gone on since.
    let mut failed = notice(opened.body["payment"]["id"].as_str().unwrap(), "t-1", 100);
    failed["result"] = json!("failure");
    signed_notice(app, &failed).await.is(200);
    let again = alice.post_once(&payments, json!({"channel": "sandbox"}), "p").await;
    assert_eq!((again.status, &again.body), (201, &opened.body));

    let cancel = format!("/orders/{id}/cancel");
    let first = alice.post_once(&cancel, json!({"reason": "no"}), "c").await;
    let again = alice.post_once(&cancel, json!({"reason": "no"}), "c").await;
    assert_eq!((again.status, &again.body), (200, &first.is(200)));
    assert!(again.is_replayed());
    alice.post_once(&cancel, json!({"reason": "other"}), "c").await.refused(422, "idempotency_key_reused");
}
