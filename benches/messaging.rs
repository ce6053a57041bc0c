//! How fast events leave the outbox, and how fast a consumer group applies them with an effect row each.
//!
//! `tests/load/bench` runs it and puts the numbers into its table: one JSON object a line, rates in events per second.
//! Arguments: the database's URL (emptied of nothing: it must be new), then `embedded` or the URL of a RabbitMQ.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on ends there")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use entities::{consumer_log, outbox};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter,
};
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tombola::cluster::{Cluster, Membership};
use tombola::db::bulk::{Column, Rows};
use tombola::db::{Database, DatabaseSettings, DbFault, Tx};
use tombola::ids::{BatchId, EventId};
use tombola::messaging::catalogue::EventType;
use tombola::messaging::consumer::{Group, Handler, HandlerError};
use tombola::messaging::envelope::Envelope;
use tombola::messaging::groups::Groups;
use tombola::messaging::parking::Retries;
use tombola::messaging::relay::Relay;
use tombola::ports::clock::SystemClock;
use tombola::ports::event_bus::embedded::EmbeddedBus;
use tombola::ports::event_bus::rabbitmq::RabbitMq;
use tombola::ports::event_bus::{EventBus, GroupSpec};

/// Events in one outbox row, as a batch of takes writes them, and how many of such rows.
const SHAPES: [(usize, usize); 2] = [(50, 3000), (1, 10_000)];

const GROUP: GroupSpec = GroupSpec {
    name: "bench",
    types: &[EventType::ActivityTaken],
    ordered: false,
    max_batch: 500,
    linger: Duration::ZERO,
    coalesced: false,
};

/// Writes one row for each event.
#[derive(Debug)]
struct RowEach;

#[async_trait]
impl Handler for RowEach {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let rows = Rows::new()
            .column("id", Column::Big(events.iter().map(|event| event.id.0).collect()))
            .column("subject", Column::Text(events.iter().map(|event| event.subject.clone()).collect()));
        let sql = "INSERT INTO bench_effect (event_id, subject) SELECT r.id, r.subject FROM {rows}";
        tx.execute_raw(rows.statement(tx.get_database_backend(), sql, [])).await.map_err(DbFault::from)?;
        Ok(())
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(database), Some(bus)) = (arguments.next(), arguments.next()) else {
        println!("{{}}");
        return;
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(measure(database, bus));
}

async fn measure(database: String, bus_url: String) {
    let settings = DatabaseSettings::new(&database.into()).unwrap();
    let db = Database::connect(settings, Handle::current()).await.unwrap();
    db.migrate().await.unwrap();
    let create = "CREATE TABLE bench_effect (event_id BIGINT PRIMARY KEY, subject VARCHAR(64) NOT NULL)";
    let creating =
        db.transaction(
            move |tx| async move { Ok::<_, DbFault>(tx.execute_unprepared(create).await.map(drop)?) },
        );
    creating.await.unwrap();
    let cluster = Cluster::join(&db, Membership::Shared, &SystemClock, &Handle::current()).await.unwrap();
    let groups = Groups::new(vec![Group::new(GROUP, RowEach)]);
    let bus: Arc<dyn EventBus> = match bus_url.as_str() {
        "embedded" => Arc::new(EmbeddedBus::new(db.clone(), 1, &groups.specs())),
        url => Arc::new(RabbitMq::new(&url.to_owned().into(), &groups.specs(), &[]).unwrap()),
    };
    // Connected, and the queues declared, before anything is measured.
    commit(&db, &cluster, 1, 1).await;
    relay(&db, &bus).await;
    consume(&db, &cluster, &bus, &groups, 1).await;

    let mut applied = 1;
    for (events, rows) in SHAPES {
        commit(&db, &cluster, events, rows).await;
        let relayed = relay(&db, &bus).await;
        applied += events * rows;
        let consumed = consume(&db, &cluster, &bus, &groups, applied).await;
        let rate = |time: Duration| ((events * rows) as f64 / time.as_secs_f64()).round();
        println!(
            "{}",
            json!({ "events_per_row": events, "relayed_per_s": rate(relayed), "applied_per_s": rate(consumed) })
        );
    }
    bus.close().await;
    db.close().await;
}

/// Writes `rows` outbox rows of `events` events each.
async fn commit(db: &Database, cluster: &Cluster, events: usize, rows: usize) {
    for chunk in (0..rows).collect::<Vec<_>>().chunks(100) {
        let models: Vec<outbox::Model> = chunk.iter().map(|_| row(cluster, events)).collect();
        let committing = db.transaction(move |tx| {
            let models = models.clone();
            async move {
                for model in models {
                    outbox::Entity::insert(model.into_active_model()).exec_without_returning(&tx).await?;
                }
                Ok::<_, DbFault>(())
            }
        });
        committing.await.unwrap();
    }
}

fn row(cluster: &Cluster, events: usize) -> outbox::Model {
    let taken: Vec<_> = (0..events)
        .map(|number| {
            let id = cluster.ids().next::<EventId>().unwrap();
            json!({
                "id": id, "type": "activity.taken.v1", "subject": "267432117862400", "time": "2026-11-21T08:00:00Z",
                "data": {
                    "take_id": id, "activity_id": "267432117862400", "user_id": "267432117862401",
                    "token_no": number, "take_no": 1, "taken_at": "2026-11-21T08:00:00.123456Z",
                },
            })
        })
        .collect();
    outbox::Model {
        id: cluster.ids().next::<BatchId>().unwrap().0,
        events: serde_json::Value::from(taken).to_string(),
        traceparent: None,
        created_at: 1,
        sent_at: None,
        attempts: 0,
        retry_at: None,
        last_error: None,
        event_count: i32::try_from(events).unwrap(),
        types: "activity.taken.v1".to_owned(),
    }
}

/// Publishes all there is; answers how long that took.
async fn relay(db: &Database, bus: &Arc<dyn EventBus>) -> Duration {
    let stop = CancellationToken::new();
    let relay = Relay::new(db.clone(), bus.clone(), 1, Duration::from_millis(100));
    let started = Instant::now();
    let relaying = tokio::spawn(relay.run(stop.clone()));
    until(async || unsent(db).await == 0).await;
    let took = started.elapsed();
    stop.cancel();
    relaying.await.unwrap();
    took
}

/// Applies events until `applied` are noted; answers how long that took.
async fn consume(
    db: &Database,
    cluster: &Cluster,
    bus: &Arc<dyn EventBus>,
    groups: &Groups,
    applied: usize,
) -> Duration {
    let stop = CancellationToken::new();
    let second = Duration::from_secs(1);
    let retries =
        Retries { delays: [second].into(), sweep_every: second, claim: second * 30, patience: second * 600 };
    let started = Instant::now();
    let consuming = {
        let (groups, db, ids) = (groups.clone(), db.clone(), cluster.ids().clone());
        let (bus, stop) = (bus.clone(), stop.clone());
        tokio::spawn(async move { groups.run(db, ids, bus, retries, stop).await })
    };
    until(async || noted(db).await >= applied as u64).await;
    let took = started.elapsed();
    stop.cancel();
    consuming.await.unwrap();
    took
}

async fn until(holds: impl AsyncFn() -> bool) {
    while !holds().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn unsent(db: &Database) -> u64 {
    let read = |connection: DatabaseConnection| async move {
        let unsent = outbox::Entity::find().filter(outbox::Column::SentAt.is_null());
        Ok::<_, DbFault>(unsent.count(&connection).await?)
    };
    db.read(read).await.unwrap()
}

async fn noted(db: &Database) -> u64 {
    let read = |connection: DatabaseConnection| async move {
        Ok::<_, DbFault>(consumer_log::Entity::find().count(&connection).await?)
    };
    db.read(read).await.unwrap()
}
