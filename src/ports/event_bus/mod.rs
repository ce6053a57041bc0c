//! What carries committed events to those who listen, within this server and in other systems.
//!
//! The outbox is the durable side of every bus: a bus that lost everything is fed again from there, so both
//! implementations promise the same. Delivery is at least once; what is delivered twice is absorbed by the consumer log.
//!
//! - [`EventBus::way`] is how the relay brings it what a transaction committed, for every group that wants it.
//! - [`EventBus::deliver`] hands a group its events. Groups that ask for order get the events of one subject one after
//!   the other, on one node at a time.
//! - [`EventBus::broadcast`] hands every node every event, for caches: it may miss events while a node is away, and
//!   says so.
//! - [`EventBus::remind`] wakes a group after a delay. A reminder may be lost; a sweep of the due times makes it good.

pub mod embedded;
pub mod rabbitmq;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::db::bulk::Script;
use crate::ids::BatchId;
use crate::messaging::catalogue::EventType;
use crate::messaging::envelope::{Envelope, Undecodable};

/// The events of one transaction, on their way from the outbox to the bus.
#[derive(Debug, Clone)]
pub struct Committed {
    pub id: BatchId,
    /// The types that occur, with spaces between; empty if unknown (rows of older versions).
    pub types: String,
    /// The JSON array the outbox keeps.
    pub events: String,
    pub traceparent: Option<String>,
}

impl Committed {
    /// Whether an event of one of `types` may be among them.
    pub fn may_interest(&self, types: &[EventType]) -> bool {
        self.types.is_empty()
            || self.types.split(' ').any(|word| types.iter().any(|known| known.word() == word))
    }
}

/// A consumer group: those who, together, apply each event once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSpec {
    /// Lower snake case; the queue is `tombola.<name>`.
    pub name: &'static str,
    pub types: &'static [EventType],
    /// Whether the events of one subject are delivered one after the other.
    pub ordered: bool,
    /// How many events are taken in together at most.
    pub max_batch: u16,
    /// How long to wait for more events, once there is one. A group that can wait also gives way while customers wait for
    /// the database.
    pub linger: Duration,
    /// Whether one event of a subject stands for all that come with it, because the group looks at what they are about:
    /// a bus may leave the others out.
    pub coalesced: bool,
}

impl GroupSpec {
    /// A group without order that takes in up to 500 events at once, every one, without waiting for more.
    pub const fn new(name: &'static str, types: &'static [EventType]) -> Self {
        Self { name, types, ordered: false, max_batch: 500, linger: Duration::ZERO, coalesced: false }
    }

    /// Whether the group listens to the type `word`.
    pub fn wants(&self, word: &str) -> bool {
        self.types.iter().any(|known| known.word() == word)
    }
}

/// One delivery of one message.
#[derive(Debug)]
pub struct Delivery {
    pub content: Result<Envelope, Unreadable>,
    /// The queue it came from.
    pub origin: Arc<str>,
    /// How often it was delivered before without being settled, as far as the bus knows.
    pub redeliveries: u32,
}

/// A message that is no event.
#[derive(Debug)]
pub struct Unreadable {
    pub body: Vec<u8>,
    pub error: Undecodable,
}

/// The group that consumes from the queue `origin`.
pub fn group_of(origin: &str) -> &str {
    let name = origin.strip_prefix("tombola.").unwrap_or(origin);
    name.split_once('.').map_or(name, |(group, _)| group)
}

/// Where a bus delivers to.
#[async_trait]
pub trait Sink: Send + Sync + fmt::Debug {
    /// Settles every delivery, durably: applied, parked or dead. After an error nothing is known and all of them are
    /// delivered again.
    async fn take_in(&self, deliveries: Vec<Delivery>) -> Result<(), SinkUnavailable>;
}

/// The place deliveries go to cannot take them now; the cause is logged.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SinkUnavailable(pub String);

/// What a broadcast tells.
#[derive(Debug)]
pub enum Heard {
    Event(Envelope),
    /// Listening (re)starts here: what was said before may have been missed.
    Anew,
}

/// What a node does with what it hears.
pub type Listener = Arc<dyn Fn(Heard) -> BoxFuture<'static, ()> + Send + Sync>;

/// Why events were not published.
#[derive(Debug, Clone, Error)]
pub enum PublishError {
    /// The bus does not answer or takes nothing now; what is unconfirmed is to be published again.
    #[error("the event bus is not available: {0}")]
    Unavailable(String),
    /// The bus refused an event.
    #[error("the event bus refused event {event}: {reason}")]
    Refused { event: String, reason: String },
}

/// Queues of whole outbox rows, in the same database (`queued_events`).
pub trait RowQueues: Send + Sync + fmt::Debug {
    /// Lets `script` queue each row, whose events need not be read, for every group that may want one of them; `now` is
    /// the database's. Tells which groups these are.
    fn enqueue(&self, rows: &[Committed], now: i64, script: &mut Script) -> Vec<&'static str>;

    /// Wakes who consumes for `groups`: the rows are committed now.
    fn wake(&self, groups: &[&'static str]);
}

/// The way of committed events to a bus.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// Its queues are beside the outbox: rows get there in the transaction that marks them as sent.
    Within(&'a dyn RowQueues),
    /// It is handed them, and says what it has stored.
    Outside(&'a dyn Publish),
}

/// A bus outside the database.
#[async_trait]
pub trait Publish: Send + Sync + fmt::Debug {
    /// Stores all events of each row for every group that wants them; answers for each row. An error leaves open which
    /// events of the row were stored.
    async fn publish(&self, rows: &[Committed]) -> Vec<Result<(), PublishError>>;
}

/// Carries committed events to those who listen. Clones of the implementations share their connections.
#[async_trait]
pub trait EventBus: Send + Sync + fmt::Debug {
    /// How events get here; the relay brings what transactions committed.
    fn way(&self) -> Way<'_>;

    /// Hands `group` its events until `stop`, reconnecting for ever. May run on many nodes at a time.
    async fn deliver(&self, group: GroupSpec, sink: Arc<dyn Sink>, stop: CancellationToken);

    /// Lets this node hear every event of `types` until `stop`.
    async fn broadcast(&self, types: &'static [EventType], listener: Listener, stop: CancellationToken);

    /// Hands over what the bus gave up delivering, until `stop`: each crashed its consumer too often. Their origin names
    /// the group's queue.
    async fn exhausted(&self, sink: Arc<dyn Sink>, stop: CancellationToken);

    /// Wakes a node that waits for [reminders](EventBus::reminded) after `delay`, if all goes well.
    async fn remind(&self, delay: Duration);

    /// Wakes `wake` for each reminder until `stop`.
    async fn reminded(&self, wake: &Notify, stop: CancellationToken);

    /// Ends the connections.
    async fn close(&self);
}
