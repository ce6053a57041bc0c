//! Other systems that subscribe, with the programs of `examples/`, which share no code with the server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use chrono::{DateTime, FixedOffset};
use entities::outbox as rows;
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, EntityTrait, QueryOrder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tombola::config::BusConfig;
use tombola::messaging::envelope::Envelope;
use tombola::messaging::outbox;

use crate::support::broker::VirtualHost;
use crate::support::{Offer, TestApp, eventually, stories};

stories!(in_python_every_event_is_applied_once, in_rust_every_event_is_applied_once);

#[test]
fn in_python_a_bad_message_is_set_aside_and_a_failing_effect_tried_again() {
    on_its_own(async || bad_messages_and_failing_effects(&python()).await);
}

#[test]
fn in_rust_a_bad_message_is_set_aside_and_a_failing_effect_tried_again() {
    on_its_own(async || bad_messages_and_failing_effects(&[rust()]).await);
}

/// The queue's name; the store is called after it.
const NAME: &str = "accounting";

async fn in_python_every_event_is_applied_once(app: &TestApp) {
    every_event_is_applied_once(app, &python()).await;
}

async fn in_rust_every_event_is_applied_once(app: &TestApp) {
    every_event_is_applied_once(app, &[rust()]).await;
}

/// The command of the example in Python, without its arguments.
fn python() -> [String; 3] {
    let python = std::env::var("TOMBOLA_TEST_PYTHON").expect("tests/run, which finds a Python with pika");
    [python.as_str(), concat!(env!("CARGO_MANIFEST_DIR"), "/examples/subscriber.py"), "--name"]
        .map(str::to_owned)
}

/// The command of the example in Rust.
fn rust() -> String {
    let binaries = Path::new(env!("CARGO_BIN_EXE_tombola")).parent().unwrap();
    binaries.join("examples/subscriber").to_str().unwrap().to_owned()
}

/// Does `work` without a server.
fn on_its_own(work: impl AsyncFnOnce()) {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(async {
        tokio::time::timeout(Duration::from_secs(90), work()).await.expect("it comes to an end");
    });
}

async fn bad_messages_and_failing_effects(program: &[String]) {
    let host = VirtualHost::create().await;
    let mut subscriber = Subscriber::new(program, &host.url);
    subscriber.start().await;
    let event = |id: &str| {
        json!({
            "specversion": "1.0", "id": id, "source": "tombola", "type": "activity.taken.v1", "subject": "7",
            "time": "2027-01-15T08:00:00Z", "datacontenttype": "application/json", "sequence": "1", "data": {},
        })
    };
    let with = |member: &str, value: Value| {
        let mut event = event("bad");
        event[member] = value;
        event.to_string().into_bytes()
    };
    let mut bad = vec![b"[".repeat(200_000), b"\xff".to_vec(), b"[]".to_vec(), b"null".to_vec()];
    for member in ["id", "type", "subject", "time", "sequence"] {
        bad.extend([with(member, json!({})), with(member, json!(7))]);
    }
    // Half a character.
    bad.push(event("bad").to_string().replace("\"7\"", "\"\\ud83d\"").into_bytes());
    for message in &bad {
        host.send(NAME, message).await;
    }
    let store = subscriber.store().await;
    host.send(NAME, event("1").to_string().as_bytes()).await;
    eventually(async || applied(&store).await == ["1"]).await;
    let dead = format!("{NAME}.dead");
    eventually(async || host.waiting(&dead).await as usize == bad.len()).await;

    // What the effect builds on is away for a while.
    store.execute_unprepared("ALTER TABLE count RENAME TO away").await.unwrap();
    host.send(NAME, event("2").to_string().as_bytes()).await;
    host.send(NAME, event("3").to_string().as_bytes()).await;
    eventually(async || subscriber.said().contains("2: ") && subscriber.said().contains("again in 2")).await;
    store.execute_unprepared("ALTER TABLE away RENAME TO count").await.unwrap();
    eventually(async || applied(&store).await == ["1", "2", "3"]).await;
    assert_eq!(counted(&store).await, 3, "each once");
    assert_eq!(host.waiting(&dead).await as usize, bad.len());
    host.remove().await;
}

async fn every_event_is_applied_once(app: &TestApp, program: &[String]) {
    let host = VirtualHost::create().await;
    let mut subscriber = Subscriber::new(program, &host.url);
    subscriber.start().await;
    app.restart_with(|config| config.bus = BusConfig::try_from(host.url.clone()).unwrap()).await;

    sell(app).await;
    subscriber.kill();
    sell(app).await;
    subscriber.start().await;
    host.close_connections().await;
    sell(app).await;

    let committed = committed(app).await;
    let ids: BTreeSet<String> = committed.iter().map(|event| event.id.to_string()).collect();
    let store = subscriber.store().await;
    eventually(async || applied(&store).await.len() >= ids.len()).await;
    let applied = applied(&store).await;
    assert_eq!(applied.iter().cloned().collect::<BTreeSet<_>>(), ids, "each event, and no other");
    assert_eq!(counted(&store).await, i64::try_from(ids.len()).unwrap(), "each once");
    in_order_of_each_subject(&applied, &committed);
    the_latest_are_whole(&store, &committed).await;
}

/// A sale with every kind of event, from several customers at a time.
async fn sell(app: &TestApp) {
    let activity = app.running(Offer::of(20)).await;
    let shoppers = app.customers(10).await;
    let takes = join_all(shoppers.iter().map(|shopper| shopper.take(&activity))).await;
    let operator = app.operator().await;
    for take in takes.into_iter().take(3) {
        operator.release(&take.take().id).await.is(200);
    }
    for step in [2, -4, 1] {
        operator.adjust(&activity, step).await.is(201);
    }
    operator.asks(&activity, "close").await.is(200);
}

async fn committed(app: &TestApp) -> Vec<Envelope> {
    let connection = app.database.connect().await;
    let written = rows::Entity::find().order_by_asc(rows::Column::Id).all(&connection).await.unwrap();
    connection.close().await.unwrap();
    written.iter().flat_map(|row| outbox::read(&row.events, row.traceparent.as_deref()).unwrap()).collect()
}

/// Where a subject has versions, they were applied in their order.
fn in_order_of_each_subject(applied: &[String], committed: &[Envelope]) {
    let events: HashMap<String, &Envelope> =
        committed.iter().map(|event| (event.id.to_string(), event)).collect();
    let mut sequences: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for event in applied.iter().map(|id| events[id]) {
        if let Some(sequence) = event.sequence {
            sequences.entry(&event.subject).or_default().push(sequence);
        }
    }
    assert!(sequences.values().any(|sequences| sequences.len() > 5), "{sequences:?}");
    for (subject, sequences) in sequences {
        assert!(sequences.is_sorted(), "{subject}: {sequences:?}");
    }
}

/// What the subscriber kept of each subject is its last event: a CloudEvent in full.
async fn the_latest_are_whole(store: &DatabaseConnection, committed: &[Envelope]) {
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    for event in committed {
        if let Some(sequence) = event.sequence {
            let known = last.entry(&event.subject).or_insert(sequence);
            *known = sequence.max(*known);
        }
    }
    let kept = texts(store, "SELECT event FROM latest").await;
    assert_eq!(kept.len(), last.len());
    for event in kept {
        let event: Value = serde_json::from_str(&event).unwrap();
        let text =
            |attribute: &str| event[attribute].as_str().unwrap_or_else(|| panic!("{attribute}: {event}"));
        let sequence = text("sequence").parse::<i64>().unwrap();
        assert_eq!(Some(&sequence), last.get(text("subject")), "{event}");
        text("time").parse::<DateTime<FixedOffset>>().unwrap();
        text("type");
        assert_eq!(event["data"]["version"], sequence, "{event}");
    }
}

/// The ids of the events that were applied, in that order.
async fn applied(store: &DatabaseConnection) -> Vec<String> {
    texts(store, "SELECT id FROM seen ORDER BY rowid").await
}

async fn counted(store: &DatabaseConnection) -> i64 {
    texts(store, "SELECT CAST(sum(events) AS TEXT) FROM count").await[0].parse().unwrap()
}

async fn texts(store: &DatabaseConnection, sql: &str) -> Vec<String> {
    let rows = store.query_all_raw(sea_orm::Statement::from_string(store.get_database_backend(), sql)).await;
    rows.unwrap().iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

/// A subscriber as a process; it dies with this value.
struct Subscriber {
    command: Command,
    process: Option<Child>,
    directory: TempDir,
}

impl Subscriber {
    fn new(program: &[String], url: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).args([NAME, "#"]).env("AMQP_URL", url).current_dir(&directory);
        Self { command, process: None, directory }
    }

    /// Starts it and waits until it is subscribed.
    async fn start(&mut self) {
        let output = File::create(self.log()).unwrap();
        self.command.stdout(output.try_clone().unwrap()).stderr(output);
        self.process = Some(self.command.spawn().expect("the example was built"));
        eventually(async || self.said().contains("subscribed")).await;
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What it has printed since it was started.
    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap()
    }

    /// Kills it, as by `kill -9`.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// What it keeps.
    async fn store(&self) -> DatabaseConnection {
        let file = self.directory.path().join(format!("{NAME}.db"));
        Database::connect(format!("sqlite://{}?mode=rw", file.display())).await.unwrap()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.kill();
    }
}
