//! How many units of an activity are left, as its events last told: a number to read, beside the blocks that decide.

use sea_orm_migration::prelude::*;

use crate::columns::{id, required_big, table};
use crate::steps::{create_table, drop_table};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum StockProjection {
    Table,
    ActivityId,
    Remaining,
    AsOfAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, StockProjection::Table)
                .col(id(StockProjection::ActivityId))
                .col(required_big(StockProjection::Remaining))
                .col(required_big(StockProjection::AsOfAt))
                .take(),
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, StockProjection::Table).await
    }
}
