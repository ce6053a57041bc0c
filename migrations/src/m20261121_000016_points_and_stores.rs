//! Points are adjusted by operators, too: why, and by whom. Goods may belong to a store.

use sea_orm_migration::prelude::*;

use crate::columns::{optional_big, optional_text};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum PointsEntry {
    Table,
    Reason,
    MadeBy,
}

#[derive(DeriveIden)]
enum Goods {
    Table,
    StoreId,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [optional_text(PointsEntry::Reason, 256), optional_big(PointsEntry::MadeBy)] {
            manager.alter_table(Table::alter().table(PointsEntry::Table).add_column(column).take()).await?;
        }
        let store = optional_big(Goods::StoreId);
        manager.alter_table(Table::alter().table(Goods::Table).add_column(store).take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table(Goods::Table).drop_column(Goods::StoreId).take()).await?;
        for column in [PointsEntry::MadeBy, PointsEntry::Reason] {
            manager.alter_table(Table::alter().table(PointsEntry::Table).drop_column(column).take()).await?;
        }
        Ok(())
    }
}
