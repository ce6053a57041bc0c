//! An attempt to pay an order through a gateway.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "payment")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub order_id: i64,
    pub user_id: i64,
    pub channel: String,
    /// `pending`, `succeeded`, `failed` or `closed`.
    pub state: String,
    pub amount_minor: i64,
    pub currency: String,
    /// The gateway's name for the capture.
    pub transaction_id: Option<String>,
    /// Who paid, as the gateway names them.
    pub payer: Option<String>,
    /// How the customer wanted to pay; none: the channel's usual way.
    pub mode: Option<String>,
    /// Who was to pay, as the gateway names them.
    pub wished_payer: Option<String>,
    pub failure: Option<String>,
    pub version: i64,
    pub created_at: i64,
    pub updated_at: i64,
    pub settled_at: Option<i64>,
    /// When the gateway is asked once more, because it did not know the payment that was to be closed.
    pub recheck_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
