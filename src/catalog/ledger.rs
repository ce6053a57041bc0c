//! What moved the quantity of goods. The units that are free are the sum of their ledger.

use entities::goods_ledger;
use sea_orm::ActiveValue::Set;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::{DbFault, Tx};
use crate::ids::{GoodsId, LedgerEntryId, OrderId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::ports::clock::{Timestamp, from_micros, to_micros};
use crate::words::words;

words! {
    /// Why a quantity moved.
    StockChange, "kind of ledger entry" {
        Opening = "opening",
        Sale = "sale",
        Return = "return",
        Adjustment = "adjustment",
    }
}

/// A movement of the stock of goods, as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StockEntry {
    pub id: LedgerEntryId,
    pub kind: StockChange,
    /// The units that came in; that left, if negative.
    pub quantity: i32,
    /// Of a sale, or its return.
    #[schema(required = true)]
    pub order_id: Option<OrderId>,
    /// Of an adjustment.
    #[schema(required = true)]
    pub reason: Option<String>,
    /// The operator, if it was one.
    #[schema(required = true)]
    pub made_by: Option<UserId>,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl TryFrom<goods_ledger::Model> for StockEntry {
    type Error = DbFault;

    fn try_from(row: goods_ledger::Model) -> Result<Self, DbFault> {
        let kind = row.kind.parse()?;
        let order_id =
            matches!(kind, StockChange::Sale | StockChange::Return).then_some(OrderId(row.reference_id));
        Ok(Self {
            id: LedgerEntryId(row.id),
            kind,
            quantity: row.quantity,
            order_id,
            reason: row.reason,
            made_by: row.made_by.map(UserId),
            created_at: from_micros(row.created_at),
        })
    }
}

/// Up to `limit` movements of the stock of `goods` older than `before`, newest first.
pub(super) async fn page(
    connection: &impl ConnectionTrait,
    goods: GoodsId,
    before: Option<LedgerEntryId>,
    limit: u64,
) -> Result<Vec<StockEntry>, DbFault> {
    let mut query = goods_ledger::Entity::find().filter(goods_ledger::Column::GoodsId.eq(goods.0));
    if let Some(before) = before {
        query = query.filter(goods_ledger::Column::Id.lt(before.0));
    }
    let rows = query.order_by_desc(goods_ledger::Column::Id).limit(limit).all(connection).await?;
    rows.into_iter().map(StockEntry::try_from).collect()
}

/// An entry that an operator makes.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: LedgerEntryId,
    pub(super) goods: GoodsId,
    pub(super) kind: StockChange,
    pub(super) quantity: i32,
    pub(super) reason: Option<String>,
    pub(super) by: UserId,
    pub(super) at: Timestamp,
}

/// Writes `entry`, which is its own reference.
pub(super) async fn append(tx: &Tx, entry: Entry) -> Result<(), DbFault> {
    let row = goods_ledger::ActiveModel {
        id: Set(entry.id.0),
        goods_id: Set(entry.goods.0),
        reference_id: Set(entry.id.0),
        kind: Set(entry.kind.word().to_owned()),
        quantity: Set(entry.quantity),
        reason: Set(entry.reason),
        made_by: Set(Some(entry.by.0)),
        created_at: Set(to_micros(entry.at)),
    };
    goods_ledger::Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}
