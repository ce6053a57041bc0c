//! Typed ids. Each is a 63-bit snowflake (41 bits of milliseconds since 2026-01-01, 10 bits of node number, 12 bits
//! of sequence) and a decimal **string** in JSON, because JavaScript rounds integers above 2^53.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferroid::define_snowflake_id;
use ferroid::generator::{AtomicSnowflakeGenerator, Poll};
use ferroid::time::TimeSource;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::ports::clock::Clock;

/// 2026-01-01T00:00:00Z in milliseconds since the Unix epoch: where the ids' time begins.
const EPOCH_MS: u64 = 1_767_225_600_000;
/// How far the milliseconds stand to the left in an id: ten bits of node number and twelve of sequence follow.
const TIME_SHIFT: u32 = 22;
/// Within how many milliseconds the ids of one transaction are made, at most.
const MADE_TOGETHER_MS: u64 = 1000;

/// Nodes that can make ids at the same time.
pub const NODE_NUMBERS: i32 = 1024;

define_snowflake_id!(Snowflake, u64, reserved: 1, timestamp: 41, machine_id: 10, sequence: 12);

/// What an id looks like, as a regular expression.
pub const ID_PATTERN: &str = "^(0|[1-9][0-9]{0,18})$";

/// The text is not a decimal 63-bit id.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("an id is a decimal number of up to 19 digits, without leading zeros")]
pub struct MalformedId;

/// Defines an id type: `define_id!(/// What it names. OrderId);`
macro_rules! define_id {
    ($(#[$doc:meta] $name:ident),+ $(,)?) => {$(
        #[$doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;

            fn from_str(text: &str) -> Result<Self, MalformedId> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Decimal).map(Self)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                id_schema()
            }
        }

        impl utoipa::ToSchema for $name {}
    )+};
}

define_id! {
    /// Names an activity.
    ActivityId,
    /// Names a stock adjustment.
    AdjustmentId,
    /// Names one commit of the stock actor; also the id of the outbox row that commit wrote.
    BatchId,
    /// Names a range of stock tokens.
    BlockId,
    /// Names a user's coupon.
    CouponId,
    /// Names a message that could not be applied.
    DeadLetterId,
    /// Names a difference that a reconciliation found.
    DifferenceId,
    /// Names an event.
    EventId,
    /// Names goods of the shop.
    GoodsId,
    /// Names a run of a job.
    JobRunId,
    /// Names a change of goods, of a balance or of points.
    LedgerEntryId,
    /// Names a message to a user.
    NotificationId,
    /// Names an order; a flash sale's order has the number of its take.
    OrderId,
    /// Names an event's place among those that are to be tried later.
    ParkedId,
    /// Names an attempt to pay an order.
    PaymentId,
    /// Names what a gateway said of a payment.
    PaymentRecordId,
    /// Names a run of the reconciliation.
    ReconciliationId,
    /// Names money on its way back.
    RefundId,
    /// Names a store.
    StoreId,
    /// Names a take.
    TakeId,
    /// Names an access token, so that it can be revoked.
    TokenId,
    /// Names a user.
    UserId,
}

/// Only plain digits without leading zeros: an id has one spelling.
fn parse(text: &str) -> Result<i64, MalformedId> {
    let padded = text.len() > 1 && text.starts_with('0');
    if text.is_empty() || padded || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(MalformedId);
    }
    text.parse().map_err(|_| MalformedId)
}

/// Reads an id where it stands: every request brings the two of its access token.
struct Decimal;

impl Visitor<'_> for Decimal {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<i64, E> {
        parse(text).map_err(E::custom)
    }
}

fn id_schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(ID_PATTERN))
        .examples(["267432117862400"])
        .description(Some("A 63-bit id as a decimal string."))
        .into()
}

/// The node number was lost, so ids made now could meet those of another node.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("this node's number is not leased at the moment")]
pub struct NodeNumberLost;

/// Makes ids that no other node makes, as long as its node number is leased.
#[derive(Debug, Clone)]
pub struct Ids(Arc<Inner>);

struct Inner {
    generator: AtomicSnowflakeGenerator<Snowflake, Monotonic>,
    node: i32,
    started: Instant,
    /// Milliseconds after `started` until which the node number is ours.
    leased_until_ms: AtomicU64,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ids").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Ids {
    /// Ids of node number `node`, good until [`Ids::extend`]ed lease ends.
    pub fn new(node: i32, clock: &dyn Clock, lease: Duration) -> Self {
        Self::behind(None, node, clock, lease)
    }

    /// As [`Ids::new`], and later than `last`, whatever the clock says: it may have been set back since that was made.
    pub fn behind(last: Option<i64>, node: i32, clock: &dyn Clock, lease: Duration) -> Self {
        let time = Monotonic::start(clock, last.map_or(0, |last| time_of(last) + MADE_TOGETHER_MS));
        let ids = Self(Arc::new(Inner {
            generator: AtomicSnowflakeGenerator::new(u64::from(node.unsigned_abs()), time),
            node,
            started: Instant::now(),
            leased_until_ms: AtomicU64::new(0),
        }));
        ids.extend(Instant::now() + lease);
        ids
    }

    /// This node's number.
    pub fn node(&self) -> i32 {
        self.0.node
    }

    /// The lease on the node number was renewed: ids are good until `until`.
    pub fn extend(&self, until: Instant) {
        let until_ms = until.saturating_duration_since(self.0.started).as_millis();
        self.0.leased_until_ms.store(u64::try_from(until_ms).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// A new id of any kind.
    ///
    /// Fails while the node number's lease has run out. Waits a moment if 4096 ids were made in this millisecond.
    pub fn next<T: From<NewId>>(&self) -> Result<T, NodeNumberLost> {
        if self.0.started.elapsed().as_millis() >= u128::from(self.0.leased_until_ms.load(Ordering::Acquire))
        {
            return Err(NodeNumberLost);
        }
        loop {
            match self.0.generator.poll_id() {
                Poll::Ready { id } => return Ok(NewId(id.to_raw().cast_signed()).into()),
                Poll::Pending { .. } => std::thread::yield_now(),
            }
        }
    }
}

/// A fresh id that has not been given a meaning yet.
#[derive(Debug, Clone, Copy)]
pub struct NewId(i64);

macro_rules! from_new_id {
    ($($name:ident),+) => {$(
        impl From<NewId> for $name {
            fn from(new: NewId) -> Self {
                Self(new.0)
            }
        }
    )+};
}
from_new_id!(
    ActivityId,
    AdjustmentId,
    BatchId,
    BlockId,
    CouponId,
    DeadLetterId,
    DifferenceId,
    EventId,
    GoodsId,
    JobRunId,
    LedgerEntryId,
    NotificationId,
    OrderId,
    ParkedId,
    PaymentId,
    PaymentRecordId,
    ReconciliationId,
    RefundId,
    TakeId,
    TokenId,
    UserId
);

/// The milliseconds since [`EPOCH_MS`] in which `id` was made.
fn time_of(id: i64) -> u64 {
    u64::try_from(id >> TIME_SHIFT).unwrap_or(0)
}

/// Milliseconds since [`EPOCH_MS`] that never run backwards within a process, whatever the wall clock does.
#[derive(Debug)]
struct Monotonic {
    base_ms: u64,
    started: Instant,
}

impl Monotonic {
    fn start(clock: &dyn Clock, at_least_ms: u64) -> Self {
        let now_ms = u64::try_from(clock.now().timestamp_millis()).unwrap_or(0);
        let base_ms = now_ms.saturating_sub(EPOCH_MS).max(at_least_ms);
        Self { base_ms, started: Instant::now() }
    }
}

impl TimeSource<u64> for Monotonic {
    fn current_millis(&self) -> u64 {
        self.base_ms + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::ports::clock::{ManualClock, SystemClock};

    #[test]
    fn an_id_is_a_string_in_json_and_nothing_else() {
        assert_eq!(serde_json::to_string(&TakeId(42)).unwrap(), r#""42""#);
        assert_eq!(serde_json::from_str::<TakeId>(r#""42""#).unwrap(), TakeId(42));
        assert_eq!(serde_json::from_str::<TakeId>(r#""0""#).unwrap(), TakeId(0));
        for bad in [
            "42",
            r#""""#,
            r#""-1""#,
            r#""+1""#,
            r#"" 1""#,
            r#""9223372036854775808""#,
            r#""1e3""#,
            r#""007""#,
            r#""00""#,
        ] {
            assert!(serde_json::from_str::<TakeId>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_go_on_behind_the_last_one_though_the_clock_was_set_back() {
        let clock = ManualClock::new("2026-06-01T12:00:00Z".parse().unwrap());
        let lease = Duration::from_secs(60);
        let last: TakeId = Ids::new(0, &clock, lease).next().unwrap();
        clock.advance(TimeDelta::minutes(-10));
        let next: TakeId = Ids::behind(Some(last.0), 0, &clock, lease).next().unwrap();
        assert!(next > last, "{next} after {last}");
        clock.advance(TimeDelta::minutes(20));
        let ahead: TakeId = Ids::behind(Some(last.0), 0, &clock, lease).next().unwrap();
        assert!(time_of(ahead.0) - time_of(last.0) >= 600_000);
    }

    #[test]
    fn ids_grow_and_stop_with_the_lease() {
        let ids = Ids::new(7, &SystemClock, Duration::from_secs(60));
        let made: Vec<TakeId> = (0..10_000).map(|_| ids.next().unwrap()).collect();
        assert!(made.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(made.iter().all(|id| id.0 > 0 && (id.0 >> 12) & 1023 == 7));
        ids.extend(Instant::now());
        assert_eq!(ids.next::<TakeId>(), Err(NodeNumberLost));
    }
}
