//! Token blocks in the database: which node may hand out which tokens (STK-2, STK-7, RELIABILITY R10).
//!
//! The blocks of an activity part the tokens 1..=n into ranges. A node sells from a block it holds; every batch raises
//! the block's `sold` in its own transaction, naming the epoch it knows. Whoever takes a block over raises the epoch
//! under the row's lock, so it waits for a batch in flight, and a node that slept commits nothing afterwards. Taking
//! over is therefore always safe, from the living as from the dead, and no stock is ever stranded: an activity is sold
//! out exactly when no block has `sold` below its size.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use entities::token_block::{ActiveModel, Column, Entity, Model};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect,
};

use super::ThisNode;
use super::ranges::{count, highest, nth_free, pieces, size, within};
use super::window::HeldBlock;
use crate::db::bulk::{self, Rows};
use crate::db::{DbFault, Tx, now_micros, turn};
use crate::ids::{ActivityId, BlockId, Ids};

/// Blocks are kept at least this many times smaller than an even share, so that nodes that sell faster find more.
const SHARES_PER_NODE: u32 = 4;

const OPEN: &str = "open";
const LEASED: &str = "leased";
const RETIRED: &str = "retired";

/// Tokens a block has at most, so that reading the free ones of a block never takes long.
const LARGEST: i32 = 1 << 20;

/// Lays out the drum of a new activity: all tokens in open blocks.
pub async fn create(tx: &Tx, ids: &Ids, activity: ActivityId, stock_total: i32) -> Result<(), DbFault> {
    insert_open(tx, ids, activity, 1..=stock_total).await
}

/// Removes the drum of an activity that has sold nothing yet.
pub async fn remove(tx: &Tx, activity: ActivityId) -> Result<(), DbFault> {
    Entity::delete_many().filter(Column::ActivityId.eq(activity.0)).exec(tx).await?;
    Ok(())
}

/// A block that now belongs to this node, with the tokens in it that are free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedBlock {
    pub held: HeldBlock,
    pub free: Vec<RangeInclusive<u32>>,
}

/// Takes tokens to sell for this node, or tells that every token is sold.
///
/// Takes, in this order: a block of ours (after a reload), an open one, one of a node that is gone, half of the free
/// tokens of a living node.
pub async fn claim(
    tx: &Tx,
    ids: &Ids,
    me: ThisNode,
    activity: ActivityId,
) -> Result<Option<ClaimedBlock>, DbFault> {
    lock_layout(tx, activity).await?;
    loop {
        let mut candidates = unsold(tx, activity).await?;
        let free_in_all: u32 = candidates.iter().map(free_count).sum();
        let gone = gone_owners(tx, &candidates).await?;
        let rank = |block: &Model| Rank::of(block, me, &gone);
        candidates.sort_by_key(|block| {
            (rank(block), u32::MAX - free_count(block) * u32::from(rank(block) == Rank::Peers))
        });
        if candidates.is_empty() {
            return Ok(None);
        }
        for seen in candidates {
            let Some(block) = lock(tx, &seen).await? else { continue };
            let free = free_tokens(tx, &block).await?;
            let wanted = match Rank::of(&block, me, &gone) {
                Rank::Ours => free_count(&block),
                Rank::Open | Rank::Orphaned if me.live_nodes <= 1 => free_count(&block),
                Rank::Open | Rank::Orphaned => free_in_all.div_ceil(SHARES_PER_NODE * me.live_nodes),
                Rank::Peers => free_count(&block).div_ceil(2),
            };
            let from_the_top = Rank::of(&block, me, &gone) == Rank::Peers;
            return take_over(tx, ids, me, block, free, wanted.max(1), from_the_top).await.map(Some);
        }
        // Every candidate changed hands or sold its last token between the two looks: look again.
    }
}

/// How readily a block is taken, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Ours,
    Open,
    Orphaned,
    Peers,
}

impl Rank {
    fn of(block: &Model, me: ThisNode, gone: &[(i32, i64)]) -> Self {
        match (block.owner_node, block.owner_incarnation) {
            (Some(node), Some(incarnation)) if (node, incarnation) == (me.node, me.incarnation) => Self::Ours,
            (Some(node), Some(incarnation)) if gone.contains(&(node, incarnation)) => Self::Orphaned,
            (Some(_), _) => Self::Peers,
            (None, _) => Self::Open,
        }
    }
}

/// Gives `me` `wanted` of the block's free tokens: the lowest, or the highest if the owner goes on selling the lowest.
async fn take_over(
    tx: &Tx,
    ids: &Ids,
    me: ThisNode,
    block: Model,
    free: Vec<RangeInclusive<u32>>,
    wanted: u32,
    from_the_top: bool,
) -> Result<ClaimedBlock, DbFault> {
    let available = count(&free);
    let range = tokens(&block);
    if wanted >= available {
        let held = HeldBlock {
            id: BlockId(block.id),
            epoch: block.epoch + 1,
            first: *range.start(),
            last: *range.end(),
        };
        let epoch = block.epoch + 1;
        let mut row = block.into_active_model();
        own(&mut row, me);
        row.epoch = Set(epoch);
        row.sold = Set(signed(size(&range) - available));
        row.update(tx).await?;
        return Ok(ClaimedBlock { held, free });
    }
    let boundary = nth_free(&free, if from_the_top { available - wanted } else { wanted });
    let (low, high) = (*range.start()..=boundary, boundary + 1..=*range.end());
    let (mine, rest) = if from_the_top { (high, low) } else { (low, high) };
    let (mine_free, rest_free) = (within(&free, &mine), within(&free, &rest));

    let activity = ActivityId(block.activity_id);
    let epoch = block.epoch + 1;
    let mut row = block.into_active_model();
    row.first_token = Set(signed(*rest.start()));
    row.last_token = Set(signed(*rest.end()));
    row.sold = Set(signed(size(&rest) - count(&rest_free)));
    row.epoch = Set(epoch);
    row.update(tx).await?;

    let id: BlockId = next_id(ids)?;
    let held = HeldBlock { id, epoch: 1, first: *mine.start(), last: *mine.end() };
    let mut row = new_row(id, activity, &mine, LEASED, size(&mine) - count(&mine_free));
    own(&mut row, me);
    Entity::insert(row).exec_without_returning(tx).await?;
    Ok(ClaimedBlock { held, free: mine_free })
}

/// Keeps everyone else from changing where blocks begin and end, and from counting in them, until `tx` ends. Batches and
/// releases share the activity's row while they count; so nobody waits for a block that is cut in two meanwhile.
async fn lock_layout(tx: &Tx, activity: ActivityId) -> Result<(), DbFault> {
    turn::to_change(tx, activity.0).await?;
    entities::activity::Entity::find_by_id(activity.0).lock_exclusive().one(tx).await?;
    Ok(())
}

/// Gives blocks back that this node stops selling; those taken over meanwhile are left alone.
pub async fn hand_back(tx: &Tx, held: &[HeldBlock]) -> Result<(), DbFault> {
    for block in held {
        Entity::update_many()
            .col_expr(Column::State, OPEN.into())
            .col_expr(Column::OwnerNode, Option::<i32>::None.into())
            .col_expr(Column::OwnerIncarnation, Option::<i64>::None.into())
            .col_expr(Column::Epoch, (block.epoch + 1).into())
            .filter(Column::Id.eq(block.id.0))
            .filter(Column::Epoch.eq(block.epoch))
            .exec(tx)
            .await?;
    }
    Ok(())
}

/// Raises the block's epoch, which waits for a batch in flight; afterwards that batch stands or never will (R5).
pub async fn fence_off(tx: &Tx, block: BlockId) -> Result<(), DbFault> {
    use sea_orm::sea_query::{Expr, ExprTrait};
    let next = Expr::col(Column::Epoch).add(1);
    Entity::update_many().col_expr(Column::Epoch, next).filter(Column::Id.eq(block.0)).exec(tx).await?;
    Ok(())
}

/// Adds `more` tokens: first those retired earlier, lowest first, then new ones behind the last.
pub async fn grow(tx: &Tx, ids: &Ids, activity: ActivityId, more: u32) -> Result<(), DbFault> {
    let mut missing = more;
    for block in all_locked(tx, activity).await?.into_iter().filter(|block| block.state == RETIRED) {
        if missing == 0 {
            return Ok(());
        }
        let range = tokens(&block);
        let back = size(&range).min(missing);
        missing -= back;
        let reopened = *range.start()..=*range.start() + (back - 1);
        let rest = *range.start() + back..=*range.end();
        Entity::delete_by_id(block.id).exec(tx).await?;
        insert(tx, ids, activity, signed_range(&reopened), OPEN, 0).await?;
        if !rest.is_empty() {
            insert(tx, ids, activity, signed_range(&rest), RETIRED, 0).await?;
        }
    }
    if missing > 0 {
        let last = all_locked(tx, activity).await?.iter().map(|block| block.last_token).max().unwrap_or(0);
        let end = last.checked_add(signed(missing)).ok_or(DbFault::Missing("a token number below 2^31"))?;
        insert_open(tx, ids, activity, last + 1..=end).await?;
    }
    Ok(())
}

/// Withdraws `fewer` free tokens, highest first; `false`, with nothing changed, if there are not that many.
pub async fn shrink(tx: &Tx, ids: &Ids, activity: ActivityId, fewer: u32) -> Result<bool, DbFault> {
    let mut blocks = all_locked(tx, activity).await?;
    blocks.retain(|block| block.state != RETIRED);
    if blocks.iter().map(free_count).sum::<u32>() < fewer {
        return Ok(false);
    }
    let mut missing = fewer;
    for block in blocks.into_iter().rev() {
        if missing == 0 {
            break;
        }
        let free = free_tokens(tx, &block).await?;
        let retired = highest(&free, missing);
        if retired.is_empty() {
            continue;
        }
        missing -= count(&retired);
        // Deleting the row is the strongest fence: a batch of any epoch finds nothing to raise.
        Entity::delete_by_id(block.id).exec(tx).await?;
        for (piece, is_retired) in pieces(&tokens(&block), &retired) {
            let sold = if is_retired { 0 } else { size(&piece) - count(&within(&free, &piece)) };
            let state = if is_retired { RETIRED } else { OPEN };
            insert(tx, ids, activity, signed_range(&piece), state, sold).await?;
        }
    }
    Ok(true)
}

/// Whether every token is sold; stays so until `tx` ends.
pub async fn are_sold_out(tx: &Tx, activity: ActivityId) -> Result<bool, DbFault> {
    let blocks = all_locked(tx, activity).await?;
    Ok(blocks.iter().all(|block| block.state == RETIRED || free_count(block) == 0))
}

/// Whether a token is free in any block, as far as one look tells.
pub async fn is_any_left(connection: &impl ConnectionTrait, activity: ActivityId) -> Result<bool, DbFault> {
    use sea_orm::sea_query::ExprTrait;
    let size = Column::LastToken.into_expr().sub(Column::FirstToken.into_expr()).add(1);
    let left = Entity::find()
        .filter(Column::ActivityId.eq(activity.0))
        .filter(Column::State.ne(RETIRED))
        .filter(ExprTrait::lt(Column::Sold.into_expr(), size));
    Ok(left.one(connection).await?.is_some())
}

/// How many units of each of `activities` are taken; one without blocks is left out.
pub async fn sold(
    connection: &impl ConnectionTrait,
    activities: Vec<ActivityId>,
) -> Result<HashMap<ActivityId, i64>, DbFault> {
    const SOLD: &str = "SELECT b.activity_id, CAST(SUM(b.sold) AS {int}) AS units FROM token_block AS b \
        WHERE b.activity_id IN (SELECT r.id FROM {rows}) GROUP BY b.activity_id";
    let backend = connection.get_database_backend();
    let ids = activities.into_iter().map(|activity| activity.0).collect();
    let rows = Rows::new().column("id", bulk::Column::Big(ids));
    let sql = rows.statement(backend, &SOLD.replace("{int}", bulk::integer(backend)), []);
    let sums = connection.query_all_raw(sql).await?;
    sums.iter()
        .map(|row| Ok((ActivityId(row.try_get("", "activity_id")?), row.try_get("", "units")?)))
        .collect()
}

/// How many units of `activity` are taken.
pub async fn sold_of(connection: &impl ConnectionTrait, activity: ActivityId) -> Result<i64, DbFault> {
    Ok(sold(connection, vec![activity]).await?.remove(&activity).unwrap_or(0))
}

/// How many units of `activity` are not taken.
pub async fn remaining(connection: &impl ConnectionTrait, activity: ActivityId) -> Result<i64, DbFault> {
    const REMAINING: &str = "SELECT CAST(COALESCE(SUM(last_token - first_token + 1 - sold), 0) AS {int}) AS units \
        FROM token_block WHERE activity_id = ? AND state <> ?";
    let backend = connection.get_database_backend();
    let template = REMAINING.replace("{int}", bulk::integer(backend));
    let sql = bulk::statement(backend, &template, [activity.0.into(), RETIRED.into()]);
    let row = connection.query_one_raw(sql).await?.ok_or(DbFault::Missing("a sum"))?;
    Ok(row.try_get("", "units")?)
}

/// The blocks of `activity` that still have free tokens.
async fn unsold(tx: &Tx, activity: ActivityId) -> Result<Vec<Model>, DbFault> {
    let mut blocks = Entity::find()
        .filter(Column::ActivityId.eq(activity.0))
        .filter(Column::State.ne(RETIRED))
        .order_by_asc(Column::FirstToken)
        .all(tx)
        .await?;
    blocks.retain(|block| free_count(block) > 0);
    Ok(blocks)
}

async fn all_locked(tx: &Tx, activity: ActivityId) -> Result<Vec<Model>, DbFault> {
    let query = Entity::find().filter(Column::ActivityId.eq(activity.0)).order_by_asc(Column::FirstToken);
    Ok(query.lock_exclusive().all(tx).await?)
}

/// Locks the block, waiting for a batch in flight; `None` if it is not what was seen, or has nothing free any more.
async fn lock(tx: &Tx, seen: &Model) -> Result<Option<Model>, DbFault> {
    let locked = Entity::find_by_id(seen.id).lock_exclusive().one(tx).await?;
    Ok(locked.filter(|block| {
        free_count(block) > 0
            && block.state != RETIRED
            && (block.owner_node, block.owner_incarnation) == (seen.owner_node, seen.owner_incarnation)
    }))
}

/// The owners among `blocks` whose node number is not leased to them any more.
async fn gone_owners(tx: &Tx, blocks: &[Model]) -> Result<Vec<(i32, i64)>, DbFault> {
    let mut owners: Vec<(i32, i64)> =
        blocks.iter().filter_map(|block| Some((block.owner_node?, block.owner_incarnation?))).collect();
    owners.sort_unstable();
    owners.dedup();
    if owners.is_empty() {
        return Ok(owners);
    }
    let now = now_micros(tx).await?;
    let living = entities::node::Entity::find()
        .filter(entities::node::Column::ExpiresAt.gt(now))
        .all(tx)
        .await?
        .into_iter()
        .map(|node| (node.id, node.incarnation))
        .collect::<Vec<_>>();
    owners.retain(|owner| !living.contains(owner));
    Ok(owners)
}

/// The free tokens of a locked block, ascending: the gaps between its live takes.
async fn free_tokens(tx: &Tx, block: &Model) -> Result<Vec<RangeInclusive<u32>>, DbFault> {
    const HIGHEST: &str =
        "SELECT MAX(live_token) AS last FROM take WHERE activity_id = ? AND live_token BETWEEN ? AND ?";
    const GAPS: &str = "SELECT CAST(previous + 1 AS {int}) AS first, CAST(live_token - 1 AS {int}) AS last FROM (\
          SELECT live_token, COALESCE(LAG(live_token) OVER (ORDER BY live_token), CAST(? AS {int})) AS previous \
          FROM take WHERE activity_id = ? AND live_token BETWEEN ? AND ?) AS live \
        WHERE live_token > previous + 1 ORDER BY 1";
    let range = tokens(block);
    if block.sold == 0 {
        return Ok(vec![range]);
    }
    let backend = tx.get_database_backend();
    let bounds = [block.activity_id.into(), block.first_token.into(), block.last_token.into()];
    let highest = tx.query_one_raw(bulk::statement(backend, HIGHEST, bounds.clone())).await?;
    let highest: Option<i32> = highest.ok_or(DbFault::Missing("an aggregate's row"))?.try_get("", "last")?;
    let last_live = highest.map_or(*range.start() - 1, unsigned);

    let mut free = Vec::new();
    // Tokens are handed out lowest first, so mostly the live ones are the block's first ones, without a gap.
    if last_live + 1 - *range.start() != unsigned(block.sold) {
        let gaps = GAPS.replace("{int}", bulk::integer(backend));
        let values = [i64::from(block.first_token - 1).into()].into_iter().chain(bounds);
        for row in tx.query_all_raw(bulk::statement(backend, &gaps, values)).await? {
            let [first, last] = ["first", "last"].map(|column| row.try_get::<i64>("", column));
            free.push(token(first?)?..=token(last?)?);
        }
    }
    if last_live < *range.end() {
        free.push(last_live + 1..=*range.end());
    }
    Ok(free)
}

fn token(number: i64) -> Result<u32, DbFault> {
    u32::try_from(number).map_err(|_| DbFault::Missing("a token number"))
}

async fn insert_open(
    tx: &Tx,
    ids: &Ids,
    activity: ActivityId,
    tokens: RangeInclusive<i32>,
) -> Result<(), DbFault> {
    let mut first = *tokens.start();
    while first <= *tokens.end() {
        let last = first.saturating_add(LARGEST - 1).min(*tokens.end());
        insert(tx, ids, activity, first..=last, OPEN, 0).await?;
        let Some(next) = last.checked_add(1) else { break };
        first = next;
    }
    Ok(())
}

async fn insert(
    tx: &Tx,
    ids: &Ids,
    activity: ActivityId,
    range: RangeInclusive<i32>,
    state: &str,
    sold: u32,
) -> Result<(), DbFault> {
    let range = unsigned(*range.start())..=unsigned(*range.end());
    let row = new_row(next_id(ids)?, activity, &range, state, sold);
    Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

fn new_row(
    id: BlockId,
    activity: ActivityId,
    range: &RangeInclusive<u32>,
    state: &str,
    sold: u32,
) -> ActiveModel {
    ActiveModel {
        id: Set(id.0),
        activity_id: Set(activity.0),
        first_token: Set(signed(*range.start())),
        last_token: Set(signed(*range.end())),
        state: Set(state.to_owned()),
        owner_node: Set(None),
        owner_incarnation: Set(None),
        epoch: Set(1),
        sold: Set(signed(sold)),
    }
}

fn own(row: &mut ActiveModel, me: ThisNode) {
    row.state = Set(LEASED.to_owned());
    row.owner_node = Set(Some(me.node));
    row.owner_incarnation = Set(Some(me.incarnation));
}

fn next_id(ids: &Ids) -> Result<BlockId, DbFault> {
    Ok(ids.next()?)
}

fn tokens(block: &Model) -> RangeInclusive<u32> {
    unsigned(block.first_token)..=unsigned(block.last_token)
}

fn free_count(block: &Model) -> u32 {
    size(&tokens(block)).saturating_sub(unsigned(block.sold))
}

/// Token numbers fit 31 bits: they start at 1 and an activity's stock is at most 2^31 - 1.
fn signed(token: u32) -> i32 {
    i32::try_from(token).unwrap_or(i32::MAX)
}

fn unsigned(token: i32) -> u32 {
    u32::try_from(token).unwrap_or(0)
}

fn signed_range(range: &RangeInclusive<u32>) -> RangeInclusive<i32> {
    signed(*range.start())..=signed(*range.end())
}
