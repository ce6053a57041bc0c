//! The log of captures that the consumer group of the same name keeps (PAY-7).

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "payment_log")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub payment_id: i64,
    pub order_id: i64,
    pub user_id: i64,
    pub channel: String,
    pub transaction_id: String,
    pub amount_minor: i64,
    pub currency: String,
    pub paid_at: i64,
    pub logged_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
