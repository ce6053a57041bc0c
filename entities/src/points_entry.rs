//! What changed a user's points.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "points_entry")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub user_id: i64,
    /// The order, or the adjustment itself.
    pub reference_id: i64,
    /// `earned`, `taken_back` or `adjustment`.
    pub kind: String,
    pub points: i64,
    pub points_after: i64,
    pub reason: Option<String>,
    pub made_by: Option<i64>,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
