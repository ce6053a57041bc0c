//! The actor around an engine: a thin shell that collects while the engine commits.
//!
//! It never awaits in a handler. The engine is either at home or away in the one future that serves batch after batch,
//! until nobody waits; under load no thread but the database's has to be woken between two batches.

use std::fmt::{self, Debug};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, WrapFuture,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{debug, error};

use super::intake::{Intake, Work};
use super::load::Load;
use super::{Ask, Engine};
use crate::actors::registry::{Handle, Registry};
use crate::db::Database;

/// The actors of one kind in this process.
pub type BatchRegistry<E> = Registry<<E as Engine>::Key, BatchActor<E>, Shared<E>>;
/// An actor and what its callers share with it.
pub type BatchHandle<E> = Handle<BatchActor<E>, Shared<E>>;

/// How often an actor looks whether anyone still asks it.
const IDLE_CHECK: Duration = Duration::from_secs(5);

/// Queue, load and hints of one actor, shared by it and everyone who asks it.
#[derive(Debug)]
pub struct Shared<E: Engine> {
    pub intake: Intake<Ask<E>, E::Notice>,
    pub load: Arc<Load>,
    pub hints: Arc<E::Hints>,
}

impl<E: Engine> Default for Shared<E> {
    fn default() -> Self {
        Self { intake: Intake::default(), load: Arc::default(), hints: Arc::default() }
    }
}

/// See the module.
pub struct BatchActor<E: Engine> {
    key: E::Key,
    db: Database,
    registry: Weak<BatchRegistry<E>>,
    max_batch: usize,
    passivate_after: Duration,
    /// At home unless it serves.
    engine: Option<E>,
    shared: Arc<Shared<E>>,
    last_asked: Instant,
    stopping: Vec<oneshot::Sender<()>>,
}

/// Nothing of it is ever pinned, the engine included.
impl<E: Engine> Unpin for BatchActor<E> {}

impl<E: Engine> Debug for BatchActor<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchActor").field("kind", &E::NAME).field("key", &self.key).finish_non_exhaustive()
    }
}

impl<E: Engine> BatchActor<E> {
    /// The actor of `key`, whose engine works on the runtime of `db`, `max_batch` requests at a time.
    pub(super) fn new(
        key: E::Key,
        engine: E,
        db: Database,
        shared: Arc<Shared<E>>,
        registry: Weak<BatchRegistry<E>>,
        max_batch: usize,
        passivate_after: Duration,
    ) -> Self {
        Self {
            key,
            db,
            registry,
            max_batch,
            passivate_after,
            engine: Some(engine),
            shared,
            last_asked: Instant::now(),
            stopping: Vec::new(),
        }
    }

    /// Serves what waits if the engine is at home and there is something.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let Some(mut engine) = self.engine.take() else { return };
        let work = self.shared.intake.next(self.max_batch);
        if work.is_empty() {
            self.engine = Some(engine);
            if !self.stopping.is_empty() {
                self.leave(ctx);
            }
            return;
        }
        let (shared, most) = (self.shared.clone(), self.max_batch);
        let away = self.db.spawn(async move {
            serve_all(&mut engine, &shared, work, most).await;
            engine
        });
        ctx.spawn(away.into_actor(self).map(Self::came_home));
    }

    fn came_home(result: <JoinHandle<E> as Future>::Output, actor: &mut Self, ctx: &mut Context<Self>) {
        match result {
            Ok(engine) => {
                actor.engine = Some(engine);
                actor.last_asked = Instant::now();
                actor.pump(ctx);
                if actor.engine.as_ref().is_some_and(|engine| !engine.is_needed()) {
                    actor.leave(ctx);
                }
            }
            Err(panic) => {
                // Those of the batch are told that the outcome is unknown, those in the queue that they were not begun.
                error!(
                    actor.kind = E::NAME, actor.key = %actor.key, %panic,
                    "The {} engine died; the next request starts it anew", E::NAME
                );
                ctx.stop();
            }
        }
    }

    /// Lets the engine rest and stops. Requests that still come find no actor listed, and start the next one.
    fn leave(&mut self, ctx: &mut Context<Self>) {
        let Some(mut engine) = self.engine.take() else { return };
        // Taken out first: whoever the closed intake turns away asks the registry again.
        if let Some(registry) = self.registry.upgrade() {
            registry.retire(self.key, &ctx.address());
        }
        self.shared.intake.close();
        let resting = self.db.spawn(async move { engine.rest().await });
        ctx.spawn(resting.into_actor(self).map(|_, actor, ctx| {
            debug!(
                actor.kind = E::NAME, actor.key = %actor.key,
                "The {} actor of {} went to rest", E::NAME, actor.key
            );
            ctx.stop();
        }));
    }
}

/// Does `work` and what the intake gets meanwhile, `most` requests a batch, until nothing is left.
async fn serve_all<E: Engine>(
    engine: &mut E,
    shared: &Shared<E>,
    work: Work<Ask<E>, E::Notice>,
    most: usize,
) {
    let mut next = work;
    while !next.is_empty() {
        for notice in next.notices {
            engine.note(notice);
        }
        if !next.requests.is_empty() {
            let begun = shared.load.begin_batch();
            next.requests.iter_mut().for_each(Ask::begin);
            engine.serve(next.requests).await;
            shared.load.end_batch(begun);
        }
        next = shared.intake.next(most);
    }
}

impl<E: Engine> Actor for BatchActor<E> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(IDLE_CHECK.min(self.passivate_after), |actor, ctx| {
            if actor.last_asked.elapsed() >= actor.passivate_after {
                actor.leave(ctx);
            }
        });
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        for done in self.stopping.drain(..) {
            let _ = done.send(());
        }
    }
}

impl<E: Engine> Drop for BatchActor<E> {
    fn drop(&mut self) {
        self.shared.intake.close();
    }
}

/// There is something in the intake.
#[derive(Debug)]
pub struct Wake;

impl Message for Wake {
    type Result = ();
}

impl<E: Engine> Handler<Wake> for BatchActor<E> {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.pump(ctx);
    }
}

/// Serve what was accepted, let the engine rest, stop. The answer is a receiver that ends when that is done.
#[derive(Debug)]
pub struct Leave;

impl Message for Leave {
    type Result = oneshot::Receiver<()>;
}

impl<E: Engine> Handler<Leave> for BatchActor<E> {
    type Result = MessageResult<Leave>;

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) -> Self::Result {
        let (done, receiver) = oneshot::channel();
        self.stopping.push(done);
        self.pump(ctx);
        MessageResult(receiver)
    }
}
