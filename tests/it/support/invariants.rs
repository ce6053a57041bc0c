//! What must hold in the database after every story (RELIABILITY.md, B2).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use entities::{activity, goods, goods_ledger, idempotency, outbox, take, token_block};
use sea_orm::{DatabaseConnection, EntityTrait, QueryOrder};
use serde_json::Value;

use super::money;

/// Checks everything. No server runs.
pub(crate) async fn check(connection: &DatabaseConnection) {
    check_within(connection, 0).await;
}

/// As [`check`], where times may differ by `slack` microseconds: a server that sells what another one has just freed
/// stamps the take with the beginning of its round, a moment before it finds the token free.
pub(crate) async fn check_within(connection: &DatabaseConnection, slack: i64) {
    let mut takes: HashMap<i64, Vec<take::Model>> = HashMap::new();
    for take in take::Entity::find().order_by_asc(take::Column::Id).all(connection).await.unwrap() {
        takes.entry(take.activity_id).or_default().push(take);
    }
    for activity in activity::Entity::find().all(connection).await.unwrap() {
        let takes = takes.remove(&activity.id).unwrap_or_default();
        let blocks: Vec<token_block::Model> = token_block::Entity::find()
            .order_by_asc(token_block::Column::FirstToken)
            .all(connection)
            .await
            .unwrap()
            .into_iter()
            .filter(|block| block.activity_id == activity.id)
            .collect();
        the_drum_is_whole(&activity, &blocks);
        tokens_are_counted(&takes, &blocks);
        limits_are_kept(&activity, &takes);
        lives_do_not_overlap(&takes, slack);
        let mut events = events_of(connection, activity.id).await;
        each_take_has_its_event(&takes, &mut events);
    }
    assert!(takes.is_empty(), "takes of no activity");
    goods_are_their_ledger(connection).await;
    kept_answers_are_effects(connection).await;
    money::check(connection).await;
}

/// The units of goods are what their ledger adds up to, and nothing came back that was not sold.
async fn goods_are_their_ledger(connection: &DatabaseConnection) {
    let mut ledgers: HashMap<i64, Vec<goods_ledger::Model>> = HashMap::new();
    for entry in goods_ledger::Entity::find().all(connection).await.unwrap() {
        ledgers.entry(entry.goods_id).or_default().push(entry);
    }
    for goods in goods::Entity::find().all(connection).await.unwrap() {
        let ledger = ledgers.remove(&goods.id).unwrap_or_default();
        let sum = |kinds: &[&str]| -> i32 {
            let entries = ledger.iter().filter(|entry| kinds.contains(&entry.kind.as_str()));
            entries.map(|entry| entry.quantity).sum()
        };
        let total = sum(&["opening", "adjustment"]);
        let available = total + sum(&["sale", "return"]);
        assert_eq!((goods.stock_total, goods.available), (total, available), "{goods:?}");
        assert!((0..=total).contains(&available), "{goods:?}");
        let of_kind = |kind: &str| -> BTreeMap<i64, i32> {
            let entries = ledger.iter().filter(|entry| entry.kind == kind);
            entries.map(|entry| (entry.reference_id, entry.quantity)).collect()
        };
        let sales = of_kind("sale");
        for (order, quantity) in of_kind("return") {
            assert_eq!(sales.get(&order), Some(&-quantity), "what order {order} gave back");
        }
    }
    assert!(ledgers.is_empty(), "a ledger of no goods");
}

/// The blocks part the tokens without gap or overlap, and those on offer are as many as the stock.
fn the_drum_is_whole(activity: &activity::Model, blocks: &[token_block::Model]) {
    let mut next = 1;
    for block in blocks {
        assert_eq!(block.first_token, next, "a gap or an overlap before {block:?}");
        assert!(block.first_token <= block.last_token, "an empty block: {block:?}");
        next = block.last_token + 1;
    }
    let on_offer = blocks.iter().filter(|block| block.state != "retired");
    let on_offer: i32 = on_offer.map(|block| block.last_token - block.first_token + 1).sum();
    assert_eq!(on_offer, activity.stock_total, "tokens on offer and the stock of {activity:?}");
}

/// I1, I2: no token is held twice or lies outside the drum, and each block counts what is held of it.
fn tokens_are_counted(takes: &[take::Model], blocks: &[token_block::Model]) {
    let mut held = BTreeSet::new();
    for take in takes {
        let live = take.live_token.is_some();
        assert_eq!(live, take.live_take_no.is_some(), "half released: {take:?}");
        assert_eq!(live, take.state != "released", "{take:?}");
        assert_eq!(live, take.released_at.is_none(), "{take:?}");
        if let Some(token) = take.live_token {
            assert_eq!(token, take.token_no, "{take:?}");
            assert!(held.insert(token), "token {token} is held twice");
        }
    }
    for block in blocks {
        let of_block = held.range(block.first_token..=block.last_token).count();
        assert_eq!(usize::try_from(block.sold).unwrap(), of_block, "held of {block:?}");
        assert!(block.state != "retired" || of_block == 0, "sold after it was withdrawn: {block:?}");
    }
    let last = blocks.last().map_or(0, |block| block.last_token);
    assert_eq!(held.iter().find(|token| !(1..=last).contains(*token)), None, "a token outside the drum");
}

/// I5: no user holds more than the limit, and no take number twice.
fn limits_are_kept(activity: &activity::Model, takes: &[take::Model]) {
    let most = activity.take_limit_per_user.unwrap_or(i32::MAX);
    let mut numbers: HashMap<i64, BTreeSet<i32>> = HashMap::new();
    for take in takes {
        let Some(number) = take.live_take_no else { continue };
        assert!((1..=most).contains(&number), "{take:?} with a limit of {most}");
        assert!(numbers.entry(take.user_id).or_default().insert(number), "a number held twice: {take:?}");
    }
}

/// A token begins its next life after it was given back.
fn lives_do_not_overlap(takes: &[take::Model], slack: i64) {
    let mut lives: BTreeMap<i32, Vec<(i64, i64)>> = BTreeMap::new();
    for take in takes {
        let life = (take.taken_at, take.released_at.unwrap_or(i64::MAX));
        lives.entry(take.token_no).or_default().push(life);
    }
    for (token, mut lives) in lives {
        lives.sort_unstable();
        let overlap = lives.windows(2).find(|pair| pair[0].1.saturating_sub(slack) > pair[1].0);
        assert_eq!(overlap, None, "two lives of token {token} at a time");
    }
}

/// I10, as far as it is built: the outbox tells each take, and each release, exactly once and as it is in the database.
fn each_take_has_its_event(takes: &[take::Model], events: &mut BTreeMap<String, Vec<Value>>) {
    let mut of_type = |word: &str| {
        let mut told: Vec<(String, String, i64, i64)> = Vec::new();
        for event in events.remove(word).unwrap_or_default() {
            let text = |member: &str| event["data"][member].as_str().unwrap().to_owned();
            let number = |member: &str| event["data"][member].as_i64().unwrap();
            told.push((text("take_id"), text("user_id"), number("token_no"), number("take_no")));
        }
        told.sort_unstable();
        told
    };
    let known = |released_only: bool| {
        let takes = takes.iter().filter(|take| !released_only || take.state == "released");
        let mut known: Vec<(String, String, i64, i64)> = takes
            .map(|take| {
                (take.id.to_string(), take.user_id.to_string(), take.token_no.into(), take.take_no.into())
            })
            .collect();
        known.sort_unstable();
        known
    };
    assert_eq!(of_type("activity.taken.v1"), known(false), "events and takes");
    assert_eq!(of_type("activity.take_released.v1"), known(true), "events and releases");
}

/// The events about an activity, by type, in the order of their ids.
pub(crate) async fn events_of(
    connection: &DatabaseConnection,
    activity: i64,
) -> BTreeMap<String, Vec<Value>> {
    let subject = activity.to_string();
    let mut events: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for row in outbox::Entity::find().order_by_asc(outbox::Column::Id).all(connection).await.unwrap() {
        for event in serde_json::from_str::<Vec<Value>>(&row.events).unwrap() {
            assert!(ids.insert(event["id"].as_str().unwrap().to_owned()), "an event id twice: {event}");
            if event["subject"] == *subject {
                events.entry(event["type"].as_str().unwrap().to_owned()).or_default().push(event);
            }
        }
    }
    events
}

/// Only effects are kept for repeats, and each kept take exists.
async fn kept_answers_are_effects(connection: &DatabaseConnection) {
    for kept in idempotency::Entity::find().all(connection).await.unwrap() {
        assert!((200..300).contains(&kept.status), "{kept:?}");
        let body: Value = serde_json::from_str(&kept.body).unwrap();
        if let Some(id) = body["take"]["id"].as_str() {
            let take = take::Entity::find_by_id(id.parse::<i64>().unwrap()).one(connection).await.unwrap();
            let take = take.expect("the take of a kept answer");
            assert_eq!(body["take"]["token_no"], take.token_no);
        }
    }
}
