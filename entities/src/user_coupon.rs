//! A coupon in the hands of a user.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "user_coupon")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub user_id: i64,
    pub name: String,
    pub face_value_minor: i64,
    pub min_spend_minor: i64,
    /// `unused`, `locked`, `used`, `expired` or `void`.
    pub state: String,
    pub valid_from: i64,
    pub valid_until: i64,
    /// The order that locked or used it.
    pub order_id: Option<i64>,
    pub source: String,
    pub source_id: Option<i64>,
    pub version: i64,
    pub used_at: Option<i64>,
    /// Why an operator made it void.
    pub void_reason: Option<String>,
    pub voided_by: Option<i64>,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
