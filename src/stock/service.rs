//! The front door of stock: one method per use case.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use metrics::Counter;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::actor::{Leave, StockActor, StockHandle, StockRegistry, Wake};
use super::changes::{Adjusted, Adjustment, Released};
use super::engine::{Notice, Reply, TakeRequest};
use super::gauge::{Admission, AdmissionLimits};
use super::model::{AdjustError, ReleaseError, Take, TakeError};
use super::store::StockStore;
use crate::cluster::Cluster;
use crate::db::{Database, DbFault};
use crate::idempotency::{Answered, RequestKey};
use crate::ids::{ActivityId, TakeId, UserId};
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::{Heard, Listener};

/// How often a request looks for the next actor when one ends under its hands.
const ACTOR_CHANGES: u32 = 5;

/// How the stock actors work.
#[derive(Debug, Clone, Copy)]
pub struct StockSettings {
    /// Requests answered in one transaction at most.
    pub max_batch: usize,
    pub admission: AdmissionLimits,
    /// How long a request waits for its answer before it is told that the outcome is unknown.
    pub answer_deadline: Duration,
    /// After so long without a request an actor hands its tokens back and rests.
    pub passivate_after: Duration,
}

/// Hands out tokens, takes them back, changes how many there are. Clones share the actors.
#[derive(Debug, Clone)]
pub struct StockService {
    store: StockStore,
    registry: Arc<StockRegistry>,
    admission: Admission,
    settings: StockSettings,
    outcomes: Outcomes,
}

impl StockService {
    /// Must be called within an actix `System`.
    pub fn new(db: Database, cluster: Cluster, clock: SharedClock, settings: StockSettings) -> Self {
        let store = StockStore::new(db, cluster, clock);
        let (actors, resting) = (store.clone(), settings.passivate_after);
        let registry = Arc::new_cyclic(|registry| {
            let registry = registry.clone();
            StockRegistry::new(1, move |activity, gauge| {
                StockActor::new(
                    activity,
                    actors.clone(),
                    gauge,
                    registry.clone(),
                    settings.max_batch,
                    resting,
                )
            })
        });
        let admission = Admission::new(settings.admission, settings.max_batch);
        Self { store, registry, admission, settings, outcomes: Outcomes::default() }
    }

    /// Takes one token of `activity` for `user`; with a key, once.
    pub async fn take(&self, user: UserId, activity: ActivityId, key: Option<RequestKey>) -> Reply {
        let reply = match self.ask(user, activity, key) {
            Ok(answer) => Box::pin(self.wait(answer, user, activity, key)).await,
            // After the sell-out nearly every request ends here: without a future of its own to be moved around.
            Err(refusal) => Err(refusal),
        };
        self.outcomes.count(&reply);
        reply
    }

    /// Queues a request, unless it is refused from memory.
    fn ask(
        &self,
        user: UserId,
        activity: ActivityId,
        key: Option<RequestKey>,
    ) -> Result<oneshot::Receiver<Reply>, TakeError> {
        let actor = self.actor(activity)?;
        // A repeat must be told what its first request was told, so it is never answered from memory.
        if key.is_none()
            && let Some(refusal) = actor.shared.refusal(self.store.clock.now())
        {
            return Err(refusal);
        }
        let waiting = self.admission.admit(&actor.shared)?;
        let (request, answer) = TakeRequest::new(user, key, waiting);
        if actor.shared.intake.push(request) {
            actor.addr.do_send(Wake);
        }
        Ok(answer)
    }

    async fn wait(
        &self,
        mut answer: oneshot::Receiver<Reply>,
        user: UserId,
        activity: ActivityId,
        key: Option<RequestKey>,
    ) -> Reply {
        for _ in 0..ACTOR_CHANGES {
            match tokio::time::timeout(self.settings.answer_deadline, answer).await {
                Ok(Ok(Err(TakeError::NotBegun))) => {}
                Ok(Ok(reply)) => return reply,
                Ok(Err(_)) | Err(_) => return Err(TakeError::Unanswered),
            }
            // The actor went to rest, or died, with the request unseen; a moment later it is out of the registry.
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer = self.ask(user, activity, key)?;
        }
        Err(TakeError::NotBegun)
    }

    fn actor(&self, activity: ActivityId) -> Result<StockHandle, TakeError> {
        self.registry.get(activity).map_err(|_| TakeError::Overloaded { retry_after_s: 30 })
    }

    /// The activity was changed: what its actor knows is old.
    pub fn activity_changed(&self, activity: ActivityId) {
        self.tell(activity, Notice::Changed);
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
                Heard::Anew => stock.registry.all().iter().for_each(|actor| tell(actor, Notice::Changed)),
            }
            std::future::ready(()).boxed()
        })
    }

    fn tell(&self, activity: ActivityId, notice: Notice) {
        if let Some(actor) = self.registry.find(activity) {
            tell(&actor, notice);
        }
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
            self.tell(take.activity_id, Notice::Released(take.clone()));
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
        let leaving = self.registry.all().into_iter().map(|actor| async move {
            match actor.addr.send(Leave).await {
                Ok(left) => {
                    if tokio::time::timeout(self.settings.answer_deadline, left).await.is_err() {
                        warn!("A stock actor did not finish in time");
                    }
                }
                Err(error) => warn!(%error, "A stock actor was gone already"),
            }
        });
        futures_util::future::join_all(leaving).await;
        self.registry.stop();
    }
}

fn tell(actor: &StockHandle, notice: Notice) {
    // At once: whoever saw the change answered must not be refused for what was before it.
    actor.shared.changed();
    if actor.shared.intake.notify(notice) {
        actor.addr.do_send(Wake);
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
    fn count(&self, reply: &Reply) {
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
