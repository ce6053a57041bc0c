//! A campaign: what is on offer, when, how many in all and for each user (ACT-1).

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "activity")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub name: String,
    pub kind: String,
    pub state: String,
    pub starts_at: i64,
    pub ends_at: i64,
    pub stock_total: i32,
    pub take_limit_per_user: Option<i32>,
    /// Set while no token is free, so that the sell-out is announced once.
    pub sold_out_at: Option<i64>,
    /// Raised by every change; each batch of takes fences on it.
    /// Of a flash sale.
    pub goods_id: Option<i64>,
    pub sale_price_minor: Option<i64>,
    pub version: i64,
    pub created_by: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
