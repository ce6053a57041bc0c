//! The life of an activity: what operators ask of it, what the clock does to it, and when units can be taken.

use std::sync::atomic::{AtomicBool, Ordering};

use chrono::TimeDelta;
use entities::take;
use futures_util::future::{join, join_all};
use reqwest::Method;
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::json;

use crate::support::{Answer, Client, Offer, Take, TestApp, eventually, stories};
use crate::takes::tokens;

stories!(
    an_activity_goes_its_way,
    a_refused_move_names_the_possible_ones,
    an_activity_is_edited_before_it_is_submitted,
    only_a_running_activity_gives_units,
    the_clock_starts_and_closes_activities,
    nothing_is_taken_after_the_answer_to_close,
    a_repeated_creation_creates_once,
);

/// An hour that begins in an hour.
fn later() -> Offer {
    Offer::of(10).between(TimeDelta::hours(1), TimeDelta::hours(2))
}

async fn an_activity_goes_its_way(app: &TestApp) {
    let operator = app.operator().await;
    let activity = app.editing(later()).await;
    let mut version = 1;
    for (event, state) in [
        ("submit", "submitted"),
        ("withdraw", "withdrawn"),
        ("submit", "submitted"),
        ("refuse", "refused"),
        ("withdraw", "withdrawn"),
        ("submit", "submitted"),
        ("approve", "approved"),
        ("close", "closed"),
        ("reopen", "approved"),
    ] {
        version += 1;
        let moved = operator.asks(&activity, event).await.is(200);
        assert_eq!((&moved["state"], &moved["version"]), (&json!(state), &json!(version)), "after {event}");
        // Asked again, it is done already.
        assert_eq!(operator.asks(&activity, event).await.is(200), moved);
    }
    let path: Vec<_> = app.events(&activity, "activity.state_changed.v1").await;
    let path: Vec<_> =
        path.iter().map(|event| (event["sequence"].clone(), event["data"]["to"].clone())).collect();
    let states = ["editing", "submitted", "withdrawn", "submitted", "refused", "withdrawn", "submitted"];
    let states = states.into_iter().chain(["approved", "closed", "approved"]);
    assert_eq!(path, (1..).zip(states).map(|(version, to)| (json!(version), json!(to))).collect::<Vec<_>>());
}

async fn a_refused_move_names_the_possible_ones(app: &TestApp) {
    let operator = app.operator().await;
    let editing = app.editing(later()).await;
    let approved = app.approved(later()).await;
    let running = app.running(Offer::of(1)).await;
    for (activity, event, possible) in [
        (&editing, "approve", "submit, close"),
        (&editing, "start", "submit, close"),
        // It is before starts_at.
        (&approved, "start", "refuse, close"),
        (&approved, "submit", "refuse, close"),
        (&running, "withdraw", "close"),
        (&running, "reopen", "close"),
    ] {
        let before = app.activity(activity).await;
        let problem = operator.asks(activity, event).await.refused(409, "transition_not_allowed");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.ends_with(&format!("possible now: {possible}")), "{event}: {detail}");
        assert_eq!(app.activity(activity).await, before);
    }
    operator.asks("1", "submit").await.refused(404, "not_found");
}

async fn an_activity_is_edited_before_it_is_submitted(app: &TestApp) {
    let operator = app.operator().await;
    let activity = app.editing(later()).await;
    let path = format!("/admin/activities/{activity}");

    let edit = json!({"name": "Lanterns", "stock_total": 3, "take_limit_per_user": 1});
    let edited = operator.patch(&path, edit).await.is(200);
    assert_eq!(edited["name"], "Lanterns");
    assert_eq!(edited["stock"], json!({"total": 3, "remaining": 3}));
    assert_eq!(edited["take_limit_per_user"], 1);
    let unlimited = operator.patch(&path, json!({"take_limit_per_user": null})).await.is(200);
    assert_eq!(unlimited["take_limit_per_user"], json!(null));

    for edit in [
        json!({"stock_total": 0}),
        json!({"state": "running"}),
        json!({"version": 1}),
        json!({"take_limit_per_user": 0}),
        json!({"ends_at": edited["starts_at"]}),
        json!({"name": null}),
    ] {
        operator.patch(&path, edit).await.refused(422, "validation_failed");
    }
    assert_eq!(operator.patch(&path, json!({})).await.is(200), unlimited);

    operator.asks(&activity, "submit").await.is(200);
    operator.patch(&path, json!({"name": "Rockets"})).await.refused(409, "transition_not_allowed");
    operator.patch("/admin/activities/1", json!({"name": "Rockets"})).await.refused(404, "not_found");
}

async fn only_a_running_activity_gives_units(app: &TestApp) {
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let activity = app.editing(Offer::of(10)).await;
    for event in ["submit", "approve"] {
        alice.take(&activity).await.refused(409, "activity_not_running");
        operator.asks(&activity, event).await.is(200);
    }
    operator.asks(&activity, "start").await.is(200);
    alice.take(&activity).await.take();

    // By its date, before any job has looked.
    app.pass(TimeDelta::hours(1) + TimeDelta::microseconds(1));
    let problem = alice.take(&activity).await.refused(409, "activity_not_running");
    assert!(problem["detail"].as_str().is_some(), "{problem}");
    alice.take("1").await.refused(404, "not_found");
    alice.take("0x1").await.refused(404, "not_found");
}

async fn the_clock_starts_and_closes_activities(app: &TestApp) {
    let alice = app.customer("alice").await;
    let activities = join_all((0..5).map(|_| app.approved(later()))).await;
    let draft = app.editing(later()).await;
    let all_are = async |state: &str| {
        let states = join_all(activities.iter().map(|activity| app.activity(activity))).await;
        states.iter().all(|activity| activity["state"] == state)
    };

    app.pass(TimeDelta::hours(1) - TimeDelta::microseconds(1));
    alice.take(&activities[0]).await.refused(409, "activity_not_running");
    app.pass(TimeDelta::microseconds(1));
    eventually(async || all_are("running").await).await;
    eventually(async || alice.take(&activities[0]).await.status == 201).await;

    app.pass(TimeDelta::hours(1) + TimeDelta::microseconds(1));
    eventually(async || all_are("closed").await).await;
    for activity in &activities {
        alice.take(activity).await.refused(409, "activity_not_running");
    }
    assert_eq!(app.activity(&draft).await["state"], "editing");
    // ends_at has passed: there is nothing to reopen for.
    app.operator().await.asks(&activities[0], "reopen").await.refused(409, "transition_not_allowed");
}

/// Takes until told that the activity does not run.
async fn take_while_it_runs(shopper: &Client, activity: &str) -> Vec<Take> {
    let mut takes = Vec::new();
    loop {
        let answer = shopper.take(activity).await;
        if answer.status != 201 {
            answer.refused(409, "activity_not_running");
            return takes;
        }
        takes.push(answer.take());
    }
}

async fn nothing_is_taken_after_the_answer_to_close(app: &TestApp) {
    let activity = app.running(Offer::of(100_000)).await;
    let (shoppers, operator) = (app.customers(20).await, app.operator().await);
    let in_database = async || {
        let connection = app.database.connect().await;
        let count = take::Entity::find().count(&connection).await.unwrap();
        connection.close().await.unwrap();
        usize::try_from(count).unwrap()
    };

    let closing = async {
        eventually(async || in_database().await >= 100).await;
        operator.asks(&activity, "close").await.is(200);
        in_database().await
    };
    let storm = join_all(shoppers.iter().map(|shopper| take_while_it_runs(shopper, &activity)));
    let (sold, at_close) = join(storm, closing).await;
    let sold = sold.concat();
    assert_eq!((sold.len(), in_database().await), (at_close, at_close));

    // It goes on where it stopped: no unit is sold again.
    operator.asks(&activity, "reopen").await.is(200);
    eventually(async || app.activity(&activity).await["state"] == "running").await;
    let gone_on = AtomicBool::new(false);
    eventually(async || {
        let answer = shoppers[0].take(&activity).await;
        if answer.status == 201 {
            gone_on.store(true, Ordering::Relaxed);
            assert!(!tokens(&sold).contains(&answer.take().token_no));
        }
        gone_on.load(Ordering::Relaxed)
    })
    .await;
}

async fn a_repeated_creation_creates_once(app: &TestApp) {
    let operator = app.operator().await;
    let create = async || {
        let request = operator.request(Method::POST, "/admin/activities").header("idempotency-key", "new");
        Answer::to(request.json(&Offer::of(1).body(crate::support::START))).await
    };
    let answers = join_all((0..10).map(|_| create())).await;
    let mut created: Vec<Answer> = Vec::new();
    for answer in answers {
        // A twin may have to come back later.
        if answer.status == 409 {
            answer.refused(409, "idempotency_in_progress");
        } else {
            created.push(answer);
        }
    }
    assert_eq!(created.iter().filter(|answer| !answer.is_replayed()).count(), 1);
    let first = create().await.is(201);
    for answer in created {
        assert_eq!(answer.is(201), first);
    }
    let listed = operator.get("/admin/activities").await.is(200);
    assert_eq!(listed, json!({"items": [first], "next_cursor": null}));
}
