//! The front door of the actors of one kind.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use super::actor::{BatchActor, BatchHandle, BatchRegistry, Leave, Wake};
use super::load::{Admission, AdmissionLimits};
use super::{Ask, Engine, Reply, Unserved};
use crate::db::Database;

/// How often a request looks for the next actor when one ends under its hands.
const ACTOR_CHANGES: u32 = 5;
/// When to come back to a key whose actors keep dying.
const POISONED_RETRY_S: u32 = 30;

/// How actors of one kind work.
#[derive(Debug, Clone, Copy)]
pub struct BatchSettings {
    /// Requests served in one batch at most.
    pub max_batch: usize,
    pub admission: AdmissionLimits,
    /// How long a request waits for its answer before it is told that the outcome is unknown.
    pub answer_deadline: Duration,
    /// After so long without a request an actor rests.
    pub passivate_after: Duration,
}

/// Asks the actors of one kind, starting them as needed. Clones share the actors.
pub struct Batcher<E: Engine> {
    registry: Arc<BatchRegistry<E>>,
    admission: Admission,
    answer_deadline: Duration,
}

impl<E: Engine> Clone for Batcher<E> {
    fn clone(&self) -> Self {
        let Self { registry, admission, answer_deadline } = self;
        Self { registry: registry.clone(), admission: admission.clone(), answer_deadline: *answer_deadline }
    }
}

impl<E: Engine> Debug for Batcher<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher")
            .field("kind", &E::NAME)
            .field("actors", &self.registry)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Batcher<E> {
    /// Actors whose engines are made by `engine` and work on the runtime of `db`.
    ///
    /// Must be called within an actix `System`.
    pub fn new(
        db: Database,
        settings: BatchSettings,
        engine: impl Fn(E::Key, Arc<E::Hints>) -> E + Send + Sync + 'static,
    ) -> Self {
        let BatchSettings { max_batch, admission, answer_deadline, passivate_after } = settings;
        let admission = Admission::new(admission, max_batch, db.crowd());
        let registry = Arc::new_cyclic(|registry| {
            let registry = registry.clone();
            BatchRegistry::<E>::new(1, move |key, shared| {
                let engine = engine(key, shared.hints.clone());
                let (db, registry) = (db.clone(), registry.clone());
                BatchActor::new(key, engine, db, shared, registry, max_batch, passivate_after)
            })
        });
        Self { registry, admission, answer_deadline }
    }

    /// Asks the actor of `key`.
    pub async fn ask(&self, key: E::Key, request: E::Request) -> Reply<E> {
        self.ask_unless(key, request, |_| None)?.answer().await
    }

    /// Queues a request to the actor of `key`, unless `refusal` knows from the hints that asking is in vain.
    pub fn ask_unless<F>(
        &self,
        key: E::Key,
        request: E::Request,
        refusal: F,
    ) -> Result<Asked<'_, E, F>, E::Error>
    where
        F: Fn(&E::Hints) -> Option<E::Error>,
    {
        let answer = self.queue(key, &request, &refusal)?;
        Ok(Asked { batcher: self, key, request, refusal, answer })
    }

    fn queue(
        &self,
        key: E::Key,
        request: &E::Request,
        refusal: &impl Fn(&E::Hints) -> Option<E::Error>,
    ) -> Result<oneshot::Receiver<Reply<E>>, E::Error> {
        let actor =
            self.registry.get(key).map_err(|_| Unserved::Overloaded { retry_after_s: POISONED_RETRY_S })?;
        if let Some(refusal) = refusal(&actor.shared.hints) {
            return Err(refusal);
        }
        let waiting = self.admission.admit(&actor.shared.load)?;
        let (ask, answer) = Ask::new(request.clone(), waiting);
        if actor.shared.intake.push(ask) {
            actor.addr.do_send(Wake);
        }
        Ok(answer)
    }

    /// What the hints of `key` say, if there is an actor that keeps them true.
    pub fn hint<T>(&self, key: E::Key, look: impl FnOnce(&E::Hints) -> Option<T>) -> Option<T> {
        self.registry.look_at(key, |actor| look(&actor.shared.hints))?
    }

    /// Tells the actor of `key`, if there is one.
    pub fn tell(&self, key: E::Key, notice: E::Notice) {
        if let Some(actor) = self.registry.find(key) {
            tell(&actor, notice);
        }
    }

    /// Tells every actor.
    pub fn tell_all(&self, notice: &E::Notice) {
        for actor in self.registry.all() {
            tell(&actor, notice.clone());
        }
    }

    /// Lets every actor finish what was accepted and rest.
    pub async fn stop(&self) {
        let leaving = self.registry.all().into_iter().map(|actor| async move {
            match actor.addr.send(Leave).await {
                Ok(left) => {
                    if tokio::time::timeout(self.answer_deadline, left).await.is_err() {
                        warn!("A {} actor did not finish in time", E::NAME);
                    }
                }
                Err(error) => warn!(%error, "A {} actor was gone already", E::NAME),
            }
        });
        futures_util::future::join_all(leaving).await;
        self.registry.stop();
    }
}

fn tell<E: Engine>(actor: &BatchHandle<E>, notice: E::Notice) {
    // At once: whoever saw the change answered must not be refused for what was before it.
    E::hear(&actor.shared.hints, &notice);
    if actor.shared.intake.notify(notice) {
        actor.addr.do_send(Wake);
    }
}

/// A queued request.
pub struct Asked<'a, E: Engine, F> {
    batcher: &'a Batcher<E>,
    key: E::Key,
    request: E::Request,
    refusal: F,
    answer: oneshot::Receiver<Reply<E>>,
}

impl<E: Engine, F> Debug for Asked<'_, E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("key", &self.key)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl<E: Engine, F: Fn(&E::Hints) -> Option<E::Error>> Asked<'_, E, F> {
    /// Waits for the answer, asking the next actor if one ends without having begun.
    pub async fn answer(mut self) -> Reply<E> {
        for _ in 0..ACTOR_CHANGES {
            match tokio::time::timeout(self.batcher.answer_deadline, self.answer).await {
                Ok(Ok(reply)) => return reply,
                Err(_) => return Err(Unserved::Unanswered.into()),
                Ok(Err(_not_begun)) => {}
            }
            // The actor went to rest, or died, with the request unseen; a moment later it is out of the registry.
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.answer = self.batcher.queue(self.key, &self.request, &self.refusal)?;
        }
        Err(Unserved::NotBegun.into())
    }
}
