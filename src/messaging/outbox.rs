//! The outbox: events written with their cause, one row for all events of one transaction.
//!
//! A row per event would cost a tenth of the takes; one row per batch leaves the relay one row to mark, and each event
//! still has its own id.

use std::borrow::Cow;
use std::fmt;

use entities::outbox;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QuerySelect};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::catalogue::{Event, EventType};
use super::envelope::Envelope;
use crate::db::bulk::Script;
use crate::db::{DbFault, Tx};
use crate::ids::{BatchId, EventId, Ids};
use crate::ports::clock::{Timestamp, to_micros};
use crate::trace::Traceparent;

/// Events that are to be committed together, as the JSON array the outbox keeps.
#[derive(Debug, Clone)]
pub struct Events {
    json: Vec<u8>,
    time: String,
    count: i32,
    types: Vec<EventType>,
}

#[derive(Serialize)]
struct Written<'a, S: fmt::Display, T> {
    id: EventId,
    r#type: &'static str,
    #[serde(serialize_with = "as_text")]
    subject: S,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<i64>,
    time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<Traceparent>,
    data: &'a T,
}

/// What [`Written`] wrote.
#[derive(Deserialize)]
struct Stored<'a> {
    id: EventId,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    subject: Cow<'a, str>,
    sequence: Option<i64>,
    time: Timestamp,
    #[serde(borrow)]
    traceparent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Events {
    /// No events yet; all that are added happened at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { json: vec![b'['], time: rfc3339(now), count: 0, types: Vec::new() }
    }

    /// Adds an event.
    pub fn push<E: Event>(&mut self, id: EventId, event: &E) -> Result<(), serde_json::Error> {
        self.push_traced(id, event, None)
    }

    /// Adds an event whose trace is not the one of the row: a row may have many causes.
    pub fn push_traced<E: Event>(
        &mut self,
        id: EventId,
        event: &E,
        parent: Option<Traceparent>,
    ) -> Result<(), serde_json::Error> {
        if self.json.len() > 1 {
            self.json.push(b',');
        }
        self.count += 1;
        if !self.types.contains(&E::TYPE) {
            self.types.push(E::TYPE);
        }
        let written = Written {
            id,
            r#type: E::TYPE.word(),
            subject: event.subject(),
            sequence: event.sequence(),
            time: &self.time,
            traceparent: parent,
            data: event,
        };
        serde_json::to_writer(&mut self.json, &written)
    }

    /// When the events happened, as RFC 3339.
    pub fn time(&self) -> &str {
        &self.time
    }

    pub fn is_empty(&self) -> bool {
        self.json.len() == 1
    }

    /// The types that occur, each once, with spaces between: what the outbox keeps beside the events.
    fn types(&self) -> String {
        self.types.iter().map(|event_type| event_type.word()).collect::<Vec<_>>().join(" ")
    }

    /// The JSON array.
    pub fn into_json(mut self) -> String {
        self.json.push(b']');
        String::from_utf8(self.json).unwrap_or_else(|_| unreachable!("serde_json writes UTF-8"))
    }
}

/// The last id that an outbox row was given, whichever node gave it.
pub async fn last_id(connection: &impl ConnectionTrait) -> Result<Option<i64>, DbFault> {
    let last = outbox::Entity::find().select_only().column_as(outbox::Column::Id.max(), "last").into_tuple();
    Ok(last.one(connection).await?.flatten())
}

/// Writes `events` into the open transaction as the outbox row `id`, in the current trace; no events, no row.
pub async fn append(tx: &Tx, id: BatchId, events: Events, now: Timestamp) -> Result<(), DbFault> {
    if !events.is_empty() {
        let mut script = Script::new();
        add(id, events, now, &mut script);
        script.execute(tx).await?;
    }
    Ok(())
}

/// Writes one event into the open transaction, in the current trace.
pub async fn append_one(tx: &Tx, ids: &Ids, now: Timestamp, event: &impl Event) -> Result<(), DbFault> {
    let mut events = Events::at(now);
    events.push(ids.next()?, event)?;
    append(tx, ids.next()?, events, now).await
}

/// Adds the outbox row `id`, in the current trace, to `script`, whose commit wakes the relay.
pub fn add(id: BatchId, events: Events, now: Timestamp, script: &mut Script) {
    script.announce();
    let parent = Traceparent::current().map(|parent| parent.to_string());
    let (count, types) = (events.count, events.types());
    script.push(
        "INSERT INTO outbox (id, events, event_count, types, traceparent, created_at, attempts) \
         VALUES (?, ?, ?, ?, ?, ?, 0)",
        [
            id.0.into(),
            events.into_json().into(),
            count.into(),
            types.into(),
            parent.into(),
            to_micros(now).into(),
        ],
    );
}

/// The events of an outbox row, given its columns `events` and `traceparent`.
pub fn read(events: &str, traceparent: Option<&str>) -> Result<Vec<Envelope>, serde_json::Error> {
    read_wanted(events, traceparent, |_, _| true)
}

/// Those events of an outbox row that are `wanted` by their type and subject.
pub fn read_wanted(
    events: &str,
    traceparent: Option<&str>,
    mut wanted: impl FnMut(&str, &str) -> bool,
) -> Result<Vec<Envelope>, serde_json::Error> {
    let of_row = traceparent.and_then(Traceparent::parse);
    let stored: Vec<Stored<'_>> = serde_json::from_str(events)?;
    let stored = stored.into_iter().filter(|stored| wanted(&stored.r#type, &stored.subject));
    let envelope = |stored: Stored<'_>| Envelope {
        id: stored.id,
        event_type: stored.r#type.into_owned(),
        subject: stored.subject.into_owned(),
        sequence: stored.sequence,
        time: stored.time,
        traceparent: stored.traceparent.as_deref().and_then(Traceparent::parse).or(of_row),
        data: stored.data.to_owned(),
    };
    Ok(stored.map(envelope).collect())
}

/// `2026-11-21T08:00:00.123456Z`.
pub fn rfc3339(at: Timestamp) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Writes a time as [`rfc3339`] does, always with microseconds.
pub fn serialize_rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*at))
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
