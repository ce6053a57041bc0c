//! Buying and paying, as customers and their gateway do it.

use chrono::TimeDelta;
use reqwest::Method;
use ring::hmac;
use serde_json::{Value, json};

use super::{Answer, Client, Offer, TestApp, eventually};

/// What the sandbox signs with in stories.
pub(crate) const SECRET: &str = "the sandbox's secret in stories";

/// A customer's order over 12.34 that waits for a payment.
pub(crate) async fn buy(app: &TestApp, customer: &Client) -> String {
    let activity = app.running(Offer::of(1).limit(1).at_price(1234)).await;
    text(&customer.take(&activity).await.is(201)["order"]["id"])
}

/// A payment of an order, open at the gateway of `channel`.
pub(crate) async fn open(customer: &Client, order: &str, channel: &str) -> String {
    let body = json!({"channel": channel});
    text(&customer.post(&format!("/orders/{order}/payments"), body).await.is(201)["payment"]["id"])
}

/// Has the gateways asked about what is pending.
pub(crate) async fn ask_gateways(app: &TestApp) {
    app.pass(TimeDelta::minutes(2));
    app.operator().await.post("/admin/jobs/payment_queries/runs", json!({})).await;
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Opens a payment of an order and has the sandbox tell that it was captured as `transaction`.
pub(crate) async fn pay(app: &TestApp, customer: &Client, order: &str, transaction: &str) {
    let opened =
        customer.post(&format!("/orders/{order}/payments"), json!({"channel": "sandbox"})).await.is(201);
    let payment = &opened["payment"];
    let amount = payment["amount_minor"].as_i64().unwrap();
    signed_notice(app, &notice(payment["id"].as_str().unwrap(), transaction, amount)).await.is(200);
}

/// What the sandbox tells of a capture.
pub(crate) fn notice(payment: &str, transaction: &str, amount_minor: i64) -> Value {
    json!({"payment_id": payment, "transaction_id": transaction, "amount_minor": amount_minor, "result": "success"})
}

/// The sandbox tells `body` to the shop.
pub(crate) async fn signed_notice(app: &TestApp, body: &Value) -> Answer {
    let body = body.to_string();
    raw_notice(app, &body, &signature(SECRET, app.clock_seconds(), &body)).await
}

/// Somebody tells `body` to the shop.
pub(crate) async fn raw_notice(app: &TestApp, body: &str, signature: &str) -> Answer {
    tell(&app.nobody(), body, signature).await
}

async fn tell(client: &Client, body: &str, signature: &str) -> Answer {
    let request = client.request(Method::POST, "/payments/callbacks/sandbox");
    Answer::to(request.header("tombola-signature", signature).body(body.to_owned())).await
}

/// As API.md says.
pub(crate) fn signature(secret: &str, seconds: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    format!("t={seconds},v1={}", hex::encode(tag))
}

/// An order as its customer sees it.
pub(crate) struct OrderOf<'a> {
    customer: &'a Client,
    id: &'a str,
}

pub(crate) fn order_of<'a>(customer: &'a Client, id: &'a str) -> OrderOf<'a> {
    OrderOf { customer, id }
}

impl OrderOf<'_> {
    /// Waits until it is in `state`.
    pub(crate) async fn becomes(&self, state: &str) -> Value {
        let path = format!("/orders/{}", self.id);
        eventually(async || self.customer.get(&path).await.body["state"] == state).await;
        self.customer.get(&path).await.is(200)
    }
}
