//! The order that a request with an Idempotency-Key began; forgotten if the order came to nothing.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "order_request")]
pub struct Model {
    /// As in `idempotency`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub order_id: i64,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
