//! Sells one kind of goods to orders, batch after batch.
//!
//! It keeps nothing in memory but a hint: every batch locks the goods and decides by what the database says, so other
//! nodes, returns and adjustments need not be told of. A batch whose outcome is unknown is tried again until it is
//! known, and nobody is answered before: what it wrote is found by the key of its ledger rows, and the lock on the
//! goods waits for the old transaction's end (R5).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::model::ReserveError;
use super::sale::{Outcomes, Wish, sell};
use crate::actors::batching::{self, Ask};
use crate::db::{Database, DbFault};
use crate::ids::{GoodsId, Ids, LedgerEntryId, OrderId};
use crate::ports::clock::SharedClock;

/// How often a batch that others stand in the way of is tried, and for how long at least.
const ATTEMPTS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause before a batch is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long "nothing is left" is repeated from memory.
const HINT_LIFE: Duration = Duration::from_millis(500);

/// The stock of the goods was changed from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changed;

/// What is known of the stock without asking the actor.
#[derive(Debug, Default)]
pub(super) struct Hints(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Counts the changes from outside: what was found out before the last one is no hint.
    changes: u64,
    empty: Option<Empty>,
}

/// Nothing is left.
#[derive(Debug, Clone, Copy)]
struct Empty {
    until: Instant,
    /// Orders with a greater id were made after this was found out; an older one may hold units already.
    since: i64,
}

impl Hints {
    /// The refusal of a new order that needs no actor, if there is one.
    pub(super) fn refusal(&self, order: OrderId) -> Option<ReserveError> {
        let empty = self.lock().empty?;
        (order.0 > empty.since && Instant::now() < empty.until)
            .then_some(ReserveError::Insufficient { available: 0 })
    }

    fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Says how many units were left when `known` changes had come; `since` is an id made after that.
    fn left(&self, known: u64, left: Option<i32>, since: LedgerEntryId) {
        let mut hints = self.lock();
        let empty = left == Some(0) && hints.changes == known;
        hints.empty = empty.then(|| Empty { until: Instant::now() + HINT_LIFE, since: since.0 });
    }

    fn changed(&self) {
        let mut hints = self.lock();
        hints.changes += 1;
        hints.empty = None;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct GoodsEngine {
    pub(super) goods: GoodsId,
    pub(super) db: Database,
    pub(super) ids: Ids,
    pub(super) clock: SharedClock,
    pub(super) hints: Arc<Hints>,
}

impl batching::Engine for GoodsEngine {
    const NAME: &'static str = "goods";

    type Key = GoodsId;
    type Request = Wish;
    type Answer = ();
    type Error = ReserveError;
    type Notice = Changed;
    type Hints = Hints;

    fn note(&mut self, _: Changed) {}

    async fn serve(&mut self, asks: Vec<Ask<Self>>) {
        let (mut todo, begun) = (asks, Instant::now());
        let (mut attempts, mut in_doubt, mut pause) = (0, false, Duration::from_millis(2));
        loop {
            todo.retain(|ask| !ask.is_abandoned());
            if todo.is_empty() {
                return;
            }
            let fault = match self.sell(todo.iter().map(|ask| ask.request).collect()).await {
                Ok(outcomes) => return answer(todo, &outcomes),
                Err(fault) => fault,
            };
            attempts += 1;
            if fault.is_ambiguous() {
                warn!(goods.id = %self.goods, error = %fault, "Resolving a batch of unknown outcome");
                metrics::counter!("tombola_goods_ambiguous_commits_total").increment(1);
                in_doubt = true;
            }
            // A duplicate: the same order was served elsewhere at the same time, and the next look finds it.
            let in_the_way = fault.is_conflict() || fault.is_duplicate();
            let hopeful = in_the_way && (attempts < ATTEMPTS || begun.elapsed() < PATIENCE);
            if !in_doubt && !hopeful {
                warn!(goods.id = %self.goods, error = %fault, "A batch was not committed");
                todo.into_iter().for_each(|ask| ask.answer(Err(ReserveError::Unavailable)));
                return;
            }
            debug!(goods.id = %self.goods, error = %fault, "A batch is tried again");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn hear(hints: &Hints, _: &Changed) {
        hints.changed();
    }
}

impl GoodsEngine {
    async fn sell(&self, wishes: Vec<Wish>) -> Result<HashMap<OrderId, Result<(), ReserveError>>, DbFault> {
        metrics::histogram!("tombola_goods_batch_orders")
            .record(u32::try_from(wishes.len()).unwrap_or(u32::MAX));
        let known = self.hints.changes();
        let (ids, now, goods) = (self.ids.clone(), self.clock.now(), self.goods);
        let selling =
            self.db.transaction_once(move |tx| async move { sell(&tx, &ids, now, goods, &wishes).await });
        let Outcomes { by_order, left } = selling.await?;
        // Without an id there is no hint: what was committed is answered all the same.
        if let Ok(since) = self.ids.next() {
            self.hints.left(known, left, since);
        }
        Ok(by_order)
    }
}

fn answer(asks: Vec<Ask<GoodsEngine>>, outcomes: &HashMap<OrderId, Result<(), ReserveError>>) {
    for ask in asks {
        // Left out, it would be told that its outcome is unknown.
        if let Some(outcome) = outcomes.get(&ask.request.order) {
            ask.answer(*outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_orders_made_after_it_was_empty_are_refused_from_memory() {
        let hints = Hints::default();
        hints.left(hints.changes(), Some(0), LedgerEntryId(10));
        assert_eq!(hints.refusal(OrderId(11)), Some(ReserveError::Insufficient { available: 0 }));
        assert_eq!(hints.refusal(OrderId(10)), None);
        hints.left(hints.changes(), Some(3), LedgerEntryId(12));
        assert_eq!(hints.refusal(OrderId(13)), None);
    }

    #[test]
    fn a_change_outlives_what_was_found_out_before_it() {
        let hints = Hints::default();
        let before = hints.changes();
        hints.changed();
        hints.left(before, Some(0), LedgerEntryId(10));
        assert_eq!(hints.refusal(OrderId(11)), None);
    }
}
