//! Takes give their tokens back (R8): by an operator's word, or because their orders ended.
//!
//! A released take keeps its row; its token and its number are free to be taken again, and its user may take one more.
//! Many go in one transaction: the orders of a sale that nobody paid end all at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use async_trait::async_trait;
use entities::{activity, take};
use sea_orm::{ConnectionTrait, EntityTrait, FromQueryResult, QuerySelect};

use super::changes::no_longer_sold_out;
use super::events::TakeReleased;
use super::model::{ReleaseError, Take, TakeState};
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx, turn};
use crate::ids::{ActivityId, Ids, TakeId};
use crate::messaging::consumer::{Group, Handler, HandlerError};
use crate::messaging::envelope::Envelope;
use crate::messaging::outbox::{self, Events};
use crate::order::events::{End, Ending};
use crate::order::model::Kind;
use crate::order::store as orders;
use crate::ports::clock::{SharedClock, Timestamp, to_micros};
use crate::ports::event_bus::GroupSpec;

/// One released take, for whoever asked for it.
pub(super) async fn release(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    id: TakeId,
    reason: &str,
) -> Result<(Take, bool), ReleaseError> {
    let take = take::Entity::find_by_id(id.0).one(tx).await.map_err(DbFault::from)?;
    let take = Take::try_from(take.ok_or(ReleaseError::NotFound)?)?;
    match take.state {
        TakeState::Released => return Ok((take, false)),
        TakeState::Used => return Err(ReleaseError::Used),
        TakeState::Unused => {}
    }
    if orders::find(tx, crate::ids::OrderId(id.0)).await?.is_some() {
        return Err(ReleaseError::Ordered);
    }
    release_all(tx, ids, now, &BTreeMap::from([(id, reason)])).await?;
    // Somebody may have been faster: what it is now counts.
    let take = take::Entity::find_by_id(id.0).one(tx).await.map_err(DbFault::from)?;
    Ok((Take::try_from(take.ok_or(ReleaseError::NotFound)?)?, true))
}

/// Releases those of `takes` that hold their tokens, each for its reason.
pub(super) async fn release_all(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    takes: &BTreeMap<TakeId, &str>,
) -> Result<(), DbFault> {
    let named = read(tx, takes, "SELECT t.* FROM {rows} JOIN take t ON t.id = r.take").await?;
    let activities: BTreeSet<ActivityId> = named.iter().map(|take| take.activity_id).collect();
    for activity in activities {
        lock_activity(tx, activity).await?;
    }
    let locked = bulk::select_for_update(tx.get_database_backend(), "take", "id", "take");
    let mut held = read(tx, takes, &locked).await?;
    held.retain(|take| take.state == TakeState::Unused);
    if held.is_empty() {
        return Ok(());
    }
    let freed = freed_by_block(tx, &held).await?;
    let mut script = Script::new();
    let reason = |take: &Take| takes.get(&take.id).copied().unwrap_or_default();
    let rows = Rows::new()
        .column("take", Column::Big(held.iter().map(|take| take.id.0).collect()))
        .column("reason", Column::Text(held.iter().map(|take| reason(take).to_owned()).collect()));
    let set = "live_token = NULL, live_take_no = NULL, state = 'released', released_at = ?, \
        release_reason = r.reason";
    let update = bulk::update(tx.get_database_backend(), "take", set, "id = r.take");
    script.push_rows(update, [to_micros(now).into()], rows);
    for (block, count) in freed {
        script.push("UPDATE token_block SET sold = sold - ? WHERE id = ?", [count.into(), block.into()]);
    }
    let mut events = Events::at(now);
    for take in &held {
        events.push(ids.next()?, &released(take, now, reason(take)))?;
    }
    outbox::add(ids.next()?, events, now, &mut script);
    script.execute(tx).await?;
    Ok(())
}

async fn read(tx: &Tx, takes: &BTreeMap<TakeId, &str>, template: &str) -> Result<Vec<Take>, DbFault> {
    let rows = Rows::new().column("take", Column::Big(takes.keys().map(|take| take.0).collect()));
    let found = tx.query_all_raw(rows.statement(tx.get_database_backend(), template, [])).await?;
    found.iter().map(|row| Take::try_from(take::Model::from_query_result(row, "")?)).collect()
}

/// How many of the tokens of `takes` lie in each block, the blocks locked.
async fn freed_by_block(tx: &Tx, takes: &[Take]) -> Result<BTreeMap<i64, i32>, DbFault> {
    let backend = tx.get_database_backend();
    let blocks = bulk::join_locked(backend, "token_block b", "token_block_activity_first");
    let lock = bulk::for_update(backend, "b");
    let sql = format!(
        "SELECT b.id, r.take_id FROM {{rows}} {blocks} ON b.activity_id = r.activity_id \
         AND r.token BETWEEN b.first_token AND b.last_token ORDER BY b.id{lock}"
    );
    let rows = Rows::new()
        .column("take_id", Column::Big(takes.iter().map(|take| take.id.0).collect()))
        .column("activity_id", Column::Big(takes.iter().map(|take| take.activity_id.0).collect()))
        .column("token", Column::Int(takes.iter().map(|take| take.token_no).collect()));
    let mut counts = BTreeMap::new();
    let mut found = HashSet::new();
    for row in tx.query_all_raw(rows.statement(backend, &sql, [])).await? {
        *counts.entry(row.try_get("", "id")?).or_insert(0) += 1;
        found.insert(row.try_get::<i64>("", "take_id")?);
    }
    if found.len() == takes.len() {
        return Ok(counts);
    }
    // A block was cut while we waited for it: read again, now that the others are locked.
    Err(DbFault::Overtaken("the block of a released token"))
}

fn released<'a>(take: &Take, now: Timestamp, reason: &'a str) -> TakeReleased<&'a str> {
    TakeReleased {
        take_id: take.id,
        activity_id: take.activity_id,
        user_id: take.user_id,
        token_no: take.token_no,
        take_no: take.take_no,
        released_at: now,
        reason,
    }
}

/// Locks the activity before anything else of it is, in the order of the batches: shared, or exclusively to end its
/// sell-out.
async fn lock_activity(tx: &Tx, id: ActivityId) -> Result<(), DbFault> {
    let is_sold_out = |row: Option<activity::Model>| row.is_some_and(|row| row.sold_out_at.is_some());
    // Looked at first without a lock: two releases that both share the row could not both change it.
    if !is_sold_out(activity::Entity::find_by_id(id.0).one(tx).await?) {
        turn::to_share(tx, id.0).await?;
        if !is_sold_out(activity::Entity::find_by_id(id.0).lock_shared().one(tx).await?) {
            return Ok(());
        }
    }
    turn::to_change(tx, id.0).await?;
    no_longer_sold_out(tx, id).await
}

/// The consumer group that takes the tokens of flash-sale orders back that ended before they were shipped.
pub fn group(ids: Ids, clock: SharedClock) -> Group {
    let spec = GroupSpec { max_batch: 1000, ..GroupSpec::new("stock_orders", Ending::TYPES) };
    Group::new(spec, EndedOrders { ids, clock })
}

#[derive(Debug)]
struct EndedOrders {
    ids: Ids,
    clock: SharedClock,
}

#[async_trait]
impl Handler for EndedOrders {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let mut ended = BTreeMap::new();
        for event in events {
            let ending = Ending::of(event)?;
            if ending.kind == Kind::FlashSale && !ending.is_shipped() {
                let reason = match ending.end {
                    End::Cancelled => "order cancelled",
                    End::Refunded { .. } => "order refunded",
                };
                ended.insert(TakeId(ending.order_id.0), reason);
            }
        }
        Ok(release_all(tx, &self.ids, self.clock.now(), &ended).await?)
    }
}
