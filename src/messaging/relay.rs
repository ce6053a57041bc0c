//! Publishes what was committed: reads unsent outbox rows, hands them to the bus, and marks those the bus has stored.
//!
//! One relay works for all nodes, under a lease, because two would mix up the order of an aggregate's events. It looks
//! for rows without `sent_at`, never behind a high-water mark: a row can commit after one with a greater id (RELIABILITY
//! R18). A relay that dies between publishing and marking leaves rows that are published again: at least once.
//!
//! When `bus` is no longer the embedded one, what is still in its queues is published again on the other: nobody reads
//! those queues any more, and whoever has applied an event already knows it.

use std::sync::Arc;
use std::time::Duration;

use entities::{outbox, queued_events};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, EntityTrait, Iterable, QueryFilter,
    QueryOrder, QuerySelect,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::parking::micros;
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{self, Database, DbFault, Tx};
use crate::faults;
use crate::ids::BatchId;
use crate::lease::Lease;
use crate::ports::event_bus::{Committed, EventBus, PublishError, Way};

/// Rows that are published together.
const PAGE: u64 = 64;

/// Queue entries that are given back together.
const QUEUE_PAGE: u64 = 500;

/// How far apart pages are that are not full: each is marked by a commit, which under load the takes wait for, while
/// what comes after a pause goes at once.
const STRIDE: Duration = Duration::from_millis(50);

/// How long a node stays the relay after a renewal.
const LEASE: Duration = Duration::from_secs(8);

/// The longest pause while the bus is not available.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The pause before a refused row is tried again, doubled with each try.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How long a node that stops waits for the bus to store what it was handed.
const LAST_PAGE: Duration = Duration::from_secs(2);

/// How often the backlog is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// How many times as long as measuring the backlogs took they are left alone.
const MEASURING_SHARE: u32 = 20;

/// An error's text is cut to fit its column.
const ERROR_CHARS: usize = 500;

/// The relay of this node; it works while it holds the lease.
#[derive(Debug, Clone)]
pub struct Relay {
    db: Database,
    bus: Arc<dyn EventBus>,
    lease: Lease,
    /// How often rows of other nodes are looked for; this node's own commits wake the relay.
    poll_every: Duration,
}

impl Relay {
    /// A relay from `db` to `bus`; `holder` names this run of this node.
    pub fn new(db: Database, bus: Arc<dyn EventBus>, holder: i64, poll_every: Duration) -> Self {
        let lease = Lease::new(db.clone(), "relay", holder, LEASE);
        Self { db, bus, lease, poll_every }
    }

    /// Publishes until `stop`, whenever this node is the relay.
    pub async fn run(self, stop: CancellationToken) {
        let relay = async || {
            info!("This node relays events");
            self.relay_until(&stop).await;
        };
        self.lease.work(&stop, relay).await;
    }

    async fn relay_until(&self, stop: &CancellationToken) {
        let mut pause = Duration::ZERO;
        let mut queues_empty = matches!(self.bus.way(), Way::Within(_));
        while !stop.is_cancelled() {
            let (before, next_page) = (pause, Instant::now() + STRIDE);
            let relay_page = async {
                if !queues_empty {
                    self.empty_queues().await.map_err(|fault| fault.to_string())?;
                    queues_empty = true;
                }
                self.relay_page().await
            };
            let relayed = tokio::select! {
                relayed = relay_page => relayed,
                // What is published and not marked is published again.
                () = time_is_up(stop) => return,
            };
            pause = match relayed {
                Ok(0) => {
                    tokio::select! {
                        () = self.db.announced() => {}
                        () = tokio::time::sleep(self.poll_every) => {}
                        () = stop.cancelled() => {}
                    }
                    Duration::ZERO
                }
                Ok(rows) => {
                    if rows < PAGE as usize {
                        stop.run_until_cancelled(tokio::time::sleep_until(next_page)).await;
                    }
                    Duration::ZERO
                }
                Err(cause) => {
                    if before.is_zero() {
                        warn!("Events wait in the outbox: {cause}");
                    }
                    (before * 2).clamp(Duration::from_millis(50), LONGEST_PAUSE)
                }
            };
            if !pause.is_zero() {
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            } else if !before.is_zero() {
                info!("Events leave the outbox again");
            }
        }
    }

    /// Gives what the embedded bus has queued back to the outbox, because another bus is in use.
    async fn empty_queues(&self) -> Result<(), DbFault> {
        let mut entries = 0;
        loop {
            let page = self.db.transaction(|tx| async move { unqueue(&tx).await }).await?;
            if page == 0 {
                break;
            }
            entries += page;
        }
        if entries > 0 {
            info!(
                entries,
                "Events of {entries} entries in the queues of the embedded bus are published again"
            );
        }
        Ok(())
    }

    /// Publishes the oldest rows that are due; answers how many there were.
    async fn relay_page(&self) -> Result<usize, String> {
        faults::point("before_relaying").await.map_err(|fault| fault.to_string())?;
        let (now, rows) = self.unsent().await.map_err(|fault| fault.to_string())?;
        if rows.is_empty() {
            return Ok(0);
        }
        let committed: Vec<Committed> = rows
            .iter()
            .map(|row| Committed {
                id: BatchId(row.id),
                types: row.types.clone(),
                events: row.events.clone(),
                traceparent: row.traceparent.clone(),
            })
            .collect();
        let bus = match self.bus.way() {
            Way::Outside(bus) => bus,
            Way::Within(queues) => {
                let mut script = Script::new();
                let groups = queues.enqueue(&committed, now, &mut script);
                mark_sent(self.db.backend(), rows.iter().map(|row| row.id).collect(), now, &mut script);
                self.db.apply(Vec::new(), script).await.map_err(|fault| fault.to_string())?;
                queues.wake(&groups);
                count_published(&rows);
                return Ok(rows.len());
            }
        };
        let answers = bus.publish(&committed).await;
        let (mut sent, mut refused, mut unavailable) = (Vec::new(), Vec::new(), None);
        for (row, answer) in rows.iter().zip(answers) {
            match answer {
                Ok(()) => sent.push(row.id),
                Err(PublishError::Unavailable(cause)) => unavailable = Some(cause),
                Err(error @ PublishError::Refused { .. }) => {
                    warn!(outbox.id = row.id, %error, "Outbox row {} is tried again later: {error}", row.id);
                    refused.push((row.id, row.attempts + 1, error.to_string()));
                }
            }
        }
        count_published(rows.iter().filter(|row| sent.contains(&row.id)));
        // That nothing was stored says more about the bus than about each row: the backlog must not be blamed row by row.
        if sent.is_empty() && unavailable.is_none() {
            unavailable = refused.first().map(|(_, _, error)| error.clone());
        }
        self.mark(sent, refused).await.map_err(|fault| fault.to_string())?;
        unavailable.map_or(Ok(rows.len()), Err)
    }

    /// The oldest rows that are due, and the database's time; without the events if the bus does not look at them.
    async fn unsent(&self) -> Result<(i64, Vec<outbox::Model>), DbFault> {
        let whole = matches!(self.bus.way(), Way::Outside(_));
        let read = move |connection: DatabaseConnection| async move {
            let now = db::now_micros(&connection).await?;
            let due = outbox::Column::RetryAt.is_null().or(outbox::Column::RetryAt.lte(now));
            let rows = outbox::Entity::find().filter(outbox::Column::SentAt.is_null()).filter(due);
            let rows = if whole {
                rows
            } else {
                let others =
                    outbox::Column::iter().filter(|column| !matches!(column, outbox::Column::Events));
                rows.select_only().columns(others).column_as(Expr::value(""), "events")
            };
            Ok((now, rows.order_by_asc(outbox::Column::Id).limit(PAGE).all(&connection).await?))
        };
        self.db.read(read).await
    }

    async fn mark(&self, sent: Vec<i64>, refused: Vec<(i64, i32, String)>) -> Result<(), DbFault> {
        if sent.is_empty() && refused.is_empty() {
            return Ok(());
        }
        let marking = self.db.transaction(move |tx| {
            let (sent, refused) = (sent.clone(), refused.clone());
            async move {
                let now = db::now_micros(&tx).await?;
                if !sent.is_empty() {
                    let mut script = Script::new();
                    mark_sent(tx.get_database_backend(), sent, now, &mut script);
                    script.execute(&tx).await?;
                }
                for (id, attempts, error) in refused {
                    let doublings = Ord::min(u32::try_from(attempts - 1).unwrap_or(0), 16);
                    let pause = FIRST_RETRY.saturating_mul(1 << doublings).min(LONGEST_RETRY);
                    let error = db::fit(&error, ERROR_CHARS);
                    outbox::Entity::update_many()
                        .col_expr(outbox::Column::Attempts, Expr::value(attempts))
                        .col_expr(outbox::Column::RetryAt, Expr::value(now + micros(pause)))
                        .col_expr(outbox::Column::LastError, Expr::value(error))
                        .filter(outbox::Column::Id.eq(id))
                        .exec(&tx)
                        .await?;
                }
                Ok(())
            }
        });
        marking.await
    }

    /// Tells the backlogs as metrics until `stop`: an age says what its size does not. Whether or not this node is the
    /// relay, because the last numbers of one that was would stay; for the same reason they are no numbers if the database
    /// cannot tell.
    pub async fn measure(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let (rows, age) = numbers(self.unsent_backlog().await);
            metrics::gauge!("tombola_outbox_unsent_rows").set(rows);
            metrics::gauge!("tombola_outbox_oldest_unsent_age_seconds").set(age);
            // Here, not where groups are measured: that nobody consumes is what it must tell.
            let (rows, age) = numbers(self.queue_backlog().await);
            metrics::gauge!("tombola_embedded_queue_rows").set(rows);
            metrics::gauge!("tombola_embedded_queue_oldest_age_seconds").set(age);
            // What takes long because it is much is measured the less often.
            let pause = MEASURE_EVERY.max(begun.elapsed() * MEASURING_SHARE);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// How many rows are unsent, and how old the oldest is.
    async fn unsent_backlog(&self) -> Result<(i64, Duration), DbFault> {
        let read = |connection: DatabaseConnection| async move {
            let now = db::now_micros(&connection).await?;
            let row = outbox::Entity::find()
                .select_only()
                .column_as(outbox::Column::Id.count(), "rows")
                .column_as(outbox::Column::CreatedAt.min(), "oldest")
                .filter(outbox::Column::SentAt.is_null())
                .into_tuple()
                .one(&connection)
                .await?;
            Ok(backlog(row, now))
        };
        self.db.read(read).await
    }

    /// How many entries the queues of the embedded bus have, and how old the oldest is.
    async fn queue_backlog(&self) -> Result<(i64, Duration), DbFault> {
        let read = |connection: DatabaseConnection| async move {
            let now = db::now_micros(&connection).await?;
            let row = queued_events::Entity::find()
                .select_only()
                .column_as(queued_events::Column::OutboxId.count(), "rows")
                .column_as(queued_events::Column::QueuedAt.min(), "oldest")
                .into_tuple()
                .one(&connection)
                .await?;
            Ok(backlog(row, now))
        };
        self.db.read(read).await
    }
}

fn mark_sent(backend: DbBackend, sent: Vec<i64>, now: i64, script: &mut Script) {
    let mark = bulk::update(backend, "outbox", "sent_at = ?", "id = r.sent");
    script.push_rows(mark, [now.into()], Rows::new().column("sent", Column::Big(sent)));
}

fn count_published<'a>(rows: impl IntoIterator<Item = &'a outbox::Model>) {
    let events: i64 = rows.into_iter().map(|row| i64::from(row.event_count)).sum();
    metrics::counter!("tombola_events_published_total").increment(events.unsigned_abs());
}

/// Makes the rows of some entries of one queue unsent, and removes these entries; answers how many.
async fn unqueue(tx: &Tx) -> Result<usize, DbFault> {
    let entries: Vec<(String, i64)> = queued_events::Entity::find()
        .select_only()
        .columns([queued_events::Column::GroupName, queued_events::Column::OutboxId])
        .order_by_asc(queued_events::Column::GroupName)
        .order_by_asc(queued_events::Column::OutboxId)
        .limit(QUEUE_PAGE)
        .into_tuple()
        .all(tx)
        .await?;
    let Some((group, _)) = entries.first() else { return Ok(0) };
    let ids: Vec<i64> = entries.iter().filter(|(name, _)| name == group).map(|(_, id)| *id).collect();
    let backend = tx.get_database_backend();
    let rows = Rows::new().column("queued", Column::Big(ids.clone()));
    let unsend =
        bulk::update(backend, "outbox", "sent_at = NULL, retry_at = NULL, attempts = 0", "id = r.queued");
    tx.execute_raw(rows.statement(backend, &unsend, [])).await?;
    let count = ids.len();
    queued_events::Entity::delete_many()
        .filter(queued_events::Column::GroupName.eq(group))
        .filter(queued_events::Column::OutboxId.is_in(ids))
        .exec(tx)
        .await?;
    Ok(count)
}

/// A count and an age from a count and a time.
fn backlog(row: Option<(i64, Option<i64>)>, now: i64) -> (i64, Duration) {
    let (rows, oldest) = row.unwrap_or_default();
    let age = Ord::max(now - oldest.unwrap_or(now), 0).unsigned_abs();
    (rows, Duration::from_micros(age))
}

/// No numbers if the database cannot tell.
fn numbers(measured: Result<(i64, Duration), DbFault>) -> (f64, f64) {
    measured.map_or((f64::NAN, f64::NAN), |(rows, age)| (rows as f64, age.as_secs_f64()))
}

async fn time_is_up(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_PAGE).await;
}

#[cfg(test)]
mod tests {
    use sea_orm::ActiveValue::Set;

    use super::*;
    use crate::activity::tests::Story;
    use crate::ports::event_bus::embedded::EmbeddedBus;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_takes_out_of_the_queues_is_measured() {
        let story = Story::begin().await;
        let bus = Arc::new(EmbeddedBus::new(story.db.clone(), 1, &[]));
        let relay = Relay::new(story.db.clone(), bus, 1, Duration::from_secs(1));
        assert_eq!(relay.queue_backlog().await.unwrap(), (0, Duration::ZERO));
        let now = story.db.now_micros().await.unwrap();
        let entry = |id, queued_at| queued_events::ActiveModel {
            group_name: Set("stock".to_owned()),
            outbox_id: Set(id),
            queued_at: Set(queued_at),
        };
        let entries = [entry(1, now - 3_600_000_000), entry(2, now)];
        let filling = story.db.transaction(move |tx| {
            let entries = entries.clone();
            async move {
                let filling = queued_events::Entity::insert_many(entries);
                Ok::<_, DbFault>(filling.exec_without_returning(&tx).await.map(drop)?)
            }
        });
        filling.await.unwrap();
        let (rows, age) = relay.queue_backlog().await.unwrap();
        assert_eq!(rows, 2);
        assert!(age >= Duration::from_hours(1), "{age:?}");
    }
}
