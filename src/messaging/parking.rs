//! Where events wait that a group could not apply, could not apply yet, or is to apply outside the database.
//!
//! A parked event is due at a time by the database's clock (R23). The bus is asked to remind of it; the sweep finds it
//! whether or not the reminder comes. Whoever takes one moves its due time first, which makes it theirs until then: a
//! node that dies leaves it to the others. Of an ordered group, only the oldest parked event of a subject is taken.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use entities::parked_event;
use futures_util::{StreamExt, stream};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::cemetery;
use super::consumer::{Consumer, Effect, HandlerError, Parked, unknown_type};
use super::envelope::Envelope;
use crate::db::bulk::{Column, Rows};
use crate::db::{self, Database, DbFault, Tx};
use crate::ids::ParkedId;

/// Parked events that are looked at a time.
const PAGE: i64 = 64;

/// Effects outside the database that are under way at a time.
const ABREAST: usize = 16;

/// An error's text is cut to fit its column.
const ERROR_CHARS: usize = 1000;

/// When what failed is tried again.
#[derive(Debug, Clone)]
pub struct Retries {
    /// The pause after the first, second … try. What failed as often as there are pauses is dead; what was put back
    /// because something else must come first gets one more try.
    pub delays: Arc<[Duration]>,
    /// How often due events are looked for.
    pub sweep_every: Duration,
    /// How long a taken event is its taker's, if that one dies; longer than any try takes.
    pub claim: Duration,
    /// How long after its first failure an event may be held up by others without that being counted.
    pub patience: Duration,
}

impl Retries {
    /// The pause after the `attempts`th try, if there is to be another one.
    fn after(&self, attempts: i32, error: &HandlerError) -> Option<Duration> {
        let attempts = usize::try_from(attempts).unwrap_or(usize::MAX);
        let delay = self.delays.get(attempts.saturating_sub(1)).copied();
        match error {
            HandlerError::NotYet(_) => delay,
            HandlerError::Undecodable(_) => None,
            HandlerError::Failed(_) | HandlerError::Db(_) => delay.filter(|_| attempts < self.delays.len()),
        }
    }
}

/// An error, for a column.
pub(super) fn text_of(error: &HandlerError) -> String {
    db::fit(&error.to_string(), ERROR_CHARS)
}

/// Which of `subjects` have a parked event of `group`.
pub(super) async fn subjects(
    db: &Database,
    group: &'static str,
    subjects: HashSet<String>,
) -> Result<HashSet<String>, DbFault> {
    const PARKED: &str = "SELECT r.subject, (SELECT MIN(p.id) FROM parked_event AS p \
        WHERE p.group_name = ? AND p.subject = r.subject) AS parked FROM {rows}";
    db.read(move |connection: DatabaseConnection| async move {
        let rows = Rows::new().column("subject", Column::Text(subjects.into_iter().collect()));
        let sql = rows.statement(connection.get_database_backend(), PARKED, [group.into()]);
        let found = connection.query_all_raw(sql).await?;
        let mut parked = HashSet::new();
        for row in found {
            if row.try_get::<Option<i64>>("", "parked")?.is_some() {
                parked.insert(row.try_get("", "subject")?);
            }
        }
        Ok(parked)
    })
    .await
}

/// Removes a parked event.
pub(super) async fn forget(tx: &Tx, row: i64) -> Result<(), DbFault> {
    parked_event::Entity::delete_by_id(row).exec(tx).await?;
    Ok(())
}

/// A row that parks `event`; when it is due is still to be said.
pub(super) fn row(id: &ParkedId, group: &str, event: &Envelope, origin: &str) -> parked_event::ActiveModel {
    parked_event::ActiveModel {
        id: Set(id.0),
        group_name: Set(group.to_owned()),
        event_id: Set(event.id.0),
        event_type: Set(event.event_type.clone()),
        subject: Set(event.subject.clone()),
        body: Set(event.to_text()),
        attempts: Set(0),
        due_at: Set(0),
        last_error: Set(None),
        first_failed_at: Set(None),
        origin: Set(origin.to_owned()),
    }
}

/// Parks `row`'s event, unless it is parked already.
pub(super) async fn insert(tx: &Tx, row: parked_event::ActiveModel) -> Result<(), DbFault> {
    let (Set(group), Set(event)) = (&row.group_name, &row.event_id) else {
        return Err(DbFault::Missing("the key of a parked event"));
    };
    let parked = parked_event::Entity::find()
        .select_only()
        .column(parked_event::Column::Id)
        .filter(parked_event::Column::GroupName.eq(group))
        .filter(parked_event::Column::EventId.eq(*event));
    if parked.into_tuple::<i64>().one(tx).await?.is_none() {
        parked_event::Entity::insert(row).exec_without_returning(tx).await?;
    }
    Ok(())
}

impl Consumer {
    /// Parks `event` to be applied as soon as it can be.
    pub(super) async fn park(&self, event: &Envelope, origin: &str) -> Result<(), HandlerError> {
        let row = self.row(event, origin)?;
        let parked = self.db.transaction(move |tx| {
            let row = row.clone();
            async move {
                let now = db::now_micros(&tx).await?;
                insert(&tx, parked_event::ActiveModel { due_at: Set(now), ..row }).await
            }
        });
        parked.await?;
        self.wake.notify_one();
        Ok(())
    }

    /// Parks `event` after its first try, or buries it if that was the last.
    pub(super) async fn failed_first(
        &self,
        event: &Envelope,
        origin: &str,
        error: &HandlerError,
    ) -> Result<(), HandlerError> {
        metrics::counter!("tombola_event_failures_total", "group" => self.name()).increment(1);
        let row = self.row(event, origin)?;
        let (attempts, delay) = match error.is_hold_up() {
            true => (0, Some(self.retries.sweep_every)),
            false => (1, self.retries.after(1, error)),
        };
        let text = text_of(error);
        warn!(group = self.name(), event.id = %event.id, "Group {} could not apply {} {}: {text}", self.name(), event.event_type, event.id);
        let ids = self.ids.clone();
        let parked = self.db.transaction(move |tx| {
            let (row, text, ids) = (row.clone(), text.clone(), ids.clone());
            async move {
                let now = db::now_micros(&tx).await?;
                let row = parked_event::ActiveModel {
                    attempts: Set(attempts),
                    due_at: Set(now + delay.map_or(0, micros)),
                    last_error: Set(Some(text)),
                    first_failed_at: Set(Some(now)),
                    ..row
                };
                match delay {
                    Some(_) => insert(&tx, row).await,
                    None => cemetery::bury(&tx, &ids, &row, now).await,
                }
            }
        });
        parked.await?;
        if let Some(delay) = delay {
            self.bus.remind(delay).await;
        }
        Ok(())
    }

    fn row(&self, event: &Envelope, origin: &str) -> Result<parked_event::ActiveModel, DbFault> {
        Ok(row(&self.ids.next()?, self.name(), event, origin))
    }

    /// Tries what is due, again and again, until `stop`.
    pub(super) async fn sweep_until(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(fault) = self.sweep(stop).await {
                warn!(group = self.name(), error = %fault, "Group {} cannot look for parked events: {fault}", self.name());
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(self.retries.sweep_every) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Tries each parked event that is due, until `stop`; answers how many were tried.
    pub(super) async fn sweep(&self, stop: &CancellationToken) -> Result<usize, DbFault> {
        let mut tried = 0;
        while !stop.is_cancelled() {
            let due = self.due().await?;
            if due.is_empty() {
                break;
            }
            tried += due.len();
            let trying = stream::iter(due).map(|row| self.try_again(row)).buffer_unordered(ABREAST);
            let outcomes: Vec<Result<(), DbFault>> = trying.collect().await;
            outcomes.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(tried)
    }

    async fn due(&self) -> Result<Vec<parked_event::Model>, DbFault> {
        const DUE: &str = "SELECT * FROM parked_event AS p WHERE p.group_name = ? AND p.due_at <= ? \
            ORDER BY p.id LIMIT ?";
        const OLDEST_DUE: &str = "SELECT * FROM parked_event AS p WHERE p.group_name = ? AND p.due_at <= ? \
            AND NOT EXISTS (SELECT 1 FROM parked_event AS o WHERE o.group_name = p.group_name \
            AND o.subject = p.subject AND o.id < p.id) ORDER BY p.id LIMIT ?";
        let group = self.name();
        let sql = if self.group.spec.ordered { OLDEST_DUE } else { DUE };
        let read = move |connection: DatabaseConnection| async move {
            let now = db::now_micros(&connection).await?;
            let values = [group.into(), now.into(), PAGE.into()];
            let sql = db::bulk::statement(connection.get_database_backend(), sql, values);
            Ok(parked_event::Entity::find().from_raw_sql(sql).all(&connection).await?)
        };
        self.db.read(read).await
    }

    async fn try_again(&self, row: parked_event::Model) -> Result<(), DbFault> {
        if !self.claim(&row).await? {
            return Ok(());
        }
        let tried = match Envelope::parse(row.body.as_bytes()) {
            Ok(event) => self.try_parked(event, Parked { row: row.id, attempts: row.attempts }).await,
            Err(undecodable) => Err(undecodable.into()),
        };
        match tried {
            Ok(()) => Ok(()),
            Err(HandlerError::Db(fault)) if fault.is_outage() => Err(fault),
            Err(error) => self.failed_again(row, error).await,
        }
    }

    async fn try_parked(&self, event: Envelope, parked: Parked) -> Result<(), HandlerError> {
        if !self.group.spec.wants(&event.event_type) {
            return Err(unknown_type(&event));
        }
        if let Effect::Outside(handler) = &self.group.effect
            && !self.is_noted(&event).await?
        {
            handler.perform(&event).await?;
        }
        self.apply(Arc::new(vec![event]), Some(parked)).await.map(drop)
    }

    async fn is_noted(&self, event: &Envelope) -> Result<bool, DbFault> {
        let key = (self.name().to_owned(), event.id.0);
        let read = move |connection: DatabaseConnection| async move {
            Ok(entities::consumer_log::Entity::find_by_id(key).one(&connection).await?.is_some())
        };
        self.db.read(read).await
    }

    /// Makes `row` ours until the claim ends; of several that try, one succeeds.
    async fn claim(&self, row: &parked_event::Model) -> Result<bool, DbFault> {
        let (id, due_at, claim) = (row.id, row.due_at, self.retries.claim);
        let claiming = self.db.transaction(move |tx| async move {
            let until = db::now_micros(&tx).await? + micros(claim);
            let claimed = parked_event::Entity::update_many()
                .col_expr(parked_event::Column::DueAt, Expr::value(until))
                .filter(parked_event::Column::Id.eq(id))
                .filter(parked_event::Column::DueAt.eq(due_at));
            Ok(claimed.exec(&tx).await?.rows_affected == 1)
        });
        claiming.await
    }

    async fn failed_again(&self, row: parked_event::Model, error: HandlerError) -> Result<(), DbFault> {
        metrics::counter!("tombola_event_failures_total", "group" => self.name()).increment(1);
        let counted = (row.attempts + 1, self.retries.after(row.attempts + 1, &error));
        let held_up = error.is_hold_up().then_some((row.attempts, Some(self.retries.sweep_every)));
        let (patience, text) = (micros(self.retries.patience), text_of(&error));
        info!(
            group = self.name(),
            event.id = row.event_id,
            "Group {} could not apply {} {} again: {text}",
            self.name(),
            row.event_type,
            row.event_id
        );
        let ids = self.ids.clone();
        let noted = self.db.transaction(move |tx| {
            let (mut row, text, ids) =
                (parked_event::ActiveModel::from(row.clone()), text.clone(), ids.clone());
            async move {
                let now = db::now_micros(&tx).await?;
                let first_failed_at = row.first_failed_at.as_ref().unwrap_or(now);
                let (attempts, delay) =
                    held_up.filter(|_| now - first_failed_at < patience).unwrap_or(counted);
                row.attempts = Set(attempts);
                row.last_error = Set(Some(text));
                row.first_failed_at = Set(Some(first_failed_at));
                let Some(delay) = delay else {
                    forget(&tx, *row.id.as_ref()).await?;
                    cemetery::bury(&tx, &ids, &row, now).await?;
                    return Ok(None);
                };
                row.due_at = Set(now + micros(delay));
                parked_event::Entity::update(row).exec(&tx).await?;
                Ok::<_, DbFault>(Some(delay))
            }
        });
        if let Some(delay) = noted.await? {
            self.bus.remind(delay).await;
        }
        Ok(())
    }
}

pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 2)
}
