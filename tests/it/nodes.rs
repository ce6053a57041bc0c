//! Several servers on one database, and servers that come and go.

use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::{join, join_all};
use reqwest::Method;
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use crate::support::database::session;
use crate::support::process::Launch;
use crate::support::{
    Answer, Client, Engine, Offer, Take, TestApp, eventually, shared_stories, stories, tell,
};
use crate::takes::{crowd, take_all, tokens};

stories!(a_restart_loses_nothing, a_shop_keeps_its_currency);

/// Where a row that is shared can be shared further while somebody waits to change it.
mod turns {
    use super::*;

    #[test]
    fn changes_get_their_turn_among_sharers() {
        tell(Engine::Postgres, super::changes_get_their_turn_among_sharers);
    }

    #[test]
    fn batches_wait_behind_a_change() {
        tell(Engine::Postgres, super::batches_wait_behind_a_change);
    }
}

/// On databases that servers share.
mod shared {
    use super::*;

    shared_stories!(
        two_nodes_sell_one_activity_exactly,
        a_limit_holds_across_nodes,
        the_last_units_are_sold_by_whichever_node_is_asked,
        a_node_sells_no_token_that_was_taken_over,
        what_one_node_releases_the_other_sells,
        a_limit_given_back_at_one_node_counts_at_the_other,
        what_one_node_starts_the_other_sells,
        a_close_at_one_node_ends_takes_at_the_other,
        a_repeat_is_known_at_every_node,
        a_node_that_leaves_strands_nothing,
    );

    /// Takes one unit; a node believes for a second at most what it found out last.
    async fn take_soon(shopper: &Client, activity: &str) -> Take {
        let taken = Mutex::new(None);
        eventually(async || {
            let answer = shopper.take(activity).await;
            let success = answer.status == 201;
            if success {
                *taken.lock().unwrap() = Some(answer.take());
            }
            success
        })
        .await;
        taken.into_inner().unwrap().unwrap()
    }

    /// Takes at either node in turn, until both refuse.
    async fn take_at_both(shopper: [&Client; 2], activity: &str) -> Vec<Take> {
        let mut takes = Vec::new();
        let mut refusals = 0;
        for turn in 0.. {
            let answer = shopper[turn % 2].take(activity).await;
            if answer.status == 201 {
                refusals = 0;
                takes.push(answer.take());
                continue;
            }
            let code = answer.body["code"].clone();
            assert!(code == "sold_out" || code == "take_limit_reached", "{}", answer.body);
            refusals += 1;
            if refusals == 2 {
                break;
            }
        }
        takes
    }

    async fn two_nodes_sell_one_activity_exactly(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(1000).limit(30)).await;
        let here = app.customers(40).await;
        let there: Vec<Client> = here.iter().map(|shopper| shopper.at(&node)).collect();

        let shopping = here.iter().zip(&there).map(|(here, there)| {
            let (one, other) =
                (take_at_both([here, there], &activity), take_at_both([there, here], &activity));
            join(one, other)
        });
        let hauls = join_all(shopping).await;

        let sold: Vec<Take> =
            hauls.iter().flat_map(|(one, other)| one.iter().chain(other)).cloned().collect();
        assert_eq!(tokens(&sold), (1..=1000).collect::<Vec<_>>());
        assert!(hauls.iter().all(|(one, other)| one.len() + other.len() <= 30));
        assert_eq!(app.remaining(&activity).await, 0);
        eventually(async || !app.events(&activity, "activity.sold_out.v1").await.is_empty()).await;
        node.stop().await;
        assert_eq!(app.events(&activity, "activity.sold_out.v1").await.len(), 1);
    }

    async fn a_limit_holds_across_nodes(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(1000).limit(3)).await;
        let here = app.customer("alice").await;
        let there = here.at(&node);

        let answers = join_all((0..100).map(|turn| [&here, &there][turn % 2].take(&activity))).await;

        let (taken, refused): (Vec<Answer>, Vec<Answer>) =
            answers.into_iter().partition(|answer| answer.status == 201);
        let mut numbers: Vec<i64> = taken.into_iter().map(|answer| answer.take().take_no).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3]);
        for answer in refused {
            answer.refused(409, "take_limit_reached");
        }
        node.stop().await;
    }

    async fn the_last_units_are_sold_by_whichever_node_is_asked(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(40)).await;
        let here = app.customer("alice").await;
        let there = here.at(&node);

        here.take(&activity).await.take();
        there.take(&activity).await.take();
        // Nobody asks the first node any more, whatever it holds.
        assert_eq!(take_all(&there, &activity).await.len(), 38);
        here.take(&activity).await.refused(409, "sold_out");
        node.stop().await;
    }

    async fn a_node_sells_no_token_that_was_taken_over(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(40)).await;
        let (here, operator) = (app.customer("alice").await, app.operator().await);
        let there = here.at(&node);

        let mut sold = vec![here.take(&activity).await.take()];
        // The other node takes tokens over, and then every one of them is free.
        let taken_over = there.take(&activity).await.take();
        operator.at(&node).release(&taken_over.id).await.is(200);

        sold.extend(take_all(&here, &activity).await);
        assert_eq!(tokens(&sold), (1..=40).collect::<Vec<_>>());
        node.stop().await;
    }

    async fn what_one_node_releases_the_other_sells(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(20)).await;
        let (here, operator) = (app.customer("alice").await, app.operator().await);
        let sold = take_all(&here, &activity).await;
        let bob = app.customer("bob").await.at(&node);
        bob.take(&activity).await.refused(409, "sold_out");
        let announced = async || app.events(&activity, "activity.sold_out.v1").await.len();
        eventually(async || announced().await == 1).await;

        for take in &sold[5..10] {
            operator.release(&take.id).await.is(200);
        }

        let mut resold = vec![take_soon(&bob, &activity).await];
        resold.extend(take_all(&bob, &activity).await);
        assert_eq!(tokens(&resold), tokens(&sold[5..10]));
        eventually(async || announced().await == 2).await;
        assert_eq!(app.remaining(&activity).await, 0);
        node.stop().await;
    }

    async fn a_limit_given_back_at_one_node_counts_at_the_other(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(20).limit(1)).await;
        let there = app.customer("alice").await.at(&node);
        let take = there.take(&activity).await.take();
        there.take(&activity).await.refused(409, "take_limit_reached");

        app.operator().await.release(&take.id).await.is(200);
        assert_eq!(take_soon(&there, &activity).await.take_no, 1);
        there.take(&activity).await.refused(409, "take_limit_reached");
        node.stop().await;
    }

    async fn what_one_node_starts_the_other_sells(app: &TestApp) {
        let node = app.another_node().await;
        let later = Offer::of(20).between(TimeDelta::hours(1), TimeDelta::hours(2));
        let activity = app.approved(later).await;
        let there = app.customer("alice").await.at(&node);
        there.take(&activity).await.refused(409, "activity_not_running");

        app.pass(TimeDelta::hours(1));
        app.operator().await.asks(&activity, "start").await.is(200);
        take_soon(&there, &activity).await;
        node.stop().await;
    }

    async fn a_close_at_one_node_ends_takes_at_the_other(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(100)).await;
        let (alice, operator) = (app.customer("alice").await, app.operator().await);
        alice.take(&activity).await.take();
        alice.at(&node).take(&activity).await.take();
        // Its tokens were divided: with this one the first node knows again what it holds, and nothing but the activity
        // itself tells it that it is closed.
        alice.take(&activity).await.take();

        operator.at(&node).asks(&activity, "close").await.is(200);
        alice.take(&activity).await.refused(409, "activity_not_running");
        alice.at(&node).take(&activity).await.refused(409, "activity_not_running");
        assert_eq!(app.remaining(&activity).await, 97);
        node.stop().await;
    }

    async fn a_repeat_is_known_at_every_node(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(100)).await;
        let here = app.customer("alice").await;
        let there = here.at(&node);

        let answers =
            join_all((0..20).map(|turn| [&here, &there][turn % 2].take_once(&activity, "twin"))).await;

        let first = here.take_once(&activity, "twin").await;
        assert!(first.is_replayed());
        let first = first.is(201);
        for answer in answers {
            assert_eq!(answer.is(201), first);
        }
        assert_eq!(app.remaining(&activity).await, 99);
        node.stop().await;
    }

    async fn a_node_that_leaves_strands_nothing(app: &TestApp) {
        let node = app.another_node().await;
        let activity = app.running(Offer::of(300)).await;
        let here = app.customers(10).await;
        let there: Vec<Client> = here.iter().map(|shopper| shopper.at(&node)).collect();

        let mut sold: Vec<Take> = Vec::new();
        for shopper in here.iter().chain(&there) {
            sold.push(shopper.take(&activity).await.take());
        }
        node.stop().await;
        sold.extend(crowd(&here, &activity).await);
        assert_eq!(tokens(&sold), (1..=300).collect::<Vec<_>>());
    }
}

/// Takes until sold out; what is not answered, or answered with 503, is asked again with the same key.
async fn insist(shopper: &Client, activity: &str) -> Vec<Take> {
    let mut takes = Vec::new();
    'next: for number in 0.. {
        loop {
            let request = shopper.request(Method::POST, &format!("/activities/{activity}/takes"));
            let Some(answer) = Answer::if_any(request.header("idempotency-key", number.to_string())).await
            else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            match answer.status {
                201 => {
                    takes.push(answer.take());
                    continue 'next;
                }
                503 => drop(answer),
                _ => {
                    answer.refused(409, "sold_out");
                    break 'next;
                }
            }
        }
    }
    takes
}

async fn a_restart_loses_nothing(app: &TestApp) {
    let activity = app.running(Offer::of(600)).await;
    let shoppers = app.customers(10).await;
    let restarting = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            app.restart().await;
        }
    };
    let (hauls, ()) =
        join(join_all(shoppers.iter().map(|shopper| insist(shopper, &activity))), restarting).await;
    assert_eq!(tokens(&hauls.concat()), (1..=600).collect::<Vec<_>>());
    assert_eq!(app.remaining(&activity).await, 0);
}

async fn a_shop_keeps_its_currency(app: &TestApp) {
    let launch = Launch::on(&app.database.url).with("SHOP__CURRENCY", "JPY");
    let run = async |arguments: &'static [&'static str]| {
        let launch = launch.clone();
        let done = tokio::task::spawn_blocking(move || launch.run(arguments)).await.unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let refused: &[&[&str]] = &[&["reconcile"], &["job", "list"], &["dead-letter", "list"]];
    let server: &[&[&str]] = if app.database.is_shared() { &[&["serve"]] } else { &[] };
    for arguments in refused.iter().chain(server) {
        let (code, told) = run(arguments).await;
        assert_eq!(code, Some(2), "{arguments:?}: {told}");
        for part in ["`shop.currency` (environment variable TOMBOLA__SHOP__CURRENCY)", "in CNY, not in JPY"] {
            assert!(told.contains(part), "{arguments:?}: {told}");
        }
    }
    for amounts_do_not_matter in [&["migrate"], &["user", "add", "paula", "--role", "viewer"]] as [&[&str]; 2]
    {
        let (code, told) = run(amounts_do_not_matter).await;
        assert_eq!(code, Some(0), "{told}");
    }
}

/// The sharers stand for batches of many nodes: each waits its turn, and there is some at any moment.
async fn changes_get_their_turn_among_sharers(app: &TestApp) {
    let (activity, operator) = (app.running(Offer::of(400)).await, app.operator().await);
    let share = format!(
        "SELECT pg_advisory_xact_lock_shared({activity}); \
         SELECT 1 FROM activity WHERE id = {activity} FOR SHARE; SELECT pg_sleep(0.1 + 0.4 * random())"
    );
    let changed = Cell::new(false);
    let sharing = (0..8).map(async |_| {
        let session = session(&app.database.url).await;
        while !changed.get() {
            session.execute_unprepared(&share).await.unwrap();
        }
        session.close().await.unwrap();
    });
    let changing = async {
        // What a node sells first it has to claim.
        let take = app.customer("alice").await.take(&activity).await.take();
        operator.release(&take.id).await.is(200);
        operator.adjust(&activity, 100).await.is(201);
        operator.asks(&activity, "close").await.is(200);
        changed.set(true);
    };
    join(join_all(sharing), changing).await;
    assert_eq!(app.remaining(&activity).await, 500);
}

async fn batches_wait_behind_a_change(app: &TestApp) {
    const WAITING: &str = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND NOT granted \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let (activity, alice) = (app.running(Offer::of(2)).await, app.customer("alice").await);
    alice.take(&activity).await.take();
    let changer = session(&app.database.url).await;
    for statement in ["BEGIN", &format!("SELECT pg_advisory_xact_lock({activity})")] {
        changer.execute_unprepared(statement).await.unwrap();
    }
    let changing = async {
        eventually(async || {
            let waiting = Statement::from_string(DbBackend::Postgres, WAITING);
            changer.query_one_raw(waiting).await.unwrap().is_some()
        })
        .await;
        changer.execute_unprepared("COMMIT").await.unwrap();
    };
    let (answer, ()) = join(alice.take(&activity), changing).await;
    answer.take();
    changer.close().await.unwrap();
}
