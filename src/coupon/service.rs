//! The front door: what the API and the jobs do with coupons.

use entities::{user_coupon, users};
use sea_orm::ActiveValue::Set;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::events::CouponState;
use super::model::{Coupon, CouponError, CouponView, NewCoupon};
use super::store;
use crate::db::{Database, DbFault, Tx};
use crate::idempotency::{self, Answered, RequestKey};
use crate::ids::{CouponId, Ids, UserId};
use crate::money::Currency;
use crate::ports::clock::{SharedClock, Timestamp, to_micros};

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
                let coupon = give(&tx, &this.ids, this.clock.now(), new).await?;
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
    ) -> Result<Vec<CouponView>, DbFault> {
        let currency = self.currency;
        let read = move |connection: DatabaseConnection| async move {
            let mut query = user_coupon::Entity::find().filter(user_coupon::Column::UserId.eq(user.0));
            if let Some(state) = state {
                query = query.filter(user_coupon::Column::State.eq(state.word()));
            }
            if let Some(before) = before {
                query = query.filter(user_coupon::Column::Id.lt(before.0));
            }
            let rows = query.order_by_desc(user_coupon::Column::Id).limit(limit).all(&connection).await?;
            rows.into_iter().map(|row| Ok(Coupon::try_from(row)?.view(currency))).collect()
        };
        self.db.read(read).await
    }

    /// Lets every unused coupon expire whose time is over; tells how many (JOB-3).
    pub async fn expire(&self) -> Result<usize, DbFault> {
        let now = self.clock.now();
        let mut expired = 0;
        loop {
            let overdue = move |connection: DatabaseConnection| async move {
                let ids = user_coupon::Entity::find()
                    .select_only()
                    .column(user_coupon::Column::Id)
                    .filter(user_coupon::Column::State.eq(CouponState::Unused.word()))
                    .filter(user_coupon::Column::ValidUntil.lte(to_micros(now)))
                    .order_by_asc(user_coupon::Column::ValidUntil)
                    .limit(PAGE);
                Ok::<Vec<i64>, DbFault>(ids.into_tuple().all(&connection).await?)
            };
            let page = self.db.read(overdue).await?;
            if page.is_empty() {
                return Ok(expired);
            }
            let ids = self.ids.clone();
            let page: std::collections::BTreeSet<CouponId> = page.into_iter().map(CouponId).collect();
            let expiring = self.db.transaction(move |tx| {
                let (ids, page) = (ids.clone(), page.clone());
                async move { store::expire(&tx, &ids, now, &page).await }
            });
            expired += expiring.await?;
        }
    }
}

async fn give(tx: &Tx, ids: &Ids, now: Timestamp, new: NewCoupon) -> Result<Coupon, CouponError> {
    let NewCoupon { user, name, face_value_minor, min_spend_minor, validity, by } = new;
    let known = users::Entity::find_by_id(user.0).one(tx).await.map_err(DbFault::from)?;
    known.ok_or(CouponError::UserUnknown)?;
    let (valid_from, valid_until) = validity.at(now).ok_or(CouponError::Over)?;
    let coupon = Coupon {
        id: ids.next().map_err(DbFault::from)?,
        user_id: user,
        name: name.as_str().to_owned(),
        face_value_minor,
        min_spend_minor,
        state: CouponState::Unused,
        valid_from,
        valid_until,
        order_id: None,
        version: 1,
        used_at: None,
        created_at: now,
    };
    let row = user_coupon::ActiveModel {
        id: Set(coupon.id.0),
        user_id: Set(user.0),
        name: Set(coupon.name.clone()),
        face_value_minor: Set(face_value_minor),
        min_spend_minor: Set(min_spend_minor),
        state: Set(coupon.state.word().to_owned()),
        valid_from: Set(to_micros(valid_from)),
        valid_until: Set(to_micros(valid_until)),
        order_id: Set(None),
        source: Set("operator".to_owned()),
        source_id: Set(Some(by.0)),
        version: Set(coupon.version),
        used_at: Set(None),
        void_reason: Set(None),
        voided_by: Set(None),
        created_at: Set(to_micros(now)),
        updated_at: Set(to_micros(now)),
    };
    store::insert(tx, ids, now, row, &coupon).await?;
    Ok(coupon)
}
