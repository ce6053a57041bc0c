//! What jobs did last and whether they are paused (job_state), and which runs were asked for or are worth remembering
//! (job_run).

use sea_orm_migration::prelude::*;

use crate::columns::{
    id, long_text, optional_big, optional_int, optional_text, required_big, required_text, table,
};
use crate::steps::{create_table, drop_table, index};

/// A job's name: at most this many bytes.
const JOB: u32 = 64;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum JobState {
    Table,
    Name,
    PausedAt,
    ServedUntil,
    LastStartedAt,
    LastFinishedAt,
    LastOutcome,
    LastError,
    LastSuccessAt,
}

#[derive(DeriveIden)]
enum JobRun {
    Table,
    Id,
    Job,
    State,
    TriggeredBy,
    RequestedBy,
    Params,
    Node,
    CreatedAt,
    StartedAt,
    FinishedAt,
    Summary,
    Error,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, JobState::Table)
                .col(required_text(JobState::Name, JOB).primary_key())
                .col(optional_big(JobState::PausedAt))
                .col(required_big(JobState::ServedUntil))
                .col(optional_big(JobState::LastStartedAt))
                .col(optional_big(JobState::LastFinishedAt))
                .col(optional_text(JobState::LastOutcome, 16))
                .col(optional_text(JobState::LastError, 1024))
                .col(optional_big(JobState::LastSuccessAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, JobRun::Table)
                .col(id(JobRun::Id))
                .col(required_text(JobRun::Job, JOB))
                .col(required_text(JobRun::State, 16))
                .col(required_text(JobRun::TriggeredBy, 16))
                .col(optional_big(JobRun::RequestedBy))
                .col(long_text(manager, JobRun::Params))
                .col(optional_int(JobRun::Node))
                .col(required_big(JobRun::CreatedAt))
                .col(optional_big(JobRun::StartedAt))
                .col(optional_big(JobRun::FinishedAt))
                .col(optional_text(JobRun::Summary, 512))
                .col(optional_text(JobRun::Error, 1024))
                .take(),
        )
        .await?;
        index(manager, JobRun::Table, "job_run_job", [JobRun::Job, JobRun::Id]).await?;
        index(manager, JobRun::Table, "job_run_state", [JobRun::State, JobRun::Job, JobRun::Id]).await?;
        index(manager, JobRun::Table, "job_run_finished", [JobRun::FinishedAt]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, JobRun::Table).await?;
        drop_table(manager, JobState::Table).await
    }
}
