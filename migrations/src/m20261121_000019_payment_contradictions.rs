//! Why a gateway was not believed (payment_record).

use sea_orm_migration::prelude::*;

use crate::columns::optional_text;
use crate::steps::{add_column, drop_column};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum PaymentRecord {
    Table,
    Contradiction,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        add_column(manager, PaymentRecord::Table, optional_text(PaymentRecord::Contradiction, 256)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_column(manager, PaymentRecord::Table, PaymentRecord::Contradiction).await
    }
}
