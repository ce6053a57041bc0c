//! What could not be published or applied: found, read, replayed, discarded, and gone.

use std::sync::atomic::{AtomicI64, Ordering};

use chrono::TimeDelta;
use entities::{consumer_log, dead_letter, outbox, queued_events, stock_projection};
use reqwest::Method;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};
use tombola::config::BusConfig;
use tombola::messaging::outbox::rfc3339;
use tombola::ports::clock::{Clock, SystemClock, to_micros};

use crate::jobs::{ask, ended};
use crate::lists::pages;
use crate::support::broker::VirtualHost;
use crate::support::payments::{buy, order_of, pay};
use crate::support::process::Launch;
use crate::support::{Answer, Client, Offer, TestApp, eventually, stories};

stories!(
    a_message_that_is_no_event_is_found_read_and_discarded,
    an_event_over_rabbitmq_that_cannot_be_applied_is_found_replayed_and_discarded,
    an_event_that_cannot_be_applied_is_found_replayed_and_discarded,
    a_capture_that_never_was_pays_for_nothing,
    what_can_be_applied_later_is_applied_by_its_replay,
    what_cannot_be_replayed_says_why,
    all_that_match_are_replayed_by_a_tracked_run,
    what_is_asked_wrongly_is_refused,
    dead_letters_come_in_pages,
    the_outbox_is_listed_and_swept,
    old_messages_are_removed,
    commands_list_and_replay_beside_the_server,
);

const GROUP: &str = "stock_projection";
const TAKEN: &str = "activity.taken.v1";

/// An id that no other message of these stories has.
fn unique() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An event as the outbox keeps it.
fn event(event_type: &str, subject: &str) -> Value {
    let time = rfc3339(SystemClock.now());
    json!({"id": unique().to_string(), "type": event_type, "subject": subject, "time": time, "data": {}})
}

/// The same as a CloudEvent.
fn cloud_event(event: &Value) -> Value {
    let mut cloud_event = event.clone();
    for (attribute, value) in
        [("specversion", "1.0"), ("source", "tombola"), ("datacontenttype", "application/json")]
    {
        cloud_event[attribute] = value.into();
    }
    cloud_event
}

async fn behind<T>(app: &TestApp, work: impl AsyncFnOnce(&DatabaseConnection) -> T) -> T {
    let connection = app.database.connect().await;
    let done = work(&connection).await;
    connection.close().await.unwrap();
    done
}

/// An outbox row with `event`, still to be sent.
fn outbox_row(app: &TestApp, event: &Value) -> outbox::ActiveModel {
    outbox::ActiveModel {
        id: Set(unique()),
        events: Set(json!([event]).to_string()),
        event_count: Set(1),
        types: Set(event["type"].as_str().unwrap().to_owned()),
        created_at: Set(to_micros(app.clock.now())),
        attempts: Set(0),
        ..Default::default()
    }
}

/// Commits `event`, as a transaction of the server does.
async fn commit(app: &TestApp, event: &Value) {
    let row = outbox_row(app, event);
    behind(app, async |connection| row.insert(connection).await.unwrap()).await;
}

/// A dead letter whose body is `body`, of an event if it has an id.
fn letter(group: &str, event_type: &str, event_id: Option<i64>, body: &str) -> dead_letter::ActiveModel {
    let id = unique();
    dead_letter::ActiveModel {
        id: Set(id),
        group_name: Set(group.to_owned()),
        message_key: Set(event_id.map_or_else(|| format!("hash of {id}"), |id| id.to_string())),
        event_id: Set(event_id),
        event_type: Set(event_type.to_owned()),
        subject: Set(String::new()),
        body: Set(body.to_owned()),
        body_encoding: Set("utf8".to_owned()),
        origin: Set(format!("tombola.{group}")),
        error: Set("a story".to_owned()),
        attempts: Set(3),
        first_failed_at: Set(1),
        died_at: Set(2),
        state: Set("waiting".to_owned()),
        replays: Set(0),
        reason: Set(None),
        settled_at: Set(None),
    }
}

/// A dead letter of an event, one that still cannot be applied.
fn hopeless(event_type: &str) -> dead_letter::ActiveModel {
    let event = cloud_event(&event(event_type, "nowhere"));
    letter(GROUP, event_type, event["id"].as_str().unwrap().parse().ok(), &event.to_string())
}

/// Writes dead letters and answers their ids.
async fn bury(app: &TestApp, letters: Vec<dead_letter::ActiveModel>) -> Vec<String> {
    let ids = letters.iter().map(|letter| letter.id.as_ref().to_string()).collect();
    behind(app, async |connection| {
        dead_letter::Entity::insert_many(letters).exec_without_returning(connection).await.unwrap();
    })
    .await;
    ids
}

async fn list(staff: &Client, query: &str) -> Vec<Value> {
    let page = staff.get(&format!("/admin/dead-letters?limit=100{query}")).await.is(200);
    page["items"].as_array().unwrap().clone()
}

/// The one dead letter there is, once there is one.
async fn the_only(staff: &Client) -> Value {
    eventually(async || !list(staff, "").await.is_empty()).await;
    let [letter] = <[Value; 1]>::try_from(list(staff, "").await).unwrap();
    letter
}

async fn show(staff: &Client, id: &str) -> Value {
    staff.get(&format!("/admin/dead-letters/{id}")).await.is(200)
}

async fn replay(operator: &Client, id: &str) -> Answer {
    operator.post(&format!("/admin/dead-letters/{id}/replay"), json!({})).await
}

async fn discard(operator: &Client, id: &str, body: Value) -> Answer {
    Answer::to(operator.request(Method::DELETE, &format!("/admin/dead-letters/{id}")).json(&body)).await
}

async fn is_in_state(staff: &Client, id: &str, state: &str) {
    eventually(async || show(staff, id).await["state"] == state).await;
}

/// Tells `story` with RabbitMQ between the outbox and the groups.
async fn over_rabbitmq(app: &TestApp, story: impl AsyncFnOnce(&VirtualHost)) {
    let host = VirtualHost::create().await;
    app.restart_with(|config| config.bus = BusConfig::try_from(host.url.clone()).unwrap()).await;
    story(&host).await;
    app.restart().await;
    host.remove().await;
}

async fn a_message_that_is_no_event_is_found_read_and_discarded(app: &TestApp) {
    over_rabbitmq(app, async |host| no_event_is_found_read_and_discarded(app, host).await).await;
}

async fn no_event_is_found_read_and_discarded(app: &TestApp, host: &VirtualHost) {
    let operator = app.operator().await;
    host.send("tombola.stock_projection", b"{\"specversion\": \"1.0\"}").await;
    let found = the_only(&operator).await;
    let id = found["id"].as_str().unwrap();
    assert_eq!((&found["group"], &found["origin"]), (&json!(GROUP), &json!("tombola.stock_projection")));
    assert_eq!((&found["state"], &found["attempts"]), (&json!("waiting"), &json!(1)));
    for unknown in ["event_id", "type", "subject", "reason", "settled_at"] {
        assert_eq!(found[unknown], Value::Null, "{unknown}");
    }
    assert!(found["error"].as_str().unwrap().contains("missing field `id`"), "{found}");
    let whole = show(&operator, id).await;
    assert_eq!(
        (&whole["body"], &whole["body_encoding"]),
        (&json!("{\"specversion\": \"1.0\"}"), &json!("utf8"))
    );
    assert_eq!(found.get("body"), None, "a list goes without bodies");

    replay(&operator, id).await.refused(409, "dead_letter_unreadable");
    let discarded = discard(&operator, id, json!({"reason": "somebody tried it out"})).await.is(200);
    assert_eq!(discarded["state"], "discarded");
    assert!(discarded["settled_at"].is_string());
    assert_eq!(list(&operator, "").await, [Value::Null; 0]);
    let kept = show(&operator, id).await;
    assert_eq!((&kept["state"], &kept["reason"]), (&json!("discarded"), &json!("somebody tried it out")));

    // What is no text either comes in Base64.
    host.send("tombola.stock_projection", b"\xff\x00binary").await;
    let binary = the_only(&operator).await;
    let id = binary["id"].as_str().unwrap();
    let whole = show(&operator, id).await;
    assert_eq!((&whole["body"], &whole["body_encoding"]), (&json!("/wBiaW5hcnk="), &json!("base64")));
    let problem = replay(&operator, id).await.refused(409, "dead_letter_unreadable");
    assert_eq!(problem["detail"], "the message still cannot be read: it is no text");

    // A message that is known comes in the place of the one before; what was discarded stays so.
    host.send("tombola.stock_projection", b"{\"specversion\": \"1.0\"}").await;
    host.send("tombola.stock_projection", b"\xff\x00binary").await;
    for before in [&kept, &whole] {
        let id = before["id"].as_str().unwrap();
        eventually(async || show(&operator, id).await["died_at"] != before["died_at"]).await;
        let again = show(&operator, id).await;
        for member in ["state", "reason", "settled_at"] {
            assert_eq!(again[member], before[member], "{member}");
        }
    }
    assert_eq!(list(&operator, "").await.len(), 1);
}

async fn an_event_over_rabbitmq_that_cannot_be_applied_is_found_replayed_and_discarded(app: &TestApp) {
    over_rabbitmq(app, async |host| {
        let event = cloud_event(&event(TAKEN, "x"));
        host.send("tombola.stock_projection", event.to_string().as_bytes()).await;
        is_found_replayed_and_discarded(app, &event).await;

        // Its neighbours are applied all the same.
        let activity = app.running(Offer::of(5)).await;
        app.customer("alice").await.take(&activity).await.take();
        eventually(async || projected(app, &activity).await == Some(4)).await;
    })
    .await;
}

async fn an_event_that_cannot_be_applied_is_found_replayed_and_discarded(app: &TestApp) {
    let event = event(TAKEN, "x");
    commit(app, &event).await;
    is_found_replayed_and_discarded(app, &cloud_event(&event)).await;
}

async fn is_found_replayed_and_discarded(app: &TestApp, event: &Value) {
    let (operator, viewer) = (app.operator().await, app.viewer().await);
    let found = the_only(&viewer).await;
    let id = found["id"].as_str().unwrap();
    for member in ["type", "subject"] {
        assert_eq!(found[member], event[member]);
    }
    assert_eq!((&found["event_id"], &found["group"]), (&event["id"], &json!(GROUP)));
    assert_eq!((&found["attempts"], &found["replays"]), (&json!(3), &json!(0)));
    assert_eq!(found["error"], "\"x\" names no activity");
    let whole = show(&viewer, id).await;
    let body: Value = serde_json::from_str(whole["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["id"], event["id"]);

    let replaying = replay(&operator, id).await.is(202);
    assert_eq!((&replaying["state"], &replaying["replays"]), (&json!("replaying"), &json!(1)));
    is_in_state(&viewer, id, "waiting").await;
    let again = show(&viewer, id).await;
    assert_eq!((&again["attempts"], &again["replays"]), (&json!(3), &json!(1)));
    assert_eq!((&again["event_id"], &again["first_failed_at"]), (&event["id"], &found["first_failed_at"]));
    assert_ne!(again["died_at"], found["died_at"]);

    discard(&viewer, id, json!({"reason": "no"})).await.refused(403, "forbidden");
    let discarded = discard(&operator, id, json!({"reason": "it was a story"})).await.is(200);
    assert_eq!((&discarded["state"], &discarded["reason"]), (&json!("discarded"), &json!("it was a story")));
    // A repeat changes nothing; what is settled is not tried again.
    assert_eq!(discard(&operator, id, json!({"reason": "another"})).await.is(200), discarded);
    replay(&operator, id).await.refused(409, "transition_not_allowed");
    assert_eq!(list(&viewer, "").await, [Value::Null; 0]);
    assert_eq!(list(&viewer, "&state=discarded").await, [discarded]);
}

async fn a_capture_that_never_was_pays_for_nothing(app: &TestApp) {
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let (first, second) = (buy(app, &alice).await, buy(app, &alice).await);
    let user = alice.get("/me").await.is(200)["id"].clone();
    let mut forged = event("payment.succeeded.v1", &first);
    forged["data"] = json!({
        "payment_id": unique().to_string(), "order_id": first, "user_id": user, "channel": "sandbox",
        "transaction_id": "t-0", "amount_minor": 1234, "currency": "CNY", "paid_at": rfc3339(app.now()),
    });
    commit(app, &forged).await;
    // It keeps no other order from being paid.
    pay(app, &alice, &second, "t-2").await;
    order_of(&alice, &second).becomes("paid").await;

    let letter = the_only(&operator).await;
    assert_eq!((&letter["group"], &letter["event_id"]), (&json!("order_payments"), &forged["id"]));
    assert!(letter["error"].as_str().unwrap().contains("the payment does not pay it"), "{letter}");
    let order = alice.get(&format!("/orders/{first}")).await.is(200);
    assert_eq!((&order["state"], &order["version"]), (&json!("awaiting_payment"), &json!(1)));
    pay(app, &alice, &first, "t-1").await;
    order_of(&alice, &first).becomes("paid").await;
}

/// How many units of an activity are left, by the projection.
async fn projected(app: &TestApp, activity: &str) -> Option<i64> {
    let id: i64 = activity.parse().unwrap();
    let row = behind(app, async |connection| stock_projection::Entity::find_by_id(id).one(connection).await);
    row.await.unwrap().map(|row| row.remaining)
}

async fn what_can_be_applied_later_is_applied_by_its_replay(app: &TestApp) {
    let operator = app.operator().await;
    let activity = app.running(Offer::of(5)).await;
    commit(app, &event(TAKEN, "x")).await;
    let id = the_only(&operator).await["id"].as_str().unwrap().to_owned();
    // As if a new version could apply it.
    let mend = async |id: &str, body: Value| {
        behind(app, async |connection| {
            let update = dead_letter::Entity::update_many()
                .col_expr(dead_letter::Column::Body, Expr::value(body.to_string()))
                .filter(dead_letter::Column::Id.eq(id.parse::<i64>().unwrap()));
            update.exec(connection).await.unwrap();
        })
        .await;
    };
    let body: Value = serde_json::from_str(show(&operator, &id).await["body"].as_str().unwrap()).unwrap();
    let mut mended = body.clone();
    mended["subject"] = activity.as_str().into();
    mend(&id, mended).await;
    let once = async || {
        let request = operator.request(Method::POST, &format!("/admin/dead-letters/{id}/replay"));
        Answer::to(request.header("idempotency-key", "k")).await
    };
    let first = once().await;
    is_in_state(&operator, &id, "applied").await;
    let applied = show(&operator, &id).await;
    assert_eq!((&applied["subject"], &applied["replays"]), (&json!(activity), &json!(1)));
    assert!(applied["settled_at"].is_string());
    let second = once().await;
    assert!(second.is_replayed() && !first.is_replayed());
    assert_eq!(second.is(202), first.is(202));
    discard(&operator, &id, json!({"reason": "late"})).await.refused(409, "transition_not_allowed");

    // What no version could read, until one can, is known by its event from then on.
    let [unread, twin] = <[String; 2]>::try_from(
        bury(app, vec![letter(GROUP, "", None, "nonsense"), letter(GROUP, "", None, "{}")]).await,
    )
    .unwrap();
    replay(&operator, &unread).await.refused(409, "dead_letter_unreadable");
    let readable = cloud_event(&event(TAKEN, &activity));
    mend(&unread, readable.clone()).await;
    mend(&twin, readable.clone()).await;
    assert_eq!(replay(&operator, &unread).await.is(202)["event_id"], readable["id"]);
    is_in_state(&operator, &unread, "applied").await;
    let problem = replay(&operator, &twin).await.refused(409, "transition_not_allowed");
    assert!(problem["detail"].as_str().unwrap().contains(&unread), "{problem}");
}

async fn what_cannot_be_replayed_says_why(app: &TestApp) {
    let (operator, viewer) = (app.operator().await, app.viewer().await);
    let body = cloud_event(&event(TAKEN, "7")).to_string();
    let ids = bury(app, vec![letter("long_gone", TAKEN, Some(unique()), &body)]).await;
    let problem = replay(&operator, &ids[0]).await.refused(409, "consumer_group_unknown");
    assert_eq!(problem["detail"], "there is no consumer group long_gone");
    replay(&viewer, &ids[0]).await.refused(403, "forbidden");
    for id in ["1", "x", "9223372036854775807"] {
        replay(&operator, id).await.refused(404, "not_found");
        discard(&operator, id, json!({"reason": "a story"})).await.refused(404, "not_found");
        viewer.get(&format!("/admin/dead-letters/{id}")).await.refused(404, "not_found");
    }
}

async fn all_that_match_are_replayed_by_a_tracked_run(app: &TestApp) {
    let operator = app.operator().await;
    const RELEASED: &str = "activity.take_released.v1";
    let mut letters =
        vec![hopeless(TAKEN), hopeless(TAKEN), hopeless(RELEASED), letter(GROUP, "", None, "?")];
    letters.push(letter("long_gone", TAKEN, Some(unique()), "{}"));
    let ids = bury(app, letters).await;
    let run_of = async |body: Value| {
        let asked = operator.post("/admin/dead-letters/replays", body.clone()).await.is(202);
        assert_eq!((&asked["job"], &asked["params"]), (&json!("dead_letter_replay"), &body));
        assert_eq!(asked["requested_by"], operator.user_id);
        let run = ended(&operator, "dead_letter_replay", asked["id"].as_str().unwrap()).await;
        assert_eq!(run["state"], "done", "{run}");
        eventually(async || list(&operator, "&state=replaying").await.is_empty()).await;
        run["summary"].clone()
    };
    let replays = async || {
        let mut replays = Vec::new();
        for id in &ids {
            replays.push(show(&operator, id).await["replays"].as_i64().unwrap());
        }
        replays
    };
    assert_eq!(run_of(json!({"group": GROUP, "type": TAKEN})).await, "replayed 2 dead letters");
    assert_eq!(replays().await, [1, 1, 0, 0, 0]);
    assert_eq!(run_of(json!({"type": RELEASED})).await, "replayed 1 dead letters");
    assert_eq!(run_of(json!({"group": "nobody"})).await, Value::Null);
    let summary = "replayed 3 dead letters; 2 cannot be replayed, the log has the causes";
    assert_eq!(run_of(json!({})).await, summary);
    assert_eq!(replays().await, [2, 2, 2, 0, 0]);

    // The job can be asked for as any other.
    let run = ask(&operator, "dead_letter_replay", json!({"params": {"type": RELEASED}})).await;
    assert_eq!(ended(&operator, "dead_letter_replay", &run).await["summary"], "replayed 1 dead letters");
    is_in_state(&operator, &ids[2], "waiting").await;
}

async fn what_is_asked_wrongly_is_refused(app: &TestApp) {
    let (operator, customer) = (app.operator().await, app.customer("alice").await);
    let viewer = app.viewer().await;
    for (body, pointer) in [
        (json!({"groups": "x"}), "/groups"),
        (json!({"group": 7}), "/group"),
        (json!({"group": ""}), "/group"),
        (json!({"type": "x".repeat(65)}), "/type"),
        (json!({"type": "a\u{0}b"}), "/type"),
        (json!({"state": "waiting"}), "/state"),
        (json!([]), ""),
    ] {
        let problem = operator.post("/admin/dead-letters/replays", body.clone()).await;
        let problem = problem.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
    }
    for (query, pointer) in [
        ("?state=lost", "?state"),
        ("?group=", "?group"),
        ("?type=a%00b", "?type"),
        ("?origin=x", "?origin"),
        ("?limit=0", "?limit"),
    ] {
        let problem =
            viewer.get(&format!("/admin/dead-letters{query}")).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{query}");
    }
    let problem = viewer.get("/admin/outbox?state=lost").await.refused(422, "validation_failed");
    assert_eq!(problem["errors"][0]["pointer"], "?state");
    let [id] = <[String; 1]>::try_from(bury(app, vec![hopeless(TAKEN)]).await).unwrap();
    for body in
        [json!({}), json!({"reason": " "}), json!({"reason": "a\nb"}), json!({"reason": "a", "by": "me"})]
    {
        discard(&operator, &id, body).await.refused(422, "validation_failed");
    }
    operator
        .post(&format!("/admin/dead-letters/{id}/replay"), json!({"now": true}))
        .await
        .refused(422, "validation_failed");
    assert_eq!(show(&viewer, &id).await["replays"], 0);

    viewer.post("/admin/dead-letters/replays", json!({})).await.refused(403, "forbidden");
    for path in
        ["/admin/outbox".to_owned(), "/admin/dead-letters".to_owned(), format!("/admin/dead-letters/{id}")]
    {
        customer.get(&path).await.refused(403, "forbidden");
        app.nobody().get(&path).await.refused(401, "unauthenticated");
    }
}

async fn dead_letters_come_in_pages(app: &TestApp) {
    let viewer = app.viewer().await;
    let mut letters: Vec<_> = (0..5).map(|_| hopeless(TAKEN)).collect();
    letters.push(letter("another_group", "some.type.v1", Some(unique()), "{}"));
    let mut latest_first = bury(app, letters).await;
    latest_first.reverse();
    let found = pages(&viewer, "/admin/dead-letters", 4).await;
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2]);
    assert_eq!(found.concat(), latest_first);
    for query in
        ["group=another_group", "type=some.type.v1", "group=another_group&type=some.type.v1&state=waiting"]
    {
        assert_eq!(
            pages(&viewer, &format!("/admin/dead-letters?{query}"), 4).await.concat(),
            latest_first[..1]
        );
    }
    let of_group = pages(&viewer, &format!("/admin/dead-letters?group={GROUP}"), 2).await;
    assert_eq!(of_group.concat(), latest_first[1..]);
    let of_none = format!("/admin/dead-letters?group={GROUP}&type=some.type.v1");
    assert_eq!(pages(&viewer, &of_none, 2).await.concat(), [""; 0]);
}

async fn the_outbox_is_listed_and_swept(app: &TestApp) {
    let (operator, viewer) = (app.operator().await, app.viewer().await);
    app.running(Offer::of(1)).await;
    let count =
        async |state: &str| pages(&viewer, &format!("/admin/outbox?state={state}"), 100).await.concat().len();
    eventually(async || count("unsent").await == 0).await;
    let sent = viewer.get("/admin/outbox?state=sent").await.is(200);
    let newest = &sent["items"][0];
    assert_eq!(newest["types"], json!(["activity.state_changed.v1"]));
    assert_eq!((&newest["event_count"], &newest["state"]), (&json!(1), &json!("sent")));
    assert!(newest["sent_at"].is_string() && newest["created_at"].is_string(), "{newest}");
    for none in ["retry_at", "last_error"] {
        assert_eq!(newest[none], Value::Null);
    }
    let all = pages(&viewer, "/admin/outbox", 2).await.concat();
    assert_eq!(all.len(), sent["items"].as_array().unwrap().len());

    // What the bus refused waits to be tried again: long, as by a clock that was set back.
    let far = to_micros(SystemClock.now() + TimeDelta::days(1));
    let refused = outbox::ActiveModel {
        attempts: Set(4),
        retry_at: Set(Some(far)),
        last_error: Set(Some("no such exchange".to_owned())),
        ..outbox_row(app, &event(TAKEN, "7"))
    };
    let waiting = outbox::ActiveModel { retry_at: Set(Some(far)), ..outbox_row(app, &event(TAKEN, "7")) };
    let due = [&refused, &waiting].map(|row| (row.id.as_ref() >> 22) & 15);
    behind(app, async |connection| {
        outbox::Entity::insert_many([refused, waiting]).exec_without_returning(connection).await.unwrap();
    })
    .await;
    assert_eq!((count("refused").await, count("unsent").await), (1, 1));
    let row = viewer.get("/admin/outbox?state=refused").await.is(200)["items"][0].clone();
    assert_eq!((&row["attempts"], &row["last_error"]), (&json!(4), &json!("no such exchange")));
    assert!(row["retry_at"].is_string() && row["sent_at"].is_null(), "{row}");

    let refusal =
        operator.post("/admin/jobs/outbox_sweep/runs", json!({"params": {"partitions": [16]}})).await;
    refusal.refused(422, "validation_failed");
    // Each row lies in one partition, by the millisecond of its id.
    for partition in 0..16 {
        let run = ask(&operator, "outbox_sweep", json!({"params": {"partitions": [partition]}})).await;
        let run = ended(&operator, "outbox_sweep", &run).await;
        assert_eq!(run["state"], "done");
        let summary = match due.iter().filter(|due| **due == partition).count() {
            0 => Value::Null,
            rows => format!("made {rows} rows due").into(),
        };
        assert_eq!(run["summary"], summary, "of partition {partition}");
    }
    eventually(async || (count("refused").await, count("unsent").await) == (0, 0)).await;
    let run = ask(&operator, "outbox_sweep", json!({})).await;
    assert_eq!(ended(&operator, "outbox_sweep", &run).await["summary"], Value::Null);
    // By its schedule too, which tells what is unsent for too long.
    let old = outbox::ActiveModel {
        retry_at: Set(Some(far)),
        created_at: Set(to_micros(app.clock.now() - TimeDelta::minutes(31))),
        ..outbox_row(app, &event(TAKEN, "7"))
    };
    behind(app, async |connection| old.insert(connection).await.unwrap()).await;
    app.pass(TimeDelta::minutes(1));
    eventually(async || count("unsent").await == 0).await;
    let told = async || {
        let runs = viewer.get("/admin/jobs/outbox_sweep/runs").await.is(200);
        let summary = "made 1 rows due; 1 are unsent for longer than half an hour";
        runs["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|run| run["summary"] == summary && run["trigger"] == "schedule")
    };
    eventually(told).await;
}

async fn old_messages_are_removed(app: &TestApp) {
    let operator = app.operator().await;
    let age = |days: i64, hours: i64| {
        to_micros(SystemClock.now() - TimeDelta::days(days) - TimeDelta::hours(hours))
    };
    let sent = |days, hours| outbox::ActiveModel {
        sent_at: Set(Some(age(days, hours))),
        ..outbox_row(app, &event("store.updated.v1", "7"))
    };
    let (old, young, queued, orphaned) = (sent(7, 1), sent(6, 23), sent(30, 0), sent(30, 0));
    let unsent = outbox::ActiveModel {
        retry_at: Set(Some(i64::MAX)),
        created_at: Set(age(400, 0)),
        ..outbox_row(app, &event("store.updated.v1", "7"))
    };
    let queue = |group: &str, row: &outbox::ActiveModel, queued_at| queued_events::ActiveModel {
        group_name: Set(group.to_owned()),
        outbox_id: row.id.clone(),
        queued_at: Set(queued_at),
    };
    let queues = [
        queue("of_a_later_version", &queued, age(6, 23)),
        queue("of_an_earlier_version", &orphaned, age(7, 1)),
    ];
    let applied = |event_id: i64, days, hours| consumer_log::ActiveModel {
        group_name: Set("a_group".to_owned()),
        event_id: Set(event_id),
        event_type: Set(TAKEN.to_owned()),
        applied_at: Set(age(days, hours)),
        attempts: Set(1),
    };
    let dead = unique();
    let notes = [applied(unique(), 8, 1), applied(unique(), 7, 23), applied(dead, 30, 0)];
    let settled = |state: &str, at| dead_letter::ActiveModel {
        state: Set(state.to_owned()),
        settled_at: Set(at),
        ..letter("a_group", TAKEN, Some(unique()), "{}")
    };
    let letters = vec![
        settled("applied", Some(age(7, 1))),
        settled("discarded", Some(age(7, 1))),
        settled("discarded", Some(age(6, 23))),
        letter("a_group", TAKEN, Some(dead), "{}"),
    ];
    let (kept_rows, kept_notes) = (
        [&young, &queued, &unsent].map(|row| *row.id.as_ref()),
        [&notes[1], &notes[2]].map(|note| *note.event_id.as_ref()),
    );
    let kept_letters = [&letters[2], &letters[3]].map(|letter| *letter.id.as_ref());
    behind(app, async |connection| {
        outbox::Entity::insert_many([old, young, queued, orphaned, unsent])
            .exec_without_returning(connection)
            .await
            .unwrap();
        queued_events::Entity::insert_many(queues).exec_without_returning(connection).await.unwrap();
        consumer_log::Entity::insert_many(notes).exec_without_returning(connection).await.unwrap();
        dead_letter::Entity::insert_many(letters).exec_without_returning(connection).await.unwrap();
    })
    .await;
    // The server's own time is that of its story.
    let earlier = |days, hours| to_micros(app.now() - TimeDelta::days(days) - TimeDelta::hours(hours));
    for (id, at) in [(unique(), earlier(30, 1)), (unique(), earlier(29, 23))] {
        app.execute(&format!(
            "INSERT INTO reconciliation (id, started_at, finished_at, found) VALUES ({id}, {at}, {at}, 1)"
        ))
        .await;
        app.execute(&format!(
            "INSERT INTO difference (id, reconciliation_id, comparison, subject, expected, found, detail, action, \
             state, found_at) VALUES ({id}, {id}, 'c', 's', 'e', 'f', 'd', 'a', 'open', {at})"
        ))
        .await;
        // Asked for, of a job that is no more: it never ends.
        app.execute(&format!(
            "INSERT INTO job_run (id, job, state, triggered_by, params, created_at) \
             VALUES ({id}, 'removed', 'requested', 'operator', 'null', {at})"
        ))
        .await;
    }
    let run = ask(&operator, "log_trimming", json!({})).await;
    let run = ended(&operator, "log_trimming", &run).await;
    assert_eq!(
        run["summary"],
        "removed 1 of job_run, 1 of queued_events, 2 of outbox, 1 of consumer_log, 2 of dead_letter, \
         1 of difference, 1 of reconciliation",
        "{run}"
    );
    behind(app, async |connection| {
        let rows = outbox::Entity::find().order_by_asc(outbox::Column::Id).all(connection).await.unwrap();
        assert_eq!(
            rows.iter().map(|row| row.id).filter(|id| kept_rows.contains(id)).collect::<Vec<_>>(),
            kept_rows
        );
        let notes = consumer_log::Entity::find()
            .order_by_asc(consumer_log::Column::EventId)
            .all(connection)
            .await
            .unwrap();
        let mut found = notes.iter().map(|note| note.event_id).collect::<Vec<_>>();
        found.sort_by_key(|id| kept_notes.iter().position(|kept| kept == id));
        assert_eq!(found, kept_notes);
        let letters =
            dead_letter::Entity::find().order_by_asc(dead_letter::Column::Id).all(connection).await.unwrap();
        assert_eq!(letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), kept_letters);
    })
    .await;
}

async fn commands_list_and_replay_beside_the_server(app: &TestApp) {
    let operator = app.operator().await;
    let mut letters = vec![hopeless(TAKEN), hopeless(TAKEN), letter(GROUP, "", None, "?")];
    letters[2].error = Set("two\nlines \u{1b}[31m".to_owned());
    let ids = bury(app, letters).await;
    let launch = Launch::on(&app.database.url);
    let command = async |arguments: Vec<String>| {
        let launch = launch.clone();
        let run = move || launch.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let done = tokio::task::spawn_blocking(run).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    };
    let dead_letter = async |line: &str| {
        command(["dead-letter"].into_iter().chain(line.split_whitespace()).map(str::to_owned).collect()).await
    };
    let (code, out, err) = dead_letter("list").await;
    assert_eq!(code, 0, "{err}");
    let listed: Vec<&str> = out.lines().skip(1).map(|line| line.split_once(' ').unwrap().0).collect();
    assert_eq!(listed, [&ids[2], &ids[1], &ids[0]]);
    assert!(out.contains("two lines  [31m\n"), "{out}");
    let (_, out, _) = dead_letter(&format!("list --group {GROUP} --type {TAKEN}")).await;
    assert_eq!(out.lines().count(), 3, "{out}");
    let (_, out, _) = dead_letter("list --state applied").await;
    assert_eq!(out.lines().count(), 1, "{out}");

    let (code, out, err) = dead_letter(&format!("replay {}", ids[0])).await;
    assert_eq!(
        (code, out.as_str()),
        (0, &*format!("Group {GROUP} tries dead letter {} again.\n", ids[0])),
        "{err}"
    );
    eventually(async || show(&operator, &ids[0]).await["replays"] == 1).await;
    is_in_state(&operator, &ids[0], "waiting").await;
    let (code, out, err) = dead_letter(&format!("replay --all --type {TAKEN}")).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("Job dead_letter_replay is done after "), "{out}");
    assert!(out.ends_with(": replayed 2 dead letters\n"), "{out}");

    let (code, _, err) = dead_letter(&format!("replay {}", ids[2])).await;
    assert_eq!(code, 1);
    assert!(err.starts_with("tombola: the message still cannot be read: "), "{err}");
    let (_, _, err) = dead_letter("replay").await;
    assert!(err.contains("<ID|--all>"), "{err}");
    for wrong in ["replay", "replay x", "replay 1 --all", "replay 1 --group x", "list --state lost"] {
        let (code, _, err) = dead_letter(wrong).await;
        assert_eq!(code, 2, "{wrong}: {err}");
    }
    for id in &ids[..2] {
        is_in_state(&operator, id, "waiting").await;
    }
}
