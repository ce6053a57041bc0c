//! The stock actor of one activity: a thin shell that collects while the engine commits.
//!
//! It never awaits in a handler. The engine is either at home or away in the one future that serves batch after batch,
//! until nobody waits; requests that come during a batch wait in the intake and are the next one. So the batch grows
//! with the load and is one when idle, without a timer, and under load no thread but the database's has to be woken
//! between two batches.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, WrapFuture,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info};

use super::engine::Engine;
use super::gauge::Gauge;
use super::store::StockStore;
use crate::actors::registry::{Handle, Registry};
use crate::ids::ActivityId;

/// The stock actors of a node.
pub type StockRegistry = Registry<ActivityId, StockActor, Gauge>;
/// A stock actor and its gauge.
pub type StockHandle = Handle<StockActor, Gauge>;

/// How often an actor looks whether anyone still asks it.
const IDLE_CHECK: Duration = Duration::from_secs(5);

/// See the module.
pub struct StockActor {
    activity: ActivityId,
    store: StockStore,
    registry: Weak<StockRegistry>,
    max_batch: usize,
    passivate_after: Duration,
    /// At home unless it serves.
    engine: Option<Engine>,
    gauge: Arc<Gauge>,
    last_asked: Instant,
    stopping: Vec<oneshot::Sender<()>>,
}

impl std::fmt::Debug for StockActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StockActor").field("activity", &self.activity).finish_non_exhaustive()
    }
}

impl StockActor {
    pub fn new(
        activity: ActivityId,
        store: StockStore,
        gauge: Arc<Gauge>,
        registry: Weak<StockRegistry>,
        max_batch: usize,
        passivate_after: Duration,
    ) -> Self {
        Self {
            activity,
            engine: Some(Engine::new(activity, store.clone(), gauge.clone())),
            store,
            registry,
            max_batch,
            passivate_after,
            gauge,
            last_asked: Instant::now(),
            stopping: Vec::new(),
        }
    }

    /// Serves what waits if the engine is at home and there is something.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let Some(mut engine) = self.engine.take() else { return };
        let work = self.gauge.intake.next(self.max_batch);
        if work.is_empty() {
            self.engine = Some(engine);
            if !self.stopping.is_empty() {
                self.leave(ctx);
            }
            return;
        }
        let most = self.max_batch;
        let away = self.store.db.spawn(async move {
            engine.work(work, most).await;
            engine
        });
        ctx.spawn(away.into_actor(self).map(Self::came_home));
    }

    fn came_home(result: <JoinHandle<Engine> as Future>::Output, actor: &mut Self, ctx: &mut Context<Self>) {
        match result {
            Ok(engine) => {
                actor.engine = Some(engine);
                actor.last_asked = Instant::now();
                actor.pump(ctx);
            }
            Err(panic) => {
                // Those of the batch are told that the outcome is unknown, those in the queue that they were not begun.
                error!(activity.id = %actor.activity, %panic, "The stock engine died; the next request starts it anew");
                ctx.stop();
            }
        }
    }

    /// Hands the tokens back and stops. Requests that still come find no actor listed, and start the next one.
    fn leave(&mut self, ctx: &mut Context<Self>) {
        let Some(mut engine) = self.engine.take() else { return };
        // Taken out first: whoever the closed intake turns away asks the registry again.
        if let Some(registry) = self.registry.upgrade() {
            registry.retire(self.activity, &ctx.address());
        }
        self.gauge.intake.close();
        let handing_back = self.store.db.spawn(async move { engine.hand_back().await });
        ctx.spawn(handing_back.into_actor(self).map(|_, actor, ctx| {
            info!(activity.id = %actor.activity, "The stock actor of activity {} went to rest", actor.activity);
            ctx.stop();
        }));
    }
}

impl Actor for StockActor {
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

impl Drop for StockActor {
    fn drop(&mut self) {
        self.gauge.intake.close();
    }
}

/// There is something in the intake.
#[derive(Debug)]
pub struct Wake;

impl Message for Wake {
    type Result = ();
}

impl Handler<Wake> for StockActor {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.pump(ctx);
    }
}

/// Serve what was accepted, hand the tokens back, stop. The answer is a receiver that ends when that is done.
#[derive(Debug)]
pub struct Leave;

impl Message for Leave {
    type Result = oneshot::Receiver<()>;
}

impl Handler<Leave> for StockActor {
    type Result = MessageResult<Leave>;

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) -> Self::Result {
        let (done, receiver) = oneshot::channel();
        self.stopping.push(done);
        self.pump(ctx);
        MessageResult(receiver)
    }
}
