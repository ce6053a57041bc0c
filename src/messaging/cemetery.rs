//! How a message becomes a [dead letter](super::dead_letter): what a group gave up, what nobody can read, and what ended
//! its consumer too often.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use entities::{dead_letter, parked_event};
use sea_orm::ActiveValue::Set;
use sea_orm::EntityTrait;
use tracing::{error, info};

use super::dead_letter::{BodyEncoding, LetterState, find};
use super::envelope::Undecodable;
use crate::db::{self, Database, DbFault, Tx};
use crate::ids::{DeadLetterId, Ids};
use crate::ports::event_bus::{Delivery, Sink, SinkUnavailable, Unreadable, group_of};

/// How much of an error is kept.
const ERROR_CHARS: usize = 1000;

/// How much is kept of a message that is too large to be an event: it is there to be looked at, not to be replayed.
const LARGEST_BODY: usize = 64 * 1024;

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
        body_encoding: Set(BodyEncoding::Utf8.word().to_owned()),
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
pub(super) struct Cemetery {
    db: Database,
    ids: Ids,
}

impl Cemetery {
    pub(super) fn new(db: Database, ids: Ids) -> Self {
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
        let key = hex::encode(digest);
        let (mut kept, mut error) = (message.body.as_slice(), message.error.to_string());
        if let Undecodable::TooLarge(_) = message.error {
            kept = &kept[..LARGEST_BODY.min(kept.len())];
            error = format!("{error}; only the first {} are kept", kept.len());
        }
        let (body, encoding) = match std::str::from_utf8(kept) {
            // PostgreSQL takes no NUL in text.
            Ok(text) if !text.contains('\0') => (text.to_owned(), BodyEncoding::Utf8),
            _ => (STANDARD.encode(kept), BodyEncoding::Base64),
        };
        let letter = dead_letter::ActiveModel {
            group_name: Set(group.to_owned()),
            message_key: Set(key),
            event_id: Set(None),
            event_type: Set(String::new()),
            subject: Set(String::new()),
            body: Set(body),
            body_encoding: Set(encoding.word().to_owned()),
            origin: Set(origin.to_owned()),
            error: Set(db::fit(&error, ERROR_CHARS)),
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
            body_encoding: Set(BodyEncoding::Utf8.word().to_owned()),
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

/// Writes `letter`, in the place of the one about the same message if there is one; if that one is discarded it stays so.
async fn keep(tx: &Tx, ids: &Ids, letter: dead_letter::ActiveModel, now: i64) -> Result<(), DbFault> {
    let group = letter.group_name.as_ref().clone();
    let before = find(tx, &group, letter.message_key.as_ref()).await?;
    if let Some(before) = &before
        && before.state == LetterState::Discarded.word()
    {
        info!(
            group,
            dead_letter.id = before.id,
            "What dead letter {} holds came again; it is discarded",
            before.id
        );
        let again = dead_letter::ActiveModel {
            id: Set(before.id),
            error: letter.error,
            attempts: letter.attempts,
            died_at: Set(now),
            ..Default::default()
        };
        dead_letter::Entity::update(again).exec(tx).await?;
        return Ok(());
    }
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
        state: Set(LetterState::Waiting.word().to_owned()),
        reason: Set(None),
        settled_at: Set(None),
        ..letter
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::tests::Story;
    use crate::messaging::envelope::{Envelope, MAX_BYTES};
    use crate::ports::clock::SystemClock;

    #[tokio::test(flavor = "multi_thread")]
    async fn of_a_message_that_is_too_large_the_beginning_is_kept() {
        let story = Story::begin().await;
        let ids = Ids::new(1, &SystemClock, std::time::Duration::from_secs(600));
        let body = vec![0xff; MAX_BYTES + 1];
        let error = Envelope::parse(&body).unwrap_err();
        let cemetery = Cemetery::new(story.db.clone(), ids);
        cemetery.bury_unreadable("taken", "tombola.taken", &Unreadable { body, error }).await.unwrap();
        let read =
            |connection| async move { Ok::<_, DbFault>(dead_letter::Entity::find().one(&connection).await?) };
        let letter = story.db.read(read).await.unwrap().unwrap();
        assert_eq!(STANDARD.decode(letter.body).unwrap(), vec![0xff; LARGEST_BODY]);
        assert!(letter.error.ends_with("only the first 65536 are kept"), "{}", letter.error);
    }
}
