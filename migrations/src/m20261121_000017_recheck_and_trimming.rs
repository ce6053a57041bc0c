//! When a gateway that did not know a payment is asked about it once more (payment), and what the answers kept for orders
//! are trimmed by (order_request).

use sea_orm_migration::prelude::*;

use crate::columns::optional_big;
use crate::steps::{add_column, drop_column, drop_index, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Payment {
    Table,
    RecheckAt,
}

#[derive(DeriveIden)]
enum OrderRequest {
    Table,
    CreatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        add_column(manager, Payment::Table, optional_big(Payment::RecheckAt)).await?;
        index(manager, Payment::Table, "payment_recheck", [Payment::RecheckAt]).await?;
        index(manager, OrderRequest::Table, "order_request_created", [OrderRequest::CreatedAt]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_index(manager, OrderRequest::Table, "order_request_created").await?;
        drop_index(manager, Payment::Table, "payment_recheck").await?;
        drop_column(manager, Payment::Table, Payment::RecheckAt).await
    }
}
