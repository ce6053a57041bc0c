//! Goods of the shop: what one unit costs, and how many units there are and are free.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "goods")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub name: String,
    pub description: String,
    pub store_id: Option<i64>,
    /// `on_sale` or `off_sale`.
    pub state: String,
    pub price_minor: i64,
    pub stock_total: i32,
    /// Units that no order holds.
    pub available: i32,
    pub version: i64,
    pub created_by: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
