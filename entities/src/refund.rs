//! Money on its way back.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "refund")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub order_id: i64,
    /// The payment it returns; none if there was none, or if it was rejected.
    pub payment_id: Option<i64>,
    /// The order, if the refund undoes it; none if only a surplus payment goes back, or if it was rejected.
    pub refunded_order_id: Option<i64>,
    pub user_id: i64,
    pub channel: Option<String>,
    /// Through the gateway.
    pub amount_minor: i64,
    /// To the user's balance.
    pub balance_minor: i64,
    pub currency: String,
    /// `requested`, `approved`, `succeeded`, `failed` or `rejected`.
    pub state: String,
    /// `order`, `late_payment` or `double_payment`.
    pub cause: String,
    pub reason: String,
    pub decided_by: Option<i64>,
    pub failure: Option<String>,
    /// How an operator settled it by hand.
    pub note: Option<String>,
    pub version: i64,
    pub created_at: i64,
    pub updated_at: i64,
    pub settled_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
