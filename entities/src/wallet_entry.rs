//! What changed a balance.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "wallet_entry")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub user_id: i64,
    /// The order, or the adjustment itself.
    pub reference_id: i64,
    /// `pay`, `refund` or `adjustment`.
    pub kind: String,
    pub amount_minor: i64,
    pub balance_after_minor: i64,
    pub reason: Option<String>,
    pub made_by: Option<i64>,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
