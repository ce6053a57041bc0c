//! Who waits for the database, so that work nobody waits for gives way to them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// So many waiting requests are a crowd.
const CROWD: usize = 32;

/// How long work rests in a crowd, as a multiple of the time it took: it has a tenth of the time.
const REST: u32 = 9;

/// The longest rest.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// The requests of this process that wait for a transaction. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Crowd(Arc<RwLock<Vec<Arc<AtomicUsize>>>>);

impl Crowd {
    /// Counts those whom `waiting` counts, too.
    pub fn count(&self, waiting: Arc<AtomicUsize>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(waiting);
    }

    /// After work that took `worked` and that nobody waits for: rests if there is a crowd.
    pub async fn give_way(&self, worked: Duration) {
        if self.waiting() >= CROWD {
            tokio::time::sleep((worked * REST).min(LONGEST_REST)).await;
        }
    }

    fn waiting(&self) -> usize {
        let counters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        counters.iter().map(|waiting| waiting.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_can_wait_rests_while_others_wait_and_only_then() {
        let (crowd, stock, orders) = (Crowd::default(), Arc::new(AtomicUsize::new(0)), Arc::default());
        crowd.clone().count(stock.clone());
        crowd.count(Arc::clone(&orders));
        let rests = || crowd.give_way(Duration::from_secs(1)).now_or_never().is_none();
        assert!(!rests());
        stock.store(CROWD - 1, Ordering::Relaxed);
        assert!(!rests());
        orders.store(1, Ordering::Relaxed);
        assert!(rests());
    }
}
