//! What could not be applied: kept in the database whichever bus carried it, with its origin, until someone replays or
//! discards it (MSG-10, MSG-11). A replayed message keeps its identity, so it is applied once however often it is tried.

use std::slice;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use entities::{dead_letter, parked_event};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, Iterable, QueryFilter, QueryOrder,
    QuerySelect,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use thiserror::Error;
use tracing::{info, warn};
use utoipa::ToSchema;

use super::consumer;
use super::envelope::{self, Envelope};
use super::parking;
use crate::db::{self, AsDbFault, Database, DbFault, Tx};
use crate::idempotency::{Answered, KeyRefusal, RequestKey, once};
use crate::ids::{DeadLetterId, EventId, Ids, ParkedId, UserId};
use crate::jobs::{Log, Stamp};
use crate::ports::clock::{SharedClock, from_micros};
use crate::ports::event_bus::GroupSpec;
use crate::words::words;

/// Letters that are read at a time to be replayed.
const PAGE: u64 = 100;

words! {
    /// What became of a dead letter: it is waiting for somebody, it is being tried again (if that fails it waits again),
    /// a replay applied it, or somebody decided that it is not to be applied.
    LetterState, "state of a dead letter" {
        Waiting = "waiting",
        Replaying = "replaying",
        Applied = "applied",
        Discarded = "discarded",
    }
}

words! {
    /// How a body is written: as text, or in Base64 because it is none.
    BodyEncoding, "encoding of a body" {
        Utf8 = "utf8",
        Base64 = "base64",
    }
}

/// Settled dead letters, each kept for so long after that.
pub fn log(kept_for: TimeDelta) -> Log {
    Log { table: "dead_letter", aged_by: "settled_at", stamped_by: Stamp::Database, kept_for, only_if: None }
}

/// Settles the letters of `events`, which a replay has applied.
pub(super) async fn applied(tx: &Tx, group: &str, events: &[Envelope]) -> Result<(), DbFault> {
    let keys = events.iter().map(|event| event.id.to_string());
    let now = db::now_micros(tx).await?;
    dead_letter::Entity::update_many()
        .col_expr(dead_letter::Column::State, Expr::value(LetterState::Applied.word()))
        .col_expr(dead_letter::Column::SettledAt, Expr::value(now))
        .filter(dead_letter::Column::GroupName.eq(group))
        .filter(dead_letter::Column::MessageKey.is_in(keys))
        .filter(dead_letter::Column::State.eq(LetterState::Replaying.word()))
        .exec(tx)
        .await?;
    Ok(())
}

/// A message that a consumer group could not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    /// The consumer group.
    pub group: String,
    /// Null, as type and subject are: the message cannot be read.
    #[schema(required = true)]
    pub event_id: Option<EventId>,
    #[serde(rename = "type")]
    #[schema(required = true)]
    pub event_type: Option<String>,
    #[schema(required = true)]
    pub subject: Option<String>,
    /// The queue it came from.
    pub origin: String,
    /// Why it was given up last.
    pub error: String,
    /// Tries before it was given up last.
    pub attempts: i32,
    /// How often it was replayed.
    pub replays: i32,
    pub first_failed_at: DateTime<Utc>,
    /// When it was given up last.
    pub died_at: DateTime<Utc>,
    pub state: LetterState,
    /// Why it was discarded.
    #[schema(required = true)]
    pub reason: Option<String>,
    /// When it was applied or discarded.
    #[schema(required = true)]
    pub settled_at: Option<DateTime<Utc>>,
}

/// A dead letter with the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct WholeDeadLetter {
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// The message as it came.
    pub body: String,
    pub body_encoding: BodyEncoding,
}

impl TryFrom<dead_letter::Model> for DeadLetter {
    type Error = DbFault;

    fn try_from(row: dead_letter::Model) -> Result<Self, DbFault> {
        let readable = row.event_id.is_some();
        Ok(Self {
            id: DeadLetterId(row.id),
            group: row.group_name,
            event_id: row.event_id.map(EventId),
            event_type: readable.then_some(row.event_type),
            subject: readable.then_some(row.subject),
            origin: row.origin,
            error: row.error,
            attempts: row.attempts,
            replays: row.replays,
            first_failed_at: from_micros(row.first_failed_at),
            died_at: from_micros(row.died_at),
            state: row.state.parse()?,
            reason: row.reason,
            settled_at: row.settled_at.map(from_micros),
        })
    }
}

/// Which dead letters are meant: those for which all conditions hold that are given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterFilter {
    /// The consumer group.
    #[serde(default, deserialize_with = "term", skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    pub group: Option<String>,
    /// The event type.
    #[serde(default, rename = "type", deserialize_with = "term", skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    pub event_type: Option<String>,
}

impl LetterFilter {
    /// As parameters of a job.
    pub fn params(&self) -> Value {
        serde_json::json!(self)
    }
}

/// What a group or a type may be called.
pub(super) fn term<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let given = Option::<String>::deserialize(deserializer)?;
    match &given {
        Some(text) if !envelope::is_term(text) => {
            Err(D::Error::custom("1 to 64 characters, no control characters"))
        }
        _ => Ok(given),
    }
}

/// What became of letters that were to be replayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Put up for another try.
    pub replayed: u64,
    /// Left waiting, because they cannot be replayed.
    pub refused: u64,
}

/// Why a dead letter was not replayed or discarded.
#[derive(Debug, Error)]
pub enum DeadLetterError {
    #[error("there is no such dead letter")]
    NotFound,
    #[error("the dead letter is {0}")]
    Moved(LetterState),
    #[error("the same event is dead letter {0}: deal with that one, and discard this one")]
    Twin(DeadLetterId),
    #[error("the message still cannot be read: {0}")]
    Unreadable(String),
    #[error("there is no consumer group {0}")]
    UnknownGroup(String),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for DeadLetterError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound
            | Self::Moved(_)
            | Self::Twin(_)
            | Self::Unreadable(_)
            | Self::UnknownGroup(_)
            | Self::Key(_) => None,
        }
    }
}

/// The dead letters, to be looked at and dealt with. Clones share everything.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    db: Database,
    clock: SharedClock,
    ids: Ids,
    groups: Arc<[GroupSpec]>,
}

impl DeadLetters {
    /// The dead letters of an installation with `groups`.
    pub fn new(db: Database, clock: SharedClock, ids: Ids, groups: Arc<[GroupSpec]>) -> Self {
        Self { db, clock, ids, groups }
    }

    /// Up to `limit` letters that match `filter` and are older than `before`, the latest first: those in `state`, or
    /// those that are not settled.
    pub async fn list(
        &self,
        filter: LetterFilter,
        state: Option<LetterState>,
        before: Option<DeadLetterId>,
        limit: u64,
    ) -> Result<Vec<DeadLetter>, DbFault> {
        let open = [LetterState::Waiting, LetterState::Replaying];
        let states: Vec<&str> = state
            .as_ref()
            .map_or(open.as_slice(), slice::from_ref)
            .iter()
            .map(|state| state.word())
            .collect();
        let read = move |connection: DatabaseConnection| async move {
            let mut query = dead_letter::Entity::find()
                .select_only()
                .columns(
                    dead_letter::Column::iter().filter(|column| !matches!(column, dead_letter::Column::Body)),
                )
                // A body may have a megabyte; a list goes without.
                .column_as(Expr::value(""), dead_letter::Column::Body)
                .filter(dead_letter::Column::State.is_in(states))
                .order_by_desc(dead_letter::Column::Id)
                .limit(limit);
            if let Some(group) = filter.group {
                query = query.filter(dead_letter::Column::GroupName.eq(group));
            }
            if let Some(event_type) = filter.event_type {
                query = query.filter(dead_letter::Column::EventType.eq(event_type));
            }
            if let Some(before) = before {
                query = query.filter(dead_letter::Column::Id.lt(before.0));
            }
            let found = query.all(&connection).await?;
            found.into_iter().map(DeadLetter::try_from).collect()
        };
        self.db.read(read).await
    }

    /// One letter.
    pub async fn get(&self, id: DeadLetterId) -> Result<WholeDeadLetter, DeadLetterError> {
        let read = move |connection: DatabaseConnection| async move {
            let found =
                dead_letter::Entity::find_by_id(id.0).one(&connection).await.map_err(DbFault::from)?;
            let mut row = found.ok_or(DeadLetterError::NotFound)?;
            let (body, body_encoding) = (std::mem::take(&mut row.body), row.body_encoding.parse()?);
            Ok(WholeDeadLetter { letter: row.try_into()?, body, body_encoding })
        };
        self.db.read(read).await
    }

    /// Puts a letter up for another try: parks its event under its own id, so that it is applied once at most. A
    /// letter that is being tried stays so.
    pub async fn replay(
        &self,
        id: DeadLetterId,
        key: Option<RequestKey>,
    ) -> Result<Answered<DeadLetter>, DeadLetterError> {
        let (ids, groups) = (self.ids.clone(), self.groups.clone());
        let replaying = once(&self.db, &self.clock, key, 202, move |tx| {
            let (ids, groups) = (ids.clone(), groups.clone());
            async move { replay(&tx, &ids, &groups, id).await }
        });
        let replayed = replaying.await?;
        if let Answered::Fresh(letter) = &replayed {
            info!(dead_letter.id = %id, "Dead letter {id} of group {} is tried again", letter.group);
        }
        Ok(replayed)
    }

    /// Replays every waiting letter that matches `filter` and had died by now, once.
    pub async fn replay_all(&self, filter: LetterFilter) -> Result<Replayed, DbFault> {
        let mut done = Replayed::default();
        let mut before = self.ids.next::<DeadLetterId>()?;
        loop {
            let page = self.list(filter.clone(), Some(LetterState::Waiting), Some(before), PAGE).await?;
            let Some(last) = page.last() else { return Ok(done) };
            before = last.id;
            for letter in &page {
                match self.replay(letter.id, None).await {
                    Ok(_) => done.replayed += 1,
                    // Somebody was faster.
                    Err(DeadLetterError::Moved(_) | DeadLetterError::NotFound) => {}
                    Err(DeadLetterError::Db(fault)) => return Err(fault),
                    Err(error) => {
                        done.refused += 1;
                        warn!(dead_letter.id = %letter.id, %error, "Dead letter {} cannot be replayed: {error}", letter.id);
                    }
                }
            }
        }
    }

    /// Decides that a waiting letter is not to be applied, for `reason`: its event counts as applied, should it come
    /// again. One that is discarded stays so, for the reason it has.
    pub async fn discard(
        &self,
        id: DeadLetterId,
        reason: String,
        by: UserId,
    ) -> Result<DeadLetter, DeadLetterError> {
        let words = reason.clone();
        let discarding = self.db.transaction(move |tx| {
            let reason = words.clone();
            async move {
                let row = locked(&tx, id).await?;
                match row.state.parse()? {
                    LetterState::Waiting => {}
                    LetterState::Discarded => return Ok((row.try_into()?, false)),
                    state @ (LetterState::Replaying | LetterState::Applied) => {
                        return Err(DeadLetterError::Moved(state));
                    }
                }
                if let Some(event) = row.event_id {
                    consumer::note_discarded(
                        &tx,
                        &row.group_name,
                        EventId(event),
                        &row.event_type,
                        row.attempts,
                    )
                    .await?;
                }
                let mut row = row.into_active_model();
                row.state = Set(LetterState::Discarded.word().to_owned());
                row.reason = Set(Some(reason));
                row.settled_at = Set(Some(db::now_micros(&tx).await?));
                Ok((update(&tx, row).await?, true))
            }
        });
        let (letter, is_new) = discarding.await?;
        if is_new {
            info!(dead_letter.id = %id, user.id = %by, reason, "Dead letter {id} is discarded: {reason}");
        }
        Ok(letter)
    }
}

async fn replay(
    tx: &Tx,
    ids: &Ids,
    groups: &[GroupSpec],
    id: DeadLetterId,
) -> Result<DeadLetter, DeadLetterError> {
    let row = locked(tx, id).await?;
    match row.state.parse()? {
        LetterState::Waiting => {}
        LetterState::Replaying => return Ok(row.try_into()?),
        state @ (LetterState::Applied | LetterState::Discarded) => return Err(DeadLetterError::Moved(state)),
    }
    if !groups.iter().any(|group| group.name == row.group_name) {
        return Err(DeadLetterError::UnknownGroup(row.group_name));
    }
    let event = match row.body_encoding.parse()? {
        BodyEncoding::Base64 => return Err(DeadLetterError::Unreadable("it is no text".to_owned())),
        BodyEncoding::Utf8 => Envelope::parse(row.body.as_bytes()),
    };
    let event = event.map_err(|error| DeadLetterError::Unreadable(error.to_string()))?;
    let key = event.id.to_string();
    // What could not be read when it died is known by its event from now on.
    if row.message_key != key
        && let Some(twin) = find(tx, &row.group_name, &key).await?
    {
        return Err(DeadLetterError::Twin(DeadLetterId(twin.id)));
    }
    let parked = parked_event::ActiveModel {
        id: Set(ids.next::<ParkedId>().map_err(DbFault::from)?.0),
        group_name: Set(row.group_name.clone()),
        event_id: Set(event.id.0),
        event_type: Set(event.event_type.clone()),
        subject: Set(event.subject.clone()),
        body: Set(row.body.clone()),
        attempts: Set(0),
        due_at: Set(db::now_micros(tx).await?),
        last_error: Set(None),
        first_failed_at: Set(Some(row.first_failed_at)),
        origin: Set(row.origin.clone()),
    };
    parking::insert(tx, parked).await?;
    let replays = row.replays + 1;
    let mut row = row.into_active_model();
    row.message_key = Set(key);
    row.event_id = Set(Some(event.id.0));
    row.event_type = Set(event.event_type);
    row.subject = Set(event.subject);
    row.state = Set(LetterState::Replaying.word().to_owned());
    row.replays = Set(replays);
    Ok(update(tx, row).await?)
}

async fn update(tx: &Tx, row: dead_letter::ActiveModel) -> Result<DeadLetter, DbFault> {
    dead_letter::Entity::update(row).exec(tx).await?.try_into()
}

/// The letter `id`; it stays as it is until the transaction ends.
async fn locked(tx: &Tx, id: DeadLetterId) -> Result<dead_letter::Model, DeadLetterError> {
    let found =
        dead_letter::Entity::find_by_id(id.0).lock_exclusive().one(tx).await.map_err(DbFault::from)?;
    found.ok_or(DeadLetterError::NotFound)
}

/// The letter of `group` about the message with this key; it stays as it is until the transaction ends.
pub(super) async fn find(tx: &Tx, group: &str, key: &str) -> Result<Option<dead_letter::Model>, DbFault> {
    let of_group = dead_letter::Entity::find().filter(dead_letter::Column::GroupName.eq(group));
    Ok(of_group.filter(dead_letter::Column::MessageKey.eq(key)).lock_exclusive().one(tx).await?)
}
