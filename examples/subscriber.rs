//! Subscribes to Tombola's events from another system.
//!
//! ```sh
//! AMQP_URL=amqp://… cargo run --example subscriber -- accounting 'activity.taken.v1' 'activity.*.*'
//! ```
//!
//! RabbitMQ keeps what this program has not acknowledged, in a queue of its own that outlives both, so every event
//! comes at least once: again if this program or the broker dies between the effect and the acknowledgement. The id of
//! an event is therefore remembered in the same commit as its effect. That makes it exactly once.
//!
//! What is no event, and what is delivered too often without being settled, is set aside in the queue NAME.dead.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::error::Error;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, ExecResult, Statement,
    TransactionTrait, Value,
};
use serde::{Deserialize, Serialize};

const USAGE: &str =
    "usage: subscriber NAME KEY…, where a KEY is an event type; * is any one word of it, # any rest";
const EXCHANGE: &str = "tombola.events";
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS count (type TEXT PRIMARY KEY, events INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS latest (subject TEXT PRIMARY KEY, sequence TEXT NOT NULL, event TEXT NOT NULL);
";

/// A CloudEvent, as far as this program cares.
#[derive(Deserialize, Serialize)]
struct Event {
    id: String,
    r#type: String,
    subject: String,
    time: String,
    sequence: Option<String>,
    data: serde_json::Value,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), keys) = (arguments.next(), arguments.collect::<Vec<_>>()) else {
        return Err(USAGE.into());
    };
    if keys.is_empty() {
        return Err(USAGE.into());
    }
    // Of the broker, or several with commas between.
    let urls = std::env::var("AMQP_URL");
    let urls = urls.as_deref().unwrap_or("amqp://guest:guest@127.0.0.1:5672/%2f");

    // One connection, because SQLite has one writer.
    let mut options = ConnectOptions::new(format!("sqlite://{name}.db?mode=rwc"));
    options.max_connections(1).sqlx_logging(false);
    let db = Database::connect(options).await?;
    db.execute_unprepared(TABLES).await?;

    let mut pause = FIRST_PAUSE;
    for url in urls.split(',').cycle() {
        let start = Instant::now();
        // What was not acknowledged comes again.
        let Err(error) = consume(url, &name, &keys, &db).await else { continue };
        if start.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        eprintln!("{error}; again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Takes in events until the connection is lost.
async fn consume(
    url: &str,
    name: &str,
    keys: &[String],
    db: &DatabaseConnection,
) -> Result<(), Box<dyn Error>> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connection = tokio::time::timeout(Duration::from_secs(10), connecting).await??;
    let channel = connection.create_channel().await?;

    declare(&channel, name, keys).await?;
    // How many events may be under way to us; without a limit the broker would send all it has.
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel.basic_consume(name.into(), "".into(), options, none).await?;
    eprintln!("subscribed as {name}");

    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        let Ok(event) = serde_json::from_slice::<Event>(&delivery.data) else {
            // It will not become readable by trying again.
            eprintln!("not an event: {}", String::from_utf8_lossy(&delivery.data));
            delivery.reject(BasicRejectOptions { requeue: false }).await?;
            continue;
        };
        if apply_in_the_end(db, &event).await {
            println!("{} {} {} {}", event.time, event.r#type, event.subject, event.data);
        }
        // Only now: an event acknowledged before its effect is committed could be lost.
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Err("the broker ended the subscription".into())
}

/// Declares the queue and binds it. What is there already stays, so it does not matter who starts first.
async fn declare(channel: &Channel, name: &str, keys: &[String]) -> Result<(), lapin::Error> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    // A quorum queue lives on several brokers, if there are several.
    let text = |value: &str| AMQPValue::LongString(value.into());
    let dead = format!("{name}.dead");
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), text("quorum"));
    let mut kept = quorum.clone();
    channel.queue_declare(dead.as_str().into(), QueueDeclareOptions::durable(), quorum).await?;
    // RabbitMQ drops what is rejected, or delivered too often (20 times by default since 4.0), unless it is told where
    // to put it. It takes back what it could not put there, which needs the last argument.
    kept.insert("x-delivery-limit".into(), AMQPValue::LongInt(20));
    kept.insert("x-dead-letter-exchange".into(), text(""));
    kept.insert("x-dead-letter-routing-key".into(), text(&dead));
    kept.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    kept.insert("x-overflow".into(), text("reject-publish"));
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), kept).await?;
    // Bindings are added: to hear less than before, unbind, or take another name.
    for key in keys {
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(name.into(), EXCHANGE.into(), key.as_str().into(), options, none).await?;
    }
    Ok(())
}

/// Applies an event, after longer and longer pauses while that fails: those behind it wait, and nothing is lost.
async fn apply_in_the_end(db: &DatabaseConnection, event: &Event) -> bool {
    let mut pause = FIRST_PAUSE;
    loop {
        match apply(db, event).await {
            Ok(new) => return new,
            Err(error) => eprintln!("{}: {error}; again in {pause:?}", event.id),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Applies an event once, however often it comes; answers whether this was the time.
#[expect(
    clippy::disallowed_methods,
    reason = "the server's own way to begin a transaction is not for this program"
)]
async fn apply(db: &DatabaseConnection, event: &Event) -> Result<bool, Box<dyn Error>> {
    let transaction = db.begin().await?;
    let id = event.id.as_str().into();
    let new = execute(&transaction, "INSERT OR IGNORE INTO seen VALUES (?)", [id]).await?.rows_affected() > 0;
    if new {
        effect(&transaction, event).await?;
    }
    transaction.commit().await?;
    Ok(new)
}

/// What your system does about an event; here it counts, and keeps the latest event of each subject.
async fn effect(transaction: &impl ConnectionTrait, event: &Event) -> Result<(), Box<dyn Error>> {
    let count = "INSERT INTO count VALUES (?, 1) ON CONFLICT (type) DO UPDATE SET events = events + 1";
    execute(transaction, count, [event.r#type.as_str().into()]).await?;
    // Events of one subject come in order, except when one comes again. Where an event has a `sequence`, an older one
    // has a lower one; they all have the same length, so text compares as numbers do.
    if let Some(sequence) = &event.sequence {
        let keep = "INSERT INTO latest VALUES (?, ?, ?) ON CONFLICT (subject) DO UPDATE \
                    SET sequence = excluded.sequence, event = excluded.event WHERE excluded.sequence >= sequence";
        let values =
            [&event.subject, sequence, &serde_json::to_string(event)?].map(|text| text.as_str().into());
        execute(transaction, keep, values).await?;
    }
    Ok(())
}

async fn execute<const N: usize>(
    connection: &impl ConnectionTrait,
    sql: &str,
    values: [Value; N],
) -> Result<ExecResult, DbErr> {
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
    connection.execute_raw(statement).await
}
