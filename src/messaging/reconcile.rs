//! What was sent against what was applied, and what was committed against what was sent (REC-2).

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use entities::{consumer_group, outbox, queued_events};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::envelope::Envelope;
use super::groups::Groups;
use super::{outbox as events, parking};
use crate::db::bulk::{Column, Rows};
use crate::db::{self, Database, DbFault};
use crate::ids::{BatchId, EventId, Ids, ParkedId};
use crate::ports::event_bus::GroupSpec;
use crate::reconciliation::{Comparison, ComparisonError, Found, LOOK_AT_IT, MANY};

/// How far back is looked.
const WINDOW_MICROS: i64 = 24 * 3600 * 1_000_000;

/// How long an event may take from the bus into its groups without being a difference: it may wait behind many others.
const IN_FLIGHT_MICROS: i64 = 600 * 1_000_000;

/// How long an event may wait for the bus without being a difference.
const WAITING_MICROS: i64 = 300 * 1_000_000;

/// Outbox rows that are read at a time.
const PAGE: u64 = 64;

/// Every event sent within the last day, against the log of each group that wants it. A parked event is on its way and
/// a dead one is known, so neither is a difference.
#[derive(Debug)]
pub struct SentAgainstApplied {
    db: Database,
    ids: Ids,
    groups: Vec<GroupSpec>,
    /// Whether the embedded bus is in use: what another one left in its queues is not on its way.
    embedded: bool,
}

impl SentAgainstApplied {
    /// For those of `groups` that keep a log; `embedded` if they are delivered to by the embedded bus.
    pub fn new(db: Database, ids: Ids, groups: &Groups, embedded: bool) -> Self {
        Self { db, ids, groups: groups.logged(), embedded }
    }

    async fn page(&self, after: (i64, i64), until: i64) -> Result<Vec<outbox::Model>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let (sent_at, id) = after;
            let behind = outbox::Column::SentAt
                .gt(sent_at)
                .or(outbox::Column::SentAt.eq(sent_at).and(outbox::Column::Id.gt(id)));
            let rows = outbox::Entity::find().filter(behind).filter(outbox::Column::SentAt.lt(until));
            let rows = rows.order_by_asc(outbox::Column::SentAt).order_by_asc(outbox::Column::Id);
            Ok(rows.limit(PAGE).all(&connection).await?)
        };
        self.db.read(read).await
    }

    async fn row(&self, id: BatchId) -> Result<Option<outbox::Model>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            Ok(outbox::Entity::find_by_id(id.0).one(&connection).await?)
        };
        self.db.read(read).await
    }

    /// Since when groups keep their logs.
    async fn logged_since(&self) -> Result<HashMap<String, i64>, DbFault> {
        let read = |connection: DatabaseConnection| async move {
            let groups = consumer_group::Entity::find().all(&connection).await?;
            Ok(groups.into_iter().map(|group| (group.name, group.logged_since)).collect())
        };
        self.db.read(read).await
    }

    /// Those of `sent`, the events of the outbox row `row`, that `group` wants and knows nothing of.
    async fn missing(&self, row: i64, sent: &[Envelope], group: GroupSpec) -> Result<Vec<Envelope>, DbFault> {
        let mut wanted: Vec<Envelope> =
            sent.iter().filter(|event| group.wants(&event.event_type)).cloned().collect();
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let ids: Vec<EventId> = wanted.iter().map(|event| event.id).collect();
        let embedded = self.embedded;
        let known = self.db.read(move |connection| async move {
            if embedded && is_queued(&connection, group, row).await? {
                return Ok(ids.into_iter().collect());
            }
            known(&connection, group, ids).await
        });
        let known: HashSet<EventId> = known.await?;
        wanted.retain(|event| !known.contains(&event.id));
        Ok(wanted)
    }
}

/// What was sent and nobody can read: the embedded bus stores rows, whatever is in them.
fn unreadable(row: &outbox::Model) -> Option<Found> {
    let error = read(row).err()?;
    Some(Found {
        subject: row.id.to_string(),
        expected: "events".to_owned(),
        found: "something unreadable".to_owned(),
        detail: format!("Outbox row {} ({}) was sent and cannot be read: {error}", row.id, row.types),
        action: LOOK_AT_IT,
    })
}

fn read(row: &outbox::Model) -> Result<Vec<Envelope>, serde_json::Error> {
    events::read(&row.events, row.traceparent.as_deref())
}

/// Whether the embedded bus has still to hand the outbox row `row` to `group`.
async fn is_queued(connection: &impl ConnectionTrait, group: GroupSpec, row: i64) -> Result<bool, DbFault> {
    let queued = queued_events::Entity::find_by_id((group.name.to_owned(), row));
    Ok(queued.one(connection).await?.is_some())
}

/// Which of `events` `group` has applied, is to apply, or could not apply.
async fn known(
    connection: &impl ConnectionTrait,
    group: GroupSpec,
    events: Vec<EventId>,
) -> Result<HashSet<EventId>, DbFault> {
    const TABLES: [&str; 3] = ["consumer_log", "parked_event", "dead_letter"];
    let backend = connection.get_database_backend();
    let mut known = HashSet::new();
    for table in TABLES {
        let ids = Rows::new().column("id", Column::Big(events.iter().map(|event| event.0).collect()));
        let sql = format!(
            "SELECT r.id FROM {{rows}} WHERE (SELECT MAX(t.event_id) FROM {table} AS t \
             WHERE t.group_name = ? AND t.event_id = r.id) IS NOT NULL"
        );
        for found in connection.query_all_raw(ids.statement(backend, &sql, [group.name.into()])).await? {
            known.insert(EventId(found.try_get("", "id")?));
        }
    }
    Ok(known)
}

#[async_trait]
impl Comparison for SentAgainstApplied {
    fn name(&self) -> &'static str {
        "events_applied"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let mut differences = Vec::new();
        if self.groups.is_empty() {
            return Ok(differences);
        }
        let (now, since) = (self.db.now_micros().await?, self.logged_since().await?);
        let mut after = (now - WINDOW_MICROS, i64::MAX);
        loop {
            let page = self.page(after, now - IN_FLIGHT_MICROS).await?;
            for row in &page {
                if differences.len() >= MANY {
                    return Ok(differences);
                }
                after = (row.sent_at.unwrap_or(now), row.id);
                let Ok(sent) = read(row) else {
                    differences.extend(unreadable(row));
                    continue;
                };
                for &group in &self.groups {
                    if since.get(group.name).is_some_and(|&since| after.0 < since) {
                        continue;
                    }
                    for event in self.missing(row.id, &sent, group).await? {
                        differences.push(Found {
                            subject: format!("{}/{}/{}", group.name, row.id, event.id),
                            expected: "applied once".to_owned(),
                            found: "not applied".to_owned(),
                            detail: format!(
                                "Event {} ({}) was sent, and group {} has neither applied nor refused it.",
                                event.id, event.event_type, group.name
                            ),
                            action: "deliver_again",
                        });
                    }
                }
            }
            if page.is_empty() {
                return Ok(differences);
            }
        }
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        if let Ok(row) = subject.parse::<BatchId>() {
            let found = self.row(row).await?.as_ref().and_then(unreadable);
            return Ok(found.map(|found| found.detail));
        }
        let mut parts = subject.split('/');
        let (Some(group), Some(row), Some(id)) = (parts.next(), parts.next(), parts.next()) else {
            return Ok(None);
        };
        let group = self.groups.iter().copied().find(|known| known.name == group);
        let (Some(group), Ok(row), Ok(id)) = (group, row.parse::<BatchId>(), id.parse::<EventId>()) else {
            return Ok(None);
        };
        let Some(row) = self.row(row).await? else { return Ok(None) };
        let Ok(sent) = read(&row) else { return Ok(None) };
        let missing = self.missing(row.id, &sent, group).await?.into_iter().find(|event| event.id == id);
        let Some(event) = missing else { return Ok(None) };
        let id_of_parked = self.ids.next::<ParkedId>().map_err(DbFault::from)?;
        let parked = parking::row(&id_of_parked, group.name, &event, "reconciliation");
        let parking = self.db.transaction(move |tx| {
            let parked = parked.clone();
            async move {
                let due_at = Set(db::now_micros(&tx).await?);
                parking::insert(&tx, entities::parked_event::ActiveModel { due_at, ..parked }).await
            }
        });
        parking.await?;
        Ok(Some(format!("event {id} is delivered to group {} again", group.name)))
    }
}

/// Every event that waits in the outbox for too long.
#[derive(Debug)]
pub struct CommittedAgainstSent(pub Database);

#[async_trait]
impl Comparison for CommittedAgainstSent {
    fn name(&self) -> &'static str {
        "events_sent"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let read = |connection: DatabaseConnection| async move {
            let until = db::now_micros(&connection).await? - WAITING_MICROS;
            let rows = outbox::Entity::find()
                .select_only()
                .column(outbox::Column::Id)
                .column(outbox::Column::Types)
                .column(outbox::Column::LastError)
                .filter(outbox::Column::SentAt.is_null())
                .filter(outbox::Column::CreatedAt.lt(until))
                .order_by_asc(outbox::Column::Id)
                .limit(MANY as u64);
            let rows: Vec<(i64, String, Option<String>)> = rows.into_tuple().all(&connection).await?;
            Ok::<_, DbFault>(rows)
        };
        let rows = self.0.read(read).await?;
        Ok(rows
            .into_iter()
            .map(|(id, types, error)| Found {
                subject: id.to_string(),
                expected: "sent".to_owned(),
                found: "not sent".to_owned(),
                detail: format!(
                    "Outbox row {id} ({types}) waits to be published{}",
                    error.map_or_else(|| ".".to_owned(), |error| format!(": {error}"))
                ),
                action: "send_now",
            })
            .collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<BatchId>() else { return Ok(None) };
        let waking = self.0.transaction(move |tx| async move {
            tx.announce();
            let due = outbox::Entity::update_many()
                .col_expr(outbox::Column::RetryAt, Expr::value(Option::<i64>::None))
                .filter(outbox::Column::Id.eq(id.0))
                .filter(outbox::Column::SentAt.is_null());
            Ok::<_, DbFault>(due.exec(&tx).await?.rows_affected)
        });
        let waiting = waking.await? > 0;
        Ok(waiting.then(|| "it is due now, and the relay is awake".to_owned()))
    }
}
