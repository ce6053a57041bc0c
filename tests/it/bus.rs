//! The contract of the event bus and of consumer groups, on both buses and all databases.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tombola::messaging::catalogue::EventType::{self, *};
use tombola::messaging::consumer::Group;
use tombola::messaging::groups::Groups;
use tombola::messaging::reconcile::SentAgainstApplied;
use tombola::messaging::relay::Relay;
use tombola::ports::event_bus::GroupSpec;
use tombola::ports::event_bus::embedded::EmbeddedBus;
use tombola::reconciliation::Comparison;

use crate::support::spine::{Bus, Mood, Spine, spec};
use crate::support::{Engine, eventually};

/// Makes each promise a test on each bus and database, as in `bus::rabbitmq::postgres::a_group_applies_an_event_once`.
macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        mod embedded { promises!(@databases Embedded: $($promise),+); }
        mod rabbitmq { promises!(@databases RabbitMq: $($promise),+); }
    };
    (@databases $bus:ident: $($promise:ident),+) => {
        promises!(@tests sqlite Sqlite $bus: $($promise),+);
        promises!(@tests postgres Postgres $bus: $($promise),+);
        promises!(@tests mariadb MariaDb $bus: $($promise),+);
    };
    (@tests $module:ident $engine:ident $bus:ident: $($promise:ident),+) => {
        mod $module {
            $(#[test] fn $promise() {
                crate::bus::keep(crate::support::spine::Bus::$bus, crate::support::Engine::$engine, crate::bus::$promise);
            })+
        }
    };
}

promises!(
    a_group_applies_its_events_once,
    a_poisonous_event_takes_no_neighbour_with_it,
    what_was_discarded_is_not_applied_when_it_comes_again,
    a_panic_is_a_failure_of_one_event,
    who_is_held_up_by_others_waits_and_is_not_given_up_at_once,
    an_ordered_group_keeps_the_order_of_a_subject,
    what_comes_too_early_is_put_back,
    late_events_are_ignored_by_who_wants_the_latest,
    an_effect_elsewhere_is_performed_and_noted,
    a_node_that_dies_leaves_nothing_undone,
    two_nodes_share_a_group,
    every_node_hears_a_broadcast,
    an_event_that_was_lost_is_found_and_delivered_again,
    what_the_embedded_bus_had_queued_is_delivered_by_the_next_bus,
    one_event_of_a_subject_may_stand_for_those_that_come_with_it,
);

const TAKEN: &[EventType] = &[ActivityTaken];
const ALL: &[EventType] = &[ActivityTaken, ActivityTakeReleased, ActivityStateChanged];

fn keep(bus: Bus, engine: Engine, promise: impl AsyncFnOnce(&Spine)) {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(async {
        let spine = Spine::new(bus, engine).await;
        tokio::time::timeout(Duration::from_secs(60), promise(&spine)).await.expect("it comes to an end");
        spine.end().await;
    });
}

fn ordered(name: &'static str) -> GroupSpec {
    GroupSpec { ordered: true, ..spec(name, ALL) }
}

async fn a_group_applies_its_events_once(spine: &Spine) {
    let groups = || vec![spine.recorder(spec("all", ALL)), spine.recorder(spec("taken", TAKEN))];
    let mut taken = Vec::new();
    let mut released = Vec::new();
    // What is committed before anyone listens, and after.
    for _ in 0..20 {
        taken.extend(spine.commit(&[(ActivityTaken, "7", None); 10]).await);
    }
    let node = spine.node(groups());
    for _ in 0..20 {
        let ids = spine.commit(&[(ActivityTaken, "8", None), (ActivityTakeReleased, "7", None)]).await;
        taken.push(ids[0]);
        released.push(ids[1]);
    }
    let all = [taken.clone(), released].concat();
    spine.has_applied("taken", &taken).await;
    spine.has_applied("all", &all).await;
    eventually(async || spine.is_quiet().await).await;

    // Published a second time, they are known.
    spine.forget_what_was_sent().await;
    taken.extend(spine.commit(&[(ActivityTaken, "9", None)]).await);
    spine.has_applied("taken", &taken).await;
    eventually(async || spine.is_quiet().await).await;
    node.stop().await;
    spine.has_applied("taken", &taken).await;
    assert_eq!(spine.logged("taken").await, taken.len() as u64);
    assert!(spine.letters().await.is_empty());
}

async fn one_event_of_a_subject_may_stand_for_those_that_come_with_it(spine: &Spine) {
    const ROWS: usize = 40;
    let group = GroupSpec { coalesced: true, ..spec("taken", TAKEN) };
    let groups = || vec![spine.recorder(group).harmless_repeats()];
    for _ in 0..ROWS {
        let others = [(ActivityTaken, "8", None), (ActivityStateChanged, "9", None)];
        spine.commit(&[&[(ActivityTaken, "7", None)][..], &others].concat()).await;
    }
    // RabbitMQ hands over every event; the embedded bus one for each subject of what is in its queue by then.
    let each = match spine.vhost {
        Some(_) => ROWS,
        None => {
            let stop = CancellationToken::new();
            let relay = Relay::new(spine.db.clone(), spine.bus(&groups()), 1, Duration::from_millis(20));
            let relaying = tokio::spawn(relay.run(stop.clone()));
            eventually(async || spine.queued().await == ROWS as u64).await;
            stop.cancel();
            relaying.await.unwrap();
            1
        }
    };
    let node = spine.node(groups());
    eventually(async || spine.effects("taken").await.len() >= 2 * each && spine.is_quiet().await).await;
    let mut subjects: Vec<String> = spine.effects("taken").await.into_iter().map(|(_, of)| of).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, [vec!["7"; each], vec!["8"; each]].concat());

    // What comes later is not taken for what came before.
    let later = spine.commit(&[(ActivityTaken, "7", None)]).await;
    eventually(async || spine.applied("taken").await.contains(&later[0])).await;
    node.stop().await;
}

async fn a_poisonous_event_takes_no_neighbour_with_it(spine: &Spine) {
    let group = spec("taken", TAKEN);
    let moods = [(10, Mood::Fail, 100), (20, Mood::Fail, 2), (25, Mood::FailLate, 2)];
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 30], &moods).await;
    let poison = ids[10];
    let node = spine.node(vec![spine.recorder(group)]);
    ids.retain(|id| *id != poison);
    spine.has_applied("taken", &ids).await;
    eventually(async || !spine.letters().await.is_empty() && spine.is_quiet().await).await;

    let letter = spine.letters().await.remove(0);
    assert_eq!((letter.event_id, letter.attempts, letter.replays), (Some(poison), 3, 0));
    assert_eq!((letter.group_name.as_str(), letter.origin.as_str()), ("taken", "tombola.taken"));
    assert_eq!((letter.state.as_str(), letter.error), ("waiting", format!("{poison} is poisonous")));
    assert!(letter.body.contains(&format!("\"id\":\"{poison}\"")), "{}", letter.body);

    // Whatever was wrong is mended; the event is applied under its own id.
    let letters = spine.dead_letters(&[group]);
    spine.moods.lock().unwrap().clear();
    letters.replay(tombola::ids::DeadLetterId(letter.id), None).await.unwrap();
    ids.push(poison);
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.letters().await[0].state == "applied").await;
    assert_eq!(spine.letters().await[0].replays, 1);
    node.stop().await;
}

async fn what_was_discarded_is_not_applied_when_it_comes_again(spine: &Spine) {
    let groups = [spec("taken", TAKEN), spec("repeated", TAKEN)];
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 3], &[(1, Mood::Fail, 100)]).await;
    let discarded = ids.remove(1);
    let node = spine.node(vec![spine.recorder(groups[0]), spine.recorder(groups[1]).harmless_repeats()]);
    eventually(async || spine.letters().await.len() == 2 && spine.is_quiet().await).await;
    let letters = spine.dead_letters(&groups);
    for letter in spine.letters().await {
        assert_eq!(letter.event_id, Some(discarded));
        let id = tombola::ids::DeadLetterId(letter.id);
        letters.discard(id, "a test".to_owned(), tombola::ids::UserId(1)).await.unwrap();
    }

    // By now it could be applied.
    spine.moods.lock().unwrap().clear();
    spine.forget_what_was_sent().await;
    ids.extend(spine.commit(&[(ActivityTaken, "7", None)]).await);
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.applied("repeated").await.len() >= 5 && spine.is_quiet().await).await;
    assert!(!spine.applied("repeated").await.contains(&discarded));
    assert!(spine.letters().await.iter().all(|letter| letter.state == "discarded"));
    node.stop().await;
    spine.has_applied("taken", &ids).await;
}

async fn a_panic_is_a_failure_of_one_event(spine: &Spine) {
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 5], &[(2, Mood::Panic, 100)]).await;
    let poison = ids.remove(2);
    let node = spine.node(vec![spine.recorder(spec("taken", TAKEN))]);
    spine.has_applied("taken", &ids).await;
    eventually(async || !spine.letters().await.is_empty() && spine.is_quiet().await).await;
    let letters = spine.letters().await;
    assert_eq!((letters.len(), letters[0].event_id), (1, Some(poison)));
    assert!(letters[0].error.contains("panic"), "{}", letters[0].error);
    node.stop().await;
}

async fn who_is_held_up_by_others_waits_and_is_not_given_up_at_once(spine: &Spine) {
    let node = spine.node(vec![spine.recorder(spec("taken", TAKEN))]);
    // More often than an event may fail, together and alone; and for ever.
    let moods = [(1, Mood::HeldUp, 12), (2, Mood::HeldUp, usize::MAX)];
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 4], &moods).await;
    let hopeless = ids.remove(2);
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.letters().await.len() == 1 && spine.is_quiet().await).await;
    let letter = spine.letters().await.remove(0);
    assert_eq!((letter.event_id, letter.attempts), (Some(hopeless), 3), "{letter:#?}");
    node.stop().await;
}

async fn an_ordered_group_keeps_the_order_of_a_subject(spine: &Spine) {
    const SUBJECTS: [&str; 5] = ["1", "2", "3", "4", "5"];
    let mut of_subject = vec![Vec::new(); SUBJECTS.len()];
    let node = spine.node(vec![spine.recorder(ordered("in_order"))]);
    for round in 0..30_i64 {
        let events = SUBJECTS.map(|subject| (ActivityStateChanged, subject, Some(round + 1)));
        let moods: &[(usize, Mood, usize)] = match round {
            10 => &[(1, Mood::Fail, 2)],
            // This one dies; the events behind it go on.
            15 => &[(2, Mood::Fail, 100)],
            _ => &[],
        };
        let ids = spine.commit_with(&events, moods).await;
        for (of_subject, id) in of_subject.iter_mut().zip(ids) {
            of_subject.push(id);
        }
    }
    eventually(async || spine.is_quiet().await && spine.applied("in_order").await.len() >= 149).await;
    let effects = spine.effects("in_order").await;
    let dead: Vec<i64> = spine.letters().await.iter().filter_map(|letter| letter.event_id).collect();
    for (subject, ids) in SUBJECTS.iter().zip(&of_subject) {
        let applied: Vec<i64> = effects.iter().filter(|(_, of)| of == subject).map(|(id, _)| *id).collect();
        let expected: Vec<i64> = ids.iter().copied().filter(|id| !dead.contains(id)).collect();
        assert_eq!(applied, expected, "the order of subject {subject}");
    }
    node.stop().await;
}

async fn what_comes_too_early_is_put_back(spine: &Spine) {
    // A failure would have two tries after its first, this has three.
    let ids = spine.commit_with(&[(ActivityTaken, "7", None); 3], &[(1, Mood::NotYet, 3)]).await;
    let node = spine.node(vec![spine.recorder(spec("taken", TAKEN))]);
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.is_quiet().await).await;
    assert!(spine.letters().await.is_empty());
    node.stop().await;
}

async fn late_events_are_ignored_by_who_wants_the_latest(spine: &Spine) {
    let node = spine.node(vec![spine.recorder(spec("latest", ALL)).latest_only()]);
    let state = |sequence| (ActivityStateChanged, "7", Some(sequence));
    let first = spine.commit(&[state(2)]).await;
    spine.has_applied("latest", &first).await;
    spine.commit(&[state(1)]).await;
    let later = spine.commit(&[state(4), (ActivityStateChanged, "8", Some(1))]).await;
    spine.has_applied("latest", &[first.clone(), later.clone()].concat()).await;
    spine.commit(&[state(3)]).await;
    let last = spine.commit(&[state(5)]).await;
    spine.has_applied("latest", &[first, later, last].concat()).await;
    eventually(async || spine.logged("latest").await == 6).await;
    node.stop().await;
}

async fn an_effect_elsewhere_is_performed_and_noted(spine: &Spine) {
    let moods = [(4, Mood::Fail, 2), (5, Mood::Fail, 100)];
    spine.commit_with(&[(ActivityTaken, "7", None); 10], &moods).await;
    let node = spine.node(vec![spine.outside(spec("calls", TAKEN))]);
    eventually(async || spine.letters().await.len() == 1 && spine.is_quiet().await).await;
    assert_eq!((spine.performed(), spine.logged("calls").await), (9, 9));
    // Delivered again, it is not performed again.
    spine.forget_what_was_sent().await;
    spine.commit(&[(ActivityTaken, "8", None)]).await;
    eventually(async || spine.performed() >= 10 && spine.logged("calls").await == 10).await;
    eventually(async || spine.is_quiet().await).await;
    assert_eq!(spine.performed(), 10);
    node.stop().await;
}

async fn a_node_that_dies_leaves_nothing_undone(spine: &Spine) {
    let groups = || vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(ordered("in_order"))];
    let mut ids = Vec::new();
    for round in 0..6 {
        let node = spine.node(groups());
        for _ in 0..10 {
            ids.extend(spine.commit(&[(ActivityTaken, "7", None), (ActivityTaken, "8", None)]).await);
        }
        eventually(async || spine.applied("taken").await.len() > round * 15).await;
        // As by kill -9, except that the leases of the dead need not run out.
        drop(node);
        spine.execute("DELETE FROM job_lease").await;
    }
    let node = spine.node(groups());
    spine.has_applied("taken", &ids).await;
    spine.has_applied("in_order", &ids).await;
    eventually(async || spine.is_quiet().await).await;
    node.stop().await;
}

async fn two_nodes_share_a_group(spine: &Spine) {
    let groups = || vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(ordered("in_order"))];
    let nodes = [spine.node(groups()), spine.node(groups())];
    let mut ids = Vec::new();
    for number in 0..50 {
        ids.extend(spine.commit(&[(ActivityTaken, ["1", "2", "3"][number % 3], None); 4]).await);
    }
    spine.has_applied("taken", &ids).await;
    spine.has_applied("in_order", &ids).await;
    for node in nodes {
        node.stop().await;
    }
    spine.has_applied("taken", &ids).await;
}

async fn every_node_hears_a_broadcast(spine: &Spine) {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use tombola::ports::event_bus::{Heard, Listener};

    let nodes = [spine.node(vec![]), spine.node(vec![])];
    let stop = CancellationToken::new();
    let mut heard = Vec::new();
    let mut listening = Vec::new();
    for node in &nodes {
        let ear: Arc<Mutex<Vec<Option<i64>>>> = Arc::default();
        heard.push(ear.clone());
        let listener: Listener = Arc::new(move |what| {
            ear.lock().unwrap().push(match what {
                Heard::Anew => None,
                Heard::Event(event) => Some(event.id.0),
            });
            std::future::ready(()).boxed()
        });
        let (bus, stop) = (node.bus.clone(), stop.clone());
        listening.push(tokio::spawn(async move { bus.broadcast(TAKEN, listener, stop).await }));
    }
    eventually(async || heard.iter().all(|ear| !ear.lock().unwrap().is_empty())).await;
    let ids = spine.commit(&[(ActivityTaken, "7", None), (ActivityTakeReleased, "7", None)]).await;
    eventually(async || heard.iter().all(|ear| ear.lock().unwrap().len() >= 2)).await;
    for ear in &heard {
        assert_eq!(*ear.lock().unwrap(), [None, Some(ids[0])]);
    }
    stop.cancel();
    for task in listening {
        task.await.unwrap();
    }
    for node in nodes {
        node.stop().await;
    }
}

fn sent_against_applied(spine: &Spine, groups: Vec<Group>) -> SentAgainstApplied {
    let (db, ids) = (spine.db.clone(), spine.cluster.ids().clone());
    SentAgainstApplied::new(db, ids, &Groups::new(groups), spine.vhost.is_none())
}

async fn an_event_that_was_lost_is_found_and_delivered_again(spine: &Spine) {
    let groups = || vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(spec("all", ALL))];
    let node = spine.node(groups());
    let ids = spine.commit(&[(ActivityTaken, "7", None); 5]).await;
    spine.has_applied("taken", &ids).await;
    spine.has_applied("all", &ids).await;
    let comparison = sent_against_applied(spine, groups());
    // Sent eleven minutes ago: long enough to be missed.
    spine.execute("UPDATE outbox SET sent_at = sent_at - 660000000").await;
    eventually(async || spine.is_quiet().await).await;
    assert_eq!(comparison.compare().await.unwrap(), []);

    spine.execute("DELETE FROM effect WHERE group_name = 'taken'").await;
    spine.execute("DELETE FROM consumer_log WHERE group_name = 'taken'").await;
    // The groups are younger.
    assert_eq!(comparison.compare().await.unwrap(), []);
    spine.execute("UPDATE consumer_group SET logged_since = 0").await;
    let differences = comparison.compare().await.unwrap();
    assert_eq!(differences.len(), 5);
    for difference in &differences {
        assert!(comparison.apply(&difference.subject).await.unwrap().is_some());
    }
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.is_quiet().await).await;
    assert_eq!(comparison.compare().await.unwrap(), []);
    assert_eq!(comparison.apply(&differences[0].subject).await.unwrap(), None);
    node.stop().await;
    spine.has_applied("all", &ids).await;

    // A row that nobody can read is a difference, and keeps no other from being compared.
    spine.execute("UPDATE outbox SET events = '[{'").await;
    let differences = comparison.compare().await.unwrap();
    assert_eq!(differences.len(), 1, "{differences:#?}");
    assert_eq!(differences[0].action, tombola::reconciliation::LOOK_AT_IT);
    assert!(comparison.apply(&differences[0].subject).await.unwrap().unwrap().contains("cannot be read"));
}

async fn what_the_embedded_bus_had_queued_is_delivered_by_the_next_bus(spine: &Spine) {
    let groups = || vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(spec("all", ALL))];
    const ROWS: usize = 20;
    let mut ids = Vec::new();
    for _ in 0..ROWS {
        ids.extend(spine.commit(&[(ActivityTaken, "7", None)]).await);
    }
    let specs: Vec<GroupSpec> = groups().iter().map(|group| group.spec).collect();
    let embedded = Arc::new(EmbeddedBus::new(spine.db.clone(), 1, &specs));
    let stop = CancellationToken::new();
    let relay = Relay::new(spine.db.clone(), embedded, 1, Duration::from_millis(20));
    let relaying = tokio::spawn(relay.run(stop.clone()));
    eventually(async || spine.queued().await == 2 * ROWS as u64).await;
    stop.cancel();
    relaying.await.unwrap();

    // Sent eleven minutes ago: what another bus will never deliver is missing.
    spine.execute("UPDATE outbox SET sent_at = sent_at - 660000000").await;
    let comparison = sent_against_applied(spine, groups());
    assert_eq!(comparison.compare().await.unwrap().is_empty(), spine.vhost.is_none());

    let node = spine.node(groups());
    spine.has_applied("taken", &ids).await;
    spine.has_applied("all", &ids).await;
    eventually(async || spine.is_quiet().await).await;
    assert_eq!(comparison.compare().await.unwrap(), []);
    node.stop().await;
}
