//! A message that a consumer group could not apply.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "dead_letter")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub group_name: String,
    /// The event's id; of an undecodable message, the SHA-256 of its body.
    pub message_key: String,
    /// Null if undecodable.
    pub event_id: Option<i64>,
    /// Empty if undecodable.
    pub event_type: String,
    /// Empty if undecodable.
    pub subject: String,
    pub body: String,
    /// `utf8` or `base64`.
    pub body_encoding: String,
    /// The queue it came from.
    pub origin: String,
    pub error: String,
    pub attempts: i32,
    pub first_failed_at: i64,
    pub died_at: i64,
    /// `waiting`, `replaying`, `applied` or `discarded`.
    pub state: String,
    pub replays: i32,
    /// Why it was discarded.
    pub reason: Option<String>,
    pub settled_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
