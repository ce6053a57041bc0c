//! What users are told.
//!
//! Read in the app, and sent elsewhere where a channel is configured (NTF-1 to NTF-3).

use sea_orm_migration::prelude::*;

use crate::columns::{id, optional_big, required_big, required_text, table};
use crate::steps::{create_table, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Notification {
    Table,
    Id,
    UserId,
    Kind,
    OrderId,
    Title,
    Body,
    SentAt,
    ReadAt,
    CreatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Notification::Table)
                .col(id(Notification::Id))
                .col(required_big(Notification::UserId))
                .col(required_text(Notification::Kind, 32))
                .col(optional_big(Notification::OrderId))
                .col(required_text(Notification::Title, 128))
                .col(required_text(Notification::Body, 1024))
                .col(optional_big(Notification::SentAt))
                .col(optional_big(Notification::ReadAt))
                .col(required_big(Notification::CreatedAt))
                .take(),
        )
        .await?;
        index(manager, Notification::Table, "notification_user", [Notification::UserId, Notification::Id])
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, Notification::Table).await
    }
}
