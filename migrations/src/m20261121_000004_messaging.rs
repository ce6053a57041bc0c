//! What is still to be said (outbox) and what was already answered (idempotency).

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{
    id, long_text, optional_big, optional_text, required_big, required_hash, required_int, required_text,
    table,
};
use crate::steps::{create_table, drop_table, index, run};

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
        create_table(
            manager,
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
            run(manager, lz4).await?;
        }
        // The types: who looks for news finds out here what they are, without a look at each row.
        index(manager, Outbox::Table, "outbox_sent_id_types", [Outbox::SentAt, Outbox::Id, Outbox::Types])
            .await?;
        create_table(
            manager,
            table(manager, Idempotency::Table)
                .col(required_hash(Idempotency::Id).primary_key())
                .col(required_hash(Idempotency::Fingerprint))
                .col(required_int(Idempotency::Status))
                .col(long_text(manager, Idempotency::Body))
                .col(required_big(Idempotency::CreatedAt))
                .take(),
        )
        .await?;
        index(manager, Idempotency::Table, "idempotency_created", [Idempotency::CreatedAt]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, Idempotency::Table).await?;
        drop_table(manager, Outbox::Table).await
    }
}
