//! Points are adjusted by operators, too: why, and by whom.

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

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [optional_text(PointsEntry::Reason, 256), optional_big(PointsEntry::MadeBy)] {
            manager.alter_table(Table::alter().table(PointsEntry::Table).add_column(column).take()).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [PointsEntry::MadeBy, PointsEntry::Reason] {
            manager.alter_table(Table::alter().table(PointsEntry::Table).drop_column(column).take()).await?;
        }
        Ok(())
    }
}
