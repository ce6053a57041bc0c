//! Where requests wait for the engine.
//!
//! A message for each request would wake the actor's thread while the engine is away and nothing can be done. So the
//! requests, and what else the engine must learn, wait here; the engine serves until nothing is left, and the actor is
//! woken only when it rests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The queue of one actor: requests `R` and notices `N`.
#[derive(Debug)]
pub struct Intake<R, N>(Mutex<Queue<R, N>>);

#[derive(Debug)]
struct Queue<R, N> {
    requests: VecDeque<R>,
    notices: Vec<N>,
    actor: ActorIs,
}

/// What an engine is to do next: note the notices, then serve the requests.
#[derive(Debug)]
pub struct Work<R, N> {
    pub notices: Vec<N>,
    pub requests: Vec<R>,
}

impl<R, N> Work<R, N> {
    pub fn is_empty(&self) -> bool {
        self.notices.is_empty() && self.requests.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActorIs {
    /// Its engine looks at the queue by itself when its batch is done.
    Busy,
    /// It must be told that there is something.
    Resting,
    /// It will never look again.
    Gone,
}

impl<R, N> Default for Intake<R, N> {
    fn default() -> Self {
        let queue = Queue { requests: VecDeque::new(), notices: Vec::new(), actor: ActorIs::Resting };
        Self(Mutex::new(queue))
    }
}

impl<R, N> Intake<R, N> {
    /// Adds a request; `true` if the actor must be told. If the actor is gone the request is dropped, and with that
    /// answered.
    pub fn push(&self, request: R) -> bool {
        let mut queue = self.lock();
        if queue.actor == ActorIs::Gone {
            drop(queue);
            drop(request);
            return false;
        }
        queue.requests.push_back(request);
        queue.rouse()
    }

    /// Adds a notice; `true` if the actor must be told.
    pub fn notify(&self, notice: N) -> bool {
        let mut queue = self.lock();
        if queue.actor == ActorIs::Gone {
            return false;
        }
        queue.notices.push(notice);
        queue.rouse()
    }

    /// The notices, and the next requests, `most` at most. If there is neither the actor counts as resting.
    pub fn next(&self, most: usize) -> Work<R, N> {
        let mut queue = self.lock();
        let count = queue.requests.len().min(most);
        let work = Work {
            notices: std::mem::take(&mut queue.notices),
            requests: queue.requests.drain(..count).collect(),
        };
        if work.is_empty() && queue.actor == ActorIs::Busy {
            queue.actor = ActorIs::Resting;
        }
        work
    }

    /// The actor ends: whoever waits, or comes later, is told that their request was not begun.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.actor = ActorIs::Gone;
        let waiting = std::mem::take(&mut queue.requests);
        drop(queue);
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Queue<R, N>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R, N> Queue<R, N> {
    /// Whether the actor rested; it does not any more.
    fn rouse(&mut self) -> bool {
        std::mem::replace(&mut self.actor, ActorIs::Busy) == ActorIs::Resting
    }
}
