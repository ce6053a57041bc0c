//! The front door of stock: one method per use case.

use std::sync::Arc;

use futures_util::FutureExt;
use metrics::Counter;
use tracing::info;

use super::changes::{Adjusted, Adjustment, Released};
use super::engine::{Notice, StockEngine, TakeRequest};
use super::hints::Hints;
use super::model::{AdjustError, ReleaseError, Take, TakeAnswer, TakeError};
use super::store::StockStore;
use crate::actors::batching::{BatchSettings, Batcher, Reply};
use crate::cluster::Cluster;
use crate::db::{Database, DbFault};
use crate::idempotency::{Answered, RequestKey};
use crate::ids::{ActivityId, TakeId, UserId};
use crate::order::flash_sale::Terms;
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::{Heard, Listener};

/// Hands out tokens, takes them back, changes how many there are. Clones share the actors.
#[derive(Debug, Clone)]
pub struct StockService {
    store: StockStore,
    actors: Batcher<StockEngine>,
    outcomes: Outcomes,
}

impl StockService {
    /// Must be called within an actix `System`.
    pub fn new(
        db: Database,
        cluster: Cluster,
        clock: SharedClock,
        terms: Terms,
        settings: BatchSettings,
    ) -> Self {
        let store = StockStore::new(db.clone(), cluster, clock, terms);
        let of_engines = store.clone();
        let actors = Batcher::new(db, settings, move |activity, hints| {
            StockEngine::new(activity, of_engines.clone(), hints)
        });
        Self { store, actors, outcomes: Outcomes::default() }
    }

    /// Takes one token of `activity` for `user`; with a key, once.
    pub async fn take(
        &self,
        user: UserId,
        activity: ActivityId,
        key: Option<RequestKey>,
    ) -> Result<Answered<TakeAnswer>, TakeError> {
        // A repeat must be told what its first request was told, so it is never answered from memory.
        let refusal = |hints: &Hints| match key {
            None => hints.refusal(self.store.clock.now()),
            Some(_) => None,
        };
        let reply = match self.actors.ask_unless(activity, TakeRequest { user, key }, refusal) {
            Ok(asked) => Box::pin(asked.answer()).await,
            // After the sell-out nearly every request ends here: without a future of its own to be moved around.
            Err(refusal) => Err(refusal),
        };
        self.outcomes.count(&reply);
        reply.map(|answered| answered.map(TakeAnswer::from))
    }

    /// What everyone is told now who wants to take of `activity` and did not ask before, if that is known to this node.
    pub fn refusal_of_everyone(&self, activity: ActivityId) -> Option<TakeError> {
        let refusal = self.actors.hint(activity, |hints| hints.standing_refusal(self.store.clock.now()))?;
        let reply = Err(refusal);
        self.outcomes.count(&reply);
        reply.err()
    }

    /// The activity was changed: what its actor knows is old.
    pub fn activity_changed(&self, activity: ActivityId) {
        self.actors.tell(activity, Notice::Changed);
    }

    /// What this node does when another one says that an activity changed: it need not find out by itself.
    pub fn ear(&self) -> Listener {
        let stock = self.clone();
        Arc::new(move |heard| {
            match heard {
                Heard::Event(event) => {
                    if let Ok(activity) = event.subject.parse() {
                        stock.activity_changed(activity);
                    }
                }
                Heard::Anew => stock.actors.tell_all(&Notice::Changed),
            }
            std::future::ready(()).boxed()
        })
    }

    /// Gives a take's token back; repeated, the same answer.
    pub async fn release(
        &self,
        take: TakeId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<Released>, ReleaseError> {
        let released = self.store.release(take, reason.clone(), key).await?;
        if let Answered::Fresh(Released { take, now: true }) = &released {
            info!(take.id = %take.id, activity.id = %take.activity_id, reason, "Released take {}", take.id);
            self.actors.tell(take.activity_id, Notice::Released(take.clone()));
        }
        Ok(released)
    }

    /// Raises or lowers the stock of an activity, running or not.
    pub async fn adjust(
        &self,
        change: Adjustment,
        key: Option<RequestKey>,
    ) -> Result<Answered<Adjusted>, AdjustError> {
        let activity = change.activity;
        let adjusted = self.store.adjust(change, key).await?;
        if let Answered::Fresh(done) = &adjusted {
            info!(activity.id = %activity, delta = done.delta, reason = done.reason, "Adjusted the stock of activity {activity}");
            self.activity_changed(activity);
        }
        Ok(adjusted)
    }

    /// A user's takes, newest first, older than `before`.
    pub async fn takes_of(
        &self,
        user: UserId,
        before: Option<TakeId>,
        limit: u64,
    ) -> Result<Vec<Take>, DbFault> {
        self.store.takes_of(user, before, limit).await
    }

    /// Lets every actor finish what was accepted and hand its tokens back.
    pub async fn stop(&self) {
        self.actors.stop().await;
    }
}

/// Counts how requests end. The counters are looked up once: refusals from memory are too many to look them up each time.
#[derive(Clone)]
struct Outcomes {
    taken: Counter,
    replayed: Counter,
    sold_out: Counter,
    take_limit_reached: Counter,
    activity_not_running: Counter,
    overloaded: Counter,
    refused: Counter,
    unavailable: Counter,
}

impl Default for Outcomes {
    fn default() -> Self {
        let counter = |outcome: &'static str| metrics::counter!("tombola_takes_total", "outcome" => outcome);
        Self {
            taken: counter("taken"),
            replayed: counter("replayed"),
            sold_out: counter("sold_out"),
            take_limit_reached: counter("take_limit_reached"),
            activity_not_running: counter("activity_not_running"),
            overloaded: counter("overloaded"),
            refused: counter("refused"),
            unavailable: counter("unavailable"),
        }
    }
}

impl std::fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outcomes")
    }
}

impl Outcomes {
    fn count(&self, reply: &Reply<StockEngine>) {
        let counter = match reply {
            Ok(Answered::Fresh(_)) => &self.taken,
            Ok(Answered::Replayed(_)) => &self.replayed,
            Err(TakeError::SoldOut) => &self.sold_out,
            Err(TakeError::LimitReached(_)) => &self.take_limit_reached,
            Err(TakeError::NotRunning(_)) => &self.activity_not_running,
            Err(TakeError::Overloaded { .. }) => &self.overloaded,
            Err(TakeError::NotFound | TakeError::Key(_)) => &self.refused,
            Err(TakeError::Unavailable | TakeError::Unanswered | TakeError::NotBegun) => &self.unavailable,
        };
        counter.increment(1);
    }
}
