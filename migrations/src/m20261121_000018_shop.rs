//! What the shop is for good (shop, of one row): the currency of all amounts that have none beside them.

use sea_orm_migration::prelude::*;

use crate::columns::{required_int, required_text, table};
use crate::steps::{create_table, drop_table};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Shop {
    Table,
    Id,
    Currency,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Shop::Table)
                .col(required_int(Shop::Id).primary_key())
                .col(required_text(Shop::Currency, 3))
                .take(),
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, Shop::Table).await
    }
}
