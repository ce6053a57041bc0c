//! The front door: what the API and the jobs do with coupons.

use super::events::CouponState;
use super::model::{CouponError, CouponView, NewCoupon};
use super::store;
use crate::db::{Database, DbFault};
use crate::idempotency::{self, Answered, RequestKey};
use crate::identity;
use crate::ids::{CouponId, Ids, UserId};
use crate::money::Currency;
use crate::ports::clock::SharedClock;

/// Coupons that expire in one transaction.
const PAGE: u64 = 500;

/// Gives coupons, shows them, and ends them.
#[derive(Debug, Clone)]
pub struct CouponService {
    db: Database,
    ids: Ids,
    clock: SharedClock,
    currency: Currency,
}

impl CouponService {
    /// Coupons are worth what they say in `currency`.
    pub fn new(db: Database, ids: Ids, clock: SharedClock, currency: Currency) -> Self {
        Self { db, ids, clock, currency }
    }

    /// Gives a user a coupon.
    pub async fn give(
        &self,
        new: NewCoupon,
        key: Option<RequestKey>,
    ) -> Result<Answered<CouponView>, CouponError> {
        let this = self.clone();
        idempotency::once(&self.db, &self.clock, key, 201, move |tx| {
            let (this, new) = (this.clone(), new.clone());
            async move {
                let coupon = store::give(&tx, &this.ids, this.clock.now(), new).await?;
                Ok::<_, CouponError>(coupon.view(this.currency))
            }
        })
        .await
    }

    /// Makes a coupon void that is unused.
    pub async fn void(
        &self,
        coupon: CouponId,
        by: UserId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<CouponView>, CouponError> {
        let this = self.clone();
        idempotency::once(&self.db, &self.clock, key, 200, move |tx| {
            let (this, reason) = (this.clone(), reason.clone());
            async move {
                let coupon = store::void(&tx, &this.ids, this.clock.now(), coupon, by, &reason).await?;
                Ok::<_, CouponError>(coupon.view(this.currency))
            }
        })
        .await
    }

    /// A user's coupons, newest first, older than `before`.
    pub async fn of_user(
        &self,
        user: UserId,
        state: Option<CouponState>,
        before: Option<CouponId>,
        limit: u64,
    ) -> Result<Vec<CouponView>, CouponError> {
        let currency = self.currency;
        let read = self.db.read(move |db| async move {
            let page = store::page(&db, user, state, before, limit).await?;
            identity::rows_of(&db, user, page).await
        });
        let page = read.await?.ok_or(CouponError::UserUnknown)?;
        Ok(page.into_iter().map(|coupon| coupon.view(currency)).collect())
    }

    /// Lets every unused coupon expire whose time is over; tells how many (JOB-3).
    pub async fn expire(&self) -> Result<usize, DbFault> {
        let now = self.clock.now();
        let mut expired = 0;
        loop {
            let page = self.db.read(move |db| async move { store::overdue(&db, now, PAGE).await }).await?;
            if page.is_empty() {
                return Ok(expired);
            }
            let ids = self.ids.clone();
            let expiring = self.db.transaction(move |tx| {
                let (ids, page) = (ids.clone(), page.clone());
                async move { store::expire(&tx, &ids, now, &page).await }
            });
            expired += expiring.await?;
        }
    }
}
