//! The database's clock, followed by this node (RELIABILITY R23).
//!
//! One node writes when an order is due or an activity starts, another compares it with now. By wall clocks of their own
//! a node that is an hour ahead would cancel orders that may still be paid. So all go by the one clock they share: it
//! is read every few seconds, and in between this machine's monotonic clock goes on from there, also while the database
//! is away. What the wall clock of the machine shows, and whether somebody sets it, is of no effect.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::{Database, DbFault, now_micros};
use crate::ports::clock::{Clock, SystemClock, Timestamp, from_micros};

/// How often the database's clock is read.
const READ_EVERY: Duration = Duration::from_secs(5);

/// How often it is asked for one reading; the quickest answer is the most exact.
const ASK: u32 = 3;

/// A reading that took longer tells less than the monotonic clock.
const SLOWEST: Duration = Duration::from_millis(500);

/// How far this machine's wall clock may be from the database's before somebody should look at it.
const TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// Shows the database's time. Never goes back: it stands still while the database's clock is behind what it has shown.
#[derive(Debug)]
pub struct DatabaseClock {
    started: Instant,
    /// What the database's clock showed at `started`, going by the last reading.
    base_micros: AtomicI64,
    /// The latest instant that was shown.
    shown_micros: AtomicI64,
}

/// What the database's clock showed at an instant of this machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Reading {
    micros: i64,
    at: Instant,
    round_trip: Duration,
}

impl DatabaseClock {
    /// A clock that shows the time of `db` from now on.
    pub async fn of(db: &Database) -> Result<Self, DbFault> {
        Ok(Self::starting_at(read(db).await?))
    }

    /// Follows the clock of `db` until dropped.
    pub async fn follow(&self, db: &Database) {
        let mut ticks = tokio::time::interval(READ_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut off = false;
        loop {
            ticks.tick().await;
            match read(db).await {
                Ok(reading) if reading.round_trip <= SLOWEST => self.adopt(reading),
                Ok(Reading { round_trip, .. }) => {
                    debug!(?round_trip, "The database's clock was read too slowly");
                }
                Err(fault) => debug!(error = %fault, "Cannot read the database's clock"),
            }
            off = self.judge_the_wall_clock(off);
        }
    }

    fn starting_at(reading: Reading) -> Self {
        Self { started: reading.at, base_micros: reading.micros.into(), shown_micros: i64::MIN.into() }
    }

    fn adopt(&self, reading: Reading) {
        let base = reading.micros - micros(reading.at.saturating_duration_since(self.started));
        self.base_micros.store(base, Ordering::Relaxed);
    }

    fn at(&self, instant: Instant) -> Timestamp {
        let elapsed = micros(instant.saturating_duration_since(self.started));
        let micros = self.base_micros.load(Ordering::Relaxed) + elapsed;
        from_micros(self.shown_micros.fetch_max(micros, Ordering::Relaxed).max(micros))
    }

    /// Tells when this machine's wall clock, which its log and other programs go by, begins to be off and when it is
    /// right again; answers whether it is off.
    fn judge_the_wall_clock(&self, was_off: bool) -> bool {
        let ahead = SystemClock.now() - self.now();
        let ahead_s = ahead.num_milliseconds() as f64 / 1000.0;
        metrics::gauge!("tombola_wall_clock_ahead_seconds").set(ahead_s);
        let off = ahead.abs() > TOLERANCE;
        match (was_off, off) {
            (false, true) => {
                warn!(
                    ahead_s,
                    "This machine's clock is {ahead_s:+} s off the database's, which every node goes by"
                );
            }
            (true, false) => info!(ahead_s, "This machine's clock agrees with the database's again"),
            (false, false) | (true, true) => {}
        }
        off
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }
}

async fn read(db: &Database) -> Result<Reading, DbFault> {
    let mut quickest = ask(db).await?;
    for _ in 1..ASK {
        let reading = ask(db).await?;
        if reading.round_trip < quickest.round_trip {
            quickest = reading;
        }
    }
    Ok(quickest)
}

/// Half of the round trip was the way to the database, as far as anybody can tell.
async fn ask(db: &Database) -> Result<Reading, DbFault> {
    db.read(|connection| async move {
        let asked = Instant::now();
        let micros = now_micros(&connection).await?;
        let round_trip = asked.elapsed();
        Ok(Reading { micros, at: asked + round_trip / 2, round_trip })
    })
    .await
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn reading(micros: i64, at: Instant) -> Reading {
        Reading { micros, at, round_trip: Duration::ZERO }
    }

    #[test]
    fn it_goes_on_between_readings_and_never_back() {
        let start = Instant::now();
        let clock = DatabaseClock::starting_at(reading(1_000_000, start));
        let shows = |after: Duration, micros: i64| assert_eq!(clock.at(start + after), from_micros(micros));
        shows(Duration::ZERO, 1_000_000);
        shows(SECOND, 2_000_000);

        clock.adopt(reading(5_000_000, start + 2 * SECOND));
        shows(2 * SECOND, 5_000_000);
        shows(3 * SECOND, 6_000_000);
        // Asked later, answered earlier.
        shows(2 * SECOND, 6_000_000);

        clock.adopt(reading(4_500_000, start + 3 * SECOND));
        shows(3 * SECOND, 6_000_000);
        shows(4 * SECOND, 6_000_000);
        shows(5 * SECOND, 6_500_000);
    }
}
