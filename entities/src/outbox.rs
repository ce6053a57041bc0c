//! Events committed with their cause and still to be published, or published already.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "outbox")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// JSON array of events; see `messaging::outbox`.
    pub events: String,
    /// The trace of the row's one cause; the takes of a batch have each their own.
    pub traceparent: Option<String>,
    pub created_at: i64,
    pub sent_at: Option<i64>,
    pub attempts: i32,
    pub retry_at: Option<i64>,
    pub last_error: Option<String>,
    pub event_count: i32,
    /// The types of its events, each once, with spaces between.
    pub types: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
