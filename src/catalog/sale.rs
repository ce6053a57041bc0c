//! Units go to orders: to many orders in one transaction.

use std::collections::HashMap;

use sea_orm::ConnectionTrait;

use super::model::{Goods, ReserveError};
use super::store;
use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::faults;
use crate::ids::{GoodsId, Ids, LedgerEntryId, OrderId};
use crate::ports::clock::{Timestamp, to_micros};

/// How many units an order wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) order: OrderId,
    /// Positive.
    pub(super) quantity: i32,
}

/// What became of a batch of wishes.
#[derive(Debug)]
pub(super) struct Outcomes {
    /// Of every order that was asked for.
    pub(super) by_order: HashMap<OrderId, Result<(), ReserveError>>,
    /// Units that are still free; none if the goods are not on sale.
    pub(super) left: Option<i32>,
}

/// Gives units of `goods` to the orders of `wishes`, in this order; who wants more than is left goes empty, and those
/// behind who want less do not. An order that has its units keeps them and gets no more.
///
/// The goods are locked first: all that writes their ledger does so, hence what it says now stays true. The shared lock
/// keeps each order a draft until `tx` ends: it is not given up, and what it holds not returned, before what it gets
/// here is written.
pub(super) async fn sell(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    goods: GoodsId,
    wishes: &[Wish],
) -> Result<Outcomes, DbFault> {
    let on_sale = store::lock(tx, goods).await?.filter(Goods::is_on_sale);
    let mut left = on_sale.map(|goods| goods.stock.available);
    let drafts = lock_drafts(tx, goods, wishes).await?;
    let mut sold: Vec<Wish> = Vec::new();
    let mut by_order = HashMap::with_capacity(wishes.len());
    for wish in wishes {
        by_order.entry(wish.order).or_insert_with(|| match (drafts.get(&wish.order), &mut left) {
            (None, _) => Err(ReserveError::NotDraft),
            (Some(Holds::Units), _) => Ok(()),
            (Some(Holds::Nothing), None) => Err(ReserveError::NotFound),
            (Some(Holds::Nothing), Some(left)) if wish.quantity > *left => {
                Err(ReserveError::Insufficient { available: *left })
            }
            (Some(Holds::Nothing), Some(left)) => {
                *left -= wish.quantity;
                sold.push(*wish);
                Ok(())
            }
        });
    }
    if !sold.is_empty() {
        write(tx, ids, now, goods, &sold).await?;
    }
    faults::point("after_goods_sale").await?;
    Ok(Outcomes { by_order, left })
}

/// What a draft has of the goods.
enum Holds {
    Nothing,
    Units,
}

/// Those orders of `wishes` that are drafts, and stay drafts until `tx` ends.
async fn lock_drafts(tx: &Tx, goods: GoodsId, wishes: &[Wish]) -> Result<HashMap<OrderId, Holds>, DbFault> {
    let backend = tx.get_database_backend();
    let named = bulk::join_locked(backend, "orders AS o", bulk::PRIMARY_KEY);
    let lock = bulk::for_share(backend, "o");
    // "+ 0": planned while the ledger is empty, the index of the goods would look as good as that of the order, and every
    // look would read all sales of the goods.
    let drafts = format!(
        "SELECT o.id AS id, l.id AS entry FROM {{rows}} {named} ON o.id = r.id AND o.state = 'draft' \
        LEFT JOIN goods_ledger AS l ON l.reference_id = o.id AND l.goods_id + 0 = ? AND l.kind = 'sale' \
        ORDER BY o.id{lock}"
    );
    let mut orders: Vec<i64> = wishes.iter().map(|wish| wish.order.0).collect();
    orders.sort_unstable();
    orders.dedup();
    let rows = Rows::new().column("id", Column::Big(orders));
    let found = tx.query_all_raw(rows.statement(backend, &drafts, [goods.0.into()])).await?;
    found
        .into_iter()
        .map(|row| {
            let entry: Option<i64> = row.try_get("", "entry")?;
            let holds = if entry.is_some() { Holds::Units } else { Holds::Nothing };
            Ok((OrderId(row.try_get("", "id")?), holds))
        })
        .collect()
}

async fn write(tx: &Tx, ids: &Ids, now: Timestamp, goods: GoodsId, sold: &[Wish]) -> Result<(), DbFault> {
    let units: i32 = sold.iter().map(|wish| wish.quantity).sum();
    let entries = sold.iter().map(|_| Ok(ids.next::<LedgerEntryId>()?.0)).collect::<Result<_, DbFault>>()?;
    let rows = Rows::new()
        .column("id", Column::Big(entries))
        .column("order_id", Column::Big(sold.iter().map(|wish| wish.order.0).collect()))
        .column("quantity", Column::Int(sold.iter().map(|wish| -wish.quantity).collect()));
    let mut script = Script::new();
    script.push(
        "UPDATE goods SET available = available - ? WHERE id = ? AND available >= ?",
        [units.into(), goods.0.into(), units.into()],
    );
    script.push_rows(
        "INSERT INTO goods_ledger (id, goods_id, reference_id, kind, quantity, created_at) \
         SELECT r.id, ?, r.order_id, 'sale', r.quantity, ? FROM {rows}",
        [goods.0.into(), to_micros(now).into()],
        rows,
    );
    let touched = script.execute(tx).await?;
    if touched == 1 + sold.len() as u64 { Ok(()) } else { Err(DbFault::Missing("the stock of locked goods")) }
}
