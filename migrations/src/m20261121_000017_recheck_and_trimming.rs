//! When a gateway that did not know a payment is asked about it once more (payment), and what the answers kept for orders
//! are trimmed by (order_request).

use sea_orm_migration::prelude::*;

use crate::columns::optional_big;

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
        let recheck = optional_big(Payment::RecheckAt);
        manager.alter_table(Table::alter().table(Payment::Table).add_column(recheck).take()).await?;
        manager
            .create_index(
                Index::create().name("payment_recheck").table(Payment::Table).col(Payment::RecheckAt).take(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("order_request_created")
                    .table(OrderRequest::Table)
                    .col(OrderRequest::CreatedAt)
                    .take(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let created = Index::drop().name("order_request_created").table(OrderRequest::Table).to_owned();
        manager.drop_index(created).await?;
        let recheck = Index::drop().name("payment_recheck").table(Payment::Table).to_owned();
        manager.drop_index(recheck).await?;
        manager.alter_table(Table::alter().table(Payment::Table).drop_column(Payment::RecheckAt).take()).await
    }
}
