//! Changes of the stock that do not come with a batch: a take gives its token back, an operator adds or withdraws
//! tokens. Each is one transaction; the fence of the batches makes them exact while the activity sells.

use entities::activity;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect,
};
use serde::{Deserialize, Serialize};

use super::blocks;
use super::events::StockAdjusted;
use super::model::{AdjustError, ReleaseError, Take};
use super::release::release;
use super::store::StockStore;
use crate::activity::machine::State;
use crate::db::{DbFault, Tx, turn};
use crate::idempotency::{self, Answered, RequestKey};
use crate::ids::{ActivityId, AdjustmentId, Ids, TakeId, UserId};
use crate::messaging::outbox;
use crate::ports::clock::{Timestamp, to_micros};

impl StockStore {
    /// Gives a take's token back (R8): its row stays, its token and number are free. A take released before stays as
    /// it is.
    pub async fn release(
        &self,
        take: TakeId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<Released>, ReleaseError> {
        let (ids, clock) = (self.ids().clone(), self.clock.clone());
        idempotency::once(&self.db, &self.clock, key, 200, move |tx| {
            let (ids, now, reason) = (ids.clone(), clock.now(), reason.clone());
            async move {
                let (take, now) = release(&tx, &ids, now, take, &reason).await?;
                Ok(Released { take, now })
            }
        })
        .await
    }

    /// Raises or lowers an activity's stock by `delta` tokens.
    pub async fn adjust(
        &self,
        change: Adjustment,
        key: Option<RequestKey>,
    ) -> Result<Answered<Adjusted>, AdjustError> {
        let (ids, clock) = (self.ids().clone(), self.clock.clone());
        idempotency::once(&self.db, &self.clock, key, 201, move |tx| {
            let (ids, now, change) = (ids.clone(), clock.now(), change.clone());
            async move { adjust(&tx, &ids, now, change).await }
        })
        .await
    }
}

/// A take that is released.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Released {
    pub take: Take,
    /// Whether it was released now, not earlier.
    #[serde(skip)]
    pub now: bool,
}

/// Takes the note of a sell-out away, so that the next one is announced.
pub(super) async fn no_longer_sold_out(tx: &Tx, activity: ActivityId) -> Result<(), DbFault> {
    activity::Entity::update_many()
        .col_expr(activity::Column::SoldOutAt, Option::<i64>::None.into())
        .filter(activity::Column::Id.eq(activity.0))
        .filter(activity::Column::SoldOutAt.is_not_null())
        .exec(tx)
        .await?;
    Ok(())
}

/// A wish to change an activity's stock.
#[derive(Debug, Clone)]
pub struct Adjustment {
    pub activity: ActivityId,
    /// Tokens to add, or to withdraw if negative; not 0.
    pub delta: i32,
    pub reason: String,
    pub by: UserId,
}

/// A change of an activity's stock that was made.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Adjusted {
    pub id: AdjustmentId,
    pub activity_id: ActivityId,
    pub delta: i32,
    pub reason: String,
    pub stock: StockLevel,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// How much there is and how much is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StockLevel {
    pub total: i32,
    pub remaining: i64,
}

pub(super) async fn adjust(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    change: Adjustment,
) -> Result<Adjusted, AdjustError> {
    let id = change.activity;
    turn::to_change(tx, id.0).await?;
    let locked = activity::Entity::find_by_id(id.0).lock_exclusive().one(tx).await.map_err(DbFault::from)?;
    let row = locked.ok_or(AdjustError::NotFound)?;
    if row.state == State::Closed.word() {
        return Err(AdjustError::Closed);
    }
    let total = i64::from(row.stock_total) + i64::from(change.delta);
    let free = i64::from(row.stock_total) - blocks::sold_of(tx, id).await?;
    let stock_total = match i32::try_from(total) {
        Ok(total) if total >= 0 => total,
        // Below zero is also below what is sold: the plainer reason first.
        _ if total < 0 => return Err(AdjustError::Insufficient { free }),
        _ => return Err(AdjustError::OutOfRange(total)),
    };
    if change.delta > 0 {
        blocks::grow(tx, ids, id, change.delta.unsigned_abs()).await?;
        no_longer_sold_out(tx, id).await?;
    } else if !blocks::shrink(tx, ids, id, change.delta.unsigned_abs()).await? {
        return Err(AdjustError::Insufficient { free });
    }
    let version = row.version + 1;
    let mut row = row.into_active_model();
    row.stock_total = Set(stock_total);
    row.version = Set(version);
    row.updated_at = Set(to_micros(now));
    row.update(tx).await.map_err(DbFault::from)?;

    let adjustment: AdjustmentId = ids.next().map_err(DbFault::from)?;
    let kept = entities::stock_adjustment::ActiveModel {
        id: Set(adjustment.0),
        activity_id: Set(id.0),
        delta: Set(change.delta),
        stock_total: Set(stock_total),
        reason: Set(change.reason.clone()),
        adjusted_by: Set(change.by.0),
        created_at: Set(to_micros(now)),
    };
    entities::stock_adjustment::Entity::insert(kept)
        .exec_without_returning(tx)
        .await
        .map_err(DbFault::from)?;
    let stock = StockLevel { total: stock_total, remaining: free + i64::from(change.delta) };
    let event = StockAdjusted {
        activity_id: id,
        delta: change.delta,
        reason: change.reason.clone(),
        stock,
        version,
        adjusted_by: change.by,
        at: now,
    };
    outbox::append_one(tx, ids, now, &event).await?;
    Ok(Adjusted {
        id: adjustment,
        activity_id: id,
        delta: change.delta,
        reason: change.reason,
        stock,
        created_at: now,
    })
}
