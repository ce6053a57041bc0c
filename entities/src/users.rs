//! Who may sign in: customers, operators and viewers.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// Where the identity comes from: `dev`, `password`, `minted`.
    pub provider: String,
    /// The provider's name for this user; unique per provider.
    pub subject: String,
    pub name: String,
    /// Role words joined by commas.
    pub roles: String,
    pub password_hash: Option<String>,
    pub first_login_at: Option<i64>,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
