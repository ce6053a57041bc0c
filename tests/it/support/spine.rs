//! The messaging spine without a shop around it: an outbox, a bus, and groups whose handlers do what a test tells them.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use entities::{consumer_log, dead_letter, outbox, parked_event, queued_events};
use futures_util::FutureExt;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, Statement,
};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombola::cluster::{Cluster, Membership};
use tombola::db::{Database, DatabaseSettings, DbFault, Tx};
use tombola::ids::{BatchId, EventId};
use tombola::messaging::catalogue::EventType;
use tombola::messaging::consumer::{Group, Handler, HandlerError, OutsideHandler};
use tombola::messaging::dead_letter::DeadLetters;
use tombola::messaging::envelope::Envelope;
use tombola::messaging::groups::Groups;
use tombola::messaging::parking::Retries;
use tombola::messaging::relay::Relay;
use tombola::ports::clock::SystemClock;
use tombola::ports::event_bus::embedded::EmbeddedBus;
use tombola::ports::event_bus::rabbitmq::RabbitMq;
use tombola::ports::event_bus::{EventBus, GroupSpec};

use super::broker::VirtualHost;
use super::database::{Engine, TestDatabase};
use super::eventually;

/// The pauses after the first tries of an event.
pub(crate) const DELAYS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(40), Duration::from_millis(80)];

/// The bus under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    Embedded,
    RabbitMq,
}

/// What a handler does with an event instead of applying it, the next time it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Fail,
    Panic,
    NotYet,
    HeldUp,
    /// After the effect is written, so that only a rollback can undo it.
    FailLate,
}

/// What is wrong with which event, and how many times.
pub(crate) type Moods = Arc<Mutex<HashMap<i64, (Mood, usize)>>>;

/// A database, a broker if needed, and nodes that come and go.
pub(crate) struct Spine {
    pub(crate) db: Database,
    pub(crate) cluster: Cluster,
    pub(crate) moods: Moods,
    pub(crate) vhost: Option<VirtualHost>,
    database: TestDatabase,
    performed: Arc<AtomicUsize>,
}

/// A relay and consumers at work.
pub(crate) struct SpineNode {
    pub(crate) bus: Arc<dyn EventBus>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// Groups of one test: names, types, options.
pub(crate) fn spec(name: &'static str, types: &'static [EventType]) -> GroupSpec {
    GroupSpec { name, types, ordered: false, max_batch: 100, linger: Duration::ZERO, coalesced: false }
}

/// Writes each event to the table `effect`, unless its mood is bad.
#[derive(Debug)]
struct Recorder {
    group: &'static str,
    moods: Moods,
}

#[async_trait]
impl Handler for Recorder {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        for event in events {
            let mood = next_mood(&self.moods, event.id.0);
            obey(mood.filter(|mood| *mood != Mood::FailLate), event)?;
            record(tx, self.group, event).await?;
            obey(mood, event)?;
        }
        Ok(())
    }
}

/// An effect outside the database: a number in memory.
#[derive(Debug)]
struct Outside {
    moods: Moods,
    performed: Arc<AtomicUsize>,
}

#[async_trait]
impl OutsideHandler for Outside {
    async fn perform(&self, event: &Envelope) -> Result<(), HandlerError> {
        obey(next_mood(&self.moods, event.id.0), event)?;
        self.performed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn next_mood(moods: &Moods, event: i64) -> Option<Mood> {
    let mut moods = moods.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (mood, left) = moods.get_mut(&event)?;
    *left = left.checked_sub(1)?;
    Some(*mood)
}

fn obey(mood: Option<Mood>, event: &Envelope) -> Result<(), HandlerError> {
    match mood {
        None => Ok(()),
        Some(Mood::Fail | Mood::FailLate) => Err(HandlerError::Failed(format!("{} is poisonous", event.id))),
        Some(Mood::NotYet) => Err(HandlerError::NotYet(format!("{} came too early", event.id))),
        Some(Mood::HeldUp) => Err(DbFault::Deadline.into()),
        Some(Mood::Panic) => panic!("{} makes its handler panic", event.id),
    }
}

/// Writes the row that shows that `group` applied `event`.
pub(crate) async fn record(tx: &Tx, group: &str, event: &Envelope) -> Result<(), DbFault> {
    let values = [group.into(), event.id.0.into(), event.subject.clone().into()];
    let sql = "INSERT INTO effect (group_name, event_id, subject) VALUES (?, ?, ?)";
    tx.execute_raw(tombola::db::bulk::statement(tx.get_database_backend(), sql, values)).await?;
    Ok(())
}

/// Names a run of a node.
fn holder() -> i64 {
    i64::from_ne_bytes(rand::random()) & i64::MAX
}

impl Spine {
    pub(crate) async fn new(bus: Bus, engine: Engine) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()))
            .with_test_writer()
            .try_init();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let database = TestDatabase::create(engine).await;
        let settings = DatabaseSettings::new(&database.url.clone().into()).unwrap();
        let db = Database::connect(settings, Handle::current()).await.unwrap();
        db.migrate().await.unwrap();
        let cluster = Cluster::join(&db, Membership::Shared, &SystemClock, &Handle::current()).await.unwrap();
        let number = match engine {
            Engine::Sqlite => "INTEGER PRIMARY KEY AUTOINCREMENT",
            Engine::Postgres => "BIGSERIAL PRIMARY KEY",
            Engine::MariaDb => "BIGINT AUTO_INCREMENT PRIMARY KEY",
        };
        let create = format!(
            "CREATE TABLE effect (n {number}, group_name VARCHAR(64) NOT NULL, event_id BIGINT NOT NULL, \
             subject VARCHAR(64) NOT NULL)"
        );
        let creating = db.transaction(move |tx| {
            let create = create.clone();
            async move { Ok::<_, DbFault>(tx.execute_unprepared(&create).await.map(drop)?) }
        });
        creating.await.unwrap();
        let vhost = match bus {
            Bus::Embedded => None,
            Bus::RabbitMq => Some(VirtualHost::create().await),
        };
        Self { db, cluster, moods: Moods::default(), vhost, database, performed: Arc::default() }
    }

    /// A group that writes each of its events to the table `effect`.
    pub(crate) fn recorder(&self, spec: GroupSpec) -> Group {
        Group::new(spec, Recorder { group: spec.name, moods: self.moods.clone() })
    }

    /// A group whose effect is counted in memory.
    pub(crate) fn outside(&self, spec: GroupSpec) -> Group {
        Group::outside(spec, Outside { moods: self.moods.clone(), performed: self.performed.clone() })
    }

    /// How often the effect outside the database was performed.
    pub(crate) fn performed(&self) -> usize {
        self.performed.load(Ordering::Relaxed)
    }

    /// Lets a node work; dropped, it is gone as by kill -9.
    pub(crate) fn node(&self, groups: Vec<Group>) -> SpineNode {
        self.node_on(self.bus(&groups), groups, &DELAYS)
    }

    /// The bus under test, for `groups`.
    pub(crate) fn bus(&self, groups: &[Group]) -> Arc<dyn EventBus> {
        let specs: Vec<GroupSpec> = groups.iter().map(|group| group.spec).collect();
        match &self.vhost {
            None => Arc::new(EmbeddedBus::new(self.db.clone(), holder(), &specs)),
            Some(vhost) => Arc::new(RabbitMq::new(&vhost.url.clone().into(), &specs, &DELAYS).unwrap()),
        }
    }

    /// [`Spine::node`], on a bus of the test's own, with these pauses between tries.
    pub(crate) fn node_on(
        &self,
        bus: Arc<dyn EventBus>,
        groups: Vec<Group>,
        delays: &[Duration],
    ) -> SpineNode {
        let groups = Groups::new(groups);
        let retries = Retries {
            delays: delays.into(),
            sweep_every: Duration::from_millis(20),
            claim: Duration::from_secs(2),
            patience: Duration::from_secs(3),
        };
        let stop = CancellationToken::new();
        let relay = Relay::new(self.db.clone(), bus.clone(), holder(), Duration::from_millis(20));
        let (db, ids, consuming, ending) =
            (self.db.clone(), self.cluster.ids().clone(), bus.clone(), stop.clone());
        let tasks = vec![
            tokio::spawn(relay.run(stop.clone())),
            tokio::spawn(async move { groups.run(db, ids, consuming, retries, ending).await }),
        ];
        SpineNode { bus, stop, tasks }
    }

    /// The dead letters, for groups of these.
    pub(crate) fn dead_letters(&self, groups: &[GroupSpec]) -> DeadLetters {
        DeadLetters::new(self.db.clone(), Arc::new(SystemClock), self.cluster.ids().clone(), groups.into())
    }

    /// Commits one outbox row with an event for each `(type, subject, sequence)`; answers their ids.
    pub(crate) async fn commit(&self, events: &[(EventType, &str, Option<i64>)]) -> Vec<i64> {
        self.commit_with(events, &[]).await
    }

    /// [`Spine::commit`], when something is wrong with some of the events: by their place, and how many times.
    pub(crate) async fn commit_with(
        &self,
        events: &[(EventType, &str, Option<i64>)],
        moods: &[(usize, Mood, usize)],
    ) -> Vec<i64> {
        let ids: Vec<EventId> = events.iter().map(|_| self.cluster.ids().next().unwrap()).collect();
        for (place, mood, times) in moods {
            self.moods.lock().unwrap().insert(ids[*place].0, (*mood, *times));
        }
        let json: Vec<_> = events
            .iter()
            .zip(&ids)
            .map(|((event_type, subject, sequence), id)| {
                let mut event = json!({
                    "id": id, "type": event_type.word(), "subject": subject, "time": "2027-01-15T08:00:00Z", "data": {},
                });
                if let Some(sequence) = sequence {
                    event["sequence"] = json!(sequence);
                }
                event
            })
            .collect();
        let mut types: Vec<&str> = events.iter().map(|(event_type, ..)| event_type.word()).collect();
        types.dedup();
        let row = outbox::Model {
            id: self.cluster.ids().next::<BatchId>().unwrap().0,
            events: serde_json::Value::from(json).to_string(),
            traceparent: None,
            created_at: 1,
            sent_at: None,
            attempts: 0,
            retry_at: None,
            last_error: None,
            event_count: i32::try_from(events.len()).unwrap(),
            types: types.join(" "),
        };
        let committing = self.db.transaction(move |tx| {
            let row = row.clone().into_active_model();
            async move {
                tx.announce();
                Ok::<_, DbFault>(outbox::Entity::insert(row).exec_without_returning(&tx).await.map(drop)?)
            }
        });
        committing.await.unwrap();
        ids.into_iter().map(|id| id.0).collect()
    }

    /// Publishes everything that was sent a second time, as a relay does that died before it marked its rows.
    pub(crate) async fn forget_what_was_sent(&self) {
        self.execute("UPDATE outbox SET sent_at = NULL").await;
    }

    pub(crate) async fn execute(&self, sql: &'static str) {
        let executing = self.db.transaction(move |tx| async move {
            tx.announce();
            Ok::<_, DbFault>(tx.execute_unprepared(sql).await.map(drop)?)
        });
        executing.await.unwrap();
    }

    /// The events `group` applied, in the order of their effects, with their subjects.
    pub(crate) async fn effects(&self, group: &'static str) -> Vec<(i64, String)> {
        self.read(async move |connection| {
            let backend = connection.get_database_backend();
            let sql = format!("SELECT event_id, subject FROM effect WHERE group_name = '{group}' ORDER BY n");
            let rows = connection.query_all_raw(Statement::from_string(backend, sql)).await.unwrap();
            rows.iter()
                .map(|row| (row.try_get("", "event_id").unwrap(), row.try_get("", "subject").unwrap()))
                .collect()
        })
        .await
    }

    /// The ids of [`Spine::effects`].
    pub(crate) async fn applied(&self, group: &'static str) -> Vec<i64> {
        self.effects(group).await.into_iter().map(|(id, _)| id).collect()
    }

    pub(crate) async fn logged(&self, group: &'static str) -> u64 {
        self.read(async move |connection| {
            let rows = consumer_log::Entity::find().filter(consumer_log::Column::GroupName.eq(group));
            rows.count(connection).await.unwrap()
        })
        .await
    }

    /// How many entries the queues of the embedded bus have.
    pub(crate) async fn queued(&self) -> u64 {
        self.read(async |connection| queued_events::Entity::find().count(connection).await.unwrap()).await
    }

    pub(crate) async fn letters(&self) -> Vec<dead_letter::Model> {
        self.read(async |connection| {
            dead_letter::Entity::find().order_by_asc(dead_letter::Column::Id).all(connection).await.unwrap()
        })
        .await
    }

    /// Whether nothing is under way: all is sent, nothing queued here, nothing parked.
    pub(crate) async fn is_quiet(&self) -> bool {
        self.read(async |connection| {
            let unsent = outbox::Entity::find().filter(outbox::Column::SentAt.is_null());
            unsent.count(connection).await.unwrap() == 0
                && queued_events::Entity::find().count(connection).await.unwrap() == 0
                && parked_event::Entity::find().count(connection).await.unwrap() == 0
        })
        .await
    }

    /// Waits until `group` has applied exactly `events`, each once, in any order.
    pub(crate) async fn has_applied(&self, group: &'static str, events: &[i64]) {
        let waiting = eventually(async || self.applied(group).await.len() >= events.len());
        if AssertUnwindSafe(waiting).catch_unwind().await.is_err() {
            let applied: HashSet<i64> = self.applied(group).await.into_iter().collect();
            let missing: Vec<&i64> = events.iter().filter(|id| !applied.contains(id)).collect();
            panic!("group {group} did not apply {missing:?}; {}", self.state().await);
        }
        let mut applied = self.applied(group).await;
        applied.sort_unstable();
        let mut events = events.to_vec();
        events.sort_unstable();
        assert_eq!(applied, events, "what group {group} applied");
    }

    /// What is still under way, for whoever must find out why.
    async fn state(&self) -> String {
        self.read(async |connection| {
            let unsent = outbox::Entity::find().filter(outbox::Column::SentAt.is_null());
            let unsent: Vec<outbox::Model> = unsent.all(connection).await.unwrap();
            let queued = queued_events::Entity::find().all(connection).await.unwrap();
            let parked = parked_event::Entity::find().all(connection).await.unwrap();
            format!("unsent: {unsent:?}; queued: {queued:?}; parked: {parked:?}")
        })
        .await
    }

    async fn read<T>(&self, work: impl AsyncFnOnce(&DatabaseConnection) -> T) -> T {
        let connection = self.database.connect().await;
        let answer = work(&connection).await;
        connection.close().await.unwrap();
        answer
    }

    pub(crate) async fn end(self) {
        self.db.close().await;
        if let Some(vhost) = self.vhost {
            vhost.remove().await;
        }
        self.database.remove().await;
    }
}

impl SpineNode {
    /// Stops in peace.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.await.expect("it stops in peace");
        }
        self.bus.close().await;
    }
}

impl Drop for SpineNode {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // A process that is gone has no connections.
        let bus = self.bus.clone();
        tokio::spawn(async move { bus.close().await });
    }
}
