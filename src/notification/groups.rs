//! From an event to a notification, and from there to where else its user is told.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use entities::{notification, users};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter};
use tracing::debug;

use super::events::NotificationRequested;
use super::messages::{self, Message};
use crate::db::bulk::{Column, Rows, Script};
use crate::db::{Database, DbFault, Tx};
use crate::ids::{Ids, NotificationId, UserId};
use crate::messaging::catalogue::EventType;
use crate::messaging::consumer::{Group, Handler, HandlerError, OutsideHandler};
use crate::messaging::envelope::Envelope;
use crate::messaging::outbox::{self, Events};
use crate::ports::clock::{SharedClock, Timestamp, to_micros};
use crate::ports::event_bus::GroupSpec;
use crate::ports::notifier::{Delivery, Notice, Notifier};

/// Nobody waits for a notification.
const GATHERED: Duration = Duration::from_millis(50);

/// The group that tells users of their orders.
pub fn orders(ids: Ids, clock: SharedClock) -> Group {
    let spec = GroupSpec { linger: GATHERED, ..GroupSpec::new("order_notifications", messages::TYPES) };
    Group::new(spec, Tell { ids, clock })
}

#[derive(Debug)]
struct Tell {
    ids: Ids,
    clock: SharedClock,
}

#[async_trait]
impl Handler for Tell {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let messages = events.iter().filter_map(|event| messages::message(event).transpose());
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        Ok(send(tx, &self.ids, self.clock.now(), &messages).await?)
    }
}

/// The step all kinds have in common (NTF-2): the notification, and the wish to send it elsewhere.
async fn send(tx: &Tx, ids: &Ids, now: Timestamp, messages: &[Message]) -> Result<(), DbFault> {
    const INSERT: &str = "INSERT INTO notification (id, user_id, kind, order_id, title, body, created_at) \
        SELECT r.id, r.user_id, r.kind, r.order_id, r.title, r.body, ? FROM {rows}";
    if messages.is_empty() {
        return Ok(());
    }
    let numbers = messages.iter().map(|_| ids.next::<NotificationId>()).collect::<Result<Vec<_>, _>>()?;
    let mut events = Events::at(now);
    for (&id, message) in numbers.iter().zip(messages) {
        let event = NotificationRequested {
            notification_id: id,
            user_id: message.user,
            kind: message.kind,
            order_id: Some(message.order),
            title: message.title.to_owned(),
            body: message.body.clone(),
            at: now,
        };
        events.push(ids.next()?, &event)?;
    }
    let texts = |text: fn(&Message) -> String| Column::Text(messages.iter().map(text).collect());
    let rows = Rows::new()
        .column("id", Column::Big(numbers.iter().map(|id| id.0).collect()))
        .column("user_id", Column::Big(messages.iter().map(|message| message.user.0).collect()))
        .column("kind", texts(|message| message.kind.word().to_owned()))
        .column("order_id", Column::Big(messages.iter().map(|message| message.order.0).collect()))
        .column("title", texts(|message| message.title.to_owned()))
        .column("body", texts(|message| message.body.clone()));
    let mut script = Script::new();
    script.push_rows(INSERT, [to_micros(now).into()], rows);
    outbox::add(ids.next()?, events, now, &mut script);
    script.execute(tx).await?;
    Ok(())
}

/// The group that sends notifications through `notifier`, one by one; without one it has nothing to do, because in the
/// app a notification is a row.
pub fn notifier(db: Database, clock: SharedClock, notifier: Option<Arc<dyn Notifier>>) -> Group {
    let spec =
        GroupSpec { linger: GATHERED, ..GroupSpec::new("notifier", &[EventType::NotificationRequested]) };
    match notifier {
        Some(notifier) => Group::outside(spec, Elsewhere { db, clock, notifier }),
        None => Group::new(spec, InApp).harmless_repeats(),
    }
}

#[derive(Debug)]
struct InApp;

#[async_trait]
impl Handler for InApp {
    async fn apply(&self, _: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        for event in events {
            debug!(user.id = event.subject, event.id = %event.id, "Told user {} in the app", event.subject);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Elsewhere {
    db: Database,
    clock: SharedClock,
    notifier: Arc<dyn Notifier>,
}

#[async_trait]
impl OutsideHandler for Elsewhere {
    async fn perform(&self, event: &Envelope) -> Result<(), HandlerError> {
        let asked: NotificationRequested = event.payload()?;
        let (id, provider) = (asked.notification_id, self.notifier.provider());
        let Some(recipient) = self.recipient(asked.user_id, provider).await? else { return Ok(()) };
        let notice = Notice {
            recipient,
            kind: asked.kind,
            order_id: asked.order_id,
            title: asked.title,
            at: asked.at,
        };
        match self.notifier.send(&notice).await {
            Ok(Delivery::Sent) => Ok(self.sent(id).await?),
            Ok(Delivery::Declined(why)) => {
                debug!(notification.id = %id, "Told user {} in the app only: {why}", asked.user_id);
                Ok(())
            }
            Err(error) => Err(HandlerError::Failed(error.to_string())),
        }
    }
}

impl Elsewhere {
    /// What `provider` calls the user, if it knows them.
    async fn recipient(&self, user: UserId, provider: &'static str) -> Result<Option<String>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let known = users::Entity::find_by_id(user.0).filter(users::Column::Provider.eq(provider));
            Ok(known.one(&connection).await?.map(|user| user.subject))
        };
        self.db.read(read).await
    }

    async fn sent(&self, id: NotificationId) -> Result<(), DbFault> {
        let now = to_micros(self.clock.now());
        let marking = self.db.transaction(move |tx| async move {
            let mark = notification::Entity::update_many()
                .col_expr(notification::Column::SentAt, Expr::value(now))
                .filter(notification::Column::Id.eq(id.0));
            Ok::<_, DbFault>(mark.exec(&tx).await.map(drop)?)
        });
        marking.await
    }
}
