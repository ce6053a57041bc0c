//! What nodes agree on through the database: who holds which node number, and who runs which job.

use sea_orm_migration::prelude::*;

use crate::columns::{required_big, required_int, required_text, table};
use crate::steps::{create_table, drop_table};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Node {
    Table,
    Id,
    Incarnation,
    ExpiresAt,
}

#[derive(DeriveIden)]
enum JobLease {
    Table,
    Name,
    Holder,
    ExpiresAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Node::Table)
                .col(required_int(Node::Id).primary_key())
                .col(required_big(Node::Incarnation))
                .col(required_big(Node::ExpiresAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, JobLease::Table)
                .col(required_text(JobLease::Name, 64).primary_key())
                .col(required_big(JobLease::Holder))
                .col(required_big(JobLease::ExpiresAt))
                .take(),
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, JobLease::Table).await?;
        drop_table(manager, Node::Table).await
    }
}
