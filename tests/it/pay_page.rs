//! The sandbox's page: customers pay there well, badly, late or twice, and the shop hears of it as of any payment.

use chrono::TimeDelta;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::json;

use crate::support::payments::order_of;
use crate::support::{Answer, Client, Offer, TestApp, eventually, stories};

stories!(
    a_customer_pays_on_the_page,
    a_payment_that_failed_is_tried_again,
    a_shop_that_is_told_twice_is_paid_once,
    money_that_comes_late_goes_back,
    only_so_many_payments_are_late_at_a_time,
    nothing_is_paid_after_the_end,
    the_page_is_for_the_sandbox_alone,
);

/// A payment that is open, and the way to its page.
struct Opened {
    order: String,
    payment: String,
    path: String,
}

async fn open(app: &TestApp, customer: &Client) -> Opened {
    let activity = app.running(Offer::of(1).at_price(1234)).await;
    let order = customer.take(&activity).await.is(201)["order"]["id"].as_str().unwrap().to_owned();
    open_again(customer, order).await
}

async fn open_again(customer: &Client, order: String) -> Opened {
    let body = json!({"channel": "sandbox"});
    let payment = customer.post(&format!("/orders/{order}/payments"), body).await.is(201)["payment"].clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    Opened { order, payment: text(&payment["id"]), path: text(&payment["params"]["pay_url"]) }
}

/// Opens the page, without signing in.
async fn show(app: &TestApp, path: &str) -> (u16, HeaderMap, String) {
    let shown = app.nobody().at_root(Method::GET, path).send().await.unwrap();
    (shown.status().as_u16(), shown.headers().clone(), shown.text().await.unwrap())
}

fn form(app: &TestApp, path: &str, body: &str) -> reqwest::RequestBuilder {
    let request = app.nobody().at_root(Method::POST, path);
    request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned())
}

/// Chooses on the page; what it says then.
async fn choose(app: &TestApp, path: &str, choice: &str) -> String {
    let shown = form(app, path, &format!("choice={choice}")).send().await.unwrap();
    assert_eq!(shown.status(), 200);
    shown.text().await.unwrap()
}

async fn a_customer_pays_on_the_page(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Opened { order, path, .. } = open(app, &alice).await;

    let (status, headers, page) = show(app, &path).await;
    assert_eq!(status, 200);
    assert!(page.contains("CNY 12.34") && page.contains("Mooncakes at noon"), "{page}");
    assert!(page.contains("<form method=\"post\">") && !page.contains("<script"), "{page}");
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(header("content-type"), "text/html; charset=utf-8");
    assert!(header("content-security-policy").contains("default-src 'none'"));
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("cache-control"), "no-store");

    assert!(choose(app, &path, "succeed").await.contains("Paid. The shop has been told."));
    order_of(&alice, &order).becomes("paid").await;
    // Who comes back sees that, and pays nothing again.
    assert!(show(app, &path).await.2.contains("It is paid."));
    for choice in ["succeed", "fail", "late", "twice"] {
        assert!(choose(app, &path, choice).await.contains("It is paid."), "{choice}");
    }
    app.is_quiet().await;
    assert_eq!(alice.get(&format!("/orders/{order}")).await.is(200)["version"], 2);
}

async fn a_payment_that_failed_is_tried_again(app: &TestApp) {
    let alice = app.customer("alice").await;
    let failed = open(app, &alice).await;
    assert!(choose(app, &failed.path, "fail").await.contains("Not paid."));
    let payments = format!("/orders/{}/payments", failed.order);
    let first = alice.get(&payments).await.is(200)["items"][0].clone();
    assert_eq!((&first["state"], first["failure"].is_string()), (&json!("failed"), true), "{first}");

    let again = open_again(&alice, failed.order.clone()).await;
    assert_ne!(again.payment, failed.payment);
    choose(app, &again.path, "succeed").await;
    order_of(&alice, &failed.order).becomes("paid").await;
}

async fn a_shop_that_is_told_twice_is_paid_once(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Opened { order, path, .. } = open(app, &alice).await;
    assert!(choose(app, &path, "twice").await.contains("told twice"));
    order_of(&alice, &order).becomes("paid").await;
    app.is_quiet().await;
    assert_eq!(alice.get(&format!("/orders/{order}")).await.is(200)["version"], 2);
    assert_eq!(alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"], json!([]));
}

async fn money_that_comes_late_goes_back(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Opened { order, path, .. } = open(app, &alice).await;
    app.pass(TimeDelta::minutes(30));
    order_of(&alice, &order).becomes("cancelled").await;

    assert!(choose(app, &path, "late").await.contains("after the payment was due"));
    let refund = async || alice.get(&format!("/orders/{order}/refunds")).await.is(200)["items"][0].clone();
    eventually(async || refund().await["state"] == "succeeded").await;
    assert_eq!(refund().await["cause"], "late_payment");
}

async fn only_so_many_payments_are_late_at_a_time(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Opened { order, path, .. } = open(app, &alice).await;
    for _ in 0..100 {
        choose(app, &path, "late").await;
    }
    let refused = Answer::to(form(app, &path, "choice=late")).await;
    let problem = refused.refused(503, "overloaded");
    assert!(problem["detail"].as_str().unwrap().contains("late payments"), "{problem}");
    // At once is still possible.
    choose(app, &path, "succeed").await;
    order_of(&alice, &order).becomes("paid").await;
}

async fn nothing_is_paid_after_the_end(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Opened { order, path, payment } = open(app, &alice).await;
    alice.post(&format!("/orders/{order}/cancel"), json!({})).await.is(200);
    for choice in ["succeed", "fail", "twice"] {
        assert!(choose(app, &path, choice).await.contains("Not paid. It is too late."), "{choice}");
    }
    let payments = alice.get(&format!("/orders/{order}/payments")).await.is(200);
    assert_eq!(
        (&payments["items"][0]["id"], &payments["items"][0]["state"]),
        (&json!(payment), &json!("closed"))
    );

    for (body, status, code) in [
        ("choice=maybe", 422, "validation_failed"),
        ("", 422, "validation_failed"),
        ("choice=succeed&amount_minor=1", 422, "validation_failed"),
        ("choice=succeed&choice=fail", 422, "validation_failed"),
        (&"x".repeat(257), 413, "body_too_large"),
    ] {
        Answer::to(form(app, &path, body)).await.refused(status, code);
    }
    let json = app.nobody().at_root(Method::POST, &path).json(&json!({"choice": "succeed"}));
    Answer::to(json).await.refused(415, "unsupported_media_type");
}

async fn the_page_is_for_the_sandbox_alone(app: &TestApp) {
    let alice = app.customer("alice").await;
    let Opened { path, payment, .. } = open(app, &alice).await;
    let refused = async |path: &str| {
        let answer = Answer::to(app.nobody().at_root(Method::GET, path)).await;
        answer.refused(404, "not_found");
        Answer::to(form(app, path, "choice=succeed")).await.refused(404, "not_found");
    };
    for path in ["/pay/sandbox/1", "/pay/sandbox/x", "/pay/wechat/1"] {
        refused(path).await;
    }
    // A payment through a gateway that takes money cannot be had here for nothing.
    app.execute(&format!("UPDATE payment SET channel = 'wechat' WHERE id = {payment}")).await;
    refused(&path).await;
    app.execute(&format!("UPDATE payment SET channel = 'sandbox' WHERE id = {payment}")).await;

    app.restart_with(|config| {
        config.payment.sandbox.secret = None;
        // Beside others than oneself, the sandbox is off unless it is asked for.
        config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    refused(&path).await;
}
