//! A stock token held by a user; released takes keep their row with both `live_` columns NULL.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "take")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub activity_id: i64,
    pub user_id: i64,
    pub token_no: i32,
    pub take_no: i32,
    pub live_token: Option<i32>,
    pub live_take_no: Option<i32>,
    /// `unused`, `used` or `released`.
    pub state: String,
    pub taken_at: i64,
    pub released_at: Option<i64>,
    pub release_reason: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
