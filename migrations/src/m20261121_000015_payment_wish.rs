//! How a customer wanted to pay (payment), the headers a gateway signed its callback with (payment_record), and how an
//! operator settled a refund by hand (refund).

use sea_orm_migration::prelude::*;

use crate::columns::optional_text;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Payment {
    Table,
    Mode,
    WishedPayer,
}

#[derive(DeriveIden)]
enum PaymentRecord {
    Table,
    Headers,
}

#[derive(DeriveIden)]
enum Refund {
    Table,
    Note,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // One column each: SQLite adds no more at once.
        for column in [optional_text(Payment::Mode, 16), optional_text(Payment::WishedPayer, 128)] {
            manager.alter_table(Table::alter().table(Payment::Table).add_column(column).take()).await?;
        }
        let headers = optional_text(PaymentRecord::Headers, 4096);
        manager.alter_table(Table::alter().table(PaymentRecord::Table).add_column(headers).take()).await?;
        let note = optional_text(Refund::Note, 256);
        manager.alter_table(Table::alter().table(Refund::Table).add_column(note).take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table(Refund::Table).drop_column(Refund::Note).take()).await?;
        manager
            .alter_table(
                Table::alter().table(PaymentRecord::Table).drop_column(PaymentRecord::Headers).take(),
            )
            .await?;
        for column in [Payment::WishedPayer, Payment::Mode] {
            manager.alter_table(Table::alter().table(Payment::Table).drop_column(column).take()).await?;
        }
        Ok(())
    }
}
