//! Orders with their history, and what a sale of an activity costs.
//!
//! An order is one row: its lines and its address are what they were when it was made, so they live in it. A flash sale's
//! order has the id of its take, so the primary key is what gives a take one order.

use sea_orm_migration::prelude::*;

use crate::columns::{
    id, long_text, optional_big, optional_text, required_big, required_hash, required_text, table,
};
use crate::steps::{add_column, create_table, drop_column, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Orders {
    Table,
    Id,
    UserId,
    Kind,
    State,
    Version,
    ActivityId,
    Items,
    Address,
    GoodsAmountMinor,
    ShippingFeeMinor,
    OrderAmountMinor,
    CouponId,
    CouponDeductionMinor,
    BalancePaidMinor,
    PayableMinor,
    Currency,
    DueAt,
    PaidPaymentId,
    RefundFrom,
    CancelCause,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum OrderRequest {
    Table,
    Id,
    OrderId,
    CreatedAt,
}

#[derive(DeriveIden)]
enum OrderEvent {
    Table,
    OrderId,
    Version,
    EventType,
    Cause,
    Data,
    CreatedAt,
}

#[derive(DeriveIden)]
enum Activity {
    Table,
    GoodsId,
    SalePriceMinor,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Orders::Table)
                .col(id(Orders::Id))
                .col(required_big(Orders::UserId))
                .col(required_text(Orders::Kind, 16))
                .col(required_text(Orders::State, 20))
                .col(required_big(Orders::Version))
                .col(optional_big(Orders::ActivityId))
                .col(long_text(manager, Orders::Items))
                .col(optional_text(Orders::Address, 1024))
                .col(required_big(Orders::GoodsAmountMinor))
                .col(required_big(Orders::ShippingFeeMinor))
                .col(required_big(Orders::OrderAmountMinor))
                .col(optional_big(Orders::CouponId))
                .col(required_big(Orders::CouponDeductionMinor))
                .col(required_big(Orders::BalancePaidMinor))
                .col(required_big(Orders::PayableMinor))
                .col(required_text(Orders::Currency, 3))
                .col(required_big(Orders::DueAt))
                .col(optional_big(Orders::PaidPaymentId))
                .col(optional_text(Orders::RefundFrom, 20))
                .col(optional_text(Orders::CancelCause, 16))
                .col(required_big(Orders::CreatedAt))
                .col(required_big(Orders::UpdatedAt))
                .take(),
        )
        .await?;
        index(manager, Orders::Table, "orders_user", [Orders::UserId, Orders::Id]).await?;
        index(manager, Orders::Table, "orders_state_due", [Orders::State, Orders::DueAt]).await?;
        create_table(
            manager,
            table(manager, OrderRequest::Table)
                .col(required_hash(OrderRequest::Id).primary_key())
                .col(required_big(OrderRequest::OrderId))
                .col(required_big(OrderRequest::CreatedAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, OrderEvent::Table)
                .col(required_big(OrderEvent::OrderId))
                .col(required_big(OrderEvent::Version))
                .col(required_text(OrderEvent::EventType, 32))
                .col(required_text(OrderEvent::Cause, 160))
                .col(long_text(manager, OrderEvent::Data))
                .col(required_big(OrderEvent::CreatedAt))
                .primary_key(Index::create().col(OrderEvent::OrderId).col(OrderEvent::Version))
                .take(),
        )
        .await?;
        add_column(manager, Activity::Table, optional_big(Activity::GoodsId)).await?;
        add_column(manager, Activity::Table, optional_big(Activity::SalePriceMinor)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, OrderEvent::Table).await?;
        drop_table(manager, OrderRequest::Table).await?;
        drop_table(manager, Orders::Table).await?;
        drop_column(manager, Activity::Table, Activity::GoodsId).await?;
        drop_column(manager, Activity::Table, Activity::SalePriceMinor).await
    }
}
