//! F19, F21, F23–F27 seen by a consumer group: what is delivered twice, in the wrong order, late or broken is applied
//! once, put back, or found among the dead letters, and never hurts its neighbours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use entities::outbox;
use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use sea_orm::{ConnectionTrait, EntityTrait, QueryOrder, Statement};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tombola::db::{DbFault, Tx};
use tombola::ids::{BatchId, EventId};
use tombola::messaging::catalogue::EventType::{self, *};
use tombola::messaging::consumer::{Group, Handler, HandlerError};
use tombola::messaging::envelope::{Envelope, MAX_BYTES};
use tombola::ports::event_bus::rabbitmq::{EVENTS, PARTITION, partition};
use tombola::ports::event_bus::{
    Committed, Delivery, EventBus, GroupSpec, Listener, Sink, SinkUnavailable, Way,
};

use super::survive;
use crate::support::broker::{Broker, VirtualHost};
use crate::support::spine::{Bus, DELAYS, Mood, Spine, record, spec};
use crate::support::{Engine, eventually};

/// Makes each fault a test on each of the buses and databases, as in `rabbitmq_sqlite::f26_poison`.
macro_rules! deliveries {
    ($($module:ident $bus:ident $engine:ident: $($fault:ident),+;)+) => {$(
        mod $module {
            $(#[test] fn $fault() {
                super::deliver(super::Bus::$bus, super::Engine::$engine, super::$fault);
            })+
        }
    )+};
}

deliveries! {
    embedded_sqlite Embedded Sqlite: f24_dead_before_the_acknowledgement, f26_unreadable_row;
    embedded_postgres Embedded Postgres: f24_dead_before_the_acknowledgement, f26_unreadable_row;
    rabbitmq_sqlite RabbitMq Sqlite: f21_only_the_returned_are_blamed, f21_a_queue_declared_otherwise,
        f23_delay_queues_gone, f24_dead_before_the_acknowledgement, f24_delivered_five_times,
        f24_delivered_too_often, f25_in_the_wrong_order, f26_poison;
    rabbitmq_mariadb RabbitMq MariaDb: f26_poison;
    rabbitmq_postgres RabbitMq Postgres: f24_dead_before_the_acknowledgement, f24_delivered_five_times, f26_poison;
}

#[test]
fn f19_consuming_goes_on_without_memory() {
    survive(Engine::Sqlite, consuming_goes_on_without_memory);
}

#[test]
fn f27_slow_consumer() {
    survive(Engine::Sqlite, slow_consumer);
}

const TAKEN: &[EventType] = &[ActivityTaken];
const RELEASED: &[EventType] = &[ActivityTakeReleased];
const ADJUSTED: &[EventType] = &[ActivityStockAdjusted];

fn deliver(bus: Bus, engine: Engine, fault: impl AsyncFnOnce(&Spine)) {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(async {
        let spine = Spine::new(bus, engine).await;
        tokio::time::timeout(Duration::from_secs(90), fault(&spine)).await.expect("it comes to an end");
        spine.end().await;
    });
}

fn vhost(spine: &Spine) -> &VirtualHost {
    spine.vhost.as_ref().expect("a test on RabbitMQ")
}

/// A new event as another publisher would send it: its id and its JSON.
fn cloud_event(spine: &Spine, event_type: EventType, subject: &str, sequence: Option<i64>) -> (i64, Value) {
    let id: EventId = spine.cluster.ids().next().unwrap();
    let mut event: Value = serde_json::from_str(event_type.fixture()).unwrap();
    event["id"] = json!(id);
    event["subject"] = json!(subject);
    if let Some(sequence) = sequence {
        event["sequence"] = json!(format!("{sequence:019}"));
    }
    (id.0, event)
}

/// Publishes `event` as the server does.
async fn publish(channel: &Channel, event: &Value) {
    let mut headers = FieldTable::default();
    let partition = partition(event["subject"].as_str().unwrap());
    headers.insert(PARTITION.into(), AMQPValue::LongInt(partition.cast_signed()));
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    let key = event["type"].as_str().unwrap().into();
    let body = event.to_string();
    let sent = channel.basic_publish(
        EVENTS.into(),
        key,
        BasicPublishOptions::default(),
        body.as_bytes(),
        properties,
    );
    sent.await.unwrap();
}

/// What is in the outbox, as the relay hands it to a bus.
async fn committed(spine: &Spine) -> Vec<Committed> {
    let read = |connection: sea_orm::DatabaseConnection| async move {
        let rows = outbox::Entity::find().order_by_asc(outbox::Column::Id).all(&connection).await;
        Ok::<_, DbFault>(rows?)
    };
    let rows = spine.db.read(read).await.unwrap();
    let committed = rows.into_iter().map(|row| Committed {
        id: BatchId(row.id),
        types: row.types,
        events: row.events,
        traceparent: row.traceparent,
    });
    committed.collect()
}

/// One query's one number.
async fn number(spine: &Spine, sql: &'static str) -> i64 {
    let read = move |connection: sea_orm::DatabaseConnection| async move {
        let sql = Statement::from_string(connection.get_database_backend(), sql);
        let row = connection.query_one_raw(sql).await?.ok_or(DbFault::Missing("a count"))?;
        Ok::<_, DbFault>(row.try_get_by_index(0)?)
    };
    spine.db.read(read).await.unwrap()
}

async fn consuming_goes_on_without_memory(engine: Engine) {
    let broker = Broker::of_the_faults();
    let mut spine = Spine::new(Bus::Embedded, engine).await;
    spine.vhost = Some(VirtualHost::on(broker).await);
    let groups = || vec![spine.recorder(spec("taken", TAKEN))];
    // In the queue, and to be published once more when the relay looks: that has to wait for memory.
    let moods = [(3, Mood::Fail, 2), (70, Mood::Fail, 100)];
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 200], &moods).await;
    let node = spine.node(Vec::new());
    node.stop().await;
    spine.forget_what_was_sent().await;
    let bus = spine.bus(&groups());
    let Way::Outside(broker_bus) = bus.way() else { panic!("RabbitMQ is outside") };
    assert!(broker_bus.publish(&committed(&spine).await).await.iter().all(Result::is_ok));
    bus.close().await;

    let alarm = broker.starve().await;
    let node = spine.node(groups());
    let poison = ids.remove(70);
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.letters().await.len() == 1).await;
    assert_eq!(spine.letters().await[0].event_id, Some(poison));
    let waiting = async || vhost(&spine).waiting("tombola.taken").await;
    eventually(async || waiting().await == 0).await;
    assert_eq!(number(&spine, "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL").await, 0);

    drop(alarm);
    eventually(async || spine.is_quiet().await).await;
    node.stop().await;
    spine.has_applied("taken", &ids).await;
    spine.end().await;
}

/// One page, in which every other row finds no queue: those alone are tried again, and nothing is lost.
async fn f21_only_the_returned_are_blamed(spine: &Spine) {
    let node =
        spine.node(vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(spec("released", RELEASED))]);
    let first = [
        spine.commit(&[(ActivityTaken, "7", None)]).await,
        spine.commit(&[(ActivityTakeReleased, "7", None)]).await,
    ];
    spine.has_applied("taken", &first[0]).await;
    spine.has_applied("released", &first[1]).await;
    let (connection, channel) = vhost(spine).channel().await;
    let key = ActivityTaken.word().into();
    channel.queue_unbind("tombola.taken".into(), EVENTS.into(), key, FieldTable::default()).await.unwrap();
    // Together, so that the relay reads them together.
    let [mut taken, mut released] = first;
    spine.execute("UPDATE outbox SET retry_at = NULL").await;
    for _ in 0..30 {
        taken.extend(spine.commit(&[(ActivityTaken, "7", None); 3]).await);
        released.extend(spine.commit(&[(ActivityTakeReleased, "7", None); 3]).await);
    }
    spine.has_applied("taken", &taken).await;
    spine.has_applied("released", &released).await;
    eventually(async || spine.is_quiet().await).await;
    let blamed = "SELECT count(*) FROM outbox WHERE attempts > 0 AND types = 'activity.taken.v1'";
    assert!(number(spine, blamed).await > 0, "nothing was returned");
    let wrongly = "SELECT count(*) FROM outbox WHERE attempts > 0 AND types <> 'activity.taken.v1'";
    assert_eq!(number(spine, wrongly).await, 0, "rows that found their queue were blamed");
    node.stop().await;
    connection.close(200, "OK".into()).await.unwrap();
}

/// A queue that is there with other arguments stops its own group, until it is gone.
async fn f21_a_queue_declared_otherwise(spine: &Spine) {
    let (connection, channel) = vhost(spine).channel().await;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("tombola.released".into(), options, FieldTable::default()).await.unwrap();
    let node =
        spine.node(vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(spec("released", RELEASED))]);
    let released = spine.commit(&[(ActivityTakeReleased, "7", None)]).await;
    let taken = spine.commit(&[(ActivityTaken, "7", None); 10]).await;
    spine.has_applied("taken", &taken).await;
    assert_eq!(spine.logged("released").await, 0);
    vhost(spine).delete_queue("tombola.released").await;
    spine.has_applied("released", &released).await;
    node.stop().await;
    connection.close(200, "OK".into()).await.unwrap();
}

/// The reminders are lost; the sweep finds what is due.
async fn f23_delay_queues_gone(spine: &Spine) {
    let node = spine.node(vec![spine.recorder(spec("taken", TAKEN))]);
    let first = spine.commit(&[(ActivityTaken, "7", None)]).await;
    spine.has_applied("taken", &first).await;
    for delay in ["20", "40", "80"] {
        vhost(spine).delete_queue(&format!("tombola.delay.{delay}")).await;
    }
    let moods = [(0, Mood::Fail, 2), (1, Mood::NotYet, 2), (2, Mood::Fail, 100)];
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 10], &moods).await;
    let poison = ids.remove(2);
    spine.has_applied("taken", &[first, ids].concat()).await;
    eventually(async || spine.letters().await.len() == 1).await;
    assert_eq!(spine.letters().await[0].event_id, Some(poison));
    node.stop().await;
}

/// A bus whose consumers fall silent before they settle what they got, or after that and before they acknowledge it.
#[derive(Debug)]
struct Dying {
    bus: Arc<dyn EventBus>,
    settles: bool,
    reached: Arc<Semaphore>,
}

#[derive(Debug)]
struct Deadly {
    sink: Arc<dyn Sink>,
    settles: bool,
    reached: Arc<Semaphore>,
}

#[async_trait]
impl Sink for Deadly {
    async fn take_in(&self, deliveries: Vec<Delivery>) -> Result<(), SinkUnavailable> {
        if self.settles {
            self.sink.take_in(deliveries).await?;
        }
        self.reached.add_permits(1);
        std::future::pending().await
    }
}

#[async_trait]
impl EventBus for Dying {
    fn way(&self) -> Way<'_> {
        self.bus.way()
    }

    async fn deliver(&self, group: GroupSpec, sink: Arc<dyn Sink>, stop: CancellationToken) {
        let sink = Deadly { sink, settles: self.settles, reached: self.reached.clone() };
        self.bus.deliver(group, Arc::new(sink), stop).await;
    }

    async fn broadcast(&self, types: &'static [EventType], listener: Listener, stop: CancellationToken) {
        self.bus.broadcast(types, listener, stop).await;
    }

    async fn exhausted(&self, sink: Arc<dyn Sink>, stop: CancellationToken) {
        self.bus.exhausted(sink, stop).await;
    }

    async fn remind(&self, delay: Duration) {
        self.bus.remind(delay).await;
    }

    async fn reminded(&self, wake: &Notify, stop: CancellationToken) {
        self.bus.reminded(wake, stop).await;
    }

    async fn close(&self) {
        self.bus.close().await;
    }
}

/// The node dies at the worst moments, more often than it takes for a message to be suspected of killing it.
async fn f24_dead_before_the_acknowledgement(spine: &Spine) {
    let groups = || {
        let in_order = GroupSpec { ordered: true, ..spec("in_order", TAKEN) };
        vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(in_order)]
    };
    let mut ids = Vec::new();
    for settles in [true, true, false, true] {
        ids.extend(spine.commit(&[(ActivityTaken, "7", None), (ActivityTaken, "8", None)]).await);
        let reached = Arc::new(Semaphore::new(0));
        let bus = Arc::new(Dying { bus: spine.bus(&groups()), settles, reached: reached.clone() });
        let node = spine.node_on(bus, groups(), &DELAYS);
        reached.acquire_many(2).await.unwrap().forget();
        drop(node);
        spine.execute("DELETE FROM job_lease").await;
        spine.execute("UPDATE parked_event SET due_at = 0").await;
    }
    let node = spine.node(groups());
    spine.has_applied("taken", &ids).await;
    spine.has_applied("in_order", &ids).await;
    eventually(async || spine.is_quiet().await).await;
    node.stop().await;
    spine.has_applied("taken", &ids).await;
    spine.has_applied("in_order", &ids).await;
    assert!(spine.letters().await.is_empty());
}

/// To three nodes, each event several times at once.
async fn f24_delivered_five_times(spine: &Spine) {
    let groups = || {
        let in_order = GroupSpec { ordered: true, ..spec("in_order", TAKEN) };
        vec![spine.recorder(GroupSpec { max_batch: 7, ..spec("taken", TAKEN) }), spine.recorder(in_order)]
    };
    let nodes = [spine.node(groups()), spine.node(groups()), spine.node(groups())];
    let mut ids = spine.commit(&[(ActivityTaken, "7", None)]).await;
    spine.has_applied("taken", &ids).await;
    let (connection, channel) = vhost(spine).channel().await;
    let events: Vec<(i64, Value)> =
        (0..40).map(|number| cloud_event(spine, ActivityTaken, ["1", "2", "3"][number % 3], None)).collect();
    for (_, event) in &events {
        for _ in 0..5 {
            publish(&channel, event).await;
        }
    }
    ids.extend(events.iter().map(|(id, _)| *id));
    spine.has_applied("taken", &ids).await;
    spine.has_applied("in_order", &ids).await;
    for queue in ["tombola.taken", "tombola.in_order.0", "tombola.in_order.1", "tombola.in_order.7"] {
        eventually(async || vhost(spine).waiting(queue).await == 0).await;
    }
    eventually(async || spine.is_quiet().await).await;
    for node in nodes {
        node.stop().await;
    }
    spine.has_applied("taken", &ids).await;
    spine.has_applied("in_order", &ids).await;
    assert!(spine.letters().await.is_empty());
    connection.close(200, "OK".into()).await.unwrap();
}

/// Applies an event only after the one before it.
#[derive(Debug)]
struct OneByOne;

#[async_trait]
impl Handler for OneByOne {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        for event in events {
            let sql = format!(
                "SELECT count(*) FROM effect WHERE group_name = 'steps' AND subject = '{}'",
                event.subject
            );
            let sql = Statement::from_string(tx.get_database_backend(), sql);
            let row =
                tx.query_one_raw(sql).await.map_err(DbFault::from)?.ok_or(DbFault::Missing("a count"))?;
            let before: i64 = row.try_get_by_index(0).map_err(DbFault::from)?;
            if event.sequence != Some(before + 1) {
                return Err(HandlerError::NotYet(format!("{before} events came before")));
            }
            record(tx, "steps", event).await?;
        }
        Ok(())
    }
}

/// The end before the beginning: one group waits for what is missing, the other ignores what is late.
async fn f24_delivered_too_often(spine: &Spine) {
    const QUEUE: &str = "tombola.taken";
    let group = spec("taken", TAKEN);
    let node = spine.node(vec![spine.recorder(group)]);
    let first = spine.commit(&[(ActivityTaken, "7", None)]).await;
    spine.has_applied("taken", &first).await;
    eventually(async || vhost(spine).consumers("tombola.dead").await == 1).await;
    node.stop().await;

    let (connection, channel) = vhost(spine).channel().await;
    let (id, event) = cloud_event(spine, ActivityTaken, "7", None);
    publish(&channel, &event).await;
    eventually(async || vhost(spine).waiting(QUEUE).await == 1).await;
    // As a consumer that dies of it, until the broker gives it up.
    let again = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    eventually(async || {
        while let Some(got) = channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.unwrap() {
            channel.basic_nack(got.delivery.delivery_tag, again).await.unwrap();
        }
        vhost(spine).waiting("tombola.dead").await == 1
    })
    .await;

    let node = spine.node(vec![spine.recorder(group)]);
    eventually(async || spine.letters().await.len() == 1).await;
    let letter = spine.letters().await.remove(0);
    assert_eq!((letter.event_id, letter.group_name.as_str()), (Some(id), "taken"));
    assert_eq!((letter.origin.as_str(), letter.state.as_str()), (QUEUE, "waiting"));
    spine.dead_letters(&[group]).replay(tombola::ids::DeadLetterId(letter.id), None).await.unwrap();
    spine.has_applied("taken", &[first[0], id]).await;
    node.stop().await;
    connection.close(200, "OK".into()).await.unwrap();
}

async fn f25_in_the_wrong_order(spine: &Spine) {
    let steps = Group::new(spec("steps", ADJUSTED), OneByOne);
    let latest = GroupSpec { ordered: true, ..spec("latest", ADJUSTED) };
    let groups = vec![steps, spine.recorder(latest).latest_only()];
    // Tries enough for a machine that is slow to publish what is missing.
    let node = spine.node_on(spine.bus(&groups), groups, &[Duration::from_millis(50); 100]);
    let subjects: Vec<String> = (1..=8).map(|subject| subject.to_string()).collect();
    let beginning: Vec<(EventType, &str, Option<i64>)> =
        subjects.iter().map(|subject| (ActivityStockAdjusted, subject.as_str(), Some(1))).collect();
    let first = spine.commit(&beginning).await;
    spine.has_applied("steps", &first).await;
    spine.has_applied("latest", &first).await;
    let (connection, channel) = vhost(spine).channel().await;
    let (mut all, mut last) = (first.clone(), first);
    for sequence in [4, 3, 2] {
        for subject in &subjects {
            let (id, event) = cloud_event(spine, ActivityStockAdjusted, subject, Some(sequence));
            publish(&channel, &event).await;
            all.push(id);
            if sequence == 4 {
                last.push(id);
            }
        }
    }
    spine.has_applied("steps", &all).await;
    spine.has_applied("latest", &last).await;
    eventually(async || spine.is_quiet().await && spine.logged("latest").await == all.len() as u64).await;
    node.stop().await;
    assert!(spine.letters().await.is_empty());
    connection.close(200, "OK".into()).await.unwrap();
}

/// Everything that can be wrong with a message, with good ones before, between and after.
async fn f26_poison(spine: &Spine) {
    const QUEUE: &str = "tombola.taken";
    let node = spine.node(vec![spine.recorder(spec("taken", TAKEN))]);
    let mut good = spine.commit(&[(ActivityTaken, "7", None)]).await;
    spine.has_applied("taken", &good).await;

    let (later, mut of_later_version) = cloud_event(spine, ActivityTaken, "7", None);
    of_later_version["type"] = json!("activity.taken.v2");
    let (elsewhere, of_wrong_type) = cloud_event(spine, ActivityTakeReleased, "7", None);
    let mut without_subject = cloud_event(spine, ActivityTaken, "7", None).1;
    without_subject.as_object_mut().unwrap().remove("subject");
    let mut too_large = cloud_event(spine, ActivityTaken, "7", None).1;
    too_large["data"]["padding"] = json!("x".repeat(MAX_BYTES));
    let bodies: [Vec<u8>; 7] = [
        b"{\"specversion\":".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        Vec::new(),
        without_subject.to_string().into_bytes(),
        too_large.to_string().into_bytes(),
        of_later_version.to_string().into_bytes(),
        of_wrong_type.to_string().into_bytes(),
    ];
    for body in &bodies {
        let (id, event) = cloud_event(spine, ActivityTaken, "7", None);
        good.push(id);
        vhost(spine).send(QUEUE, event.to_string().as_bytes()).await;
        vhost(spine).send(QUEUE, body).await;
    }
    let moods = [(1, Mood::Panic, 100), (3, Mood::Fail, 100)];
    let mut ids = spine.commit_with(&[(ActivityTaken, "7", None); 5], &moods).await;
    let (failing, panicking) = (ids.remove(3), ids.remove(1));
    good.extend(ids);
    spine.has_applied("taken", &good).await;
    eventually(async || spine.letters().await.len() >= bodies.len() + 2 && spine.is_quiet().await).await;
    eventually(async || vhost(spine).waiting(QUEUE).await == 0).await;
    node.stop().await;

    let letters = spine.letters().await;
    let unreadable = letters.iter().filter(|letter| letter.event_id.is_none());
    assert!(unreadable.clone().all(|letter| letter.attempts == 1), "{letters:#?}");
    assert_eq!(unreadable.count(), 5, "{letters:#?}");
    let mut known: Vec<(i64, i32)> =
        letters.iter().filter_map(|letter| Some((letter.event_id?, letter.attempts))).collect();
    known.sort_unstable();
    let mut expected = [later, elsewhere, panicking, failing].map(|event| (event, 3));
    expected.sort_unstable();
    assert_eq!(known, expected, "{letters:#?}");
    assert!(
        letters.iter().all(|letter| letter.group_name == "taken" && letter.origin == QUEUE),
        "{letters:#?}"
    );
    spine.has_applied("taken", &good).await;
}

/// A row of the outbox that nobody can read holds up neither its group nor the others.
async fn f26_unreadable_row(spine: &Spine) {
    let mut ids = spine.commit(&[(ActivityTaken, "7", None); 3]).await;
    spine.execute("UPDATE outbox SET events = '[{\"id\":'").await;
    ids.clear();
    for _ in 0..5 {
        ids.extend(spine.commit(&[(ActivityTaken, "7", None); 3]).await);
    }
    let node =
        spine.node(vec![spine.recorder(spec("taken", TAKEN)), spine.recorder(spec("released", RELEASED))]);
    ids.extend(spine.commit(&[(ActivityTaken, "7", None)]).await);
    spine.has_applied("taken", &ids).await;
    eventually(async || spine.is_quiet().await).await;
    node.stop().await;
    let letters = spine.letters().await;
    assert_eq!(letters.len(), 1, "{letters:#?}");
    assert_eq!((letters[0].group_name.as_str(), letters[0].body.as_str()), ("taken", "[{\"id\":"));
}

/// Waits at its first event until it is let go.
#[derive(Debug)]
struct Slow {
    began: Arc<AtomicBool>,
    go_on: Arc<Semaphore>,
}

#[async_trait]
impl Handler for Slow {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        if !self.began.swap(true, Ordering::SeqCst) {
            let _ = self.go_on.acquire().await;
        }
        for event in events {
            record(tx, "slow", event).await?;
        }
        Ok(())
    }
}

/// The broker takes back what is not acknowledged in time; by then it is applied, or will be.
async fn slow_consumer(engine: Engine) {
    const QUEUE: &str = "tombola.slow";
    let broker = Broker::of_the_faults();
    let patience = |consumer, tick| {
        format!(
            "application:set_env(rabbit, consumer_timeout, {consumer}), \
         application:set_env(rabbit, channel_tick_interval, {tick})."
        )
    };
    broker.ctl(&["eval", &patience(1000, 200)]).await;
    let mut spine = Spine::new(Bus::Embedded, engine).await;
    spine.vhost = Some(VirtualHost::on(broker).await);
    let (began, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(0)));
    let slow = Group::new(spec("slow", TAKEN), Slow { began: began.clone(), go_on: go_on.clone() });
    let ids = spine.commit(&[(ActivityTaken, "7", None); 300]).await;
    let node = spine.node(vec![slow]);
    eventually(async || began.load(Ordering::SeqCst)).await;
    eventually(async || vhost(&spine).consumers(QUEUE).await == 0).await;
    // All but what it may hold are still the broker's.
    assert!(vhost(&spine).waiting(QUEUE).await >= 100);
    go_on.add_permits(1);
    spine.has_applied("slow", &ids).await;
    eventually(async || vhost(&spine).waiting(QUEUE).await == 0 && spine.is_quiet().await).await;
    node.stop().await;
    spine.has_applied("slow", &ids).await;
    broker.ctl(&["eval", &patience(1_800_000, 60_000)]).await;
    spine.end().await;
}
