//! Users, the keys that sign their access tokens, and the tokens revoked before their time.

use sea_orm_migration::prelude::*;

use crate::columns::{id, optional_big, optional_text, required_big, required_text, table};
use crate::steps::{create_table, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Users {
    Table,
    Id,
    Provider,
    Subject,
    Name,
    Roles,
    PasswordHash,
    FirstLoginAt,
    CreatedAt,
}

#[derive(DeriveIden)]
enum SigningKey {
    Table,
    Kid,
    Secret,
    CreatedAt,
    RetiresAt,
}

#[derive(DeriveIden)]
enum RevokedToken {
    Table,
    Id,
    ExpiresAt,
    RevokedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Users::Table)
                .col(id(Users::Id))
                .col(required_text(Users::Provider, 16))
                .col(required_text(Users::Subject, 128))
                .col(required_text(Users::Name, 128))
                .col(required_text(Users::Roles, 64))
                .col(optional_text(Users::PasswordHash, 256))
                .col(optional_big(Users::FirstLoginAt))
                .col(required_big(Users::CreatedAt))
                .index(
                    Index::create()
                        .unique()
                        .name("users_provider_subject")
                        .col(Users::Provider)
                        .col(Users::Subject),
                )
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, SigningKey::Table)
                .col(required_text(SigningKey::Kid, 32).primary_key())
                .col(required_text(SigningKey::Secret, 128))
                .col(required_big(SigningKey::CreatedAt))
                .col(optional_big(SigningKey::RetiresAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, RevokedToken::Table)
                .col(id(RevokedToken::Id))
                .col(required_big(RevokedToken::ExpiresAt))
                .col(required_big(RevokedToken::RevokedAt))
                .take(),
        )
        .await?;
        index(manager, RevokedToken::Table, "revoked_token_revoked_at", [RevokedToken::RevokedAt]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, RevokedToken::Table).await?;
        drop_table(manager, SigningKey::Table).await?;
        drop_table(manager, Users::Table).await
    }
}
