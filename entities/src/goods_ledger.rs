//! What moved the quantity of goods: a sale, its return, an adjustment.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "goods_ledger")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub goods_id: i64,
    /// The order, or the adjustment itself.
    pub reference_id: i64,
    /// `opening`, `sale`, `return` or `adjustment`.
    pub kind: String,
    /// Negative if units left the stock.
    pub quantity: i32,
    pub reason: Option<String>,
    pub made_by: Option<i64>,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
