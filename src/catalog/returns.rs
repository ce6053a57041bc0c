//! Units come back: what an order that came to nothing held is free again, once (STK-9; defects ).

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DbBackend};

use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::ids::{GoodsId, Ids, LedgerEntryId, OrderId};
use crate::messaging::consumer::{Group, Handler, HandlerError};
use crate::messaging::envelope::Envelope;
use crate::order::events::Ending;
use crate::ports::clock::{SharedClock, Timestamp, to_micros};
use crate::ports::event_bus::GroupSpec;

/// The consumer group that returns what cancelled orders held, and refunded ones whose goods had not left.
pub fn group(ids: Ids, clock: SharedClock) -> Group {
    let spec = GroupSpec { max_batch: 1000, ..GroupSpec::new("goods_orders", Ending::TYPES) };
    Group::new(spec, Returns { ids, clock }).harmless_repeats()
}

#[derive(Debug)]
struct Returns {
    ids: Ids,
    clock: SharedClock,
}

#[async_trait]
impl Handler for Returns {
    async fn apply(&self, tx: &Tx, events: &[Envelope]) -> Result<(), HandlerError> {
        let mut orders = Vec::with_capacity(events.len());
        for event in events {
            let ending = Ending::of(event)?;
            if !ending.is_shipped() {
                orders.push(ending.order_id);
            }
        }
        give_back(tx, &self.ids, self.clock.now(), &orders).await?;
        Ok(())
    }
}

/// Makes free again what `orders` hold by the ledger; tells of which goods. What came back already does not come again.
pub async fn give_back(
    tx: &Tx,
    ids: &Ids,
    now: Timestamp,
    orders: &[OrderId],
) -> Result<Vec<GoodsId>, DbFault> {
    let mut goods: Vec<GoodsId> = held(tx, orders).await?.into_iter().map(|held| held.goods).collect();
    goods.sort_unstable();
    goods.dedup();
    if goods.is_empty() {
        return Ok(goods);
    }
    lock(tx, &goods).await?;
    // Again behind the lock: somebody else may have been faster.
    let held = held(tx, orders).await?;
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let mut script = Script::new();
    raise(&held, tx.get_database_backend(), &mut script);
    insert_returns(ids, now, &held, &mut script)?;
    script.execute(tx).await?;
    Ok(goods)
}

/// Locks `goods`, which are sorted.
async fn lock(tx: &Tx, goods: &[GoodsId]) -> Result<(), DbFault> {
    let backend = tx.get_database_backend();
    let rows = Rows::new().column("goods_id", Column::Big(goods.iter().map(|goods| goods.0).collect()));
    let sql = bulk::select_for_update(backend, "goods", "id", "goods_id");
    tx.query_all_raw(rows.statement(backend, &sql, [])).await?;
    Ok(())
}

/// In SQL, whether the order `o` holds units that have not come back.
// "+ 0": as in sale.rs.
macro_rules! holds_units {
    () => {
        "EXISTS (SELECT 1 FROM goods_ledger AS s WHERE s.reference_id = o.id AND s.kind = 'sale' \
        AND NOT EXISTS (SELECT 1 FROM goods_ledger AS b WHERE b.reference_id = s.reference_id \
        AND b.goods_id + 0 = s.goods_id AND b.kind = 'return'))"
    };
}
pub(crate) use holds_units;

/// Units that an order holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    goods: GoodsId,
    order: OrderId,
    quantity: i32,
}

/// What `orders` hold, by goods.
async fn held(tx: &Tx, orders: &[OrderId]) -> Result<Vec<Held>, DbFault> {
    // "+ 0": as in sale.rs.
    const HELD: &str = "SELECT s.goods_id AS goods_id, s.reference_id AS order_id, s.quantity AS quantity FROM {rows} \
        JOIN goods_ledger AS s ON s.reference_id = r.id AND s.kind = 'sale' \
        WHERE NOT EXISTS (SELECT 1 FROM goods_ledger AS b WHERE b.reference_id = s.reference_id \
        AND b.goods_id + 0 = s.goods_id AND b.kind = 'return') ORDER BY s.goods_id, s.reference_id";
    let mut ids: Vec<i64> = orders.iter().map(|order| order.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows = Rows::new().column("id", Column::Big(ids));
    let found = tx.query_all_raw(rows.statement(tx.get_database_backend(), HELD, [])).await?;
    found
        .into_iter()
        .map(|row| {
            let sold: i32 = row.try_get("", "quantity")?;
            let (goods, order) = (row.try_get("", "goods_id")?, row.try_get("", "order_id")?);
            Ok(Held { goods: GoodsId(goods), order: OrderId(order), quantity: -sold })
        })
        .collect()
}

fn raise(held: &[Held], backend: DbBackend, script: &mut Script) {
    let (mut goods, mut units): (Vec<i64>, Vec<i32>) = (Vec::new(), Vec::new());
    for of_one in held.chunk_by(|one, next| one.goods == next.goods) {
        goods.push(of_one[0].goods.0);
        units.push(of_one.iter().map(|held| held.quantity).sum());
    }
    let rows = Rows::new().column("goods_id", Column::Big(goods)).column("units", Column::Int(units));
    script.push_rows(
        bulk::update(backend, "goods", "available = available + r.units", "id = r.goods_id"),
        [],
        rows,
    );
}

fn insert_returns(ids: &Ids, now: Timestamp, held: &[Held], script: &mut Script) -> Result<(), DbFault> {
    let entries = held.iter().map(|_| Ok(ids.next::<LedgerEntryId>()?.0)).collect::<Result<_, DbFault>>()?;
    let rows = Rows::new()
        .column("id", Column::Big(entries))
        .column("goods_id", Column::Big(held.iter().map(|held| held.goods.0).collect()))
        .column("order_id", Column::Big(held.iter().map(|held| held.order.0).collect()))
        .column("quantity", Column::Int(held.iter().map(|held| held.quantity).collect()));
    script.push_rows(
        "INSERT INTO goods_ledger (id, goods_id, reference_id, kind, quantity, created_at) \
         SELECT r.id, r.goods_id, r.order_id, 'return', r.quantity, ? FROM {rows}",
        [to_micros(now).into()],
        rows,
    );
    Ok(())
}
