//! A request on its way to the engine, and the answer's way back.

use std::fmt::{self, Debug};

use tokio::sync::oneshot;

use super::load::Waiting;
use super::{Engine, Unserved};
use crate::trace::Traceparent;

/// What a request is told.
pub type Reply<E> = Result<<E as Engine>::Answer, <E as Engine>::Error>;

/// A request that waits for its answer. Dropped unanswered, it answers by itself.
pub struct Ask<E: Engine> {
    pub request: E::Request,
    /// The trace it belongs to.
    pub parent: Option<Traceparent>,
    reply: Option<oneshot::Sender<Reply<E>>>,
    /// Whether an engine has looked at it: from then on it may have been served.
    begun: bool,
    _waiting: Waiting,
}

impl<E: Engine> Ask<E> {
    /// A request of the current trace, and where its answer will come; nothing comes if it was not begun.
    pub(super) fn new(request: E::Request, waiting: Waiting) -> (Self, oneshot::Receiver<Reply<E>>) {
        let (reply, answer) = oneshot::channel();
        let parent = Traceparent::current();
        (Self { request, parent, reply: Some(reply), begun: false, _waiting: waiting }, answer)
    }

    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// Whether nobody waits for the answer any more (R7).
    pub fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub fn answer(mut self, answer: Reply<E>) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(answer);
        }
    }
}

impl<E: Engine> Drop for Ask<E> {
    fn drop(&mut self) {
        if self.begun
            && let Some(reply) = self.reply.take()
        {
            let _ = reply.send(Err(Unserved::Unanswered.into()));
        }
    }
}

impl<E: Engine> Debug for Ask<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("request", &self.request)
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}
