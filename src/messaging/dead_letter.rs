//! What could not be applied: kept in the database whichever bus carried it, with its origin, until someone replays or
//! discards it (MSG-10, MSG-11). A replayed message keeps its identity, so it is applied once however often it is tried.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use entities::{dead_letter, parked_event};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
    Select,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::error;
use utoipa::ToSchema;

use super::parking;
use crate::db::{self, AsDbFault, Database, DbFault, Tx};
use crate::ids::{DeadLetterId, Ids, ParkedId};
use crate::messaging::envelope::Envelope;
use crate::ports::event_bus::{Delivery, GroupSpec, Sink, SinkUnavailable, Unreadable, group_of};

/// How much of an error is kept.
const ERROR_CHARS: usize = 1000;

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has done anything about it.
    Waiting,
    /// It is being tried again; if that fails it waits again.
    Replaying,
    /// A replay applied it.
    Applied,
    /// Somebody decided that it is not to be applied.
    Discarded,
}

impl State {
    /// As the database has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Replaying => "replaying",
            Self::Applied => "applied",
            Self::Discarded => "discarded",
        }
    }
}

/// Buries what `row` held, or buries it again.
pub(super) async fn bury(
    tx: &Tx,
    ids: &Ids,
    row: &parked_event::ActiveModel,
    now: i64,
) -> Result<(), DbFault> {
    let event_id = *row.event_id.as_ref();
    let letter = dead_letter::ActiveModel {
        group_name: Set(row.group_name.as_ref().clone()),
        message_key: Set(event_id.to_string()),
        event_id: Set(Some(event_id)),
        event_type: Set(row.event_type.as_ref().clone()),
        subject: Set(row.subject.as_ref().clone()),
        body: Set(row.body.as_ref().clone()),
        body_encoding: Set("utf8".to_owned()),
        origin: Set(row.origin.as_ref().clone()),
        error: Set(row.last_error.as_ref().clone().unwrap_or_default()),
        attempts: Set(*row.attempts.as_ref()),
        first_failed_at: Set(row.first_failed_at.as_ref().unwrap_or(now)),
        ..Default::default()
    };
    keep(tx, ids, letter, now).await
}

/// Buries messages that the bus could not hand over: unreadable ones, and those that ended their consumer too often.
#[derive(Debug, Clone)]
pub struct Cemetery {
    db: Database,
    ids: Ids,
}

impl Cemetery {
    pub fn new(db: Database, ids: Ids) -> Self {
        Self { db, ids }
    }

    /// Buries `message`, which `origin` held and `group` cannot read.
    pub(super) async fn bury_unreadable(
        &self,
        group: &str,
        origin: &str,
        message: &Unreadable,
    ) -> Result<(), DbFault> {
        let digest = ring::digest::digest(&ring::digest::SHA256, &message.body);
        let key =
            digest.as_ref().iter().fold(String::with_capacity(64), |key, byte| key + &format!("{byte:02x}"));
        let (body, encoding) = match std::str::from_utf8(&message.body) {
            // PostgreSQL takes no NUL in text.
            Ok(text) if !text.contains('\0') => (text.to_owned(), "utf8"),
            _ => (STANDARD.encode(&message.body), "base64"),
        };
        let letter = dead_letter::ActiveModel {
            group_name: Set(group.to_owned()),
            message_key: Set(key),
            event_id: Set(None),
            event_type: Set(String::new()),
            subject: Set(String::new()),
            body: Set(body),
            body_encoding: Set(encoding.to_owned()),
            origin: Set(origin.to_owned()),
            error: Set(cut(&message.error.to_string())),
            attempts: Set(1),
            ..Default::default()
        };
        self.keep(letter).await
    }

    async fn bury_exhausted(&self, delivery: &Delivery) -> Result<(), DbFault> {
        let origin = delivery.origin.as_ref();
        let event = match &delivery.content {
            Ok(event) => event,
            Err(message) => return self.bury_unreadable(group_of(origin), origin, message).await,
        };
        let letter = dead_letter::ActiveModel {
            group_name: Set(group_of(origin).to_owned()),
            message_key: Set(event.id.to_string()),
            event_id: Set(Some(event.id.0)),
            event_type: Set(event.event_type.clone()),
            subject: Set(event.subject.clone()),
            body: Set(event.to_text()),
            body_encoding: Set("utf8".to_owned()),
            origin: Set(origin.to_owned()),
            error: Set("the broker gave it up: it was delivered too often without being settled".to_owned()),
            attempts: Set(i32::try_from(delivery.redeliveries).unwrap_or(i32::MAX)),
            ..Default::default()
        };
        self.keep(letter).await
    }

    async fn keep(&self, letter: dead_letter::ActiveModel) -> Result<(), DbFault> {
        let ids = self.ids.clone();
        let keeping = self.db.transaction(move |tx| {
            let (mut letter, ids) = (letter.clone(), ids.clone());
            async move {
                let now = db::now_micros(&tx).await?;
                letter.first_failed_at = Set(now);
                keep(&tx, &ids, letter, now).await
            }
        });
        keeping.await
    }
}

#[async_trait]
impl Sink for Cemetery {
    async fn take_in(&self, deliveries: Vec<Delivery>) -> Result<(), SinkUnavailable> {
        for delivery in deliveries {
            self.bury_exhausted(&delivery).await.map_err(|fault| SinkUnavailable(fault.to_string()))?;
        }
        Ok(())
    }
}

/// Writes `letter`, in the place of the one about the same message if there is one.
async fn keep(tx: &Tx, ids: &Ids, letter: dead_letter::ActiveModel, now: i64) -> Result<(), DbFault> {
    let group = letter.group_name.as_ref().clone();
    error!(
        group,
        key = letter.message_key.as_ref(),
        "Group {group} gave up {} {}: {}",
        letter.event_type.as_ref(),
        letter.message_key.as_ref(),
        letter.error.as_ref()
    );
    metrics::counter!("tombola_dead_letters_total", "group" => group.clone()).increment(1);
    let waiting = dead_letter::ActiveModel {
        died_at: Set(now),
        state: Set(State::Waiting.word().to_owned()),
        reason: Set(None),
        settled_at: Set(None),
        ..letter
    };
    let before = dead_letter::Entity::find()
        .filter(dead_letter::Column::GroupName.eq(group))
        .filter(dead_letter::Column::MessageKey.eq(waiting.message_key.as_ref().clone()))
        .one(tx)
        .await?;
    match before {
        Some(before) => {
            let first_failed_at = Set(before.first_failed_at);
            let again = dead_letter::ActiveModel { id: Set(before.id), first_failed_at, ..waiting };
            dead_letter::Entity::update(again).exec(tx).await?;
        }
        None => {
            let id = Set(ids.next::<DeadLetterId>()?.0);
            let new = dead_letter::ActiveModel { id, replays: Set(0), ..waiting };
            dead_letter::Entity::insert(new).exec_without_returning(tx).await?;
        }
    }
    Ok(())
}

/// Settles the letters of `events`, which a replay has applied.
pub(super) async fn applied(tx: &Tx, group: &str, events: &[Envelope]) -> Result<(), DbFault> {
    let keys = events.iter().map(|event| event.id.to_string());
    let now = db::now_micros(tx).await?;
    dead_letter::Entity::update_many()
        .col_expr(dead_letter::Column::State, Expr::value(State::Applied.word()))
        .col_expr(dead_letter::Column::SettledAt, Expr::value(now))
        .filter(dead_letter::Column::GroupName.eq(group))
        .filter(dead_letter::Column::MessageKey.is_in(keys))
        .filter(dead_letter::Column::State.eq(State::Replaying.word()))
        .exec(tx)
        .await?;
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(ERROR_CHARS).collect()
}

/// Which dead letters are meant; all conditions that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The consumer group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The event type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
}

/// Why a dead letter was not replayed or discarded.
#[derive(Debug, Error)]
pub enum DeadLetterError {
    #[error("there is no such dead letter")]
    NotFound,
    #[error("it is {} already", .0.word())]
    Settled(State),
    #[error("it still cannot be read: {0}")]
    Unreadable(String),
    #[error("no group named {0} consumes here")]
    UnknownGroup(String),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for DeadLetterError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            _ => None,
        }
    }
}

/// The dead letters, to be looked at and dealt with.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    db: Database,
    ids: Ids,
    groups: Arc<[GroupSpec]>,
}

impl DeadLetters {
    /// The dead letters of an installation with `groups`.
    pub fn new(db: Database, ids: Ids, groups: Arc<[GroupSpec]>) -> Self {
        Self { db, ids, groups }
    }

    /// Letters that match `filter` and are in `state`, the latest first, older than `before`.
    pub async fn list(
        &self,
        filter: Filter,
        state: Option<State>,
        before: Option<DeadLetterId>,
        limit: u64,
    ) -> Result<Vec<dead_letter::Model>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let mut query = matching(&filter, state).order_by_desc(dead_letter::Column::Id);
            if let Some(before) = before {
                query = query.filter(dead_letter::Column::Id.lt(before.0));
            }
            Ok(query.limit(limit).all(&connection).await?)
        };
        self.db.read(read).await
    }

    /// One letter.
    pub async fn get(&self, id: DeadLetterId) -> Result<dead_letter::Model, DeadLetterError> {
        let read = move |connection: DatabaseConnection| async move {
            let found =
                dead_letter::Entity::find_by_id(id.0).one(&connection).await.map_err(DbFault::from)?;
            found.ok_or(DeadLetterError::NotFound)
        };
        self.db.read(read).await
    }

    /// Tries a letter again, at once: parks its event with its id, so that it is applied once at most.
    pub async fn replay(&self, id: DeadLetterId) -> Result<dead_letter::Model, DeadLetterError> {
        let (ids, groups) = (self.ids.clone(), self.groups.clone());
        let replaying = self.db.transaction(move |tx| {
            let (ids, groups) = (ids.clone(), groups.clone());
            async move {
                let letter = waiting(&tx, id).await?;
                if !groups.iter().any(|group| group.name == letter.group_name) {
                    return Err(DeadLetterError::UnknownGroup(letter.group_name));
                }
                let event = match letter.body_encoding.as_str() {
                    "base64" => Err("it is not text".to_owned()),
                    _ => Envelope::parse(letter.body.as_bytes()).map_err(|error| error.to_string()),
                };
                let event = event.map_err(DeadLetterError::Unreadable)?;
                let now = db::now_micros(&tx).await?;
                let parked = parked_event::ActiveModel {
                    id: Set(ids.next::<ParkedId>().map_err(DbFault::from)?.0),
                    group_name: Set(letter.group_name.clone()),
                    event_id: Set(event.id.0),
                    event_type: Set(event.event_type.clone()),
                    subject: Set(event.subject.clone()),
                    body: Set(letter.body.clone()),
                    attempts: Set(0),
                    due_at: Set(now),
                    last_error: Set(None),
                    first_failed_at: Set(Some(letter.first_failed_at)),
                    origin: Set(letter.origin.clone()),
                };
                parking::insert(&tx, parked).await?;
                let replays = letter.replays + 1;
                let mut letter = letter.into_active_model();
                letter.state = Set(State::Replaying.word().to_owned());
                letter.replays = Set(replays);
                Ok(dead_letter::Entity::update(letter).exec(&tx).await.map_err(DbFault::from)?)
            }
        });
        replaying.await
    }

    /// Replays every waiting letter that matches `filter` and had died by now; answers how many there were and how
    /// many of them cannot be replayed.
    pub async fn replay_all(&self, filter: Filter) -> Result<(u64, u64), DbFault> {
        let (mut replayed, mut refused) = (0, 0);
        let until = self.ids.next::<DeadLetterId>()?;
        let mut before = Some(until);
        loop {
            let page = self.list(filter.clone(), Some(State::Waiting), before, 100).await?;
            let Some(last) = page.last() else { return Ok((replayed, refused)) };
            before = Some(DeadLetterId(last.id));
            for letter in &page {
                match self.replay(DeadLetterId(letter.id)).await {
                    Ok(_) => replayed += 1,
                    Err(DeadLetterError::Db(fault)) => return Err(fault),
                    Err(_) => refused += 1,
                }
            }
        }
    }

    /// Decides that a letter is not to be applied, for `reason`.
    pub async fn discard(
        &self,
        id: DeadLetterId,
        reason: String,
    ) -> Result<dead_letter::Model, DeadLetterError> {
        let discarding = self.db.transaction(move |tx| {
            let reason = reason.clone();
            async move {
                let mut letter = waiting(&tx, id).await?.into_active_model();
                letter.state = Set(State::Discarded.word().to_owned());
                letter.reason = Set(Some(reason));
                letter.settled_at = Set(Some(db::now_micros(&tx).await?));
                Ok(dead_letter::Entity::update(letter).exec(&tx).await.map_err(DbFault::from)?)
            }
        });
        discarding.await
    }
}

/// The letter `id`, locked, if nothing was done about it yet.
async fn waiting(tx: &Tx, id: DeadLetterId) -> Result<dead_letter::Model, DeadLetterError> {
    let found =
        dead_letter::Entity::find_by_id(id.0).lock_exclusive().one(tx).await.map_err(DbFault::from)?;
    let letter = found.ok_or(DeadLetterError::NotFound)?;
    match letter.state.as_str() {
        "waiting" => Ok(letter),
        "replaying" => Err(DeadLetterError::Settled(State::Replaying)),
        "applied" => Err(DeadLetterError::Settled(State::Applied)),
        _ => Err(DeadLetterError::Settled(State::Discarded)),
    }
}

fn matching(filter: &Filter, state: Option<State>) -> Select<dead_letter::Entity> {
    let mut query = dead_letter::Entity::find();
    if let Some(group) = &filter.group {
        query = query.filter(dead_letter::Column::GroupName.eq(group));
    }
    if let Some(event_type) = &filter.event_type {
        query = query.filter(dead_letter::Column::EventType.eq(event_type));
    }
    if let Some(state) = state {
        query = query.filter(dead_letter::Column::State.eq(state.word()));
    }
    query
}
