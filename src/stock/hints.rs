//! What a node knows of an activity's stock without asking its actor: whether asking can help.
//!
//! Each hint has a short life and is renewed by one request that goes through; everybody else is answered from memory.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use super::model::{Closed, TakeError};
use crate::ports::clock::{Timestamp, to_micros};

/// How long a refusal is repeated from memory before one request may look again.
const HINT_LIFE_US: i64 = 1_000_000;

/// Why the activity takes no requests, for how long to say so, and from when on by the wall clock no more.
#[derive(Debug, Clone, Copy)]
struct ClosedHint {
    closed: Closed,
    until: i64,
    opens_at: i64,
}

/// Why an activity's actor need not be asked. Shared by the actor and everyone who would.
#[derive(Debug)]
pub struct Hints {
    origin: Instant,
    /// In microseconds after `origin`; 0 while tokens are left as far as is known.
    sold_out_until: AtomicI64,
    /// The last moment of the activity, after which "sold out" is no longer the reason, by the wall clock.
    ends_at: AtomicI64,
    closed: RwLock<Option<ClosedHint>>,
    /// Counts the changes from outside: what was found out before the last one is no hint.
    changes: AtomicU64,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            sold_out_until: AtomicI64::new(0),
            ends_at: AtomicI64::new(i64::MAX),
            closed: RwLock::new(None),
            changes: AtomicU64::new(0),
        }
    }
}

impl Hints {
    /// The refusal that needs no actor, if there is one. Whoever is the first to find it too old gets none, and asks.
    pub fn refusal(&self, now: Timestamp) -> Option<TakeError> {
        let elapsed = self.elapsed_us();
        self.look(elapsed, now, |until| {
            let renewed = elapsed + HINT_LIFE_US;
            self.sold_out_until.compare_exchange(until, renewed, Ordering::AcqRel, Ordering::Acquire).is_err()
        })
    }

    /// The refusal that everybody gets now, if there is one. It leaves looking again to those who may ask.
    pub fn standing_refusal(&self, now: Timestamp) -> Option<TakeError> {
        self.look(self.elapsed_us(), now, |_| false)
    }

    /// The refusal, unless it is "sold out" and too old; what is too old still `holds`, or does not.
    fn look(&self, elapsed: i64, now: Timestamp, holds: impl FnOnce(i64) -> bool) -> Option<TakeError> {
        let now = to_micros(now);
        if let Some(closed) = self.closed(elapsed, now) {
            return Some(TakeError::NotRunning(closed));
        }
        let until = self.sold_out_until.load(Ordering::Acquire);
        if until == 0 || now > self.ends_at.load(Ordering::Acquire) {
            return None;
        }
        (elapsed < until || holds(until)).then_some(TakeError::SoldOut)
    }

    fn closed(&self, elapsed: i64, now: i64) -> Option<Closed> {
        let hint = (*self.closed.read().unwrap_or_else(PoisonError::into_inner))?;
        (elapsed < hint.until && now < hint.opens_at).then_some(hint.closed)
    }

    /// Microseconds since these hints were made: unlike the wall clock, never set back (R23).
    fn elapsed_us(&self) -> i64 {
        i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// How many changes came from outside so far; to be asked before looking at the database.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Every token is sold; after `ends_at` the activity is over, and this is no longer the reason.
    pub(super) fn sold_out(&self, known: u64, ends_at: Timestamp) {
        self.ends_at.store(to_micros(ends_at), Ordering::SeqCst);
        self.sold_out_until.store(self.elapsed_us() + HINT_LIFE_US, Ordering::SeqCst);
        self.unless_changed(known);
    }

    /// There are tokens, whatever was found out before.
    pub(super) fn not_sold_out(&self) {
        if self.sold_out_until.load(Ordering::Relaxed) != 0 {
            self.sold_out_until.store(0, Ordering::SeqCst);
        }
    }

    /// The activity takes no requests now.
    pub(super) fn not_running(&self, known: u64, closed: Closed) {
        let opens_at = if let Closed::TooEarly(at) = closed { to_micros(at) } else { i64::MAX };
        self.set_closed(Some(ClosedHint { closed, until: self.elapsed_us() + HINT_LIFE_US, opens_at }));
        self.unless_changed(known);
    }

    /// Takes a hint back that a change since `known` may have made wrong.
    fn unless_changed(&self, known: u64) {
        if self.changes() != known {
            self.forget();
        }
    }

    /// Something changed outside: the next request looks again.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.forget();
    }

    fn forget(&self) {
        self.sold_out_until.store(0, Ordering::SeqCst);
        self.set_closed(None);
    }

    fn set_closed(&self, closed: Option<ClosedHint>) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = closed;
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn an_old_refusal_is_renewed_by_one_who_asks() {
        let (hints, now) = (Hints::default(), Timestamp::UNIX_EPOCH);
        hints.sold_out(hints.changes(), now);
        assert_eq!(hints.standing_refusal(now), Some(TakeError::SoldOut));
        hints.sold_out_until.store(1, Ordering::SeqCst);
        // However many only look: the next one who may ask still does.
        assert_eq!([hints.standing_refusal(now), hints.standing_refusal(now)], [None, None]);
        assert_eq!([hints.refusal(now), hints.refusal(now)], [None, Some(TakeError::SoldOut)]);
        assert_eq!(hints.standing_refusal(now), Some(TakeError::SoldOut));
    }

    #[test]
    fn a_change_outlives_what_was_found_out_before_it() {
        let (hints, now) = (Hints::default(), Timestamp::UNIX_EPOCH);
        let end = now + TimeDelta::hours(1);
        let before = hints.changes();
        hints.sold_out(before, end);
        assert_eq!(hints.refusal(end), Some(TakeError::SoldOut));
        assert_eq!(hints.refusal(end + TimeDelta::microseconds(1)), None);
        hints.changed();
        assert_eq!(hints.refusal(now), None);
        hints.sold_out(before, end);
        hints.not_running(before, Closed::NotStarted);
        assert_eq!(hints.refusal(now), None);
    }
}
