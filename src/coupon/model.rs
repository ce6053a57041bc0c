//! What a coupon is good for, and what becomes of it: pure rules.

use chrono::Datelike;
use entities::user_coupon;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::events::CouponState;
use crate::activity::model::Name;
use crate::db::{AsDbFault, DbFault};
use crate::idempotency::KeyRefusal;
use crate::ids::{CouponId, OrderId, UserId};
use crate::messaging::outbox::{rfc3339, serialize_rfc3339};
use crate::money::Currency;
use crate::ports::clock::{Timestamp, as_kept, from_micros};

/// A user's coupon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coupon {
    pub id: CouponId,
    pub user_id: UserId,
    pub name: String,
    pub face_value_minor: i64,
    /// The goods of an order must be worth as much.
    pub min_spend_minor: i64,
    pub state: CouponState,
    pub valid_from: Timestamp,
    /// Good until just before.
    pub valid_until: Timestamp,
    /// The order that locks or used it.
    pub order_id: Option<OrderId>,
    pub version: i64,
    pub used_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// What an order comes to, before its coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spend {
    pub goods_amount_minor: i64,
    /// Shipping included.
    pub order_amount_minor: i64,
}

/// What became of the order that holds a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Paid,
    Cancelled,
    Refunded { shipped: bool },
}

/// Why a coupon cannot be used for an order.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Unusable {
    #[error("another order holds the coupon")]
    Locked,
    #[error("the coupon is used")]
    Used,
    #[error("the coupon is void")]
    Void,
    #[error("the coupon expired at {0}")]
    Expired(String),
    #[error("the coupon is good from {0} on")]
    NotYetValid(String),
    #[error("the coupon needs goods for {0} minor units")]
    MinSpend(i64),
}

impl Coupon {
    /// What the coupon takes off an order that is to be made at `now`.
    pub fn deduction(&self, spend: Spend, now: Timestamp) -> Result<i64, Unusable> {
        match self.state {
            CouponState::Locked => return Err(Unusable::Locked),
            CouponState::Used => return Err(Unusable::Used),
            CouponState::Void => return Err(Unusable::Void),
            CouponState::Expired => return Err(Unusable::Expired(rfc3339(self.valid_until))),
            CouponState::Unused => {}
        }
        if now < self.valid_from {
            Err(Unusable::NotYetValid(rfc3339(self.valid_from)))
        } else if now >= self.valid_until {
            Err(Unusable::Expired(rfc3339(self.valid_until)))
        } else if spend.goods_amount_minor < self.min_spend_minor {
            Err(Unusable::MinSpend(self.min_spend_minor))
        } else {
            Ok(self.taken_off(spend))
        }
    }

    /// What the coupon takes off an order that holds it: never more than the order comes to.
    pub fn taken_off(&self, spend: Spend) -> i64 {
        self.face_value_minor.min(spend.order_amount_minor)
    }

    /// Whether `order` holds it.
    pub fn is_held_by(&self, order: OrderId) -> bool {
        self.order_id == Some(order) && matches!(self.state, CouponState::Locked | CouponState::Used)
    }

    /// What `fate` of `order` makes of the coupon; nothing, if the order does not hold it.
    pub fn after(&self, order: OrderId, fate: Fate, now: Timestamp) -> Option<CouponState> {
        use CouponState::{Expired, Locked, Unused, Used, Void};
        if self.order_id != Some(order) {
            return None;
        }
        let back = if now < self.valid_until { Unused } else { Expired };
        match (self.state, fate) {
            (Locked, Fate::Paid) => Some(Used),
            (Locked, Fate::Cancelled) => Some(back),
            (Locked | Used, Fate::Refunded { shipped: false }) => Some(back),
            (Locked | Used, Fate::Refunded { shipped: true }) => Some(Void),
            (Used, Fate::Paid | Fate::Cancelled) | (Unused | Expired | Void, _) => None,
        }
    }

    /// The coupon once it has gone to `to`, for `order` if one is the reason.
    pub(super) fn moved(self, to: CouponState, order: Option<OrderId>, now: Timestamp) -> Self {
        let version = self.version + 1;
        let (order_id, used_at) = match to {
            CouponState::Locked => (order, None),
            CouponState::Used => (order, Some(now)),
            CouponState::Void => (order, self.used_at),
            CouponState::Unused | CouponState::Expired => (None, None),
        };
        Self { state: to, order_id, used_at, version, ..self }
    }

    /// The coupon as it is shown.
    pub fn view(self, currency: Currency) -> CouponView {
        CouponView {
            id: self.id,
            name: self.name,
            state: self.state,
            face_value_minor: self.face_value_minor,
            min_spend_minor: self.min_spend_minor,
            currency,
            valid_from: self.valid_from,
            valid_until: self.valid_until,
            order_id: self.order_id,
            created_at: self.created_at,
        }
    }
}

impl TryFrom<user_coupon::Model> for Coupon {
    type Error = DbFault;

    fn try_from(row: user_coupon::Model) -> Result<Self, DbFault> {
        Ok(Self {
            id: CouponId(row.id),
            user_id: UserId(row.user_id),
            name: row.name,
            face_value_minor: row.face_value_minor,
            min_spend_minor: row.min_spend_minor,
            state: row.state.parse()?,
            valid_from: from_micros(row.valid_from),
            valid_until: from_micros(row.valid_until),
            order_id: row.order_id.map(OrderId),
            version: row.version,
            used_at: row.used_at.map(from_micros),
            created_at: from_micros(row.created_at),
        })
    }
}

/// A user's coupon.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CouponView {
    pub id: CouponId,
    pub name: String,
    pub state: CouponState,
    /// What it takes off an order, at most the order's amount.
    pub face_value_minor: i64,
    /// The goods of an order must be worth as much.
    pub min_spend_minor: i64,
    pub currency: Currency,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub valid_from: Timestamp,
    /// Good until just before.
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub valid_until: Timestamp,
    /// The order that locks or used it.
    #[schema(required = true)]
    pub order_id: Option<OrderId>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A coupon to be given to a user.
#[derive(Debug, Clone)]
pub struct NewCoupon {
    pub user: UserId,
    pub name: Name,
    pub face_value_minor: i64,
    pub min_spend_minor: i64,
    pub validity: Validity,
    pub by: UserId,
}

/// When a coupon is good, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    from: Option<Timestamp>,
    until: Timestamp,
}

impl Validity {
    /// From `from`, or from when it is given, until just before `until`; rounded down to microseconds. `None` if that is
    /// no time, or none that can be kept.
    pub fn new(from: Option<Timestamp>, until: Timestamp) -> Option<Self> {
        let (from, until) = (from.map(as_kept), as_kept(until));
        let proper = (1970..=9999).contains(&until.year())
            && from.is_none_or(|from| from < until && from.year() >= 1970);
        proper.then_some(Self { from, until })
    }

    /// Both ends for a coupon that is given at `now`; `None` if it is over.
    pub fn at(self, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        (now < self.until).then_some((self.from.unwrap_or(now), self.until))
    }
}

/// Why nothing was done with a coupon.
#[derive(Debug, Error)]
pub enum CouponError {
    #[error("there is no such user")]
    UserUnknown,
    #[error("there is no such coupon")]
    NotFound,
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("the coupon is {0}")]
    NotVoidable(CouponState),
    #[error("must be in the future")]
    Over,
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for CouponError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::UserUnknown
            | Self::NotFound
            | Self::Unusable(_)
            | Self::NotVoidable(_)
            | Self::Over
            | Self::Key(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use CouponState::{Expired, Locked, Unused, Used, Void};
    use rstest::rstest;

    use super::*;

    const OURS: OrderId = OrderId(1);
    const OTHER: OrderId = OrderId(2);

    fn at(second: i64) -> Timestamp {
        from_micros(second * 1_000_000)
    }

    /// 5.00 off goods for 20.00, from second 10 until second 20.
    fn coupon(state: CouponState, order: Option<OrderId>) -> Coupon {
        Coupon {
            id: CouponId(7),
            user_id: UserId(3),
            name: "five off".to_owned(),
            face_value_minor: 500,
            min_spend_minor: 2000,
            state,
            valid_from: at(10),
            valid_until: at(20),
            order_id: order,
            version: 4,
            used_at: None,
            created_at: at(0),
        }
    }

    #[rstest]
    #[case::good(Unused, 2000, 3000, 10, Ok(500))]
    #[case::capped(Unused, 2000, 400, 19, Ok(400))]
    #[case::too_little(Unused, 1999, 3000, 10, Err(Unusable::MinSpend(2000)))]
    #[case::too_early(Unused, 2000, 3000, 9, Err(Unusable::NotYetValid(rfc3339(at(10)))))]
    #[case::too_late(Unused, 2000, 3000, 20, Err(Unusable::Expired(rfc3339(at(20)))))]
    #[case::locked(Locked, 2000, 3000, 10, Err(Unusable::Locked))]
    #[case::used(Used, 2000, 3000, 10, Err(Unusable::Used))]
    #[case::expired(Expired, 2000, 3000, 10, Err(Unusable::Expired(rfc3339(at(20)))))]
    #[case::void(Void, 2000, 3000, 10, Err(Unusable::Void))]
    fn a_coupon_is_good_for_what_it_says(
        #[case] state: CouponState,
        #[case] goods_amount_minor: i64,
        #[case] order_amount_minor: i64,
        #[case] second: i64,
        #[case] deduction: Result<i64, Unusable>,
    ) {
        let spend = Spend { goods_amount_minor, order_amount_minor };
        assert_eq!(coupon(state, None).deduction(spend, at(second)), deduction);
    }

    const FATES: [Fate; 4] =
        [Fate::Paid, Fate::Cancelled, Fate::Refunded { shipped: false }, Fate::Refunded { shipped: true }];

    #[rstest]
    #[case(Unused, [None, None, None, None])]
    #[case(Locked, [Some(Used), Some(Unused), Some(Unused), Some(Void)])]
    #[case(Used, [None, None, Some(Unused), Some(Void)])]
    #[case(Expired, [None, None, None, None])]
    #[case(Void, [None, None, None, None])]
    fn an_orders_fate_is_its_coupons(#[case] state: CouponState, #[case] becomes: [Option<CouponState>; 4]) {
        let held = coupon(state, Some(OURS));
        assert_eq!(FATES.map(|fate| held.after(OURS, fate, at(15))), becomes);
        let late = becomes.map(|to| if to == Some(Unused) { Some(Expired) } else { to });
        assert_eq!(FATES.map(|fate| held.after(OURS, fate, at(20))), late);
        assert_eq!(FATES.map(|fate| held.after(OTHER, fate, at(15))), [None; 4]);
        assert_eq!(FATES.map(|fate| coupon(state, None).after(OURS, fate, at(15))), [None; 4]);
    }

    #[test]
    fn a_validity_is_a_time_that_can_be_kept() {
        let far = |year| {
            chrono::NaiveDate::from_ymd_opt(year, 1, 1).unwrap().and_time(chrono::NaiveTime::MIN).and_utc()
        };
        assert_eq!(Validity::new(Some(at(1)), at(2)).unwrap().at(at(0)), Some((at(1), at(2))));
        assert_eq!(Validity::new(None, at(2)).unwrap().at(at(1)), Some((at(1), at(2))));
        assert_eq!(Validity::new(None, at(2)).unwrap().at(at(2)), None);
        for (from, until) in
            [(Some(at(2)), at(2)), (Some(far(1969)), at(2)), (None, far(1969)), (None, far(10_000))]
        {
            assert_eq!(Validity::new(from, until), None, "{from:?} to {until}");
        }
    }
}
