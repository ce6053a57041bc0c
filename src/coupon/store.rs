//! The one place that changes coupons, many at a time: each under its row's lock, with its event.

use std::collections::{BTreeMap, BTreeSet};

use entities::user_coupon;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::events::{CouponState, CouponStateChanged};
use super::model::{Coupon, CouponError, Fate, NewCoupon, Spend};
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::identity;
use crate::ids::{CouponId, Ids, OrderId, UserId};
use crate::messaging::outbox::{self, Events};
use crate::ports::clock::{Timestamp, to_micros};

/// The coupon of `user` that has this id; another's is not found.
pub async fn find(
    connection: &impl ConnectionTrait,
    user: UserId,
    coupon: CouponId,
) -> Result<Coupon, CouponError> {
    let row = user_coupon::Entity::find_by_id(coupon.0)
        .filter(user_coupon::Column::UserId.eq(user.0))
        .one(connection)
        .await
        .map_err(DbFault::from)?;
    Ok(row.ok_or(CouponError::NotFound)?.try_into()?)
}

/// The coupons of `user`, newest first, older than `before`: those in `state`, or all.
pub(super) async fn page(
    connection: &impl ConnectionTrait,
    user: UserId,
    state: Option<CouponState>,
    before: Option<CouponId>,
    limit: u64,
) -> Result<Vec<Coupon>, DbFault> {
    let mut query = user_coupon::Entity::find().filter(user_coupon::Column::UserId.eq(user.0));
    if let Some(state) = state {
        query = query.filter(user_coupon::Column::State.eq(state.word()));
    }
    if let Some(before) = before {
        query = query.filter(user_coupon::Column::Id.lt(before.0));
    }
    let rows = query.order_by_desc(user_coupon::Column::Id).limit(limit).all(connection).await?;
    rows.into_iter().map(Coupon::try_from).collect()
}

/// Unused coupons whose time is over.
pub(super) async fn overdue(
    connection: &impl ConnectionTrait,
    now: Timestamp,
    limit: u64,
) -> Result<BTreeSet<CouponId>, DbFault> {
    let ids = user_coupon::Entity::find()
        .select_only()
        .column(user_coupon::Column::Id)
        .filter(user_coupon::Column::State.eq(CouponState::Unused.word()))
        .filter(user_coupon::Column::ValidUntil.lte(to_micros(now)))
        .order_by_asc(user_coupon::Column::ValidUntil)
        .limit(limit);
    let ids: Vec<i64> = ids.into_tuple().all(connection).await?;
    Ok(ids.into_iter().map(CouponId).collect())
}

/// Locks the coupon of `user` for `order`, which `spend`s that much, and tells what it takes off. An order that holds it
/// already is told the same again.
///
/// The caller holds the order's row, so that it is not given up meanwhile.
pub async fn lock(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    order: OrderId,
    user: UserId,
    coupon: CouponId,
    spend: Spend,
) -> Result<i64, CouponError> {
    let mut locked = for_update(tx, &[coupon].into()).await?;
    let coupon = locked.remove(&coupon).filter(|coupon| coupon.user_id == user);
    let coupon = coupon.ok_or(CouponError::NotFound)?;
    if coupon.is_held_by(order) {
        return Ok(coupon.taken_off(spend));
    }
    let deduction = coupon.deduction(spend, now)?;
    let mut changes = Changes::at(now);
    changes.push(ids, &coupon, Some(order), CouponState::Locked)?;
    changes.write(tx, ids).await?;
    Ok(deduction)
}

/// Makes of the coupons that these orders hold what follows from the orders' fates, in the order given.
pub(super) async fn settle(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    fates: &[(OrderId, Fate)],
) -> Result<(), DbFault> {
    const HELD: &str = "SELECT c.id FROM {rows} JOIN user_coupon AS c ON c.order_id = r.holder";
    let orders: BTreeSet<i64> = fates.iter().map(|(order, _)| order.0).collect();
    let rows = Rows::new().column("holder", Column::Big(orders.into_iter().collect()));
    let held = tx.query_all_raw(rows.statement(tx.get_database_backend(), HELD, [])).await?;
    let held = held.iter().map(|row| Ok(CouponId(row.try_get("", "id")?)));
    let held = held.collect::<Result<BTreeSet<_>, DbFault>>()?;
    if held.is_empty() {
        return Ok(());
    }
    let mut changes = Changes::at(now);
    for mut coupon in for_update(tx, &held).await?.into_values() {
        for &(order, fate) in fates {
            if let Some(to) = coupon.after(order, fate, now) {
                coupon = changes.push(ids, &coupon, Some(order), to)?;
            }
        }
    }
    changes.write(tx, ids).await
}

/// Lets those of `coupons` expire that are still unused, though their time is over; tells how many.
pub(super) async fn expire(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    coupons: &BTreeSet<CouponId>,
) -> Result<usize, DbFault> {
    let mut changes = Changes::at(now);
    for coupon in for_update(tx, coupons).await?.into_values() {
        if coupon.state == CouponState::Unused && coupon.valid_until <= now {
            changes.push(ids, &coupon, None, CouponState::Expired)?;
        }
    }
    let expired = changes.coupons.len();
    changes.write(tx, ids).await?;
    Ok(expired)
}

/// Makes a coupon void, for a reason that is kept. One that is void already stays as it is.
pub(super) async fn void(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    coupon: CouponId,
    by: UserId,
    reason: &str,
) -> Result<Coupon, CouponError> {
    const NOTE: &str = "UPDATE user_coupon SET void_reason = ?, voided_by = ? WHERE id = ?";
    let coupon = for_update(tx, &[coupon].into()).await?.remove(&coupon).ok_or(CouponError::NotFound)?;
    match coupon.state {
        CouponState::Void => return Ok(coupon),
        CouponState::Unused => {}
        state @ (CouponState::Locked | CouponState::Used | CouponState::Expired) => {
            return Err(CouponError::NotVoidable(state));
        }
    }
    let mut changes = Changes::at(now);
    let coupon = changes.push(ids, &coupon, None, CouponState::Void)?;
    changes.write(tx, ids).await?;
    let values = [reason.into(), by.0.into(), coupon.id.0.into()];
    let note = bulk::statement(tx.get_database_backend(), NOTE, values);
    tx.execute_raw(note).await.map_err(DbFault::from)?;
    Ok(coupon)
}

/// Gives a user a coupon.
pub(super) async fn give(tx: &Tx, ids: &Ids, now: Timestamp, new: NewCoupon) -> Result<Coupon, CouponError> {
    let NewCoupon { user, name, face_value_minor, min_spend_minor, validity, by } = new;
    if !identity::exists(tx, user).await? {
        return Err(CouponError::UserUnknown);
    }
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
    user_coupon::Entity::insert(row).exec_without_returning(tx).await.map_err(DbFault::from)?;
    outbox::append_one(tx, ids, now, &event(&coupon, None, now)).await?;
    Ok(coupon)
}

/// Reads and locks `coupons`, in the order of their ids; those that do not exist are left out.
async fn for_update(tx: &Tx, coupons: &BTreeSet<CouponId>) -> Result<BTreeMap<CouponId, Coupon>, DbFault> {
    let backend = tx.get_database_backend();
    let rows = Rows::new().column("coupon", Column::Big(coupons.iter().map(|id| id.0).collect()));
    let sql = bulk::select_for_update(backend, "user_coupon", "id", "coupon");
    let mut locked = BTreeMap::new();
    for row in tx.query_all_raw(rows.statement(backend, &sql, [])).await? {
        let coupon = Coupon::try_from(user_coupon::Model::from_query_result(&row, "")?)?;
        locked.insert(coupon.id, coupon);
    }
    Ok(locked)
}

fn event(coupon: &Coupon, from: Option<&Coupon>, at: Timestamp) -> CouponStateChanged {
    CouponStateChanged {
        coupon_id: coupon.id,
        user_id: coupon.user_id,
        from: from.map(|from| from.state),
        to: coupon.state,
        order_id: coupon.order_id.or(from.and_then(|from| from.order_id)),
        version: coupon.version,
        at,
    }
}

/// Changes of locked coupons that are to be written together.
struct Changes {
    now: Timestamp,
    /// The last of each coupon's changes.
    coupons: BTreeMap<CouponId, Coupon>,
    events: Events,
}

impl Changes {
    fn at(now: Timestamp) -> Self {
        Self { now, coupons: BTreeMap::new(), events: Events::at(now) }
    }

    /// `coupon` goes to `to`, for `order` if one is the reason.
    fn push(
        &mut self,
        ids: &Ids,
        coupon: &Coupon,
        order: Option<OrderId>,
        to: CouponState,
    ) -> Result<Coupon, DbFault> {
        let moved = coupon.clone().moved(to, order, self.now);
        self.events.push(ids.next()?, &event(&moved, Some(coupon), self.now))?;
        self.coupons.insert(moved.id, moved.clone());
        Ok(moved)
    }

    async fn write(self, tx: &Tx, ids: &Ids) -> Result<(), DbFault> {
        let now = self.now;
        if self.coupons.is_empty() {
            return Ok(());
        }
        let column = |value: fn(&Coupon) -> i64| Column::Big(self.coupons.values().map(value).collect());
        let states = self.coupons.values().map(|coupon| coupon.state.word().to_owned()).collect();
        let rows = Rows::new()
            .column("coupon", column(|coupon| coupon.id.0))
            .column("new_state", Column::Text(states))
            .column("new_order", column(|coupon| coupon.order_id.map_or(0, |order| order.0)))
            .column("new_use", column(|coupon| coupon.used_at.map_or(0, to_micros)))
            .column("new_version", column(|coupon| coupon.version));
        let set = "state = r.new_state, order_id = NULLIF(r.new_order, 0), used_at = NULLIF(r.new_use, 0), \
            version = r.new_version, updated_at = ?";
        let mut script = Script::new();
        let template = bulk::update(tx.get_database_backend(), "user_coupon", set, "id = r.coupon");
        script.push_rows(template, [to_micros(now).into()], rows);
        outbox::add(ids.next()?, self.events, now, &mut script);
        script.execute(tx).await?;
        Ok(())
    }
}
