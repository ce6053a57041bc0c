//! Since when consumer groups keep a log (consumer_group), and how old runs and differences of the reconciliation are.

use sea_orm_migration::prelude::*;

use crate::columns::{required_big, required_text, table};

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
        manager
            .create_table(
                table(manager, ConsumerGroup::Table)
                    .col(required_text(ConsumerGroup::Name, 64).primary_key())
                    .col(required_big(ConsumerGroup::LoggedSince))
                    .take(),
            )
            .await?;
        let found_at = required_big(Difference::FoundAt).default(0).take();
        manager.alter_table(Table::alter().table(Difference::Table).add_column(found_at).take()).await?;
        // As old as their runs.
        manager
            .get_connection()
            .execute_unprepared(
                "UPDATE difference SET found_at = COALESCE((SELECT r.finished_at FROM reconciliation AS r \
                 WHERE r.id = difference.reconciliation_id), 0)",
            )
            .await?;
        index(manager, "difference_found", Difference::Table, Difference::FoundAt).await?;
        index(manager, "reconciliation_finished", Reconciliation::Table, Reconciliation::FinishedAt).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let finished = Index::drop().name("reconciliation_finished").table(Reconciliation::Table).to_owned();
        manager.drop_index(finished).await?;
        manager
            .drop_index(Index::drop().name("difference_found").table(Difference::Table).to_owned())
            .await?;
        manager
            .alter_table(Table::alter().table(Difference::Table).drop_column(Difference::FoundAt).take())
            .await?;
        manager.drop_table(Table::drop().table(ConsumerGroup::Table).take()).await
    }
}

async fn index(
    manager: &SchemaManager<'_>,
    name: &str,
    table: impl IntoTableRef,
    column: impl IntoIden + 'static,
) -> Result<(), DbErr> {
    manager.create_index(Index::create().name(name).table(table).col(column.into_iden()).take()).await
}
