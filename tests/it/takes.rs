//! Taking units: sell-out, limits, releases, repeats.

use std::collections::HashSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Offer, Take, TestApp, eventually, stories};

stories!(
    sells_out_exactly,
    the_last_take_is_the_end,
    after_the_sell_out_nobody_is_asked_who_they_are,
    a_user_gets_no_more_than_the_limit,
    a_hundred_requests_of_one_user_at_once,
    a_released_unit_is_sold_again,
    a_release_happens_once,
    a_repeat_is_answered_like_the_first_request,
    of_fifty_twins_one_takes,
    a_refusal_is_not_kept,
    a_take_is_what_the_server_says,
);

/// Takes until the activity is sold out.
pub(crate) async fn take_all(shopper: &Client, activity: &str) -> Vec<Take> {
    let mut takes = Vec::new();
    loop {
        let answer = shopper.take(activity).await;
        if answer.status != 201 {
            answer.refused(409, "sold_out");
            return takes;
        }
        takes.push(answer.take());
    }
}

/// All shoppers together take until the activity is sold out.
pub(crate) async fn crowd(shoppers: &[Client], activity: &str) -> Vec<Take> {
    join_all(shoppers.iter().map(|shopper| take_all(shopper, activity))).await.concat()
}

/// The token numbers of takes, in order.
pub(crate) fn tokens<'a>(takes: impl IntoIterator<Item = &'a Take>) -> Vec<i64> {
    let mut tokens: Vec<i64> = takes.into_iter().map(|take| take.token_no).collect();
    tokens.sort_unstable();
    tokens
}

async fn sells_out_exactly(app: &TestApp) {
    let activity = app.running(Offer::of(100)).await;
    let shoppers = app.customers(30).await;

    let sold = crowd(&shoppers, &activity).await;

    assert_eq!(tokens(&sold), (1..=100).collect::<Vec<_>>());
    assert_eq!(app.remaining(&activity).await, 0);
    for shopper in &shoppers {
        let mine: HashSet<&str> =
            sold.iter().filter(|take| take.user_id == shopper.user_id).map(|take| take.id.as_str()).collect();
        let shown = shopper.my_takes().await;
        assert_eq!(shown.iter().map(|take| take.id.as_str()).collect::<HashSet<_>>(), mine);
    }
    eventually(async || !app.events(&activity, "activity.sold_out.v1").await.is_empty()).await;
    crowd(&shoppers, &activity).await;
    assert_eq!(app.events(&activity, "activity.sold_out.v1").await.len(), 1);
}

async fn the_last_take_is_the_end(app: &TestApp) {
    let activity = app.running(Offer::of(2)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let take = alice.take(&activity).await.take();
    alice.take(&activity).await.take();
    let sold_out = async || app.events(&activity, "activity.sold_out.v1").await.len();
    // Nobody asks for more.
    eventually(async || sold_out().await == 1).await;

    operator.release(&take.id).await.is(200);
    alice.take(&activity).await.take();
    eventually(async || sold_out().await == 2).await;
}

async fn after_the_sell_out_nobody_is_asked_who_they_are(app: &TestApp) {
    let activity = app.running(Offer::of(1)).await;
    let (alice, operator, nobody) = (app.customer("alice").await, app.operator().await, app.nobody());
    nobody.take(&activity).await.refused(401, "unauthenticated");
    let take = alice.take(&activity).await.take();

    // What the server knows grows old by itself, so look right after somebody was told.
    eventually(async || {
        alice.take(&activity).await.refused(409, "sold_out");
        nobody.take(&activity).await.status == 409
    })
    .await;
    nobody.take_once(&activity, "mine").await.refused(401, "unauthenticated");

    operator.release(&take.id).await.is(200);
    nobody.take(&activity).await.refused(401, "unauthenticated");
    alice.take(&activity).await.take();
}

async fn a_user_gets_no_more_than_the_limit(app: &TestApp) {
    let activity = app.running(Offer::of(10).limit(2)).await;
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);

    let first = alice.take(&activity).await.take();
    let second = alice.take(&activity).await.take();
    assert_eq!((first.take_no, second.take_no), (1, 2));
    alice.take(&activity).await.refused(409, "take_limit_reached");
    assert_eq!(bob.take(&activity).await.take().take_no, 1);

    // What is given back counts no more.
    app.operator().await.release(&first.id).await.is(200);
    assert_eq!(alice.take(&activity).await.take().take_no, 1);
    alice.take(&activity).await.refused(409, "take_limit_reached");
    assert_eq!(app.remaining(&activity).await, 7);
}

async fn a_hundred_requests_of_one_user_at_once(app: &TestApp) {
    let activity = app.running(Offer::of(1000).limit(3)).await;
    let alice = app.customer("alice").await;

    let answers = join_all((0..100).map(|_| alice.take(&activity))).await;

    let (taken, refused): (Vec<Answer>, Vec<Answer>) =
        answers.into_iter().partition(|answer| answer.status == 201);
    let numbers: HashSet<i64> = taken.into_iter().map(|answer| answer.take().take_no).collect();
    assert_eq!(numbers, HashSet::from([1, 2, 3]));
    assert_eq!(refused.len(), 97);
    for answer in refused {
        answer.refused(409, "take_limit_reached");
    }
    assert_eq!(alice.my_takes().await.len(), 3);
}

async fn a_released_unit_is_sold_again(app: &TestApp) {
    let activity = app.running(Offer::of(3)).await;
    let (alice, bob, operator) =
        (app.customer("alice").await, app.customer("bob").await, app.operator().await);
    let sold = take_all(&alice, &activity).await;
    bob.take(&activity).await.refused(409, "sold_out");
    let announced = async || app.events(&activity, "activity.sold_out.v1").await.len();
    eventually(async || announced().await == 1).await;

    operator.release(&sold[1].id).await.is(200);

    let again = bob.take(&activity).await.take();
    assert_eq!(again.token_no, sold[1].token_no);
    assert_ne!(again.id, sold[1].id);
    bob.take(&activity).await.refused(409, "sold_out");
    let states: Vec<String> = alice.my_takes().await.into_iter().map(|take| take.state).collect();
    assert_eq!(states, ["unused", "released", "unused"]);
    eventually(async || announced().await == 2).await;
}

async fn a_release_happens_once(app: &TestApp) {
    let activity = app.running(Offer::of(2)).await;
    let (alice, operator) = (app.customer("alice").await, app.operator().await);
    let take = alice.take(&activity).await.take();

    let answers = join_all((0..10).map(|_| operator.release(&take.id))).await;
    let expected = operator.release(&take.id).await.is(200);
    for answer in answers {
        assert_eq!(answer.is(200), expected);
    }
    let released: Take = serde_json::from_value(expected).unwrap();
    assert_eq!(released, Take { state: "released".into(), ..take.clone() });
    assert_eq!(app.remaining(&activity).await, 2);

    // Even after the unit was sold to the next one, who keeps it.
    let again = alice.take(&activity).await.take();
    operator.release(&take.id).await.is(200);
    assert_eq!(app.remaining(&activity).await, 1);
    assert_eq!(alice.my_takes().await[0], again);
}

async fn a_repeat_is_answered_like_the_first_request(app: &TestApp) {
    let activity = app.running(Offer::of(2).limit(2)).await;
    let (alice, bob, operator) =
        (app.customer("alice").await, app.customer("bob").await, app.operator().await);
    let first = alice.take_once(&activity, "one").await;
    assert!(!first.is_replayed());
    let repeats = async || {
        let repeat = alice.take_once(&activity, "one").await;
        assert!(repeat.is_replayed());
        assert_eq!((repeat.status, &repeat.body), (201, &first.body));
        // Quoted, it is the same key.
        assert_eq!(alice.take_once(&activity, "\"one\"").await.body, first.body);
    };
    repeats().await;

    // It is alice's key, for this activity, for this body.
    let other = app.running(Offer::of(1)).await;
    assert!(!alice.take_once(&other, "one").await.is_replayed());
    assert!(!bob.take_once(&activity, "one").await.is_replayed());
    let with_body = alice.request(Method::POST, &format!("/activities/{activity}/takes"));
    let with_body = with_body.header("idempotency-key", "one").json(&json!({}));
    Answer::to(with_body).await.refused(422, "idempotency_key_reused");

    bob.take(&activity).await.refused(409, "sold_out");
    repeats().await;
    operator.asks(&activity, "close").await.is(200);
    alice.take(&activity).await.refused(409, "activity_not_running");
    repeats().await;
    app.restart().await;
    repeats().await;
}

async fn of_fifty_twins_one_takes(app: &TestApp) {
    let activity = app.running(Offer::of(100)).await;
    let alice = app.customer("alice").await;

    let answers = join_all((0..50).map(|_| alice.take_once(&activity, "twin"))).await;

    assert_eq!(answers.iter().filter(|answer| !answer.is_replayed()).count(), 1);
    let bodies: HashSet<String> = answers.into_iter().map(|answer| answer.is(201).to_string()).collect();
    assert_eq!(bodies.len(), 1);
    assert_eq!(app.remaining(&activity).await, 99);
}

async fn a_refusal_is_not_kept(app: &TestApp) {
    let activity = app.running(Offer::of(1)).await;
    let (alice, bob) = (app.customer("alice").await, app.customer("bob").await);
    let take = alice.take(&activity).await.take();
    bob.take_once(&activity, "mine").await.refused(409, "sold_out");

    app.operator().await.release(&take.id).await.is(200);

    let answer = bob.take_once(&activity, "mine").await;
    assert!(!answer.is_replayed());
    assert_eq!(answer.take().token_no, take.token_no);
}

/// A client chooses neither whom a unit is for nor which one it is (mass assignment).
async fn a_take_is_what_the_server_says(app: &TestApp) {
    let activity = app.running(Offer::of(5)).await;
    let (alice, mallory) = (app.customer("alice").await, app.customer("mallory").await);
    let path = format!("/activities/{activity}/takes");
    for (member, value) in [
        ("user_id", json!(alice.user_id)),
        ("token_no", json!(5)),
        ("take_no", json!(7)),
        ("state", json!("used")),
        ("activity_id", json!(activity)),
        ("version", json!(1)),
    ] {
        let problem = mallory.post(&path, json!({member: value})).await.refused(422, "validation_failed");
        assert_eq!(problem["errors"][0]["pointer"], format!("/{member}"), "{problem}");
    }
    assert_eq!(app.remaining(&activity).await, 5);

    let take = mallory.post(&path, json!({})).await.take();
    assert_eq!((&take.user_id, &take.activity_id), (&mallory.user_id, &activity));
    assert_eq!((take.token_no, take.take_no, take.state.as_str()), (1, 1, "unused"));
    assert_eq!(take.taken_at, "2027-01-15T08:00:00.000000Z");
    assert_eq!(alice.my_takes().await, []);
    assert_eq!(mallory.get("/me/takes").await.is(200)["next_cursor"], Value::Null);
}
