//! F28: the clocks of two servers do not agree.

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use serde_json::{Value, json};
use tombola::ports::clock::{Clock, SystemClock};

use super::orders::until_quiet;
use super::{Rig, faults, number, session};
use crate::support::payments::{SECRET, notice, signature};
use crate::support::process::{Launch, Signal};
use crate::support::{Answer, Client, Engine, eventually, invariants};

faults! {
    postgres: f28_a_server_is_an_hour_ahead;
    mariadb: f28_a_server_is_an_hour_ahead;
}

/// How far times of two servers may differ.
const SLACK_MICROS: i64 = 1_000_000;

const FIRST_HOLDS_DEADLINES: &str = "SELECT count(*) FROM job_lease JOIN node ON node.incarnation = job_lease.holder \
    WHERE job_lease.name = 'order_deadlines' AND node.id = 1";

/// What is due in ten minutes and starts in half an hour is neither due nor started on a server whose clock says so.
async fn f28_a_server_is_an_hour_ahead(engine: Engine) {
    let rig = Rig::on(engine).await;
    let fast_launch = patient(Launch::on(&rig.database.url)).ahead_by(3600);
    // Alone at first, it holds the lease of every job.
    let mut fast = fast_launch.start().await;
    let database = session(&rig.database.url).await;
    let holds_the_lease = async || number(&database, FIRST_HOLDS_DEADLINES).await == 1;
    eventually(holds_the_lease).await;
    let mut right = patient(rig.launch.clone()).start().await;
    let (on_fast, on_right) = (client(fast.address), client(right.address));

    let operator = on_right.signed_in("olga", "operator").await;
    let fast_operator = on_fast.signed_in("oscar", "operator").await;
    let alice = on_right.signed_in("alice", "customer").await;
    let fast_alice = on_fast.bearing(&alice.token);
    let sale = new_sale(&operator, TimeDelta::zero()).await;
    operator.asks(&sale, "start").await.is(200);
    let order =
        async |client: &Client, key: &str| text(&client.take_once(&sale, key).await.is(201)["order"]["id"]);
    let orders = [order(&alice, "a").await, order(&alice, "b").await, order(&alice, "c").await];
    let due = "SELECT min(due_at - created_at) FROM orders";
    assert_eq!(number(&database, due).await, 600_000_000);

    // No order is due when the fast server looks for those that are.
    assert_eq!(looked_for_deadlines(&operator).await, 1, "the fast server should have looked");
    for order in &orders {
        let shown = alice.get(&format!("/orders/{order}")).await.is(200);
        assert_eq!(shown["state"], "awaiting_payment", "{shown}");
    }
    // Each can be paid on either.
    paid(&fast_alice, &orders[0], "t-1").await;
    paid(&alice, &orders[1], "t-2").await;

    // What starts later has not started.
    let later = new_sale(&operator, TimeDelta::minutes(30)).await;
    fast_operator.asks(&later, "start").await.refused(409, "transition_not_allowed");
    let running = format!("UPDATE activity SET state = 'running' WHERE id = {later}");
    database.execute_unprepared(&running).await.unwrap();
    fast_alice.take(&later).await.refused(409, "activity_not_running");
    // What ends in half an hour has not ended, and a key means the same on both.
    assert_eq!(order(&fast_alice, "d").await, order(&alice, "d").await);
    assert!(fast_alice.take_once(&sale, "a").await.is_replayed());

    // An order that is due is still found.
    let unpaid = &orders[2];
    database.execute_unprepared(&format!("UPDATE orders SET due_at = 1 WHERE id = {unpaid}")).await.unwrap();
    becomes(&alice, unpaid, "cancelled").await;

    // Both hold what they had; a command on the fast machine is no hastier than its server.
    assert!(holds_the_lease().await, "the lease was lost");
    assert!(fast.is_ready().await && right.is_ready().await);
    fast.says("s off the database's").await;
    until_quiet(&database).await;
    fast.signal(Signal::Terminate);
    fast.ended().await;
    right.signal(Signal::Terminate);
    right.ended().await;
    let ran = fast_launch.run(&["job", "run", "order_deadlines"]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let states = "SELECT count(*) FROM orders WHERE state = ";
    for (state, count) in [("paid", 2), ("awaiting_payment", 1), ("cancelled", 1)] {
        assert_eq!(number(&database, &format!("{states}'{state}'")).await, count, "{state}");
    }
    end(rig, database).await;
}

fn patient(launch: Launch) -> Launch {
    let launch = launch.with("PAYMENT__SANDBOX__SECRET", SECRET).with("ORDER__PAYMENT_TIMEOUT_S", 600);
    launch.with("JOBS__SCHEDULES__ORDER_DEADLINES", "every 200ms")
}

fn client(address: std::net::SocketAddr) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Client::new(http, &format!("http://{address}"))
}

/// A flash sale of a few units for half an hour, ready to start.
async fn new_sale(operator: &Client, starts_in: TimeDelta) -> String {
    let starts_at = SystemClock.now() + starts_in;
    let offer = json!({
        "name": "Mooncakes at noon", "kind": "flash_sale", "sale_price_minor": 100, "stock_total": 10,
        "take_limit_per_user": null, "starts_at": starts_at, "ends_at": starts_at + TimeDelta::minutes(30),
    });
    let sale = text(&operator.post("/admin/activities", offer).await.is(201)["id"]);
    for event in ["submit", "approve"] {
        operator.asks(&sale, event).await.is(200);
    }
    sale
}

/// Waits until a run that begins now has looked for orders that are due; answers which node did it.
async fn looked_for_deadlines(operator: &Client) -> i64 {
    let runs = "/admin/jobs/order_deadlines/runs";
    let run = text(&operator.post(runs, json!({})).await.is(202)["id"]);
    let path = format!("{runs}/{run}");
    eventually(async || operator.get(&path).await.is(200)["state"] == "done").await;
    operator.get(&path).await.is(200)["node"].as_i64().unwrap()
}

/// Opens a payment on a server and has the sandbox tell there that it was captured.
async fn paid(customer: &Client, order: &str, transaction: &str) {
    let path = format!("/orders/{order}/payments");
    let payment = customer.post(&path, json!({"channel": "sandbox"})).await.is(201)["payment"].clone();
    let amount_minor = payment["amount_minor"].as_i64().unwrap();
    let body = notice(&text(&payment["id"]), transaction, amount_minor).to_string();
    let signed = signature(SECRET, SystemClock.now().timestamp(), &body);
    let told = customer.request(reqwest::Method::POST, "/payments/callbacks/sandbox");
    Answer::to(told.header("tombola-signature", signed).body(body)).await.is(200);
    becomes(customer, order, "paid").await;
}

async fn becomes(customer: &Client, order: &str, state: &str) {
    let path = format!("/orders/{order}");
    eventually(async || customer.get(&path).await.is(200)["state"] == state).await;
}

async fn end(rig: Rig, database: DatabaseConnection) {
    invariants::check_within(&database, SLACK_MICROS).await;
    database.close().await.unwrap();
    rig.database.remove().await;
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
