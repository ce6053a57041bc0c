//! The bus over RabbitMQ 3.10 or newer.
//!
//! One connection publishes and another one consumes, because a broker short of memory silences a publishing connection
//! altogether, acknowledgements included (RELIABILITY R12). A third one leaves reminders: every node that consumes does,
//! whether or not it publishes. They are made again for ever when they are lost.

mod consumer;
mod link;
mod publisher;
mod topology;

use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use secrecy::SecretString;
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::link::{Broker, LinkError, Shared};
use self::publisher::Publisher;
pub use self::topology::{DEAD, DUE, EVENTS, PARTITION, PARTITIONS, partition};
use super::{Committed, EventBus, GroupSpec, Listener, Publish, PublishError, Sink, Way};
use crate::messaging::catalogue::EventType;

/// The shortest and the longest pause between two attempts to connect.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long leaving a reminder may take; the sweep makes good what is left out.
const REMIND: Duration = Duration::from_millis(500);

/// The bus over RabbitMQ. Clones share the connections.
#[derive(Debug, Clone)]
pub struct RabbitMq(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    broker: Broker,
    groups: Vec<GroupSpec>,
    delays: Vec<Duration>,
    /// Empty while it is in use, or when the connection was lost.
    publisher: Mutex<Option<Publisher>>,
    consuming: Shared,
    reminding: Shared,
}

impl RabbitMq {
    /// A bus at `url` (`amqp://` or `amqps://`) for `groups`, with a queue for each of `delays`. Connects when needed.
    pub fn new(url: &SecretString, groups: &[GroupSpec], delays: &[Duration]) -> Result<Self, String> {
        let broker = Broker::new(url)?;
        Ok(Self(Arc::new(Inner {
            broker: broker.clone(),
            groups: groups.to_vec(),
            delays: delays.to_vec(),
            publisher: Mutex::new(None),
            consuming: Shared::new(broker.clone(), "consumer"),
            reminding: Shared::new(broker, "reminder"),
        })))
    }

    /// The exchanges and queues are there once this has succeeded.
    async fn publisher(&self, existing: Option<Publisher>) -> Result<Publisher, LinkError> {
        match existing {
            Some(publisher) if publisher.is_connected() => Ok(publisher),
            _ => {
                let publisher = Publisher::connect(&self.0.broker, &self.0.groups, &self.0.delays).await?;
                info!("Connected to RabbitMQ to publish");
                Ok(publisher)
            }
        }
    }

    async fn leave_reminder(&self, delay: Duration) -> Result<(), LinkError> {
        let connection = self.0.reminding.get().await?;
        if connection.status().blocked() {
            return Ok(());
        }
        let left = publisher::poke(&connection, &topology::delay_queue(delay)).await;
        if left.is_err() {
            self.0.reminding.discard(&connection).await;
        }
        left
    }

    /// Consumes again and again until `stop`.
    async fn keep_consuming(&self, task: Task<'_>, stop: &CancellationToken) {
        let what = task.queue();
        let mut pause = SHORTEST_PAUSE;
        while !stop.is_cancelled() {
            let started = Instant::now();
            match stop.run_until_cancelled(self.consume(&task, stop)).await {
                Some(Err(error)) => warn!(%error, "Consumes {what} again in {pause:?}: {error}"),
                Some(Ok(())) => debug!("The broker ended the consumer of {what}"),
                None => return,
            }
            if started.elapsed() > LONGEST_PAUSE {
                pause = SHORTEST_PAUSE;
            }
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn consume(&self, task: &Task<'_>, stop: &CancellationToken) -> Result<(), LinkError> {
        let connection = self.0.consuming.get().await?;
        let ended = self.consume_on(&connection, task, stop).await;
        // What the broker has against one queue is no reason to take the messages of the others away.
        if ended.as_ref().is_err_and(|error| !error.is_of_channel()) {
            self.0.consuming.discard(&connection).await;
        }
        ended
    }

    async fn consume_on(
        &self,
        connection: &lapin::Connection,
        task: &Task<'_>,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let (groups, delays): (&[GroupSpec], &[Duration]) = match task {
            Task::Queue { group, .. } if self.0.groups.contains(group) => (slice::from_ref(group), &[]),
            Task::Queue { .. } | Task::Ear { .. } => (&[], &[]),
            Task::Reminders(_) => (&[], &self.0.delays),
        };
        link::declare(connection, groups, delays).await?;
        match task {
            Task::Queue { queue, group, sink } => {
                consumer::consume(connection, queue, group, *sink, stop).await
            }
            Task::Ear { types, listener } => consumer::listen(connection, types, listener).await,
            Task::Reminders(wake) => consumer::wake(connection, wake).await,
        }
    }
}

/// What is consumed, and what for.
enum Task<'a> {
    Queue { queue: &'a str, group: &'a GroupSpec, sink: &'a dyn Sink },
    Ear { types: &'static [EventType], listener: &'a Listener },
    Reminders(&'a Notify),
}

impl Task<'_> {
    fn queue(&self) -> &str {
        match self {
            Self::Queue { queue, .. } => queue,
            Self::Ear { .. } => "broadcasts",
            Self::Reminders(_) => DUE,
        }
    }
}

#[async_trait]
impl Publish for RabbitMq {
    async fn publish(&self, rows: &[Committed]) -> Vec<Result<(), PublishError>> {
        let unavailable =
            |cause: String| rows.iter().map(|_| Err(PublishError::Unavailable(cause.clone()))).collect();
        let mut shared = self.0.publisher.lock().await;
        // Taken out while in use: if this future is dropped half-way, nobody meets its leftovers.
        let publisher = match self.publisher(shared.take()).await {
            Ok(publisher) => publisher,
            Err(error) => return unavailable(error.to_string()),
        };
        if let Some(trouble) = publisher.trouble() {
            *shared = Some(publisher);
            return unavailable(trouble.to_owned());
        }
        let (answers, finished) = publisher.publish(rows).await;
        match finished {
            // A message that found no queue: they are declared anew with the next connection.
            Ok(()) if answers.iter().any(Result::is_err) => publisher.close().await,
            Ok(()) => *shared = Some(publisher),
            Err(error) => {
                warn!(%error, "Lost the connection to RabbitMQ while publishing");
                publisher.close().await;
            }
        }
        answers
    }
}

#[async_trait]
impl EventBus for RabbitMq {
    fn way(&self) -> Way<'_> {
        Way::Outside(self)
    }

    async fn deliver(&self, group: GroupSpec, sink: Arc<dyn Sink>, stop: CancellationToken) {
        let queues = topology::queues(&group);
        let tasks = queues.iter().map(|queue| {
            let task = Task::Queue { queue, group: &group, sink: sink.as_ref() };
            self.keep_consuming(task, &stop)
        });
        join_all(tasks).await;
    }

    async fn broadcast(&self, types: &'static [EventType], listener: Listener, stop: CancellationToken) {
        self.keep_consuming(Task::Ear { types, listener: &listener }, &stop).await;
    }

    async fn exhausted(&self, sink: Arc<dyn Sink>, stop: CancellationToken) {
        let group = GroupSpec { max_batch: 10, ..GroupSpec::new("dead", &[]) };
        self.keep_consuming(Task::Queue { queue: DEAD, group: &group, sink: sink.as_ref() }, &stop).await;
    }

    async fn remind(&self, delay: Duration) {
        if !self.0.delays.contains(&delay) {
            return;
        }
        let bus = self.clone();
        // Whoever consumes must not wait for a broker that takes no messages (R12).
        tokio::spawn(async move {
            match timeout(REMIND, bus.leave_reminder(delay)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "Could not leave a reminder"),
                Err(_) => debug!("The broker is too busy to leave a reminder"),
            }
        });
    }

    async fn reminded(&self, wake: &Notify, stop: CancellationToken) {
        self.keep_consuming(Task::Reminders(wake), &stop).await;
    }

    async fn close(&self) {
        if let Some(publisher) = self.0.publisher.lock().await.take() {
            publisher.close().await;
        }
        self.0.consuming.close().await;
        self.0.reminding.close().await;
    }
}
