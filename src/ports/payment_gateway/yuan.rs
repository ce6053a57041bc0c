//! Chinese money and time as the gateways write them: yuan with up to two decimals, and the clock of Beijing.

use chrono::{NaiveDateTime, Utc};

use super::GatewayError;
use crate::money::{Currency, MOST_MINOR};
use crate::ports::clock::{BEIJING, Timestamp};

/// Fen as yuan, as in `12.34`.
pub(super) fn yuan(fen: i64) -> String {
    format!("{}.{:02}", fen / 100, fen % 100)
}

/// Yuan as fen, exactly: digits, and one or two decimals at most.
pub(super) fn fen(yuan: &str) -> Option<i64> {
    let (whole, decimals) = yuan.split_once('.').unwrap_or((yuan, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 2 {
        return None;
    }
    let cents = format!("{decimals:0<2}").parse::<i64>().ok()?;
    let fen = whole.parse::<i64>().ok()?.checked_mul(100)?.checked_add(cents)?;
    (fen <= MOST_MINOR).then_some(fen)
}

/// The currency of both gateways.
pub(super) fn cny() -> Result<Currency, GatewayError> {
    "CNY".parse().map_err(|_| GatewayError::Unfit("there is no CNY".to_owned()))
}

/// As Alipay writes instants: `2026-06-01 10:00:00`, in Beijing.
pub(super) fn local_time(at: Timestamp) -> String {
    at.with_timezone(&BEIJING).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// What [`local_time`] wrote.
pub(super) fn parse_local_time(text: &str) -> Option<Timestamp> {
    let local = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").ok()?;
    Some(local.and_local_timezone(BEIJING).single()?.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0))]
    #[case("0.01", Some(1))]
    #[case("0.1", Some(10))]
    #[case("0.10", Some(10))]
    #[case("1", Some(100))]
    #[case("88.88", Some(8888))]
    #[case("19.99", Some(1999))]
    #[case("00.50", Some(50))]
    #[case("4.35", Some(435))]
    #[case("10000000000.00", Some(MOST_MINOR))]
    #[case("10000000000.01", None)]
    #[case("92233720368547758.07", None)]
    #[case("99999999999999999999", None)]
    #[case("0.001", None)]
    #[case("1.", None)]
    #[case(".5", None)]
    #[case("", None)]
    #[case(".", None)]
    #[case("-1.00", None)]
    #[case("+1.00", None)]
    #[case("1.+1", None)]
    #[case("1e2", None)]
    #[case("1,000.00", None)]
    #[case("1.0.0", None)]
    #[case(" 1.00", None)]
    #[case("１.00", None)]
    #[case("NaN", None)]
    fn yuan_are_read_exactly(#[case] text: &str, #[case] minor: Option<i64>) {
        assert_eq!(fen(text), minor);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for minor in [0, 1, 9, 10, 99, 100, 101, 1234, 100_000, MOST_MINOR] {
            assert_eq!(fen(&yuan(minor)), Some(minor));
        }
        assert_eq!(yuan(5), "0.05");
    }

    #[test]
    fn time_is_that_of_beijing() {
        let midnight = parse_local_time("2026-06-01 00:00:00").unwrap();
        assert_eq!(midnight.to_rfc3339(), "2026-05-31T16:00:00+00:00");
        assert_eq!(local_time(midnight), "2026-06-01 00:00:00");
        for bad in ["2026-06-01", "2026-13-01 00:00:00", "2026-06-01T00:00:00Z", "2026-06-01 00:00:00.5", ""]
        {
            assert_eq!(parse_local_time(bad), None, "{bad}");
        }
    }
}
