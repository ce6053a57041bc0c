//! What the server tells the world: every event as it was promised, in the trace of what caused it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use entities::outbox as rows;
use futures_util::future::join_all;
use reqwest::Method;
use sea_orm::{EntityTrait, QueryOrder};
use serde_json::{Value, json};
use tombola::config::BusConfig;
use tombola::messaging::catalogue::EventType;
use tombola::messaging::envelope::Envelope;
use tombola::messaging::outbox;

use crate::support::broker::{Broker, DEFINITIONS, VirtualHost};
use crate::support::payments::{notice, order_of, pay, signed_notice};
use crate::support::{Answer, Client, Engine, Offer, TestApp, eventually, stories};

stories!(
    every_event_is_as_it_was_promised,
    an_event_carries_the_trace_of_its_request,
    the_events_are_documented_in_public,
);

#[test]
fn what_is_declared_is_what_docker_loads() {
    crate::support::tell(Engine::Sqlite, the_definitions_are_those_of_the_server);
}

async fn the_definitions_are_those_of_the_server(app: &TestApp) {
    let host = VirtualHost::bare(&Broker::shared()).await;
    app.restart_with(|config| {
        config.bus = BusConfig::try_from(host.url.clone()).unwrap();
        config.messaging.retry_delays = [1, 10, 60].map(Duration::from_secs).to_vec();
    })
    .await;
    // What is published finds everything declared.
    app.running(Offer::of(1)).await;
    app.is_quiet().await;
    let (declared, loaded) = (host.definitions().await, serde_json::from_str(DEFINITIONS).unwrap());
    assert_eq!(definitions(&declared), definitions(&loaded));
    app.restart().await;
    host.remove().await;
}

/// Exchanges, queues and bindings, without those of a connection and without what is the same of all.
fn definitions(of: &Value) -> BTreeSet<String> {
    let items = |kind: &str, members: &[&str]| {
        let items = of[kind].as_array().unwrap().iter();
        let lasting =
            items.filter(|item| !item["destination"].as_str().unwrap_or_default().starts_with("amq."));
        let of_interest = |item: &Value| {
            let members: BTreeMap<&str, &Value> = members.iter().map(|name| (*name, &item[*name])).collect();
            format!("{kind}: {}", json!(members))
        };
        lasting.map(of_interest).collect::<Vec<_>>()
    };
    [
        items("exchanges", &["name", "type", "durable", "auto_delete", "internal", "arguments"]),
        items("queues", &["name", "durable", "auto_delete", "arguments"]),
        items("bindings", &["source", "destination", "destination_type", "routing_key", "arguments"]),
    ]
    .concat()
    .into_iter()
    .collect()
}

/// Every event so far, as it is sent.
async fn events(app: &TestApp) -> Vec<Envelope> {
    let connection = app.database.connect().await;
    let written = rows::Entity::find().order_by_asc(rows::Column::Id).all(&connection).await.unwrap();
    connection.close().await.unwrap();
    let read = |row: &rows::Model| outbox::read(&row.events, row.traceparent.as_deref()).unwrap();
    let sent = |event: &Envelope| Envelope::parse(&event.to_json()).unwrap();
    written.iter().flat_map(read).map(|event| sent(&event)).collect()
}

async fn every_event_is_as_it_was_promised(app: &TestApp) {
    let activity = app.running(Offer::of(2)).await;
    let (operator, alice) = (app.operator().await, app.customer("alice").await);
    let take = alice.take(&activity).await.take();
    operator.release(&take.id).await.is(200);
    let adjustment = json!({"delta": -1, "reason": "one broke"});
    operator.post(&format!("/admin/activities/{activity}/stock-adjustments"), adjustment).await.is(201);
    alice.take(&activity).await.take();
    eventually(async || !app.events(&activity, "activity.sold_out.v1").await.is_empty()).await;
    an_order_lives(app, &operator, &alice).await;

    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events(app).await {
        let known = event.known_type().unwrap();
        let promised: Value = serde_json::from_str(known.fixture()).unwrap();
        let written: Value = serde_json::from_slice(&event.to_json()).unwrap();
        assert_eq!(members(&written["data"]), members(&promised["data"]), "{known}");
        let mut attributes = members(&promised);
        attributes.remove("traceparent");
        assert_eq!(members(&written), attributes, "{known}");
        *seen.entry(known.word()).or_default() += 1;
    }
    let all: BTreeSet<&str> = EventType::ALL.iter().map(|event| event.word()).collect();
    assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), all, "each type occurs");
}

/// An order with everything that can happen to one, and one that is cancelled.
async fn an_order_lives(app: &TestApp, operator: &Client, alice: &Client) {
    app.restart_with(|config| config.order.refund_approval = true).await;
    let user = format!("/admin/users/{}", alice.user_id);
    let gift = json!({"amount_minor": 500, "reason": "a gift"});
    operator.post(&format!("{user}/wallet-adjustments"), gift).await.is(201);
    let coupon = json!({
        "name": "Welcome", "face_value_minor": 1000, "min_spend_minor": 0,
        "valid_until": app.now() + chrono::TimeDelta::days(1),
    });
    let coupon = operator.post(&format!("{user}/coupons"), coupon).await.is(201)["id"].clone();
    let goods = json!({"name": "Mooncakes", "price_minor": 20000, "stock_total": 10});
    let goods = operator.post("/admin/goods", goods).await.is(201)["id"].clone();
    let mut wish = json!({
        "items": [{"goods_id": goods, "quantity": 1, "unit_price_minor": 20000}],
        "shipping_fee_minor": 0, "order_amount_minor": 20000,
        "address": {"consignee": "Alice", "phone": "123", "line": "1 Rabbit Hole"},
    });
    let unwanted = alice.post("/orders", wish.clone()).await.is(201)["id"].as_str().unwrap().to_owned();
    alice.post(&format!("/orders/{unwanted}/cancel"), json!({})).await.is(200);

    wish["coupon_id"] = coupon;
    wish["balance_minor"] = json!(500);
    let order = alice.post("/orders", wish).await.is(201)["id"].as_str().unwrap().to_owned();
    let opened =
        alice.post(&format!("/orders/{order}/payments"), json!({"channel": "sandbox"})).await.is(201);
    let mut failed = notice(opened["payment"]["id"].as_str().unwrap(), "t-0", 18500);
    failed["result"] = json!("failure");
    signed_notice(app, &failed).await.is(200);
    pay(app, alice, &order, "t-1").await;
    order_of(alice, &order).becomes("paid").await;
    operator.post(&format!("/admin/orders/{order}/ship"), json!({})).await.is(200);
    operator.post(&format!("/admin/orders/{order}/finish"), json!({})).await.is(200);
    for (n, decision) in ["refuse", "approve"].into_iter().enumerate() {
        alice.post(&format!("/orders/{order}/refunds"), json!({"reason": "stale"})).await.is(202);
        let refunds = alice.get(&format!("/orders/{order}/refunds")).await.is(200);
        let refund = refunds["items"][n]["id"].as_str().unwrap();
        let why = if decision == "refuse" { json!({"reason": "eaten"}) } else { json!({}) };
        operator.post(&format!("/admin/refunds/{refund}/{decision}"), why).await.is(200);
    }
    order_of(alice, &order).becomes("refunded").await;
    app.is_quiet().await;
}

async fn an_event_carries_the_trace_of_its_request(app: &TestApp) {
    let trace = |span: usize| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span:016x}-01");
    let post = async |client: &Client, path: &str, body: Value, parent: Option<String>| {
        let request = client.request(Method::POST, path).json(&body);
        let parent = parent.map_or_else(Default::default, |parent| {
            [("traceparent".parse().unwrap(), parent.parse().unwrap())].into_iter().collect()
        });
        Answer::to(request.headers(parent)).await
    };
    let activity = app.running(Offer::of(100)).await;
    let shoppers = app.customers(20).await;
    let operator = app.operator().await;
    let before = events(app).await.len();

    // Every second one is traced; one batch holds many of them.
    let path = format!("/activities/{activity}/takes");
    let takes = shoppers.iter().enumerate().map(async |(number, shopper)| {
        let parent = (number % 2 == 0).then(|| trace(number + 1));
        let take = post(shopper, &path, json!({}), parent.clone()).await.take();
        (take.id, parent)
    });
    let mut expected: BTreeMap<String, Option<String>> = join_all(takes).await.into_iter().collect();
    let released = expected.keys().next().unwrap().clone();
    let release = format!("/admin/takes/{released}/release");
    post(&operator, &release, json!({"reason": "back"}), Some(trace(0xfff))).await.is(200);
    let adjust = format!("/admin/activities/{activity}/stock-adjustments");
    let adjustment = json!({"delta": 1, "reason": "found one"});
    post(&operator, &adjust, adjustment, Some("nonsense".to_owned())).await.is(201);
    let close = format!("/admin/activities/{activity}/transitions");
    post(&operator, &close, json!({"event": "close"}), Some(trace(0xffe))).await.is(200);

    let mut others = Vec::new();
    for event in events(app).await.split_off(before) {
        let parent = event.traceparent.map(|parent| parent.to_string());
        if event.event_type == "activity.taken.v1" {
            let data: Value = serde_json::from_str(event.data.get()).unwrap();
            assert_eq!(expected.remove(data["take_id"].as_str().unwrap()), Some(parent), "{data}");
        } else {
            others.push((event.event_type, parent));
        }
    }
    assert!(expected.is_empty(), "{expected:?}");
    others.sort_unstable();
    assert_eq!(
        others,
        [
            ("activity.state_changed.v1".to_owned(), Some(trace(0xffe))),
            ("activity.stock_adjusted.v1".to_owned(), None),
            ("activity.take_released.v1".to_owned(), Some(trace(0xfff))),
        ]
    );
}

async fn the_events_are_documented_in_public(app: &TestApp) {
    let document = Answer::to(app.nobody().at_root(Method::GET, "/asyncapi.json")).await.is(200);
    assert_eq!(document["asyncapi"], "3.1.0");
    assert_eq!(document["channels"].as_object().unwrap().len(), EventType::ALL.len());
    let printed = Command::new(env!("CARGO_BIN_EXE_tombola")).arg("asyncapi").output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), document);
}
