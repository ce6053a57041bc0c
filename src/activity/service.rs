//! The front door: one method per use case.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use thiserror::Error;
use tracing::{info, warn};

use super::events::StateChanged;
use super::machine::{self, Decision, Event, Refusal, State, decide};
use super::model::{Activity, ActivityView, Draft, Due, Edit, Invalid, Listing, PUBLIC_STATES};
use super::store;
use crate::db::{AsDbFault, Database, DbFault, Tx};
use crate::idempotency::{Answered, KeyRefusal, RequestKey, once};
use crate::ids::{ActivityId, Ids, NodeNumberLost, UserId};
use crate::messaging::outbox;
use crate::money::Currency;
use crate::ports::clock::SharedClock;
use crate::stock::blocks;

/// How old the stock may be that a crowd is shown.
const SHOWN_FOR: Duration = Duration::from_millis(250);

/// What is told of each changed activity, after the commit.
pub type OnChange = Arc<dyn Fn(ActivityId) + Send + Sync>;

/// Who asks for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    User(UserId),
    /// The job that follows the clock.
    Schedule,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user {id}"),
            Self::Schedule => f.write_str("the schedule"),
        }
    }
}

/// Why an activity was not created or changed.
#[derive(Debug, Error)]
pub enum ActivityError {
    #[error("there is no such activity")]
    NotFound,
    #[error("the activity is {state}: cannot {event}, {refusal}; possible now: {}", words(possible))]
    Transition { event: Event, state: State, refusal: Refusal, possible: Vec<Event> },
    #[error("only an editing or withdrawn activity can be edited; this one is {0}")]
    NotEditable(State),
    #[error("kind, stock_total and price are settled: {0} units are taken")]
    Taken(i64),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    NodeNumber(#[from] NodeNumberLost),
    #[error(transparent)]
    Fault(#[from] DbFault),
}

impl AsDbFault for ActivityError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Fault(fault) => Some(fault),
            Self::NotFound
            | Self::Transition { .. }
            | Self::NotEditable(_)
            | Self::Taken(_)
            | Self::Invalid(_)
            | Self::Key(_)
            | Self::NodeNumber(_) => None,
        }
    }
}

fn words(events: &[Event]) -> String {
    match events {
        [] => "nothing".to_owned(),
        events => events.iter().map(|event| event.word()).collect::<Vec<_>>().join(", "),
    }
}

/// Creates, changes and shows activities. Clones share everything.
#[derive(Clone)]
pub struct ActivityService(Arc<Inner>);

struct Inner {
    db: Database,
    clock: SharedClock,
    ids: Ids,
    currency: Currency,
    on_change: OnChange,
    shown: Cache<ActivityId, Option<Arc<ActivityView>>>,
    shown_lists: Cache<Listing, Arc<[ActivityView]>>,
}

impl fmt::Debug for ActivityService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivityService").finish_non_exhaustive()
    }
}

impl ActivityService {
    /// `on_change` is called with each activity that changed, or may have: an unknown outcome is told too.
    pub fn new(db: Database, clock: SharedClock, ids: Ids, currency: Currency, on_change: OnChange) -> Self {
        let shown = Cache::builder().max_capacity(10_000).time_to_live(SHOWN_FOR).build();
        let shown_lists = Cache::builder().max_capacity(1_000).time_to_live(SHOWN_FOR).build();
        Self(Arc::new(Inner { db, clock, ids, currency, on_change, shown, shown_lists }))
    }

    /// Creates an activity in `editing`, with its stock, as `by` asks.
    pub async fn create(
        &self,
        by: UserId,
        draft: Draft,
        key: Option<RequestKey>,
    ) -> Result<Answered<ActivityView>, ActivityError> {
        let service = self.clone();
        let created = once(&self.0.db, &self.0.clock, key, 201, move |tx| {
            let (service, draft) = (service.clone(), draft.clone());
            async move { service.insert(&tx, by, draft).await }
        });
        let created = created.await?;
        if let Answered::Fresh(activity) = &created {
            info!(activity.id = %activity.id, "Created activity {} for user {by}", activity.id);
        }
        Ok(created)
    }

    /// Changes what `edit` names, while the activity is editing or withdrawn.
    ///
    /// Its stock and its kind are settled once somebody holds a unit of it (it may have run before).
    pub async fn edit(&self, id: ActivityId, edit: Edit) -> Result<ActivityView, ActivityError> {
        let service = self.clone();
        let editing = async move {
            let db = service.0.db.clone();
            db.transaction(move |tx| {
                let (service, edit) = (service.clone(), edit.clone());
                async move { service.apply(&tx, id, edit).await }
            })
            .await
        };
        self.telling(id, editing).await
    }

    /// Does to an activity what `event` asks. A repeat of what is already so changes nothing and succeeds.
    pub async fn transition(
        &self,
        actor: Actor,
        id: ActivityId,
        event: Event,
        key: Option<RequestKey>,
    ) -> Result<Answered<ActivityView>, ActivityError> {
        let service = self.clone();
        let moving = async move {
            let inner = service.0.clone();
            once(&inner.db, &inner.clock, key, 200, move |tx| {
                let service = service.clone();
                async move { service.advance(&tx, id, event).await }
            })
            .await
        };
        let moved = self.telling(id, moving).await?;
        if let Answered::Fresh(activity) = &moved {
            info!(activity.id = %id, "Activity {id} is {} after {event} by {actor}", activity.state);
        }
        Ok(moved)
    }

    /// An activity in any state, as it is now.
    pub async fn get(&self, id: ActivityId) -> Result<Option<ActivityView>, DbFault> {
        let currency = self.0.currency;
        self.0.db.read(move |connection| async move { view(&connection, id, currency).await }).await
    }

    /// Activities in any state, as they are now.
    pub async fn list(&self, listing: Listing) -> Result<Vec<ActivityView>, DbFault> {
        self.page(listing, State::ALL).await
    }

    /// An activity that customers may see, at most a quarter of a second old.
    ///
    /// However many ask at a time, the database is asked once.
    pub async fn shown(&self, id: ActivityId) -> Result<Option<Arc<ActivityView>>, Arc<DbFault>> {
        let look = async move {
            let found = self.get(id).await?;
            Ok(found.filter(|found| PUBLIC_STATES.contains(&found.state)).map(Arc::new))
        };
        self.0.shown.try_get_with(id, logged(look)).await
    }

    /// Activities that customers may see, at most a quarter of a second old.
    pub async fn shown_list(&self, listing: Listing) -> Result<Arc<[ActivityView]>, Arc<DbFault>> {
        let look = async move { Ok(self.page(listing, &PUBLIC_STATES).await?.into()) };
        self.0.shown_lists.try_get_with(listing, logged(look)).await
    }

    /// Up to `limit` activities behind `after` for which it is time, by id.
    pub async fn due(&self, what: Due, after: ActivityId, limit: u64) -> Result<Vec<ActivityId>, DbFault> {
        let now = self.0.clock.now();
        self.0
            .db
            .read(move |connection| async move { store::due(&connection, what, now, after, limit).await })
            .await
    }

    /// Runs `change` to its end and tells of it, even if the caller goes away meanwhile.
    async fn telling<T: Send + 'static>(
        &self,
        id: ActivityId,
        change: impl Future<Output = Result<T, ActivityError>> + Send + 'static,
    ) -> Result<T, ActivityError> {
        let inner = self.0.clone();
        let telling = self.0.db.run(async move {
            let changed = change.await;
            if matches!(changed, Ok(_) | Err(ActivityError::Fault(_))) {
                inner.shown.invalidate(&id).await;
                (inner.on_change)(id);
            }
            changed
        });
        telling.await?
    }

    async fn insert(&self, tx: &Tx, by: UserId, draft: Draft) -> Result<ActivityView, ActivityError> {
        let now = self.0.clock.now();
        if draft.window.ends_at() <= now {
            return Err(Invalid::Over.into());
        }
        let new = Activity {
            id: self.0.ids.next()?,
            name: draft.name,
            kind: draft.kind,
            sale: draft.sale,
            state: State::Editing,
            window: draft.window,
            stock_total: draft.stock_total.get(),
            take_limit_per_user: draft.take_limit_per_user,
            version: 1,
            created_by: by,
            created_at: now,
            updated_at: now,
        };
        check_goods(tx, &new).await?;
        store::insert(tx, &new).await?;
        blocks::create(tx, &self.0.ids, new.id, new.stock_total).await?;
        self.announce(tx, &new, None).await?;
        Ok(new.view(0, self.0.currency))
    }

    async fn apply(&self, tx: &Tx, id: ActivityId, edit: Edit) -> Result<ActivityView, ActivityError> {
        let before = store::lock(tx, id).await?.ok_or(ActivityError::NotFound)?;
        match before.state {
            State::Editing | State::Withdrawn => {}
            State::Submitted | State::Approved | State::Running | State::Refused | State::Closed => {
                return Err(ActivityError::NotEditable(before.state));
            }
        }
        let now = self.0.clock.now();
        if edit.ends_at.is_some_and(|ends_at| ends_at <= now) {
            return Err(Invalid::Over.into());
        }
        let after = before.edited(edit)?;
        let sold = blocks::sold_of(tx, id).await?;
        if after == before {
            return Ok(before.view(sold, self.0.currency));
        }
        if sold > 0
            && (after.kind, after.stock_total, after.sale) != (before.kind, before.stock_total, before.sale)
        {
            return Err(ActivityError::Taken(sold));
        }
        if after.sale != before.sale {
            check_goods(tx, &after).await?;
        }
        if after.stock_total != before.stock_total {
            blocks::remove(tx, id).await?;
            blocks::create(tx, &self.0.ids, id, after.stock_total).await?;
        }
        Ok(self.save(tx, &before, after).await?.view(sold, self.0.currency))
    }

    async fn advance(&self, tx: &Tx, id: ActivityId, event: Event) -> Result<ActivityView, ActivityError> {
        let before = store::lock(tx, id).await?.ok_or(ActivityError::NotFound)?;
        let (state, window, now) = (before.state, before.window, self.0.clock.now());
        let after = match decide(state, event, window, now) {
            Ok(Decision::Move(state)) => self.save(tx, &before, Activity { state, ..before.clone() }).await?,
            Ok(Decision::AlreadyDone) => before,
            Err(refusal) => {
                let possible = machine::moves(state, window, now).collect();
                return Err(ActivityError::Transition { event, state, refusal, possible });
            }
        };
        Ok(after.view(blocks::sold_of(tx, id).await?, self.0.currency))
    }

    /// Stores `after` as the next version of `before`.
    async fn save(&self, tx: &Tx, before: &Activity, after: Activity) -> Result<Activity, ActivityError> {
        let after = Activity { version: before.version + 1, updated_at: self.0.clock.now(), ..after };
        store::update(tx, &after, before.version).await?;
        if after.state != before.state {
            self.announce(tx, &after, Some(before.state)).await?;
        }
        Ok(after)
    }

    async fn announce(&self, tx: &Tx, activity: &Activity, from: Option<State>) -> Result<(), ActivityError> {
        let changed = StateChanged::new(activity, from);
        Ok(outbox::append_one(tx, &self.0.ids, activity.updated_at, &changed).await?)
    }

    async fn page(&self, listing: Listing, visible: &'static [State]) -> Result<Vec<ActivityView>, DbFault> {
        let read = self
            .0
            .db
            .read(move |connection| async move { store::page(&connection, &listing, visible).await });
        Ok(read.await?.into_iter().map(|(activity, sold)| activity.view(sold, self.0.currency)).collect())
    }
}

async fn view(
    connection: &sea_orm::DatabaseConnection,
    id: ActivityId,
    currency: Currency,
) -> Result<Option<ActivityView>, DbFault> {
    let Some(activity) = store::find(connection, id).await? else { return Ok(None) };
    Ok(Some(activity.view(blocks::sold_of(connection, id).await?, currency)))
}

/// Refuses a sale of goods that do not exist.
async fn check_goods(tx: &Tx, activity: &Activity) -> Result<(), ActivityError> {
    match activity.sale.and_then(|sale| sale.goods_id) {
        Some(goods) if !store::goods_exist(tx, goods).await? => Err(Invalid::Goods.into()),
        _ => Ok(()),
    }
}

/// Logs a failure once, however many wait for the answer.
async fn logged<T>(look: impl Future<Output = Result<T, DbFault>>) -> Result<T, DbFault> {
    look.await.inspect_err(|fault| warn!(error = %fault, "Activities cannot be read"))
}
