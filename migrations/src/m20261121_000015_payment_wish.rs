//! How a customer wanted to pay (payment), the headers a gateway signed its callback with (payment_record), and how an
//! operator settled a refund by hand (refund).

use sea_orm_migration::prelude::*;

use crate::columns::optional_text;
use crate::steps::{add_column, drop_column};

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
        for column in [optional_text(Payment::Mode, 16), optional_text(Payment::WishedPayer, 128)] {
            add_column(manager, Payment::Table, column).await?;
        }
        add_column(manager, PaymentRecord::Table, optional_text(PaymentRecord::Headers, 4096)).await?;
        add_column(manager, Refund::Table, optional_text(Refund::Note, 256)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_column(manager, Refund::Table, Refund::Note).await?;
        drop_column(manager, PaymentRecord::Table, PaymentRecord::Headers).await?;
        for column in [Payment::WishedPayer, Payment::Mode] {
            drop_column(manager, Payment::Table, column).await?;
        }
        Ok(())
    }
}
