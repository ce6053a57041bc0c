//! What a gateway said of a payment, as it said it (PAY-3).

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "payment_record")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub payment_id: i64,
    pub channel: String,
    /// `callback`, `query`, `close` or `operator`.
    pub kind: String,
    pub transaction_id: Option<String>,
    pub outcome: String,
    pub body: String,
    /// Those that the signature of a callback is made of, as JSON.
    pub headers: Option<String>,
    /// Why it was not believed.
    pub contradiction: Option<String>,
    pub received_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
