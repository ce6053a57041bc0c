//! The outbox: events written with their cause, one row for all events of one transaction.
//!
//! A row per event would cost a tenth of the takes; one row per batch leaves the relay one row to mark, and each event
//! still has its own id.

use serde::Serialize;

use super::event::EventType;
use crate::db::bulk::Script;
use crate::db::{DbFault, Tx};
use crate::ids::{BatchId, EventId};
use crate::ports::clock::{Timestamp, to_micros};

/// Events that are to be committed together, as the JSON array the outbox keeps.
#[derive(Debug, Clone)]
pub struct Events {
    json: Vec<u8>,
    time: String,
    count: i32,
    types: Vec<EventType>,
}

#[derive(Serialize)]
struct Stored<'a, T> {
    id: EventId,
    r#type: &'static str,
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<i64>,
    time: &'a str,
    data: &'a T,
}

impl Events {
    /// No events yet; all that are added happened at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { json: vec![b'['], time: rfc3339(now), count: 0, types: Vec::new() }
    }

    /// Adds an event about the aggregate `subject`; `sequence` is the aggregate's version where it has one.
    pub fn push(
        &mut self,
        id: EventId,
        event_type: EventType,
        subject: &str,
        sequence: Option<i64>,
        data: &impl Serialize,
    ) -> Result<(), serde_json::Error> {
        if self.json.len() > 1 {
            self.json.push(b',');
        }
        self.count += 1;
        if !self.types.contains(&event_type) {
            self.types.push(event_type);
        }
        let stored = Stored { id, r#type: event_type.word(), subject, sequence, time: &self.time, data };
        serde_json::to_writer(&mut self.json, &stored)
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

/// Writes `events` into the open transaction as the outbox row `id`; no events, no row.
pub async fn append(
    tx: &Tx,
    id: BatchId,
    events: Events,
    now: Timestamp,
    traceparent: Option<String>,
) -> Result<(), DbFault> {
    if !events.is_empty() {
        let mut script = Script::new();
        add(tx, id, events, now, traceparent, &mut script);
        script.execute(tx).await?;
    }
    Ok(())
}

/// Adds the outbox row `id` to `script`, which runs in `tx`; its commit wakes the relay.
pub fn add(
    tx: &Tx,
    id: BatchId,
    events: Events,
    now: Timestamp,
    traceparent: Option<String>,
    script: &mut Script,
) {
    tx.announce();
    let (count, types) = (events.count, events.types());
    script.push(
        "INSERT INTO outbox (id, events, event_count, types, traceparent, created_at, attempts) \
         VALUES (?, ?, ?, ?, ?, ?, 0)",
        [
            id.0.into(),
            events.into_json().into(),
            count.into(),
            types.into(),
            traceparent.into(),
            to_micros(now).into(),
        ],
    );
}

/// `2026-11-21T08:00:00.123456Z`.
pub fn rfc3339(at: Timestamp) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
