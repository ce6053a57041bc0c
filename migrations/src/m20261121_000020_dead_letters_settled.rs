//! What settled dead letters are trimmed by (dead_letter).

use sea_orm_migration::prelude::*;

use crate::steps::{drop_index, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum DeadLetter {
    Table,
    SettledAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        index(manager, DeadLetter::Table, "dead_letter_settled", [DeadLetter::SettledAt]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_index(manager, DeadLetter::Table, "dead_letter_settled").await
    }
}
