//! Runs of the reconciliation, and the differences they found.

use sea_orm_migration::prelude::*;

use crate::columns::{id, optional_big, optional_text, required_big, required_int, required_text, table};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Reconciliation {
    Table,
    Id,
    StartedAt,
    FinishedAt,
    Found,
    Failed,
}

#[derive(DeriveIden)]
enum Difference {
    Table,
    Id,
    ReconciliationId,
    Comparison,
    Subject,
    Expected,
    Found,
    Detail,
    Action,
    State,
    Outcome,
    SettledAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                table(manager, Reconciliation::Table)
                    .col(id(Reconciliation::Id))
                    .col(required_big(Reconciliation::StartedAt))
                    .col(required_big(Reconciliation::FinishedAt))
                    .col(required_int(Reconciliation::Found))
                    .col(optional_text(Reconciliation::Failed, 1024))
                    .take(),
            )
            .await?;
        manager
            .create_table(
                table(manager, Difference::Table)
                    .col(id(Difference::Id))
                    .col(required_big(Difference::ReconciliationId))
                    .col(required_text(Difference::Comparison, 64))
                    .col(required_text(Difference::Subject, 128))
                    .col(required_text(Difference::Expected, 128))
                    .col(required_text(Difference::Found, 128))
                    .col(required_text(Difference::Detail, 512))
                    .col(required_text(Difference::Action, 64))
                    .col(required_text(Difference::State, 16))
                    .col(optional_text(Difference::Outcome, 512))
                    .col(optional_big(Difference::SettledAt))
                    .take(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("difference_reconciliation")
                    .table(Difference::Table)
                    .col(Difference::ReconciliationId)
                    .col(Difference::Id)
                    .take(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Difference::Table).take()).await?;
        manager.drop_table(Table::drop().table(Reconciliation::Table).take()).await
    }
}
