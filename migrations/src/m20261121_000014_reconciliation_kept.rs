//! Since when consumer groups keep a log (consumer_group), and how old runs and differences of the reconciliation are.

use sea_orm_migration::prelude::*;

use crate::columns::{required_big, required_text, table};
use crate::steps::{add_column, create_table, drop_column, drop_index, drop_table, index, run};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum ConsumerGroup {
    Table,
    Name,
    LoggedSince,
}

#[derive(DeriveIden)]
enum Reconciliation {
    Table,
    FinishedAt,
}

#[derive(DeriveIden)]
enum Difference {
    Table,
    FoundAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, ConsumerGroup::Table)
                .col(required_text(ConsumerGroup::Name, 64).primary_key())
                .col(required_big(ConsumerGroup::LoggedSince))
                .take(),
        )
        .await?;
        let found_at = required_big(Difference::FoundAt).default(0).take();
        add_column(manager, Difference::Table, found_at).await?;
        // As old as their runs.
        run(
            manager,
            "UPDATE difference SET found_at = COALESCE((SELECT r.finished_at FROM reconciliation AS r \
             WHERE r.id = difference.reconciliation_id), 0) WHERE found_at = 0",
        )
        .await?;
        index(manager, Difference::Table, "difference_found", [Difference::FoundAt]).await?;
        index(manager, Reconciliation::Table, "reconciliation_finished", [Reconciliation::FinishedAt]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_index(manager, Reconciliation::Table, "reconciliation_finished").await?;
        drop_index(manager, Difference::Table, "difference_found").await?;
        drop_column(manager, Difference::Table, Difference::FoundAt).await?;
        drop_table(manager, ConsumerGroup::Table).await
    }
}
