//! The one place that changes coupons, many at a time: each under its row's lock, with its event.

use std::collections::{BTreeMap, BTreeSet};

use entities::user_coupon;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter};

use super::events::{CouponState, CouponStateChanged};
use super::model::{Coupon, CouponError, Fate, Spend};
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx};
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

/// Writes a new coupon with its event.
pub(super) async fn insert(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    row: user_coupon::ActiveModel,
    coupon: &Coupon,
) -> Result<(), DbFault> {
    user_coupon::Entity::insert(row).exec_without_returning(tx).await?;
    outbox::append_one(tx, ids, now, &event(coupon, None, now)).await
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
        outbox::add(tx, ids.next()?, self.events, now, &mut script);
        script.execute(tx).await?;
        Ok(())
    }
}
