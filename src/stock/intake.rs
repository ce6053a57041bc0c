//! Where requests wait for the engine.
//!
//! A message for each request would wake the actor's thread while the engine is away and nothing can be done. So the
//! requests, and what else the engine must learn, wait here; the engine serves until nothing is left, and the actor is
//! woken only when it rests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::engine::{Notice, TakeRequest};

/// The queue of one actor.
#[derive(Debug, Default)]
pub struct Intake(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<TakeRequest>,
    notices: Vec<Notice>,
    actor: ActorIs,
}

/// What an engine is to do next: note the notices, then serve the requests.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub notices: Vec<Notice>,
    pub requests: Vec<TakeRequest>,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.notices.is_empty() && self.requests.is_empty()
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ActorIs {
    /// Its engine looks at the queue by itself when its batch is done.
    Busy,
    /// It must be told that there is something.
    #[default]
    Resting,
    /// It will never look again.
    Gone,
}

impl Intake {
    /// Adds a request; `true` if the actor must be told. If the actor is gone the request is dropped, and with that
    /// answered.
    pub(super) fn push(&self, request: TakeRequest) -> bool {
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
    pub(super) fn notify(&self, notice: Notice) -> bool {
        let mut queue = self.lock();
        if queue.actor == ActorIs::Gone {
            return false;
        }
        queue.notices.push(notice);
        queue.rouse()
    }

    /// The notices, and the next requests, `most` at most. If there is neither the actor counts as resting.
    pub(super) fn next(&self, most: usize) -> Work {
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
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.actor = ActorIs::Gone;
        let waiting = std::mem::take(&mut queue.requests);
        drop(queue);
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Whether the actor rested; it does not any more.
    fn rouse(&mut self) -> bool {
        std::mem::replace(&mut self.actor, ActorIs::Busy) == ActorIs::Resting
    }
}
