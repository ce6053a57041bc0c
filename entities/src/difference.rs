//! A difference that a reconciliation found, and what was done about it.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "difference")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub reconciliation_id: i64,
    pub comparison: String,
    /// What it is about, as its comparison names it.
    pub subject: String,
    pub expected: String,
    pub found: String,
    pub detail: String,
    /// What is proposed.
    pub action: String,
    /// `open`, `applied` or `gone`.
    pub state: String,
    pub outcome: Option<String>,
    pub settled_at: Option<i64>,
    pub found_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
