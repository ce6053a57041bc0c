//! A range of an activity's stock tokens and who may hand them out.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "token_block")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub activity_id: i64,
    pub first_token: i32,
    pub last_token: i32,
    /// `open`, `leased` or `retired`.
    pub state: String,
    pub owner_node: Option<i32>,
    pub owner_incarnation: Option<i64>,
    /// Raised when the block changes hands: a batch that names an older epoch commits nothing.
    pub epoch: i64,
    /// Live takes within the range.
    pub sold: i32,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
