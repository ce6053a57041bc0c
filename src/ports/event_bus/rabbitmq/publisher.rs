//! Publishes with confirms, each awaited by itself (RELIABILITY R13).

use std::collections::{HashMap, HashSet, VecDeque};
use std::slice;
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};
use tokio::time::timeout;
use tracing::warn;

use super::link::{self, Broker, LinkError};
use super::topology::{self, EVENTS, PARTITION};
use crate::faults;
use crate::ids::EventId;
use crate::messaging::envelope::{self, Envelope};
use crate::messaging::outbox;
use crate::ports::event_bus::{Committed, GroupSpec, PublishError};

/// Events that are published and not confirmed, at most; more brings nothing (RELIABILITY C1).
const WINDOW: usize = 1000;

/// Events that are handed to the connection together.
const CHUNK: usize = 250;

/// How long the broker may take to confirm, unless it said that it is short of memory or disk.
const CONFIRM: Duration = Duration::from_secs(10);

/// Persistent.
const DELIVERY_MODE: u8 = 2;

/// A connection to publish on, with everything declared. Used by one task at a time: confirms are matched by order.
#[derive(Debug)]
pub(super) struct Publisher {
    connection: Connection,
    channel: Channel,
    /// The types our own groups listen to.
    wanted: HashSet<&'static str>,
}

/// One event, on its way.
struct Message {
    row: usize,
    event: Envelope,
}

/// A message that waits for its confirm.
struct Unconfirmed {
    row: usize,
    id: EventId,
    confirm: PublisherConfirm,
}

/// What became of the rows so far.
struct Progress {
    unsettled: Vec<usize>,
    refused: Vec<Option<PublishError>>,
    rows_by_event: HashMap<EventId, usize>,
}

impl Publisher {
    /// Connects and declares the exchanges and queues.
    pub(super) async fn connect(
        broker: &Broker,
        groups: &[GroupSpec],
        delays: &[Duration],
    ) -> Result<Self, LinkError> {
        let connection = broker.connect("publisher").await?;
        let channel = link::confirming(&connection).await?;
        link::declare(&connection, &[], delays).await?;
        for group in groups {
            match link::declare(&connection, slice::from_ref(group), &[]).await {
                // Queues of one group that are there already, with other arguments, keep no other group from its events.
                Err(error) if error.is_of_channel() => {
                    warn!(group = group.name, %error, "Cannot declare the queues of group {}: {error}", group.name);
                }
                declared => declared?,
            }
        }
        let wanted = groups.iter().flat_map(|group| group.types).map(|known| known.word()).collect();
        Ok(Self { connection, channel, wanted })
    }

    /// Why nothing can be published now, if so (R12).
    pub(super) fn trouble(&self) -> Option<&'static str> {
        let status = self.connection.status();
        if status.blocked() {
            Some("the broker is short of memory or disk and takes no messages")
        } else if !status.connected() || !self.channel.status().connected() {
            Some("the connection is closed")
        } else {
            None
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Publishes all events of `rows`; answers for each row. If it cannot be finished, the second answer says why, and
    /// this connection must be dropped: what it still has to say is unknown.
    pub(super) async fn publish(
        &self,
        rows: &[Committed],
    ) -> (Vec<Result<(), PublishError>>, Result<(), LinkError>) {
        let (messages, mut progress) = unpack(rows);
        let finished = self.send_all(messages, &mut progress).await;
        (progress.answers(&finished), finished)
    }

    async fn send_all(&self, messages: Vec<Message>, progress: &mut Progress) -> Result<(), LinkError> {
        let mut unconfirmed: VecDeque<Unconfirmed> = VecDeque::new();
        for chunk in messages.chunks(CHUNK) {
            while unconfirmed.len() + chunk.len() > WINDOW {
                self.confirm_next(&mut unconfirmed, progress).await?;
            }
            let sending = try_join_all(chunk.iter().map(|message| self.send(&message.event)));
            let confirms = self.patiently(sending).await?;
            let sent = chunk.iter().zip(confirms).map(|(message, confirm)| Unconfirmed {
                row: message.row,
                id: message.event.id,
                confirm,
            });
            unconfirmed.extend(sent);
            let _ = faults::point("after_publish").await;
        }
        while !unconfirmed.is_empty() {
            self.confirm_next(&mut unconfirmed, progress).await?;
        }
        let _ = faults::point("after_confirm").await;
        Ok(())
    }

    async fn send(&self, event: &Envelope) -> Result<PublisherConfirm, lapin::Error> {
        let kind = event.event_type.as_str();
        // What nobody listens to is not missed; what one of our groups waits for must find its queue.
        let options =
            BasicPublishOptions { mandatory: self.wanted.contains(kind), ..BasicPublishOptions::default() };
        let body = event.to_json();
        let key = ShortString::try_new(kind).unwrap_or_default();
        self.channel.basic_publish(EVENTS.into(), key, options, &body, properties(event)).await
    }

    async fn confirm_next(
        &self,
        unconfirmed: &mut VecDeque<Unconfirmed>,
        progress: &mut Progress,
    ) -> Result<(), LinkError> {
        let Some(next) = unconfirmed.pop_front() else { return Ok(()) };
        match self.patiently(next.confirm).await? {
            Confirmation::Ack(None) => progress.settle(next.row),
            Confirmation::Ack(Some(returned)) => {
                // A message that found no queue may be told of with the confirm of another one.
                progress.settle(next.row);
                let id = returned.delivery.properties.message_id().as_ref();
                let id = id.and_then(|id| id.as_str().parse().ok()).unwrap_or(next.id);
                progress.refuse(id, "it found no queue");
            }
            Confirmation::Nack(_) => progress.refuse(next.id, "the broker could not store it"),
            Confirmation::NotRequested => progress.refuse(next.id, "the channel does not confirm"),
        }
        Ok(())
    }

    /// Waits for the broker; for as long as it takes if it is short of memory or disk.
    async fn patiently<T>(
        &self,
        answer: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<T, LinkError> {
        let mut answer = std::pin::pin!(answer);
        loop {
            match timeout(CONFIRM, &mut answer).await {
                Ok(answer) => return Ok(answer?),
                Err(_) if self.connection.status().blocked() => {}
                Err(_) => return Err(LinkError::Silent),
            }
        }
    }

    pub(super) async fn close(self) {
        link::close(&self.connection).await;
    }
}

/// Puts an empty message into `queue`, without waiting for its confirm.
pub(super) async fn poke(connection: &Connection, queue: &str) -> Result<(), LinkError> {
    let channel = link::within(connection.create_channel()).await?;
    let key = ShortString::try_new(queue).unwrap_or_default();
    let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE);
    let sent = channel.basic_publish("".into(), key, BasicPublishOptions::default(), b"", properties);
    link::within(sent).await?;
    link::within(channel.close(200, "OK".into())).await
}

impl Progress {
    fn settle(&mut self, row: usize) {
        if let Some(left) = self.unsettled.get_mut(row) {
            *left = left.saturating_sub(1);
        }
    }

    fn refuse(&mut self, event: EventId, reason: &str) {
        if let Some(&row) = self.rows_by_event.get(&event) {
            let refusal = PublishError::Refused { event: event.to_string(), reason: reason.to_owned() };
            self.refused[row].get_or_insert(refusal);
        }
    }

    fn answers(self, finished: &Result<(), LinkError>) -> Vec<Result<(), PublishError>> {
        let unavailable = |left: usize| match finished {
            Err(error) if left > 0 => Err(PublishError::Unavailable(error.to_string())),
            _ => Ok(()),
        };
        let rows = self.unsettled.into_iter().zip(self.refused);
        rows.map(|(left, refused)| refused.map_or_else(|| unavailable(left), Err)).collect()
    }
}

/// The events of `rows` in the order they are to be sent.
fn unpack(rows: &[Committed]) -> (Vec<Message>, Progress) {
    let mut messages = Vec::new();
    let mut progress = Progress {
        unsettled: vec![0; rows.len()],
        refused: vec![None; rows.len()],
        rows_by_event: HashMap::new(),
    };
    for (row, committed) in rows.iter().enumerate() {
        match outbox::read(&committed.events, committed.traceparent.as_deref()) {
            Ok(events) => {
                progress.unsettled[row] = events.len();
                progress.rows_by_event.extend(events.iter().map(|event| (event.id, row)));
                messages.extend(events.into_iter().map(|event| Message { row, event }));
            }
            Err(error) => {
                let event = format!("in outbox row {}", committed.id);
                progress.refused[row] = Some(PublishError::Refused { event, reason: error.to_string() });
            }
        }
    }
    in_order(&mut messages);
    (messages, progress)
}

/// Puts the events of each aggregate into the order of their sequence, among the places they have: ids are drawn
/// before the aggregate's row is locked, so rows can be out of order by a hair (R18).
fn in_order(messages: &mut [Message]) {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, message) in messages.iter().enumerate() {
        if message.event.sequence.is_some() {
            places.entry(message.event.subject.clone()).or_default().push(place);
        }
    }
    for places in places.into_values() {
        let sequence = |place: &usize| messages[*place].event.sequence;
        if places.is_sorted_by_key(sequence) {
            continue;
        }
        // Selection sort: a handful of events, hardly ever out of order.
        for (done, &place) in places.iter().enumerate() {
            let smallest = places[done..].iter().copied().min_by_key(|place| messages[*place].event.sequence);
            if let Some(smallest) = smallest {
                messages.swap(place, smallest);
            }
        }
    }
}

/// The attributes travel as headers too (CloudEvents AMQP binding), for header exchanges and AMQP 1.0 consumers.
fn properties(event: &Envelope) -> BasicProperties {
    let text = |value: &str| AMQPValue::LongString(value.into());
    let short = |value: &str| ShortString::try_new(value).unwrap_or_default();
    let (id, partition) = (event.id.to_string(), topology::partition(&event.subject));
    let mut headers = FieldTable::default();
    headers.insert(PARTITION.into(), AMQPValue::LongInt(partition.cast_signed()));
    headers.insert("cloudEvents_specversion".into(), text("1.0"));
    headers.insert("cloudEvents_id".into(), text(&id));
    headers.insert("cloudEvents_source".into(), text(envelope::SOURCE));
    headers.insert("cloudEvents_type".into(), text(&event.event_type));
    headers.insert("cloudEvents_subject".into(), text(&event.subject));
    headers.insert("cloudEvents_time".into(), text(&outbox::rfc3339(event.time)));
    if let Some(traceparent) = event.traceparent {
        let traceparent = traceparent.to_string();
        headers.insert("traceparent".into(), text(&traceparent));
    }
    BasicProperties::default()
        .with_content_type(envelope::CONTENT_TYPE.into())
        .with_message_id(short(&id))
        .with_type(short(&event.event_type))
        .with_app_id("tombola".into())
        .with_timestamp(u64::try_from(event.time.timestamp()).unwrap_or_default())
        .with_delivery_mode(DELIVERY_MODE)
        .with_headers(headers)
}
