//! What moved the quantity of goods. The units that are free are the sum of their ledger.

use entities::goods_ledger;
use sea_orm::ActiveValue::Set;
use sea_orm::EntityTrait;

use crate::db::{DbFault, Tx};
use crate::ids::{GoodsId, LedgerEntryId, UserId};
use crate::ports::clock::{Timestamp, to_micros};
use crate::words::words;

words! {
    /// Why a quantity moved.
    Kind, "kind of ledger entry" {
        Opening = "opening",
        Sale = "sale",
        Return = "return",
        Adjustment = "adjustment",
    }
}

/// An entry that an operator makes.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: LedgerEntryId,
    pub(super) goods: GoodsId,
    pub(super) kind: Kind,
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
