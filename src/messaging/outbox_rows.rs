//! The outbox as its operators see it: what was published, what waits, what the bus refused (MSG-2, MSG-3).

use chrono::{DateTime, TimeDelta, Utc};
use entities::outbox;
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::{self, Database, DbFault};
use crate::ids::BatchId;
use crate::jobs::{Log, Partitions, Stamp, none_of};
use crate::ports::clock::{SharedClock, from_micros, to_micros};
use crate::ports::event_bus::GroupSpec;
use crate::words::words;

/// Parts of the outbox that a sweep can be told to look at: the millisecond of a row's id, modulo this.
pub const OUTBOX_PARTITIONS: u16 = 16;
/// What is unsent for longer than this is told by the sweep (MSG-3).
const TOO_LONG: TimeDelta = TimeDelta::minutes(30);

words! {
    /// Where the events of an outbox row are: still to be published, published, or refused by the event bus and to be
    /// tried again.
    OutboxState, "state of an outbox row" {
        Unsent = "unsent",
        Sent = "sent",
        Refused = "refused",
    }
}

/// The events of one transaction on their way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutboxRow {
    pub id: BatchId,
    pub state: OutboxState,
    /// The types that occur among its events, each once.
    pub types: Vec<String>,
    pub event_count: i32,
    pub created_at: DateTime<Utc>,
    #[schema(required = true)]
    pub sent_at: Option<DateTime<Utc>>,
    /// How often the event bus refused it.
    pub attempts: i32,
    /// When it is tried again.
    #[schema(required = true)]
    pub retry_at: Option<DateTime<Utc>>,
    /// Why it was refused last.
    #[schema(required = true)]
    pub last_error: Option<String>,
}

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Rows that waited to be tried again and are due now.
    pub made_due: u64,
    /// Rows that are unsent for longer than half an hour.
    pub overdue: u64,
}

/// Published events, each row kept for so long; one that the embedded bus has still to hand to a group stays.
pub fn log(kept_for: TimeDelta) -> Log {
    Log {
        table: "outbox",
        aged_by: "sent_at",
        stamped_by: Stamp::Database,
        kept_for,
        only_if: Some("id NOT IN (SELECT outbox_id FROM queued_events)".into()),
    }
}

/// What the embedded bus has queued for groups that are not among `groups`; it would keep its outbox rows for ever.
pub fn queues_of_others(kept_for: TimeDelta, groups: &[GroupSpec]) -> Log {
    Log {
        table: "queued_events",
        aged_by: "queued_at",
        stamped_by: Stamp::Database,
        kept_for,
        only_if: Some(none_of("group_name", groups.iter().map(|group| group.name))),
    }
}

/// The rows of the outbox. Clones share everything.
#[derive(Debug, Clone)]
pub struct OutboxRows {
    db: Database,
    clock: SharedClock,
}

impl OutboxRows {
    pub fn new(db: Database, clock: SharedClock) -> Self {
        Self { db, clock }
    }

    /// Up to `limit` rows from before `before`, newest first: those in `state`, or all.
    pub async fn list(
        &self,
        state: Option<OutboxState>,
        before: Option<BatchId>,
        limit: u64,
    ) -> Result<Vec<OutboxRow>, DbFault> {
        use outbox::Column;
        let read = move |connection: DatabaseConnection| async move {
            let mut query = outbox::Entity::find()
                .select_only()
                .columns([Column::Id, Column::Types, Column::EventCount, Column::CreatedAt, Column::SentAt])
                .columns([Column::Attempts, Column::RetryAt, Column::LastError])
                .order_by_desc(Column::Id)
                .limit(limit);
            if let Some(state) = state {
                query = query.filter(is(state));
            }
            if let Some(before) = before {
                query = query.filter(Column::Id.lt(before.0));
            }
            let rows: Vec<Columns> = query.into_tuple().all(&connection).await?;
            Ok(rows.into_iter().map(row).collect())
        };
        self.db.read(read).await
    }

    /// Makes what waits in `partitions` to be tried again due at once, and wakes the relay.
    pub async fn sweep(&self, partitions: Partitions<OUTBOX_PARTITIONS>) -> Result<Swept, DbFault> {
        let overdue = to_micros(self.clock.now() - TOO_LONG);
        let within = (!partitions.are_all()).then(|| {
            // Below the millisecond of an id are its node and a count (10 and 12 bits).
            let partition =
                outbox::Column::Id.into_expr().right_shift(22).bit_and(i64::from(OUTBOX_PARTITIONS) - 1);
            partition.is_in(partitions.iter().map(i64::from))
        });
        let sweeping = self.db.transaction(move |tx| {
            let within = within.clone();
            async move {
                let now = db::now_micros(&tx).await?;
                let unsent = Condition::all().add(outbox::Column::SentAt.is_null()).add_option(within);
                let waiting = outbox::Entity::update_many()
                    .col_expr(outbox::Column::RetryAt, Expr::value(now))
                    .filter(unsent.clone())
                    .filter(outbox::Column::RetryAt.gt(now));
                let made_due = waiting.exec(&tx).await?.rows_affected;
                let overdue =
                    outbox::Entity::find().filter(unsent).filter(outbox::Column::CreatedAt.lte(overdue));
                let overdue = overdue.count(&tx).await?;
                tx.announce();
                Ok(Swept { made_due, overdue })
            }
        });
        sweeping.await
    }
}

/// Id, types, event count, creation, sending, attempts, next try, last error.
type Columns = (i64, String, i32, i64, Option<i64>, i32, Option<i64>, Option<String>);

fn row((id, types, event_count, created_at, sent_at, attempts, retry_at, last_error): Columns) -> OutboxRow {
    let state = match (sent_at, attempts) {
        (Some(_), _) => OutboxState::Sent,
        (None, 0) => OutboxState::Unsent,
        (None, _) => OutboxState::Refused,
    };
    OutboxRow {
        id: BatchId(id),
        state,
        types: types.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        event_count,
        created_at: from_micros(created_at),
        sent_at: sent_at.map(from_micros),
        attempts,
        retry_at: retry_at.filter(|_| sent_at.is_none()).map(from_micros),
        last_error,
    }
}

fn is(state: OutboxState) -> Condition {
    let (sent_at, attempts) = (outbox::Column::SentAt, outbox::Column::Attempts);
    match state {
        OutboxState::Sent => Condition::all().add(sent_at.is_not_null()),
        OutboxState::Unsent => Condition::all().add(sent_at.is_null()).add(attempts.eq(0)),
        OutboxState::Refused => Condition::all().add(sent_at.is_null()).add(attempts.gt(0)),
    }
}
