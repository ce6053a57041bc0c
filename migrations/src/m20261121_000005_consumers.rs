//! What was applied (consumer_log), what is to be tried again (parked_event), what nobody could apply (dead_letter),
//! and the queues of the embedded bus (queued_events).

use sea_orm_migration::prelude::*;

use crate::columns::{
    id, long_text, optional_big, optional_text, required_big, required_int, required_text, table,
};
use crate::steps::{create_table, drop_table, index, unique_index};

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
        create_table(
            manager,
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
        create_table(
            manager,
            table(manager, ConsumerPosition::Table)
                .col(required_text(ConsumerPosition::GroupName, GROUP))
                .col(required_text(ConsumerPosition::Subject, 64))
                .col(required_big(ConsumerPosition::Sequence))
                .primary_key(Index::create().col(ConsumerPosition::GroupName).col(ConsumerPosition::Subject))
                .take(),
        )
        .await?;
        self.create_failures(manager).await?;
        create_table(
            manager,
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
        drop_table(manager, QueuedEvents::Table).await?;
        drop_table(manager, DeadLetter::Table).await?;
        drop_table(manager, ParkedEvent::Table).await?;
        drop_table(manager, ConsumerPosition::Table).await?;
        drop_table(manager, ConsumerLog::Table).await
    }
}

impl Migration {
    async fn create_failures(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        create_table(
            manager,
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
        unique_index(
            manager,
            ParkedEvent::Table,
            "parked_event_group_event",
            [ParkedEvent::GroupName, ParkedEvent::EventId],
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
        create_table(
            manager,
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
        unique_index(
            manager,
            DeadLetter::Table,
            "dead_letter_group_message",
            [DeadLetter::GroupName, DeadLetter::MessageKey],
        )
        .await?;
        index(manager, DeadLetter::Table, "dead_letter_state", [DeadLetter::State, DeadLetter::Id]).await
    }
}
