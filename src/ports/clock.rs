//! The time. Rules never ask the operating system: they are handed a [`Clock`], so that tests own the time.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, FixedOffset, SubsecRound, TimeDelta, Utc};

/// An instant in UTC, with microseconds: what the database keeps and RFC 3339 shows.
pub type Timestamp = DateTime<Utc>;

/// The clock of China, which has one time zone and no summer time.
pub const BEIJING: FixedOffset = match FixedOffset::east_opt(8 * 3600) {
    Some(offset) => offset,
    None => unreachable!(),
};

/// Tells the present instant.
pub trait Clock: Debug + Send + Sync {
    /// The present instant, rounded down to microseconds.
    fn now(&self) -> Timestamp;
}

/// A clock to hand around.
pub type SharedClock = Arc<dyn Clock>;

/// The operating system's clock: on a node with a database of its own the one that counts, else see
/// [`DatabaseClock`](crate::db::DatabaseClock).
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the operating system")]
    fn now(&self) -> Timestamp {
        Utc::now().trunc_subsecs(6)
    }
}

/// A clock that stands still until it is set, for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(AtomicI64::new(to_micros(now)))
    }

    /// Shows `now` from here on.
    pub fn set(&self, now: Timestamp) {
        self.0.store(to_micros(now), Ordering::Release);
    }

    /// Goes forward (or back) by `step`.
    pub fn advance(&self, step: TimeDelta) {
        self.set(self.now() + step);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        from_micros(self.0.load(Ordering::Acquire))
    }
}

/// `at` as the database keeps it: rounded down to microseconds, a leap second as the second after it.
pub fn as_kept(at: Timestamp) -> Timestamp {
    from_micros(to_micros(at))
}

/// Microseconds since the Unix epoch, as `_at` columns keep them.
pub fn to_micros(at: Timestamp) -> i64 {
    at.timestamp_micros()
}

/// The instant an `_at` column stands for; instants beyond chrono's range read as its end.
pub fn from_micros(micros: i64) -> Timestamp {
    DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
