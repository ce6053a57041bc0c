//! What waits at the consumer groups, as metrics.
//!
//! Every node that consumes tells the same numbers, those of the whole installation: read them with `max by (group)`.
//! A lease would leave the last numbers of a node standing that has lost it.

use std::collections::BTreeMap;
use std::time::Duration;

use entities::{dead_letter, parked_event};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::dead_letter::LetterState;
use crate::db::{self, Database, DbFault};
use crate::ports::event_bus::GroupSpec;

/// How often it is measured: cheap by its indexes, and nothing here changes within seconds.
const EVERY: Duration = Duration::from_secs(10);

/// What waits at one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Waiting {
    dead_letters: i64,
    parked: i64,
    /// For how long the oldest parked event is due.
    overdue: Duration,
}

/// Measures until `stop`.
pub(super) async fn measure_until(db: &Database, groups: &[GroupSpec], stop: &CancellationToken) {
    let mut known: BTreeMap<String, Waiting> =
        groups.iter().map(|group| (group.name.to_owned(), Waiting::default())).collect();
    while !stop.is_cancelled() {
        match measure(db).await {
            Ok(mut found) => {
                known.values_mut().for_each(|waiting| *waiting = Waiting::default());
                known.append(&mut found);
                known.iter().for_each(|(group, waiting)| tell(group, *waiting));
            }
            Err(fault) => debug!(error = %fault, "Cannot measure what waits at the consumer groups"),
        }
        stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
    }
}

fn tell(group: &str, waiting: Waiting) {
    let set = |name: &'static str, value: f64| metrics::gauge!(name, "group" => group.to_owned()).set(value);
    set("tombola_dead_letters_waiting", waiting.dead_letters as f64);
    set("tombola_parked_events", waiting.parked as f64);
    set("tombola_parked_events_overdue_seconds", waiting.overdue.as_secs_f64());
}

/// What waits, by group.
async fn measure(db: &Database) -> Result<BTreeMap<String, Waiting>, DbFault> {
    let read = |connection: DatabaseConnection| async move {
        let now = db::now_micros(&connection).await?;
        let parked: Vec<(String, i64, i64)> = parked_event::Entity::find()
            .select_only()
            .column(parked_event::Column::GroupName)
            .column_as(parked_event::Column::Id.count(), "events")
            .column_as(parked_event::Column::DueAt.min(), "oldest")
            .group_by(parked_event::Column::GroupName)
            .into_tuple()
            .all(&connection)
            .await?;
        let dead: Vec<(String, i64)> = dead_letter::Entity::find()
            .select_only()
            .column(dead_letter::Column::GroupName)
            .column_as(dead_letter::Column::Id.count(), "letters")
            .filter(dead_letter::Column::State.eq(LetterState::Waiting.word()))
            .group_by(dead_letter::Column::GroupName)
            .into_tuple()
            .all(&connection)
            .await?;
        let mut waiting: BTreeMap<String, Waiting> = BTreeMap::new();
        for (group, events, oldest) in parked {
            let overdue = Duration::from_micros((now - oldest).max(0).unsigned_abs());
            waiting.insert(group, Waiting { parked: events, overdue, ..Waiting::default() });
        }
        for (group, letters) in dead {
            waiting.entry(group).or_default().dead_letters = letters;
        }
        Ok(waiting)
    };
    db.read(read).await
}

#[cfg(test)]
mod tests {
    use sea_orm::ActiveValue::Set;

    use super::*;
    use crate::activity::tests::Story;

    fn parked(id: i64, group: &str, due_at: i64) -> parked_event::ActiveModel {
        parked_event::ActiveModel {
            id: Set(id),
            group_name: Set(group.to_owned()),
            event_id: Set(id),
            event_type: Set("activity.taken.v1".to_owned()),
            subject: Set("7".to_owned()),
            body: Set("{}".to_owned()),
            attempts: Set(1),
            due_at: Set(due_at),
            last_error: Set(None),
            first_failed_at: Set(None),
            origin: Set(format!("tombola.{group}")),
        }
    }

    fn dead(id: i64, group: &str, state: LetterState) -> dead_letter::ActiveModel {
        dead_letter::ActiveModel {
            id: Set(id),
            group_name: Set(group.to_owned()),
            message_key: Set(id.to_string()),
            event_id: Set(Some(id)),
            event_type: Set("activity.taken.v1".to_owned()),
            subject: Set("7".to_owned()),
            body: Set("{}".to_owned()),
            body_encoding: Set("utf8".to_owned()),
            origin: Set(format!("tombola.{group}")),
            error: Set("a test".to_owned()),
            attempts: Set(3),
            first_failed_at: Set(0),
            died_at: Set(0),
            state: Set(state.word().to_owned()),
            replays: Set(0),
            reason: Set(None),
            settled_at: Set(None),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_is_counted_by_group() {
        let story = Story::begin().await;
        assert_eq!(measure(&story.db).await.unwrap(), BTreeMap::new());
        let now = story.db.now_micros().await.unwrap();
        let hour = 3_600_000_000;
        let filling = story.db.transaction(move |tx| async move {
            let events = [
                parked(1, "coupons", now - hour),
                parked(2, "coupons", now + hour),
                parked(3, "stock", now + hour),
            ];
            parked_event::Entity::insert_many(events).exec_without_returning(&tx).await?;
            let letters = LetterState::ALL.iter().zip(4..).map(|(state, id)| dead(id, "orders", *state));
            dead_letter::Entity::insert_many(letters).exec_without_returning(&tx).await?;
            let another = dead(9, "stock", LetterState::Waiting);
            dead_letter::Entity::insert(another).exec_without_returning(&tx).await?;
            Ok::<_, DbFault>(())
        });
        filling.await.unwrap();
        let found = measure(&story.db).await.unwrap();
        let counts: Vec<_> =
            found.iter().map(|(group, of)| (group.as_str(), of.parked, of.dead_letters)).collect();
        assert_eq!(counts, [("coupons", 2, 0), ("orders", 0, 1), ("stock", 1, 1)]);
        assert!(found["coupons"].overdue >= Duration::from_hours(1));
        assert_eq!(found["stock"].overdue, Duration::ZERO);
    }
}
