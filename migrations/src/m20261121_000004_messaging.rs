//! What is still to be said (outbox) and what was already answered (idempotency).

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{
    id, long_text, optional_big, optional_text, required_big, required_hash, required_int, required_text,
    table,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Outbox {
    Table,
    Id,
    Events,
    Traceparent,
    CreatedAt,
    SentAt,
    Attempts,
    RetryAt,
    LastError,
    EventCount,
    Types,
}

#[derive(DeriveIden)]
enum Idempotency {
    Table,
    Id,
    Fingerprint,
    Status,
    Body,
    CreatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                table(manager, Outbox::Table)
                    .col(id(Outbox::Id))
                    .col(optional_text(Outbox::Traceparent, 64))
                    .col(required_big(Outbox::CreatedAt))
                    .col(optional_big(Outbox::SentAt))
                    .col(required_int(Outbox::Attempts))
                    .col(optional_big(Outbox::RetryAt))
                    .col(optional_text(Outbox::LastError, 512))
                    .col(required_int(Outbox::EventCount))
                    .col(required_text(Outbox::Types, 512))
                    // Last: SQLite reads through it to whatever is behind.
                    .col(long_text(manager, Outbox::Events))
                    .take(),
            )
            .await?;
        if manager.get_database_backend() == DbBackend::Postgres {
            // Compresses the events of a batch in a fifth of the time; not every PostgreSQL is built with it.
            let lz4 = "DO $$ BEGIN ALTER TABLE outbox ALTER COLUMN events SET COMPRESSION lz4; \
                       EXCEPTION WHEN feature_not_supported THEN NULL; END $$";
            manager.get_connection().execute_unprepared(lz4).await?;
        }
        manager
            .create_index(
                Index::create()
                    .name("outbox_sent_id_types")
                    .table(Outbox::Table)
                    .col(Outbox::SentAt)
                    .col(Outbox::Id)
                    // Who looks for news finds out here what they are, without a look at each row.
                    .col(Outbox::Types)
                    .take(),
            )
            .await?;
        manager
            .create_table(
                table(manager, Idempotency::Table)
                    .col(required_hash(Idempotency::Id).primary_key())
                    .col(required_hash(Idempotency::Fingerprint))
                    .col(required_int(Idempotency::Status))
                    .col(long_text(manager, Idempotency::Body))
                    .col(required_big(Idempotency::CreatedAt))
                    .take(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("idempotency_created")
                    .table(Idempotency::Table)
                    .col(Idempotency::CreatedAt)
                    .take(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Idempotency::Table).take()).await?;
        manager.drop_table(Table::drop().table(Outbox::Table).take()).await
    }
}
