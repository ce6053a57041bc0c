//! Runs of the reconciliation, and the differences they found.

use sea_orm_migration::prelude::*;

use crate::columns::{id, optional_big, optional_text, required_big, required_int, required_text, table};
use crate::steps::{create_table, drop_table, index};

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
        create_table(
            manager,
            table(manager, Reconciliation::Table)
                .col(id(Reconciliation::Id))
                .col(required_big(Reconciliation::StartedAt))
                .col(required_big(Reconciliation::FinishedAt))
                .col(required_int(Reconciliation::Found))
                .col(optional_text(Reconciliation::Failed, 1024))
                .take(),
        )
        .await?;
        create_table(
            manager,
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
        index(
            manager,
            Difference::Table,
            "difference_reconciliation",
            [Difference::ReconciliationId, Difference::Id],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, Difference::Table).await?;
        drop_table(manager, Reconciliation::Table).await
    }
}
