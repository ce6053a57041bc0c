//! An event that a consumer group is to try again, or for the first time, when it is due.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "parked_event")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub group_name: String,
    pub event_id: i64,
    pub event_type: String,
    pub subject: String,
    /// The event as CloudEvents JSON.
    pub body: String,
    /// Tries so far.
    pub attempts: i32,
    pub due_at: i64,
    pub last_error: Option<String>,
    pub first_failed_at: Option<i64>,
    /// The queue it came from.
    pub origin: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
