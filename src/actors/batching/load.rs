//! How busy an actor is, and who is let in: by expected wait, not by queue length (RELIABILITY R4, C3).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Unserved;
use crate::db::Crowd;

/// How many wait for one actor, and how long its batches take.
#[derive(Debug)]
pub struct Load {
    origin: Instant,
    waiting: AtomicUsize,
    /// How long a batch took of late, in microseconds; 0 before the first.
    batch_us: AtomicU64,
    /// When the batch in flight began, in microseconds after `origin`; 0 while none is.
    busy_since: AtomicU64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            waiting: AtomicUsize::new(0),
            batch_us: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
        }
    }
}

impl Load {
    /// A batch begins.
    pub(super) fn begin_batch(&self) -> Instant {
        self.busy_since.store(micros(self.origin.elapsed()).max(1), Ordering::Release);
        Instant::now()
    }

    /// The batch begun at `begun` is answered.
    pub(super) fn end_batch(&self, begun: Instant) {
        self.busy_since.store(0, Ordering::Release);
        let took = micros(begun.elapsed()).max(1);
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
        let stalled = match self.busy_since.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => self.origin.elapsed().saturating_sub(Duration::from_micros(since)),
        };
        stalled.max(queue)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How many requests may wait, and how long.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// For one actor.
    pub waiting_per_key: usize,
    /// For all actors of the kind in this process.
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
    /// For actors that answer up to `max_batch` requests at a time; who waits is part of `crowd`.
    pub fn new(limits: AdmissionLimits, max_batch: usize, crowd: &Crowd) -> Self {
        let waiting: Arc<AtomicUsize> = Arc::default();
        crowd.count(waiting.clone());
        Self { limits, max_batch: max_batch.max(1), waiting }
    }

    /// Lets a request in, unless it would have to wait too long.
    pub fn admit(&self, load: &Arc<Load>) -> Result<Waiting, Unserved> {
        let expected = load.expected_wait(self.max_batch);
        if expected > self.limits.wait
            || load.waiting() >= self.limits.waiting_per_key
            || self.waiting.load(Ordering::Relaxed) >= self.limits.waiting_in_process
        {
            let retry_after_s = u32::try_from(expected.as_secs()).unwrap_or(u32::MAX).clamp(1, 30);
            return Err(Unserved::Overloaded { retry_after_s });
        }
        load.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Waiting { load: load.clone(), in_process: self.waiting.clone() })
    }
}

/// A place in the queue, given up when dropped.
#[derive(Debug)]
pub struct Waiting {
    load: Arc<Load>,
    in_process: Arc<AtomicUsize>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.load.waiting.fetch_sub(1, Ordering::Relaxed);
        self.in_process.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BATCH: usize = 256;

    fn admission(wait: Duration) -> Admission {
        let limits = AdmissionLimits { waiting_per_key: 4096, waiting_in_process: 16384, wait };
        Admission::new(limits, MAX_BATCH, &Crowd::default())
    }

    /// The load of an actor whose last batch, of whatever size, took this long.
    fn after_batch(took: Duration) -> Arc<Load> {
        let load = Arc::new(Load::default());
        load.begin_batch();
        load.end_batch(Instant::now() - took);
        load
    }

    #[test]
    fn a_crowd_after_a_quiet_moment_is_let_in() {
        let (load, admission) = (after_batch(Duration::from_millis(60)), admission(Duration::from_secs(1)));
        let crowd: Result<Vec<Waiting>, Unserved> = (0..4096).map(|_| admission.admit(&load)).collect();
        assert_eq!(crowd.unwrap().len(), 4096);
    }

    #[test]
    fn who_would_wait_too_long_is_turned_away_until_somebody_was_answered() {
        let (load, admission) = (after_batch(Duration::from_millis(400)), admission(Duration::from_secs(1)));
        let mut waiting: Vec<Waiting> = Vec::new();
        let refusal = loop {
            match admission.admit(&load) {
                Ok(admitted) => waiting.push(admitted),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!((waiting.len(), refusal), (2 * MAX_BATCH + 1, Unserved::Overloaded { retry_after_s: 1 }));
        waiting.clear();
        assert!(admission.admit(&load).is_ok());
    }

    #[test]
    fn after_a_stall_one_at_a_time_finds_out_whether_it_is_over() {
        let (load, admission) = (after_batch(Duration::from_secs(8)), admission(Duration::from_secs(1)));
        let first = admission.admit(&load);
        assert!(first.is_ok());
        assert!(admission.admit(&load).is_err());
    }
}
