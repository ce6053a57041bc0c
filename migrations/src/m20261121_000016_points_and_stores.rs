//! Points are adjusted by operators, too: why, and by whom. Goods may belong to a store.

use sea_orm_migration::prelude::*;

use crate::columns::{optional_big, optional_text};
use crate::steps::{add_column, drop_column};

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
            add_column(manager, PointsEntry::Table, column).await?;
        }
        add_column(manager, Goods::Table, optional_big(Goods::StoreId)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_column(manager, Goods::Table, Goods::StoreId).await?;
        for column in [PointsEntry::MadeBy, PointsEntry::Reason] {
            drop_column(manager, PointsEntry::Table, column).await?;
        }
        Ok(())
    }
}
