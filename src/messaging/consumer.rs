//! Applies events, each once per consumer group.
//!
//! A [`Group`] names its event types and its effect. The row in `consumer_log` and the effect commit in one
//! transaction, the log first: after a crash there are both or neither, so nothing is ever stuck half-done (RELIABILITY
//! R17; defects ). Events are taken in together; if that fails they are tried one by one, so a poisonous
//! event takes none of its neighbours with it, and what fails by itself is [parked](super::parking) and tried again.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, QueryResult};
use thiserror::Error;
use tracing::warn;

use super::cemetery::Cemetery;
use super::dead_letter;
use super::envelope::{Envelope, Undecodable};
use super::parking::{self, Retries};
use crate::db::bulk::{self, Column, Rows, insert_if_absent, statement};
use crate::db::{self, AsDbFault, Database, DbFault, Tx};
use crate::faults;
use crate::ids::{EventId, Ids};
use crate::jobs::{Log, Stamp};
use crate::ports::clock::to_micros;
use crate::ports::event_bus::{Delivery, EventBus, GroupSpec, Sink, SinkUnavailable};
use crate::trace;

/// What was applied or discarded, each event kept for a day longer than `kept_for`, so that what is in the outbox is in the
/// log; as long as one lies in the dead letters its note stays, so that a replay does not apply it twice.
///
/// `consumer_position` is no log: it has one row per aggregate, and without it an old event would pass for the latest.
pub fn log(kept_for: TimeDelta) -> Log {
    Log {
        table: "consumer_log",
        aged_by: "applied_at",
        stamped_by: Stamp::Database,
        kept_for: kept_for + TimeDelta::days(1),
        only_if: Some(
            "event_id NOT IN (SELECT event_id FROM dead_letter \
             WHERE event_id IS NOT NULL AND state IN ('waiting', 'replaying'))"
                .into(),
        ),
    }
}

/// How often events are tried together, if others are in their way, before they are tried one by one. A try may take as
/// long as the database's deadline.
const TRIES_TOGETHER: u32 = 6;

/// Deliveries after which a message is suspected to crash its consumer, and is handled alone (R16).
const SUSPICIOUS: u32 = 2;

/// Why an event was not applied.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// What it builds on is not there yet: it is put back, and that is no failure.
    #[error("not yet: {0}")]
    NotYet(String),
    /// It cannot be read, now or later.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for HandlerError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotYet(_) | Self::Undecodable(_) | Self::Failed(_) => None,
        }
    }
}

impl HandlerError {
    /// Whether the database, not the event, is the reason: nothing can be said about the event.
    fn is_outage(&self) -> bool {
        self.db_fault().is_some_and(DbFault::is_outage)
    }

    /// Whether others may be the reason: what they do to each other is not counted against the event, for a while.
    pub(super) fn is_hold_up(&self) -> bool {
        self.db_fault().is_some_and(DbFault::is_hold_up)
    }
}

/// An effect within the database.
#[async_trait]
pub trait Handler: Send + Sync + fmt::Debug {
    /// Applies `events`, all or none, in the transaction that also notes them as applied. Events of one subject come in
    /// order; none was applied before.
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError>;
}

/// An effect outside the database, as a call to another system.
#[async_trait]
pub trait OutsideHandler: Send + Sync + fmt::Debug {
    /// Performs the effect of `event`. A crash before it is noted as done repeats it, so the other system must be told
    /// the event's id to recognise a repeat by.
    async fn perform(&self, event: &Envelope) -> Result<(), HandlerError>;
}

/// Where a group's effect is.
#[derive(Debug, Clone)]
pub enum Effect {
    /// In the database, committed with the note that it is done.
    Inside(Arc<dyn Handler>),
    /// Elsewhere: performed by the one node that leases the event, then noted.
    Outside(Arc<dyn OutsideHandler>),
}

/// What tells a group that an event was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// The consumer log.
    Logged,
    /// Nothing: applying it again does no harm, because the effect follows from other rows. Only what was discarded is
    /// in the log.
    Harmless,
}

/// A consumer group: those who, together, apply each event once.
#[derive(Debug, Clone)]
pub struct Group {
    pub spec: GroupSpec,
    pub repeats: Repeats,
    /// Ignores an event whose `sequence` is not greater than what was applied for its subject.
    pub latest_only: bool,
    pub effect: Effect,
}

impl Group {
    /// A group that applies each of `spec`'s events once, whatever its sequence.
    pub fn new(spec: GroupSpec, handler: impl Handler + 'static) -> Self {
        Self { spec, repeats: Repeats::Logged, latest_only: false, effect: Effect::Inside(Arc::new(handler)) }
    }

    /// A group with an effect outside the database.
    pub fn outside(spec: GroupSpec, handler: impl OutsideHandler + 'static) -> Self {
        Self {
            spec,
            repeats: Repeats::Logged,
            latest_only: false,
            effect: Effect::Outside(Arc::new(handler)),
        }
    }

    /// For an effect that follows from other rows: repeats are applied again, and what was applied is not logged.
    #[must_use]
    pub fn harmless_repeats(self) -> Self {
        Self { repeats: Repeats::Harmless, ..self }
    }

    /// For an effect that replaces the one before: events that come late are ignored.
    #[must_use]
    pub fn latest_only(self) -> Self {
        Self { latest_only: true, ..self }
    }
}

/// An event's place among the parked ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parked {
    pub(super) row: i64,
    /// Tries before this one.
    pub(super) attempts: i32,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) applied: usize,
    pub(super) known: usize,
    pub(super) late: usize,
}

/// One group at work on this node.
#[derive(Debug, Clone)]
pub struct Consumer {
    pub(super) db: Database,
    pub(super) ids: Ids,
    pub(super) cemetery: Cemetery,
    pub(super) bus: Arc<dyn EventBus>,
    pub(super) group: Arc<Group>,
    pub(super) retries: Retries,
    pub(super) wake: Arc<tokio::sync::Notify>,
}

impl Consumer {
    /// The group's name.
    pub fn name(&self) -> &'static str {
        self.group.spec.name
    }

    /// Applies `events` in one transaction; `parked` is where the one event waited, if it did.
    pub(super) async fn apply(
        &self,
        events: Arc<Vec<Envelope>>,
        parked: Option<Parked>,
    ) -> Result<Applied, HandlerError> {
        let group = self.group.clone();
        let parent = events.first().filter(|_| events.len() == 1).and_then(|event| event.traceparent);
        let applying = self.db.transaction(move |tx| {
            let (group, events) = (group.clone(), events.clone());
            async move { apply(&tx, &group, &events, parked).await }
        });
        let applied = trace::within(parent, applying).await?;
        let _ = faults::point("after_effect_commit").await;
        self.count(applied);
        Ok(applied)
    }

    fn count(&self, applied: Applied) {
        let group = self.name();
        metrics::counter!("tombola_events_applied_total", "group" => group).increment(applied.applied as u64);
        for (reason, ignored) in [("duplicate", applied.known), ("late", applied.late)] {
            if ignored > 0 {
                metrics::counter!("tombola_events_ignored_total", "group" => group, "reason" => reason)
                    .increment(ignored as u64);
            }
        }
    }

    /// Applies what can be applied together, and parks what must wait for an event of its subject.
    async fn take_in_events(&self, events: Vec<(Envelope, Arc<str>)>) -> Result<(), HandlerError> {
        let (events, origins): (Vec<_>, Vec<_>) = self.behind_parked(events).await?.into_iter().unzip();
        if events.is_empty() {
            return Ok(());
        }
        let events = Arc::new(events);
        match (self.apply_together(&events).await, events.as_slice(), origins.as_slice()) {
            (Ok(()), ..) => return Ok(()),
            (Err(error), ..) if error.is_outage() => return Err(error),
            (Err(error), [event], [origin]) => return self.failed_first(event, origin, &error).await,
            (Err(error), ..) => {
                let (group, count) = (self.name(), events.len());
                warn!(group, %error, "Group {group} tries {count} events one by one: {error}");
            }
        }
        let mut blocked: HashSet<String> = HashSet::new();
        for (event, origin) in Arc::unwrap_or_clone(events).into_iter().zip(origins) {
            if self.group.spec.ordered && blocked.contains(&event.subject) {
                self.park(&event, &origin).await?;
                continue;
            }
            let subject = event.subject.clone();
            if !self.take_in_alone(event, &origin).await? {
                blocked.insert(subject);
            }
        }
        Ok(())
    }

    /// Applies all of `events` or none; others have some time to get out of the way.
    async fn apply_together(&self, events: &Arc<Vec<Envelope>>) -> Result<(), HandlerError> {
        let mut tries = 1;
        loop {
            match self.apply(events.clone(), None).await {
                Err(error) if error.is_hold_up() && tries < TRIES_TOGETHER => {
                    warn!(group = self.name(), %error, "Group {} is held up: {error}", self.name());
                    tries += 1;
                }
                applied => return applied.map(drop),
            }
        }
    }

    /// Applies one event, or parks it; `false` if it is parked or dead.
    async fn take_in_alone(&self, event: Envelope, origin: &str) -> Result<bool, HandlerError> {
        match self.apply(Arc::new(vec![event.clone()]), None).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_outage() => Err(error),
            Err(error) => {
                self.failed_first(&event, origin, &error).await?;
                Ok(false)
            }
        }
    }

    /// In an ordered group, parks the events whose subject has a parked event; answers the others.
    async fn behind_parked(
        &self,
        events: Vec<(Envelope, Arc<str>)>,
    ) -> Result<Vec<(Envelope, Arc<str>)>, HandlerError> {
        if !self.group.spec.ordered {
            return Ok(events);
        }
        let subjects: HashSet<String> = events.iter().map(|(event, _)| event.subject.clone()).collect();
        let parked = parking::subjects(&self.db, self.name(), subjects).await?;
        let mut free = Vec::with_capacity(events.len());
        for (event, origin) in events {
            match parked.contains(&event.subject) {
                true => self.park(&event, &origin).await?,
                false => free.push((event, origin)),
            }
        }
        Ok(free)
    }
}

#[async_trait]
impl Sink for Consumer {
    async fn take_in(&self, deliveries: Vec<Delivery>) -> Result<(), SinkUnavailable> {
        let begun = Instant::now();
        let point = faults::point("before_taking_in").await;
        point.map_err(|fault| SinkUnavailable(fault.to_string()))?;
        let mut events = Vec::with_capacity(deliveries.len());
        let settle = async {
            for delivery in deliveries {
                match delivery.content {
                    Ok(event) if !self.group.spec.wants(&event.event_type) => {
                        self.failed_first(&event, &delivery.origin, &unknown_type(&event)).await?;
                    }
                    Ok(event) if matches!(self.group.effect, Effect::Outside(_)) => {
                        self.park(&event, &delivery.origin).await?;
                    }
                    Ok(event) if delivery.redeliveries >= SUSPICIOUS => {
                        self.take_in_suspect(event, &delivery.origin).await?;
                    }
                    Ok(event) => events.push((event, delivery.origin)),
                    Err(message) => {
                        self.cemetery.bury_unreadable(self.name(), &delivery.origin, &message).await?;
                    }
                }
            }
            self.take_in_events(events).await
        };
        settle.await.map_err(|error: HandlerError| SinkUnavailable(error.to_string()))?;
        // A group that waits for more events does what nobody waits for.
        if !self.group.spec.linger.is_zero() {
            self.db.crowd().give_way(begun.elapsed()).await;
        }
        Ok(())
    }
}

impl Consumer {
    /// Counts the attempt before it is made: the message may be what ended the process that had it before.
    async fn take_in_suspect(&self, event: Envelope, origin: &str) -> Result<(), HandlerError> {
        let crashed = HandlerError::Failed("its consumer ended while it was at work on it".to_owned());
        self.failed_first(&event, origin, &crashed).await
    }
}

/// Why an event cannot be applied that this version of its group does not listen to; a later one may.
pub(super) fn unknown_type(event: &Envelope) -> HandlerError {
    HandlerError::Failed(format!("this version of the group does not know {}", event.event_type))
}

/// Notes `events` as applied and applies those that were not.
async fn apply(
    tx: &Tx,
    group: &Group,
    events: &[Envelope],
    parked: Option<Parked>,
) -> Result<Applied, HandlerError> {
    let mut applied = Applied::default();
    let mut fresh = unknown(tx, group.spec.name, events).await?;
    applied.known = events.len() - fresh.len();
    if group.repeats == Repeats::Logged {
        note(tx, group.spec.name, &fresh, parked.map_or(0, |parked| parked.attempts) + 1).await?;
    }
    if group.latest_only {
        let before = fresh.len();
        fresh = not_late(tx, group.spec.name, fresh.into_owned()).await?.into();
        applied.late = before - fresh.len();
    }
    applied.applied = fresh.len();
    if let Effect::Inside(handler) = &group.effect
        && !fresh.is_empty()
    {
        handler.apply(tx, &fresh).await?;
    }
    if let Some(parked) = parked {
        parking::forget(tx, parked.row).await?;
        dead_letter::applied(tx, group.spec.name, events).await?;
    }
    Ok(applied)
}

/// The events that the log does not know, each once.
async fn unknown<'a>(tx: &Tx, group: &str, events: &'a [Envelope]) -> Result<Cow<'a, [Envelope]>, DbFault> {
    // A subquery for each row, not a join: a planner that starts with the log reads all of it.
    const KNOWN: &str = "SELECT (SELECT l.event_id FROM consumer_log AS l \
        WHERE l.group_name = ? AND l.event_id = r.id) AS event_id FROM {rows}";
    let ids = Rows::new().column("id", Column::Big(events.iter().map(|event| event.id.0).collect()));
    let known = tx.query_all_raw(ids.statement(tx.get_database_backend(), KNOWN, [group.into()])).await?;
    let known = known.iter().map(|row: &QueryResult| row.try_get("", "event_id"));
    let known = known.collect::<Result<Vec<Option<i64>>, _>>()?;
    let mut known: HashSet<i64> = known.into_iter().flatten().collect();
    let fresh: Vec<bool> = events.iter().map(|event| known.insert(event.id.0)).collect();
    if fresh.iter().all(|fresh| *fresh) {
        return Ok(events.into());
    }
    Ok(events.iter().zip(fresh).filter(|(_, fresh)| *fresh).map(|(event, _)| event.clone()).collect())
}

async fn note(tx: &Tx, group: &str, events: &[Envelope], attempts: i32) -> Result<(), DbFault> {
    const NOTE: &str = "INSERT INTO consumer_log (group_name, event_id, event_type, applied_at, attempts) \
        SELECT ?, r.id, r.type, ?, ? FROM {rows}";
    if events.is_empty() {
        return Ok(());
    }
    let now = db::now_micros(tx).await?;
    let rows = Rows::new()
        .column("id", Column::Big(events.iter().map(|event| event.id.0).collect()))
        .column("type", Column::Text(events.iter().map(|event| event.event_type.clone()).collect()));
    let backend = tx.get_database_backend();
    tx.execute_raw(rows.statement(backend, NOTE, [group.into(), now.into(), attempts.into()])).await?;
    let oldest = events.iter().map(|event| to_micros(event.time)).min().unwrap_or(now);
    let delay = Duration::from_micros((now - oldest).max(0).unsigned_abs());
    metrics::histogram!("tombola_event_delay_seconds").record(delay);
    Ok(())
}

/// Notes an event that is not to be applied, so that it is known when it comes again.
pub(super) async fn note_discarded(
    tx: &Tx,
    group: &str,
    event: EventId,
    event_type: &str,
    attempts: i32,
) -> Result<(), DbFault> {
    let (backend, now) = (tx.get_database_backend(), db::now_micros(tx).await?);
    let note = insert_if_absent(
        backend,
        "INTO consumer_log (group_name, event_id, event_type, applied_at, attempts) VALUES (?, ?, ?, ?, ?)",
    );
    let values = [group.into(), event.0.into(), event_type.into(), now.into(), attempts.into()];
    tx.execute_raw(statement(backend, &note, values)).await?;
    Ok(())
}

/// The events whose sequence is greater than what was applied for their subject; notes the greatest.
async fn not_late(tx: &Tx, group: &str, events: Vec<Envelope>) -> Result<Vec<Envelope>, DbFault> {
    const KNOWN: &str = "SELECT r.subject, (SELECT p.sequence FROM consumer_position AS p \
        WHERE p.group_name = ? AND p.subject = r.subject) AS sequence FROM {rows}";
    const FORWARD: &str = "subject = r.of_subject AND group_name = ? AND sequence < r.to_sequence";
    const BEGIN: &str = "INSERT INTO consumer_position (group_name, subject, sequence) \
        SELECT ?, r.of_subject, r.to_sequence FROM {rows}";
    let backend = tx.get_database_backend();
    let subjects: HashSet<String> = events.iter().map(|event| event.subject.clone()).collect();
    let subjects = Rows::new().column("subject", Column::Text(subjects.into_iter().collect()));
    let mut positions: HashMap<String, i64> = HashMap::new();
    for row in tx.query_all_raw(subjects.statement(backend, KNOWN, [group.into()])).await? {
        if let Some(sequence) = row.try_get("", "sequence")? {
            positions.insert(row.try_get("", "subject")?, sequence);
        }
    }
    let known: HashSet<String> = positions.keys().cloned().collect();
    let mut moved: BTreeMap<String, i64> = BTreeMap::new();
    let mut fresh = Vec::with_capacity(events.len());
    for event in events {
        if let Some(sequence) = event.sequence {
            if positions.get(&event.subject).is_some_and(|&position| position >= sequence) {
                continue;
            }
            positions.insert(event.subject.clone(), sequence);
            moved.insert(event.subject.clone(), sequence);
        }
        fresh.push(event);
    }
    let forward = bulk::update(backend, "consumer_position", "sequence = r.to_sequence", FORWARD);
    let (known, new): (Vec<_>, Vec<_>) = moved.into_iter().partition(|(subject, _)| known.contains(subject));
    for (sql, positions) in [(forward.as_str(), known), (BEGIN, new)] {
        if positions.is_empty() {
            continue;
        }
        let count = positions.len() as u64;
        let (subjects, sequences) = positions.into_iter().unzip();
        let rows = Rows::new()
            .column("of_subject", Column::Text(subjects))
            .column("to_sequence", Column::Big(sequences));
        // Another node applies a later event: seen anew, ours is late.
        if tx.execute_raw(rows.statement(backend, sql, [group.into()])).await?.rows_affected() < count {
            return Err(DbFault::Overtaken("the position of a consumer group"));
        }
    }
    Ok(fresh)
}
