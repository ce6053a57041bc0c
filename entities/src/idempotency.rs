//! Answers kept for repeats of a request with the same Idempotency-Key.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    /// SHA-256 over user, route and key.
    pub id: Vec<u8>,
    /// SHA-256 over the request body.
    pub fingerprint: Vec<u8>,
    pub status: i32,
    pub body: String,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
