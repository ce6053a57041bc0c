//! Activities, their drums of stock tokens, and the takes that hold a token each.
//!
//! The two unique keys of `take` are the judge of every race (STK-2, ACT-10). They constrain the living only: a
//! released take keeps its row with `live_token` and `live_take_no` set to NULL, and NULLs are distinct in all
//! three databases.

use sea_orm_migration::prelude::*;

use crate::columns::{
    id, optional_big, optional_int, optional_text, required_big, required_int, required_text, table,
};
use crate::steps::{create_table, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Activity {
    Table,
    Id,
    Name,
    Kind,
    State,
    StartsAt,
    EndsAt,
    StockTotal,
    TakeLimitPerUser,
    SoldOutAt,
    Version,
    CreatedBy,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum TokenBlock {
    Table,
    Id,
    ActivityId,
    FirstToken,
    LastToken,
    State,
    OwnerNode,
    OwnerIncarnation,
    Epoch,
    Sold,
}

#[derive(DeriveIden)]
#[expect(clippy::enum_variant_names, reason = "the variants are the column names")]
enum Take {
    Table,
    Id,
    ActivityId,
    UserId,
    TokenNo,
    TakeNo,
    LiveToken,
    LiveTakeNo,
    State,
    TakenAt,
    ReleasedAt,
    ReleaseReason,
}

#[derive(DeriveIden)]
enum StockAdjustment {
    Table,
    Id,
    ActivityId,
    Delta,
    StockTotal,
    Reason,
    AdjustedBy,
    CreatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Activity::Table)
                .col(id(Activity::Id))
                .col(required_text(Activity::Name, 128))
                .col(required_text(Activity::Kind, 16))
                .col(required_text(Activity::State, 16))
                .col(required_big(Activity::StartsAt))
                .col(required_big(Activity::EndsAt))
                .col(required_int(Activity::StockTotal))
                .col(optional_int(Activity::TakeLimitPerUser))
                .col(optional_big(Activity::SoldOutAt))
                .col(required_big(Activity::Version))
                .col(required_big(Activity::CreatedBy))
                .col(required_big(Activity::CreatedAt))
                .col(required_big(Activity::UpdatedAt))
                .take(),
        )
        .await?;
        index(manager, Activity::Table, "activity_state_id", [Activity::State, Activity::Id]).await?;
        create_table(
            manager,
            table(manager, TokenBlock::Table)
                .col(id(TokenBlock::Id))
                .col(required_big(TokenBlock::ActivityId))
                .col(required_int(TokenBlock::FirstToken))
                .col(required_int(TokenBlock::LastToken))
                .col(required_text(TokenBlock::State, 8))
                .col(optional_int(TokenBlock::OwnerNode))
                .col(optional_big(TokenBlock::OwnerIncarnation))
                .col(required_big(TokenBlock::Epoch))
                .col(required_int(TokenBlock::Sold))
                .index(
                    Index::create()
                        .unique()
                        .name("token_block_activity_first")
                        .col(TokenBlock::ActivityId)
                        .col(TokenBlock::FirstToken),
                )
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, Take::Table)
                .col(id(Take::Id))
                .col(required_big(Take::ActivityId))
                .col(required_big(Take::UserId))
                .col(required_int(Take::TokenNo))
                .col(required_int(Take::TakeNo))
                .col(optional_int(Take::LiveToken))
                .col(optional_int(Take::LiveTakeNo))
                .col(required_text(Take::State, 8))
                .col(required_big(Take::TakenAt))
                .col(optional_big(Take::ReleasedAt))
                .col(optional_text(Take::ReleaseReason, 256))
                .index(
                    Index::create()
                        .unique()
                        .name("take_activity_live_token")
                        .col(Take::ActivityId)
                        .col(Take::LiveToken),
                )
                // The user leads, so that the same key also finds one user's takes over all activities.
                .index(
                    Index::create()
                        .unique()
                        .name("take_user_activity_live_take_no")
                        .col(Take::UserId)
                        .col(Take::ActivityId)
                        .col(Take::LiveTakeNo),
                )
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, StockAdjustment::Table)
                .col(id(StockAdjustment::Id))
                .col(required_big(StockAdjustment::ActivityId))
                .col(required_int(StockAdjustment::Delta))
                .col(required_int(StockAdjustment::StockTotal))
                .col(required_text(StockAdjustment::Reason, 256))
                .col(required_big(StockAdjustment::AdjustedBy))
                .col(required_big(StockAdjustment::CreatedAt))
                .take(),
        )
        .await?;
        index(
            manager,
            StockAdjustment::Table,
            "stock_adjustment_activity",
            [StockAdjustment::ActivityId, StockAdjustment::Id],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, StockAdjustment::Table).await?;
        drop_table(manager, Take::Table).await?;
        drop_table(manager, TokenBlock::Table).await?;
        drop_table(manager, Activity::Table).await
    }
}
