//! What a node knows of an activity's actor without asking it: whether asking can help, and how long it would take.
//!
//! Refusals kept here are hints with a short life, each renewed by one request that goes through; everybody else is
//! answered from memory. Admission is by expected wait, not by queue length (RELIABILITY R4, C3).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::intake::Intake;
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

/// Queue, hints and load of one activity's actor. Shared by the actor and everyone who asks it.
#[derive(Debug)]
pub struct Gauge {
    pub(super) intake: Intake,
    origin: Instant,
    /// In microseconds after `origin`; 0 while tokens are left as far as is known.
    sold_out_until: AtomicI64,
    /// When the activity ends and "sold out" is no longer the reason, by the wall clock.
    ends_at: AtomicI64,
    closed: RwLock<Option<ClosedHint>>,
    /// Counts the changes from outside: what was found out before the last one is no hint.
    changes: AtomicU64,
    waiting: AtomicUsize,
    /// How long a batch took of late, in microseconds; 0 before the first.
    batch_us: AtomicU64,
    /// When the batch in flight began, in microseconds after `origin`; 0 while none is.
    busy_since: AtomicI64,
}

impl Default for Gauge {
    fn default() -> Self {
        Self {
            intake: Intake::default(),
            origin: Instant::now(),
            sold_out_until: AtomicI64::new(0),
            ends_at: AtomicI64::new(i64::MAX),
            closed: RwLock::new(None),
            changes: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            batch_us: AtomicU64::new(0),
            busy_since: AtomicI64::new(0),
        }
    }
}

impl Gauge {
    /// The refusal that needs no actor, if there is one.
    pub fn refusal(&self, now: Timestamp) -> Option<TakeError> {
        let (elapsed, now) = (self.elapsed_us(), to_micros(now));
        if let Some(closed) = self.closed(elapsed, now) {
            return Some(TakeError::NotRunning(closed));
        }
        let until = self.sold_out_until.load(Ordering::Acquire);
        if until == 0 || now >= self.ends_at.load(Ordering::Acquire) {
            return None;
        }
        // Whoever finds the hint expired and renews it goes through; the others are answered by the renewed hint.
        let expired = elapsed >= until
            && self
                .sold_out_until
                .compare_exchange(until, elapsed + HINT_LIFE_US, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
        (!expired).then_some(TakeError::SoldOut)
    }

    fn closed(&self, elapsed: i64, now: i64) -> Option<Closed> {
        let hint = (*self.closed.read().unwrap_or_else(PoisonError::into_inner))?;
        (elapsed < hint.until && now < hint.opens_at).then_some(hint.closed)
    }

    /// Microseconds since this gauge was made: unlike the wall clock, never set back (R23).
    fn elapsed_us(&self) -> i64 {
        i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// How many changes came from outside so far; to be asked before looking at the database.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Every token is sold; the activity ends at `ends_at`, when this stops being the reason.
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

    /// A batch begins.
    pub(super) fn begin_batch(&self) -> Instant {
        self.busy_since.store(self.elapsed_us().max(1), Ordering::Release);
        Instant::now()
    }

    /// The batch begun at `begun` is answered.
    pub(super) fn end_batch(&self, begun: Instant) {
        self.busy_since.store(0, Ordering::Release);
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.batch_us.load(Ordering::Relaxed);
        let average = if before == 0 { took } else { before - before / 5 + took / 5 };
        self.batch_us.store(average.max(1), Ordering::Relaxed);
    }

    /// Requests admitted and not yet answered.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How long a request admitted now would wait, if a batch answers up to `max_batch` requests.
    ///
    /// Counted in batches, not in answers per second: a batch of one takes nearly as long as a full one, so what a quiet
    /// moment answers says nothing about a crowd.
    fn expected_wait(&self, max_batch: usize) -> Duration {
        let batches = u64::try_from(self.waiting().div_ceil(max_batch)).unwrap_or(u64::MAX);
        let queue = Duration::from_micros(self.batch_us.load(Ordering::Relaxed).saturating_mul(batches));
        let busy_since = self.busy_since.load(Ordering::Acquire);
        let stalled = match busy_since {
            0 => Duration::ZERO,
            since => self.origin.elapsed().saturating_sub(Duration::from_micros(since.unsigned_abs())),
        };
        stalled.max(queue)
    }
}

/// How many requests may wait, and how long.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    pub waiting_per_activity: usize,
    pub waiting_in_process: usize,
    pub wait: Duration,
}

/// Counts who waits, and turns away who would wait too long.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: AdmissionLimits,
    max_batch: usize,
    waiting: Arc<AtomicUsize>,
}

impl Admission {
    /// For actors that answer up to `max_batch` requests at a time.
    pub fn new(limits: AdmissionLimits, max_batch: usize) -> Self {
        Self { limits, max_batch: max_batch.max(1), waiting: Arc::default() }
    }

    /// Lets a request in, unless it would have to wait too long.
    pub fn admit(&self, gauge: &Arc<Gauge>) -> Result<Waiting, TakeError> {
        let expected = gauge.expected_wait(self.max_batch);
        if expected > self.limits.wait
            || gauge.waiting() >= self.limits.waiting_per_activity
            || self.waiting.load(Ordering::Relaxed) >= self.limits.waiting_in_process
        {
            let retry_after_s = u32::try_from(expected.as_secs()).unwrap_or(u32::MAX).clamp(1, 30);
            return Err(TakeError::Overloaded { retry_after_s });
        }
        gauge.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Waiting { gauge: gauge.clone(), in_process: self.waiting.clone() })
    }
}

/// A place in the queue, given up when dropped.
#[derive(Debug)]
pub struct Waiting {
    gauge: Arc<Gauge>,
    in_process: Arc<AtomicUsize>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gauge.waiting.fetch_sub(1, Ordering::Relaxed);
        self.in_process.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    const MAX_BATCH: usize = 256;

    fn admission(wait: Duration) -> Admission {
        let limits = AdmissionLimits { waiting_per_activity: 4096, waiting_in_process: 16384, wait };
        Admission::new(limits, MAX_BATCH)
    }

    /// A gauge whose last batch, of whatever size, took this long.
    fn after_batch(took: Duration) -> Arc<Gauge> {
        let gauge = Arc::new(Gauge::default());
        gauge.begin_batch();
        gauge.end_batch(Instant::now() - took);
        gauge
    }

    #[test]
    fn a_crowd_after_a_quiet_moment_is_let_in() {
        let (gauge, admission) = (after_batch(Duration::from_millis(60)), admission(Duration::from_secs(1)));
        let crowd: Result<Vec<Waiting>, TakeError> = (0..4096).map(|_| admission.admit(&gauge)).collect();
        assert_eq!(crowd.unwrap().len(), 4096);
    }

    #[test]
    fn who_would_wait_too_long_is_turned_away_until_somebody_was_answered() {
        let (gauge, admission) = (after_batch(Duration::from_millis(400)), admission(Duration::from_secs(1)));
        let mut waiting: Vec<Waiting> = Vec::new();
        let refusal = loop {
            match admission.admit(&gauge) {
                Ok(admitted) => waiting.push(admitted),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!((waiting.len(), refusal), (2 * MAX_BATCH + 1, TakeError::Overloaded { retry_after_s: 1 }));
        waiting.clear();
        assert!(admission.admit(&gauge).is_ok());
    }

    #[test]
    fn after_a_stall_one_at_a_time_finds_out_whether_it_is_over() {
        let (gauge, admission) = (after_batch(Duration::from_secs(8)), admission(Duration::from_secs(1)));
        let first = admission.admit(&gauge);
        assert!(first.is_ok());
        assert!(admission.admit(&gauge).is_err());
    }

    #[test]
    fn a_change_outlives_what_was_found_out_before_it() {
        let (gauge, now) = (Gauge::default(), Timestamp::UNIX_EPOCH);
        let end = now + TimeDelta::hours(1);
        let before = gauge.changes();
        gauge.sold_out(before, end);
        assert_eq!(gauge.refusal(now), Some(TakeError::SoldOut));
        gauge.changed();
        assert_eq!(gauge.refusal(now), None);
        gauge.sold_out(before, end);
        gauge.not_running(before, Closed::NotStarted);
        assert_eq!(gauge.refusal(now), None);
    }
}
