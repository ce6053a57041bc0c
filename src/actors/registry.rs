//! Finds the actor of a key, starting it if there is none.
//!
//! A panic ends an actor for good and actix's `Supervisor` does not bring it back (RELIABILITY R6), so the registry
//! does: whoever asks next gets a fresh one, which reads the truth from the database. A key whose actors keep dying is
//! refused for a while, so that one poisonous row does not keep a whole node busy.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Debug};
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Arbiter, ArbiterHandle, Context};
use thiserror::Error;
use tracing::warn;

/// So many deaths within [`POISON_WINDOW`] and the key is refused until the window has passed.
const POISON_DEATHS: usize = 3;
const POISON_WINDOW: Duration = Duration::from_secs(60);

/// The key's actors died too often of late.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("this actor died several times within a minute and is left alone for a while")]
pub struct Poisoned;

/// A running actor and what its callers share with it.
pub struct Handle<A: Actor, S> {
    pub addr: Addr<A>,
    pub shared: Arc<S>,
}

impl<A: Actor, S: Debug> Debug for Handle<A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl<A: Actor, S> Clone for Handle<A, S> {
    fn clone(&self) -> Self {
        Self { addr: self.addr.clone(), shared: self.shared.clone() }
    }
}

/// The actors of one kind, by key.
pub struct Registry<K, A: Actor, S> {
    actors: RwLock<HashMap<K, Running<A, S>>>,
    hasher: std::hash::RandomState,
    arbiters: Vec<ArbiterHandle>,
    start: StartFn<K, A, S>,
}

type StartFn<K, A, S> = Box<dyn Fn(K, Arc<S>) -> A + Send + Sync>;

struct Running<A: Actor, S> {
    handle: Handle<A, S>,
    deaths: Vec<Instant>,
}

impl<K: Debug, A: Actor, S> Debug for Registry<K, A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.actors.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(keys.keys()).finish()
    }
}

impl<K, A, S> Registry<K, A, S>
where
    K: Copy + Eq + Hash + Debug + Send + Sync + 'static,
    A: Actor<Context = Context<A>> + Send,
    S: Default + Send + Sync + 'static,
{
    /// A registry whose actors run on `threads` arbiters of its own, made by `start`.
    ///
    /// Must be called within an actix `System`.
    pub fn new(threads: usize, start: impl Fn(K, Arc<S>) -> A + Send + Sync + 'static) -> Self {
        let arbiters = (0..threads.max(1)).map(|_| Arbiter::new().handle()).collect();
        Self {
            actors: RwLock::default(),
            hasher: std::hash::RandomState::new(),
            arbiters,
            start: Box::new(start),
        }
    }

    /// The actor of `key`, running.
    pub fn get(&self, key: K) -> Result<Handle<A, S>, Poisoned> {
        let actors = self.actors.read().unwrap_or_else(PoisonError::into_inner);
        match actors.get(&key) {
            Some(running) if running.handle.addr.connected() => Ok(running.handle.clone()),
            _ => {
                drop(actors);
                self.start(key)
            }
        }
    }

    /// The actor of `key` if it is running already.
    pub fn find(&self, key: K) -> Option<Handle<A, S>> {
        self.look_at(key, Handle::clone)
    }

    /// What `look` finds at the actor of `key`, if it is running; nobody else starts one meanwhile.
    pub fn look_at<T>(&self, key: K, look: impl FnOnce(&Handle<A, S>) -> T) -> Option<T> {
        let actors = self.actors.read().unwrap_or_else(PoisonError::into_inner);
        let handle = &actors.get(&key)?.handle;
        handle.addr.connected().then(|| look(handle))
    }

    fn start(&self, key: K) -> Result<Handle<A, S>, Poisoned> {
        let mut actors = self.actors.write().unwrap_or_else(PoisonError::into_inner);
        let mut deaths = Vec::new();
        if let Entry::Occupied(mut entry) = actors.entry(key) {
            let running = entry.get_mut();
            if running.handle.addr.connected() {
                return Ok(running.handle.clone());
            }
            // An actor that went by itself was taken out; this one is still listed, so it died.
            running.deaths.retain(|death| death.elapsed() < POISON_WINDOW);
            if running.deaths.len() >= POISON_DEATHS {
                return Err(Poisoned);
            }
            metrics::counter!("tombola_actor_deaths_total").increment(1);
            warn!(key = ?key, "Replaced a dead actor");
            deaths = std::mem::take(&mut running.deaths);
            deaths.push(Instant::now());
        }
        let shared = Arc::new(S::default());
        let actor = (self.start)(key, shared.clone());
        let addr = A::start_in_arbiter(self.arbiter(&key), |_| actor);
        let handle = Handle { addr, shared };
        actors.insert(key, Running { handle: handle.clone(), deaths });
        Ok(handle)
    }

    fn arbiter(&self, key: &K) -> &ArbiterHandle {
        let count = self.arbiters.len() as u64;
        let index = usize::try_from(self.hasher.hash_one(key) % count).unwrap_or(0);
        &self.arbiters[index]
    }

    /// Takes `addr` out before it stops by itself, so that its end is no death.
    pub fn retire(&self, key: K, addr: &Addr<A>) {
        let mut actors = self.actors.write().unwrap_or_else(PoisonError::into_inner);
        if actors.get(&key).is_some_and(|running| running.handle.addr == *addr) {
            actors.remove(&key);
        }
    }

    /// Every running actor.
    pub fn all(&self) -> Vec<Handle<A, S>> {
        let actors = self.actors.read().unwrap_or_else(PoisonError::into_inner);
        actors
            .values()
            .map(|running| running.handle.clone())
            .filter(|handle| handle.addr.connected())
            .collect()
    }

    /// Ends the arbiters; the actors on them end with them.
    pub fn stop(&self) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}
