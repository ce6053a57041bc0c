//! The bus without a broker: queues in the database, fed from the outbox, read by the node that leases the group.
//!
//! A queue entry stands for all events of one outbox row, so a batch of takes costs each group one small row. An entry
//! goes when the group has settled its events; a crash in between delivers them again. Works for several nodes on one
//! database too: each group is worked on by one of them at a time, and broadcasts are read from the outbox by each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use entities::queued_events;
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Committed, Delivery, EventBus, GroupSpec, Heard, Listener, RowQueues, Sink, Unreadable, Way};
use crate::db::bulk::{Column, Rows, Script};
use crate::db::{Database, DbFault};
use crate::lease::Lease;
use crate::messaging::catalogue::EventType;
use crate::messaging::envelope::{Envelope, Undecodable};
use crate::messaging::outbox;

/// How often queues are looked at for what another node's relay put there.
const POLL: Duration = Duration::from_millis(250);

/// Outbox rows that are read at a time: at most some megabytes.
const PAGE: u64 = 16;

/// Outbox rows whose events are taken in together at most.
const MOST_ROWS: usize = 1024;

/// How long a node keeps a group to itself after a renewal.
const LEASE: Duration = Duration::from_secs(8);

/// How far back broadcasts look: rows become visible after their time of sending. One relay marks one page after the
/// other, so they are not overtaken by more than this even if a page takes longer.
const OVERLAP_MICROS: i64 = 5_000_000;

/// The embedded bus. Clones share it.
#[derive(Debug, Clone)]
pub struct EmbeddedBus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Database,
    /// This run of this node, as a holder of leases.
    holder: i64,
    queues: Vec<(GroupSpec, Notify)>,
    reminders: Notify,
}

impl EmbeddedBus {
    /// A bus for `groups`, whichever of them this node consumes; `holder` names this run of this node.
    pub fn new(db: Database, holder: i64, groups: &[GroupSpec]) -> Self {
        let queues = groups.iter().map(|group| (*group, Notify::new())).collect();
        Self(Arc::new(Inner { db, holder, queues, reminders: Notify::new() }))
    }

    /// Takes in what is queued for `group` until its queue is empty, or until `stop`: the rest waits in the database.
    async fn drain(&self, group: GroupSpec, sink: &dyn Sink, stop: &CancellationToken) -> Result<(), String> {
        while !stop.is_cancelled() {
            let gathered = self.gather(group).await.map_err(|fault| fault.to_string())?;
            if gathered.rows.is_empty() {
                return Ok(());
            }
            let mut deliveries = gathered.deliveries;
            while !deliveries.is_empty() {
                let rest = deliveries.split_off(deliveries.len().min(group.max_batch.into()));
                sink.take_in(deliveries).await.map_err(|fault| fault.to_string())?;
                deliveries = rest;
            }
            self.settle(group, gathered.rows).await.map_err(|fault| fault.to_string())?;
        }
        Ok(())
    }

    /// The oldest events of the queue, as many as are taken in together if there are so many.
    async fn gather(&self, group: GroupSpec) -> Result<Gathered, DbFault> {
        let origin: Arc<str> = format!("tombola.{}", group.name).into();
        let mut gathered = Gathered::default();
        // In a group that coalesces, those that have an event already.
        let mut subjects = HashSet::new();
        loop {
            let entries = self.queued(group, gathered.rows.last().copied()).await?;
            for row in &entries {
                let deliver = |content| Delivery { content, origin: origin.clone(), redeliveries: 0 };
                let wanted = |event_type: &str, subject: &str| {
                    if !group.wants(event_type) || subjects.contains(subject) {
                        return false;
                    }
                    if group.coalesced {
                        subjects.insert(subject.to_owned());
                    }
                    true
                };
                match outbox::read_wanted(&row.events, row.traceparent.as_deref(), wanted) {
                    Ok(events) => {
                        gathered.deliveries.extend(events.into_iter().map(|event| deliver(Ok(event))));
                    }
                    Err(error) => {
                        let (body, error) = (row.events.clone().into_bytes(), Undecodable::Row(error));
                        gathered.deliveries.push(deliver(Err(Unreadable { body, error })));
                    }
                }
            }
            gathered.rows.extend(entries.iter().map(|row| row.id));
            if entries.len() < PAGE as usize
                || gathered.deliveries.len() >= usize::from(group.max_batch)
                || gathered.rows.len() >= MOST_ROWS
            {
                return Ok(gathered);
            }
        }
    }

    /// The oldest rows queued for `group`, behind `after`.
    async fn queued(
        &self,
        group: GroupSpec,
        after: Option<i64>,
    ) -> Result<Vec<entities::outbox::Model>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let ids: Vec<i64> = queued_events::Entity::find()
                .select_only()
                .column(queued_events::Column::OutboxId)
                .filter(queued_events::Column::GroupName.eq(group.name))
                .filter(queued_events::Column::OutboxId.gt(after.unwrap_or(i64::MIN)))
                .order_by_asc(queued_events::Column::OutboxId)
                .limit(PAGE)
                .into_tuple()
                .all(&connection)
                .await?;
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let rows = entities::outbox::Entity::find().filter(entities::outbox::Column::Id.is_in(ids));
            Ok(rows.order_by_asc(entities::outbox::Column::Id).all(&connection).await?)
        };
        self.0.db.read(read).await
    }

    async fn settle(&self, group: GroupSpec, ids: Vec<i64>) -> Result<(), DbFault> {
        self.0
            .db
            .transaction(move |tx| {
                let ids = ids.clone();
                async move {
                    queued_events::Entity::delete_many()
                        .filter(queued_events::Column::GroupName.eq(group.name))
                        .filter(queued_events::Column::OutboxId.is_in(ids))
                        .exec(&tx)
                        .await?;
                    Ok(())
                }
            })
            .await
    }

    /// When the last row was sent, and the rows sent since `since` that may have an event of one of `types`.
    async fn sent_since(
        &self,
        since: i64,
        types: &'static [EventType],
    ) -> Result<(Option<i64>, Vec<(i64, i64)>), DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let column = entities::outbox::Column::SentAt;
            let last = entities::outbox::Entity::find().select_only().column_as(column.max(), "last");
            let last = last.into_tuple().one(&connection).await?.flatten();
            let any = types.iter().fold(Condition::any(), |any, wanted| {
                any.add(entities::outbox::Column::Types.contains(wanted.word()))
            });
            let rows = entities::outbox::Entity::find()
                .select_only()
                .columns([entities::outbox::Column::Id, column]);
            let rows = rows.filter(column.gt(since)).filter(any).order_by_asc(column);
            Ok((last, rows.into_tuple().all(&connection).await?))
        };
        self.0.db.read(read).await
    }

    async fn events_of(&self, row: i64) -> Result<Vec<Envelope>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            Ok::<_, DbFault>(entities::outbox::Entity::find_by_id(row).one(&connection).await?)
        };
        let Some(row) = self.0.db.read(read).await? else { return Ok(Vec::new()) };
        let events = outbox::read(&row.events, row.traceparent.as_deref());
        // The groups that want it find it among their dead letters.
        events.or_else(|error| {
            warn!(outbox.id = row.id, %error, "Nobody hears outbox row {}: it cannot be read", row.id);
            Ok(Vec::new())
        })
    }
}

#[async_trait]
impl EventBus for EmbeddedBus {
    fn way(&self) -> Way<'_> {
        Way::Within(self)
    }

    async fn deliver(&self, group: GroupSpec, sink: Arc<dyn Sink>, stop: CancellationToken) {
        let Some((_, queue)) = self.0.queues.iter().find(|(known, _)| known.name == group.name) else {
            warn!(group = group.name, "No queue for group {}", group.name);
            return;
        };
        let name = format!("group:{}", group.name);
        let lease = Lease::new(self.0.db.clone(), name, self.0.holder, LEASE);
        let work = async || {
            let mut pause = POLL;
            while !stop.is_cancelled() {
                match self.drain(group, sink.as_ref(), &stop).await {
                    Ok(()) => pause = POLL,
                    Err(cause) => {
                        pause = (pause * 2).min(Duration::from_secs(5));
                        warn!(group = group.name, "Group {} waits {pause:?}: {cause}", group.name);
                        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                    }
                }
                tokio::select! {
                    () = queue.notified() => {
                        stop.run_until_cancelled(tokio::time::sleep(group.linger)).await;
                    }
                    () = tokio::time::sleep(POLL.max(group.linger)) => {}
                    () = stop.cancelled() => {}
                }
            }
        };
        lease.work(&stop, work).await;
    }

    async fn broadcast(&self, types: &'static [EventType], listener: Listener, stop: CancellationToken) {
        let mut ear = Ear { types, listener, since: None, heard: HashMap::new() };
        while !stop.is_cancelled() {
            let mut pause = POLL;
            if let Err(fault) = ear.listen(self).await {
                warn!(error = %fault, "Cannot read broadcasts");
                pause = POLL * 4;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Nothing is given up: what is not settled stays in its queue.
    async fn exhausted(&self, _sink: Arc<dyn Sink>, stop: CancellationToken) {
        stop.cancelled().await;
    }

    async fn remind(&self, delay: Duration) {
        let bus = self.clone();
        self.0.db.spawn(async move {
            tokio::time::sleep(delay).await;
            bus.0.reminders.notify_one();
        });
    }

    async fn reminded(&self, wake: &Notify, stop: CancellationToken) {
        while stop.run_until_cancelled(self.0.reminders.notified()).await.is_some() {
            wake.notify_one();
        }
    }

    async fn close(&self) {}
}

impl RowQueues for EmbeddedBus {
    fn enqueue(&self, rows: &[Committed], now: i64, script: &mut Script) -> Vec<&'static str> {
        const ENQUEUE: &str = "INSERT INTO queued_events (group_name, outbox_id, queued_at) \
            SELECT r.name, r.id, ? FROM {rows} WHERE NOT EXISTS (SELECT 1 FROM queued_events AS q \
            WHERE q.group_name = r.name AND q.outbox_id = r.id)";
        let (mut names, mut ids, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for (group, _) in &self.0.queues {
            let before = ids.len();
            ids.extend(rows.iter().filter(|row| row.may_interest(group.types)).map(|row| row.id.0));
            if ids.len() > before {
                names.resize(ids.len(), group.name.to_owned());
                groups.push(group.name);
            }
        }
        if !ids.is_empty() {
            let entries = Rows::new().column("name", Column::Text(names)).column("id", Column::Big(ids));
            script.push_rows(ENQUEUE, [now.into()], entries);
        }
        groups
    }

    fn wake(&self, groups: &[&'static str]) {
        for (_, queue) in self.0.queues.iter().filter(|(group, _)| groups.contains(&group.name)) {
            queue.notify_one();
        }
    }
}

/// What is taken in together, and the rows it comes from.
#[derive(Debug, Default)]
struct Gathered {
    deliveries: Vec<Delivery>,
    rows: Vec<i64>,
}

/// One node's place in what was sent, in memory: a node that starts hears what is sent from then on.
struct Ear {
    types: &'static [EventType],
    listener: Listener,
    /// The latest time of sending seen, by the database's clock.
    since: Option<i64>,
    /// The rows heard lately, with their time of sending; those without a wanted event are not looked at.
    heard: HashMap<i64, i64>,
}

impl Ear {
    async fn listen(&mut self, bus: &EmbeddedBus) -> Result<(), DbFault> {
        let since = match self.since {
            Some(since) => since,
            None => {
                let now = bus.0.db.now_micros().await?;
                (self.listener)(Heard::Anew).await;
                *self.since.insert(now)
            }
        };
        let (last, sent) = bus.sent_since(since - OVERLAP_MICROS, self.types).await?;
        for (id, sent_at) in sent {
            if !self.heard.contains_key(&id) {
                for event in bus.events_of(id).await? {
                    if self.wants(&event.event_type) {
                        (self.listener)(Heard::Event(event)).await;
                    }
                }
            }
            self.heard.insert(id, sent_at);
        }
        self.since = self.since.max(last);
        let oldest = since - 2 * OVERLAP_MICROS;
        self.heard.retain(|_, sent_at| *sent_at > oldest);
        Ok(())
    }

    fn wants(&self, word: &str) -> bool {
        self.types.iter().any(|wanted| wanted.word() == word)
    }
}
