//! Balances and points as ledgers, and the coupons users hold.
//!
//! An account's number is the sum of its entries; the entries' keys are the judge of repeats (WAL-1, WAL-2).

use sea_orm_migration::prelude::*;

use crate::columns::{id, optional_big, optional_text, required_big, required_text, table};
use crate::steps::{create_table, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum WalletAccount {
    Table,
    UserId,
    BalanceMinor,
    Points,
    Version,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum WalletEntry {
    Table,
    Id,
    UserId,
    ReferenceId,
    Kind,
    AmountMinor,
    BalanceAfterMinor,
    Reason,
    MadeBy,
    CreatedAt,
}

#[derive(DeriveIden)]
enum PointsEntry {
    Table,
    Id,
    UserId,
    ReferenceId,
    Kind,
    Points,
    PointsAfter,
    CreatedAt,
}

#[derive(DeriveIden)]
enum UserCoupon {
    Table,
    Id,
    UserId,
    Name,
    FaceValueMinor,
    MinSpendMinor,
    State,
    ValidFrom,
    ValidUntil,
    OrderId,
    Source,
    SourceId,
    Version,
    UsedAt,
    VoidReason,
    VoidedBy,
    CreatedAt,
    UpdatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, WalletAccount::Table)
                .col(id(WalletAccount::UserId))
                .col(required_big(WalletAccount::BalanceMinor))
                .col(required_big(WalletAccount::Points))
                .col(required_big(WalletAccount::Version))
                .col(required_big(WalletAccount::UpdatedAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, WalletEntry::Table)
                .col(id(WalletEntry::Id))
                .col(required_big(WalletEntry::UserId))
                .col(required_big(WalletEntry::ReferenceId))
                .col(required_text(WalletEntry::Kind, 16))
                .col(required_big(WalletEntry::AmountMinor))
                .col(required_big(WalletEntry::BalanceAfterMinor))
                .col(optional_text(WalletEntry::Reason, 256))
                .col(optional_big(WalletEntry::MadeBy))
                .col(required_big(WalletEntry::CreatedAt))
                .index(
                    Index::create()
                        .unique()
                        .name("wallet_entry_reference")
                        .col(WalletEntry::ReferenceId)
                        .col(WalletEntry::UserId)
                        .col(WalletEntry::Kind),
                )
                .take(),
        )
        .await?;
        index(manager, WalletEntry::Table, "wallet_entry_user", [WalletEntry::UserId, WalletEntry::Id])
            .await?;
        create_table(
            manager,
            table(manager, PointsEntry::Table)
                .col(id(PointsEntry::Id))
                .col(required_big(PointsEntry::UserId))
                .col(required_big(PointsEntry::ReferenceId))
                .col(required_text(PointsEntry::Kind, 16))
                .col(required_big(PointsEntry::Points))
                .col(required_big(PointsEntry::PointsAfter))
                .col(required_big(PointsEntry::CreatedAt))
                .index(
                    Index::create()
                        .unique()
                        .name("points_entry_reference")
                        .col(PointsEntry::ReferenceId)
                        .col(PointsEntry::UserId)
                        .col(PointsEntry::Kind),
                )
                .take(),
        )
        .await?;
        index(manager, PointsEntry::Table, "points_entry_user", [PointsEntry::UserId, PointsEntry::Id])
            .await?;
        create_table(
            manager,
            table(manager, UserCoupon::Table)
                .col(id(UserCoupon::Id))
                .col(required_big(UserCoupon::UserId))
                .col(required_text(UserCoupon::Name, 128))
                .col(required_big(UserCoupon::FaceValueMinor))
                .col(required_big(UserCoupon::MinSpendMinor))
                .col(required_text(UserCoupon::State, 16))
                .col(required_big(UserCoupon::ValidFrom))
                .col(required_big(UserCoupon::ValidUntil))
                .col(optional_big(UserCoupon::OrderId))
                .col(required_text(UserCoupon::Source, 32))
                .col(optional_big(UserCoupon::SourceId))
                .col(required_big(UserCoupon::Version))
                .col(optional_big(UserCoupon::UsedAt))
                .col(optional_text(UserCoupon::VoidReason, 256))
                .col(optional_big(UserCoupon::VoidedBy))
                .col(required_big(UserCoupon::CreatedAt))
                .col(required_big(UserCoupon::UpdatedAt))
                .take(),
        )
        .await?;
        index(manager, UserCoupon::Table, "user_coupon_user", [UserCoupon::UserId, UserCoupon::Id]).await?;
        index(manager, UserCoupon::Table, "user_coupon_order", [UserCoupon::OrderId]).await?;
        index(manager, UserCoupon::Table, "user_coupon_state", [UserCoupon::State, UserCoupon::ValidUntil])
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, UserCoupon::Table).await?;
        drop_table(manager, PointsEntry::Table).await?;
        drop_table(manager, WalletEntry::Table).await?;
        drop_table(manager, WalletAccount::Table).await
    }
}
