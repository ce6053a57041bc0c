//! What was applied (consumer_log), what is to be tried again (parked_event), what nobody could apply (dead_letter),
//! and the queues of the embedded bus (queued_events).

use sea_orm_migration::prelude::*;

use crate::columns::{
    id, long_text, optional_big, optional_text, required_big, required_int, required_text, table,
};

/// A group's name: at most this many bytes.
const GROUP: u32 = 64;

/// What tells dead letters of a group apart: an event's id, or the SHA-256 of what is no event.
const MESSAGE_KEY: u32 = 64;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum ConsumerLog {
    Table,
    GroupName,
    EventId,
    EventType,
    AppliedAt,
    Attempts,
}

#[derive(DeriveIden)]
enum ConsumerPosition {
    Table,
    GroupName,
    Subject,
    Sequence,
}

#[derive(DeriveIden)]
enum ParkedEvent {
    Table,
    Id,
    GroupName,
    EventId,
    EventType,
    Subject,
    Body,
    Attempts,
    DueAt,
    LastError,
    FirstFailedAt,
    Origin,
}

#[derive(DeriveIden)]
enum DeadLetter {
    Table,
    Id,
    GroupName,
    MessageKey,
    EventId,
    EventType,
    Subject,
    Body,
    BodyEncoding,
    Origin,
    Error,
    Attempts,
    FirstFailedAt,
    DiedAt,
    State,
    Replays,
    Reason,
    SettledAt,
}

#[derive(DeriveIden)]
enum QueuedEvents {
    Table,
    GroupName,
    OutboxId,
    QueuedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                table(manager, ConsumerLog::Table)
                    .col(required_text(ConsumerLog::GroupName, GROUP))
                    .col(required_big(ConsumerLog::EventId))
                    .col(required_text(ConsumerLog::EventType, 64))
                    .col(required_big(ConsumerLog::AppliedAt))
                    .col(required_int(ConsumerLog::Attempts))
                    .primary_key(Index::create().col(ConsumerLog::GroupName).col(ConsumerLog::EventId))
                    .take(),
            )
            .await?;
        index(manager, ConsumerLog::Table, "consumer_log_applied", [ConsumerLog::AppliedAt]).await?;
        manager
            .create_table(
                table(manager, ConsumerPosition::Table)
                    .col(required_text(ConsumerPosition::GroupName, GROUP))
                    .col(required_text(ConsumerPosition::Subject, 64))
                    .col(required_big(ConsumerPosition::Sequence))
                    .primary_key(
                        Index::create().col(ConsumerPosition::GroupName).col(ConsumerPosition::Subject),
                    )
                    .take(),
            )
            .await?;
        self.create_failures(manager).await?;
        manager
            .create_table(
                table(manager, QueuedEvents::Table)
                    .col(required_text(QueuedEvents::GroupName, GROUP))
                    .col(required_big(QueuedEvents::OutboxId))
                    .col(required_big(QueuedEvents::QueuedAt))
                    .primary_key(Index::create().col(QueuedEvents::GroupName).col(QueuedEvents::OutboxId))
                    .take(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(QueuedEvents::Table).take()).await?;
        manager.drop_table(Table::drop().table(DeadLetter::Table).take()).await?;
        manager.drop_table(Table::drop().table(ParkedEvent::Table).take()).await?;
        manager.drop_table(Table::drop().table(ConsumerPosition::Table).take()).await?;
        manager.drop_table(Table::drop().table(ConsumerLog::Table).take()).await
    }
}

impl Migration {
    async fn create_failures(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        manager
            .create_table(
                table(manager, ParkedEvent::Table)
                    .col(id(ParkedEvent::Id))
                    .col(required_text(ParkedEvent::GroupName, GROUP))
                    .col(required_big(ParkedEvent::EventId))
                    .col(required_text(ParkedEvent::EventType, 64))
                    .col(required_text(ParkedEvent::Subject, 64))
                    .col(long_text(manager, ParkedEvent::Body))
                    .col(required_int(ParkedEvent::Attempts))
                    .col(required_big(ParkedEvent::DueAt))
                    .col(optional_text(ParkedEvent::LastError, 1024))
                    .col(optional_big(ParkedEvent::FirstFailedAt))
                    .col(required_text(ParkedEvent::Origin, 128))
                    .take(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("parked_event_group_event")
                    .table(ParkedEvent::Table)
                    .col(ParkedEvent::GroupName)
                    .col(ParkedEvent::EventId)
                    .unique()
                    .take(),
            )
            .await?;
        index(manager, ParkedEvent::Table, "parked_event_due", [ParkedEvent::GroupName, ParkedEvent::DueAt])
            .await?;
        index(
            manager,
            ParkedEvent::Table,
            "parked_event_subject",
            [ParkedEvent::GroupName, ParkedEvent::Subject],
        )
        .await?;
        manager
            .create_table(
                table(manager, DeadLetter::Table)
                    .col(id(DeadLetter::Id))
                    .col(required_text(DeadLetter::GroupName, GROUP))
                    .col(required_text(DeadLetter::MessageKey, MESSAGE_KEY))
                    .col(optional_big(DeadLetter::EventId))
                    .col(required_text(DeadLetter::EventType, 64))
                    .col(required_text(DeadLetter::Subject, 64))
                    .col(long_text(manager, DeadLetter::Body))
                    .col(required_text(DeadLetter::BodyEncoding, 8))
                    .col(required_text(DeadLetter::Origin, 128))
                    .col(required_text(DeadLetter::Error, 1024))
                    .col(required_int(DeadLetter::Attempts))
                    .col(required_big(DeadLetter::FirstFailedAt))
                    .col(required_big(DeadLetter::DiedAt))
                    .col(required_text(DeadLetter::State, 16))
                    .col(required_int(DeadLetter::Replays))
                    .col(optional_text(DeadLetter::Reason, 512))
                    .col(optional_big(DeadLetter::SettledAt))
                    .take(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("dead_letter_group_message")
                    .table(DeadLetter::Table)
                    .col(DeadLetter::GroupName)
                    .col(DeadLetter::MessageKey)
                    .unique()
                    .take(),
            )
            .await?;
        index(manager, DeadLetter::Table, "dead_letter_state", [DeadLetter::State, DeadLetter::Id]).await
    }
}

async fn index<const N: usize>(
    manager: &SchemaManager<'_>,
    table: impl IntoTableRef + Iden + 'static,
    name: &str,
    columns: [impl IntoIden + Iden + 'static; N],
) -> Result<(), DbErr> {
    let mut index = Index::create();
    index.name(name).table(table);
    for column in columns {
        index.col(column);
    }
    manager.create_index(index).await
}
