//! When a job runs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::DateTime;
use croner::Cron;
use serde::{Deserialize, Serialize};

use crate::ports::clock::Timestamp;

/// When a job runs, apart from when it is asked to.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Schedule {
    /// `every 500ms`, `every 10s`, `every 5m`, `every 2h`: from start to start, for what must be prompt.
    ///
    /// One node keeps such a job between its runs; after that node's death another one takes it over within this time
    /// and ten seconds.
    Every(Duration),
    /// `30 3 * * *`, or with seconds in front: at moments in UTC. Moments that passed while no node ran count once.
    Cron(CronSchedule),
    /// `on demand`: never by itself.
    OnDemand,
}

/// Moments in UTC, in cron syntax.
#[derive(Debug, Clone, PartialEq)]
pub struct CronSchedule {
    written: String,
    cron: Box<Cron>,
}

impl CronSchedule {
    /// The first moment after `last`; `None` if there is none.
    pub fn after(&self, last: Timestamp) -> Option<Timestamp> {
        self.cron.find_next_occurrence(&last, false).ok()
    }
}

const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.strip_prefix("every ") {
            _ if text == "on demand" => Ok(Self::OnDemand),
            Some(period) => period_of(period.trim()).map(Self::Every),
            None => {
                let cron = text.parse::<Cron>().map_err(|error| {
                    format!("{text:?} is neither \"every …\", \"on demand\" nor a cron schedule: {error}")
                })?;
                let schedule = CronSchedule { written: text.to_owned(), cron: Box::new(cron) };
                match schedule.after(DateTime::UNIX_EPOCH) {
                    Some(_) => Ok(Self::Cron(schedule)),
                    None => Err(format!("{text:?} names no moment that ever comes")),
                }
            }
        }
    }
}

fn period_of(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
    let ms = unit.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit)).filter(|ms| *ms > 0);
    ms.map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a time such as 500ms, 10s, 5m or 2h"))
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(period) => {
                let ms = period.as_millis();
                let (unit, size) =
                    UNITS.iter().rev().find(|(_, size)| ms % u128::from(*size) == 0).unwrap_or(&UNITS[0]);
                write!(f, "every {}{unit}", ms / u128::from(*size))
            }
            Self::Cron(schedule) => f.write_str(&schedule.written),
            Self::OnDemand => f.write_str("on demand"),
        }
    }
}

impl TryFrom<String> for Schedule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn after(schedule: &str, last: &str) -> Option<String> {
        let Schedule::Cron(schedule) = schedule.parse().unwrap() else {
            panic!("{schedule} is no cron schedule")
        };
        let next = schedule.after(last.parse().unwrap())?;
        Some(next.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    }

    #[rstest]
    #[case("30 3 * * *", "2026-11-21T03:29:59.999999Z", "2026-11-21T03:30:00Z")]
    #[case("30 3 * * *", "2026-11-21T03:30:00Z", "2026-11-22T03:30:00Z")]
    #[case("30 3 * * *", "2026-11-21T03:30:00.000001Z", "2026-11-22T03:30:00Z")]
    #[case("*/10 * * * * *", "2026-11-21T03:30:09.5Z", "2026-11-21T03:30:10Z")]
    #[case("0 0 29 2 *", "2026-11-21T00:00:00Z", "2028-02-29T00:00:00Z")]
    #[case("0 12 * * MON-FRI", "2026-11-21T00:00:00Z", "2026-11-23T12:00:00Z")]
    #[case("@daily", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z")]
    fn a_cron_schedule_names_moments_in_utc(#[case] schedule: &str, #[case] last: &str, #[case] next: &str) {
        assert_eq!(after(schedule, last).as_deref(), Some(next));
    }

    #[test]
    fn a_year_that_is_over_has_no_moments_left() {
        assert_eq!(
            after("0 0 0 1 1 * 2027", "2026-11-21T00:00:00Z").as_deref(),
            Some("2027-01-01T00:00:00Z")
        );
        assert_eq!(after("0 0 0 1 1 * 2027", "2027-01-01T00:00:00Z"), None);
    }

    #[rstest]
    #[case("every 50ms", 50, "every 50ms")]
    #[case("every  1s", 1000, "every 1s")]
    #[case("every 90s", 90_000, "every 90s")]
    #[case("every 5m", 300_000, "every 5m")]
    #[case("every 120m", 7_200_000, "every 2h")]
    fn a_period_is_read_and_shown(#[case] text: &str, #[case] ms: u64, #[case] shown: &str) {
        let schedule: Schedule = text.parse().unwrap();
        assert_eq!(schedule, Schedule::Every(Duration::from_millis(ms)));
        assert_eq!(schedule.to_string(), shown);
    }

    #[test]
    fn cron_and_on_demand_are_shown_as_written() {
        for text in ["30 3 * * mon", "*/5 * * * * *", "@hourly", "on demand"] {
            assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        }
    }

    #[rstest]
    #[case("")]
    #[case("every")]
    #[case("every 0s")]
    #[case("every -1s")]
    #[case("every 1 day")]
    #[case("every 99999999999999999999h")]
    #[case("60 * * * *")]
    #[case("* * *")]
    #[case("0 0 30 2 *")]
    #[case("sometimes")]
    fn what_names_no_time_is_refused(#[case] text: &str) {
        assert!(text.parse::<Schedule>().is_err(), "{:?}", text.parse::<Schedule>());
    }
}
