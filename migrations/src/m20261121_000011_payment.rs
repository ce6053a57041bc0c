//! Payment attempts, what gateways said of them, and refunds.
//!
//! `UNIQUE(channel, transaction_id)` gives a capture one payment, `UNIQUE(payment_id)` gives a payment one refund.

use sea_orm_migration::prelude::*;

use crate::columns::{id, long_text, optional_big, optional_text, required_big, required_text, table};
use crate::steps::{create_table, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Payment {
    Table,
    Id,
    OrderId,
    UserId,
    Channel,
    State,
    AmountMinor,
    Currency,
    TransactionId,
    Payer,
    Failure,
    Version,
    CreatedAt,
    UpdatedAt,
    SettledAt,
}

#[derive(DeriveIden)]
enum PaymentRecord {
    Table,
    Id,
    PaymentId,
    Channel,
    Kind,
    TransactionId,
    Outcome,
    Body,
    ReceivedAt,
}

#[derive(DeriveIden)]
enum PaymentLog {
    Table,
    PaymentId,
    OrderId,
    UserId,
    Channel,
    TransactionId,
    AmountMinor,
    Currency,
    PaidAt,
    LoggedAt,
}

#[derive(DeriveIden)]
enum Refund {
    Table,
    Id,
    OrderId,
    PaymentId,
    RefundedOrderId,
    UserId,
    Channel,
    AmountMinor,
    BalanceMinor,
    Currency,
    State,
    Cause,
    Reason,
    DecidedBy,
    Failure,
    Version,
    CreatedAt,
    UpdatedAt,
    SettledAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Payment::Table)
                .col(id(Payment::Id))
                .col(required_big(Payment::OrderId))
                .col(required_big(Payment::UserId))
                .col(required_text(Payment::Channel, 16))
                .col(required_text(Payment::State, 16))
                .col(required_big(Payment::AmountMinor))
                .col(required_text(Payment::Currency, 3))
                .col(optional_text(Payment::TransactionId, 64))
                .col(optional_text(Payment::Payer, 128))
                .col(optional_text(Payment::Failure, 256))
                .col(required_big(Payment::Version))
                .col(required_big(Payment::CreatedAt))
                .col(required_big(Payment::UpdatedAt))
                .col(optional_big(Payment::SettledAt))
                .index(
                    Index::create()
                        .unique()
                        .name("payment_transaction")
                        .col(Payment::Channel)
                        .col(Payment::TransactionId),
                )
                .take(),
        )
        .await?;
        index(manager, Payment::Table, "payment_order", [Payment::OrderId]).await?;
        index(manager, Payment::Table, "payment_state", [Payment::State, Payment::Id]).await?;
        create_table(
            manager,
            table(manager, PaymentRecord::Table)
                .col(id(PaymentRecord::Id))
                .col(required_big(PaymentRecord::PaymentId))
                .col(required_text(PaymentRecord::Channel, 16))
                .col(required_text(PaymentRecord::Kind, 16))
                .col(optional_text(PaymentRecord::TransactionId, 64))
                .col(required_text(PaymentRecord::Outcome, 32))
                .col(long_text(manager, PaymentRecord::Body))
                .col(required_big(PaymentRecord::ReceivedAt))
                .take(),
        )
        .await?;
        index(manager, PaymentRecord::Table, "payment_record_payment", [PaymentRecord::PaymentId]).await?;
        create_table(
            manager,
            table(manager, PaymentLog::Table)
                .col(id(PaymentLog::PaymentId))
                .col(required_big(PaymentLog::OrderId))
                .col(required_big(PaymentLog::UserId))
                .col(required_text(PaymentLog::Channel, 16))
                .col(required_text(PaymentLog::TransactionId, 64))
                .col(required_big(PaymentLog::AmountMinor))
                .col(required_text(PaymentLog::Currency, 3))
                .col(required_big(PaymentLog::PaidAt))
                .col(required_big(PaymentLog::LoggedAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, Refund::Table)
                .col(id(Refund::Id))
                .col(required_big(Refund::OrderId))
                .col(optional_big(Refund::PaymentId))
                .col(optional_big(Refund::RefundedOrderId))
                .col(required_big(Refund::UserId))
                .col(optional_text(Refund::Channel, 16))
                .col(required_big(Refund::AmountMinor))
                .col(required_big(Refund::BalanceMinor))
                .col(required_text(Refund::Currency, 3))
                .col(required_text(Refund::State, 16))
                .col(required_text(Refund::Cause, 16))
                .col(required_text(Refund::Reason, 256))
                .col(optional_big(Refund::DecidedBy))
                .col(optional_text(Refund::Failure, 256))
                .col(required_big(Refund::Version))
                .col(required_big(Refund::CreatedAt))
                .col(required_big(Refund::UpdatedAt))
                .col(optional_big(Refund::SettledAt))
                .index(Index::create().unique().name("refund_payment").col(Refund::PaymentId))
                .index(Index::create().unique().name("refund_refunded_order").col(Refund::RefundedOrderId))
                .take(),
        )
        .await?;
        index(manager, Refund::Table, "refund_order", [Refund::OrderId]).await?;
        index(manager, Refund::Table, "refund_state", [Refund::State, Refund::Id]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, Refund::Table).await?;
        drop_table(manager, PaymentLog::Table).await?;
        drop_table(manager, PaymentRecord::Table).await?;
        drop_table(manager, Payment::Table).await
    }
}
