//! An order: its lines, its amounts and how far it has come.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "orders")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    pub user_id: i64,
    /// `shop` or `flash_sale`.
    pub kind: String,
    pub state: String,
    pub version: i64,
    pub activity_id: Option<i64>,
    /// JSON: what was bought, at which price.
    pub items: String,
    /// JSON; none for a flash sale.
    pub address: Option<String>,
    pub goods_amount_minor: i64,
    pub shipping_fee_minor: i64,
    pub order_amount_minor: i64,
    pub coupon_id: Option<i64>,
    pub coupon_deduction_minor: i64,
    pub balance_paid_minor: i64,
    pub payable_minor: i64,
    pub currency: String,
    /// When a draft, or an order awaiting payment, is given up.
    pub due_at: i64,
    /// The payment that paid it; none if nothing was left to pay.
    pub paid_payment_id: Option<i64>,
    /// The state in which a refund was asked for.
    pub refund_from: Option<String>,
    pub cancel_cause: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
