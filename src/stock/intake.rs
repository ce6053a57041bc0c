//! Where requests wait for the actor.
//!
//! A message for each request would wake the actor's thread while the engine is away and nothing can be done. So the
//! requests wait here, and the actor is woken only when it rests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::engine::TakeRequest;

/// The queue of one actor.
#[derive(Debug, Default)]
pub struct Intake(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<TakeRequest>,
    actor: ActorIs,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ActorIs {
    /// It looks at the queue by itself when its batch is done.
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
        match queue.actor {
            ActorIs::Busy => {
                queue.requests.push_back(request);
                false
            }
            ActorIs::Resting => {
                queue.requests.push_back(request);
                queue.actor = ActorIs::Busy;
                true
            }
            ActorIs::Gone => {
                drop(queue);
                drop(request);
                false
            }
        }
    }

    /// The next requests, `most` at most. If there are none the actor counts as resting.
    pub(super) fn next(&self, most: usize) -> Vec<TakeRequest> {
        let mut queue = self.lock();
        let count = queue.requests.len().min(most);
        if count == 0 && queue.actor == ActorIs::Busy {
            queue.actor = ActorIs::Resting;
        }
        queue.requests.drain(..count).collect()
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
