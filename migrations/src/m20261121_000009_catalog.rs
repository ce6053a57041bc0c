//! Goods with a price and a quantity, what moved each quantity, and carts.
//!
//! The ledger's key is the judge of repeats: one row per goods, cause and kind (STK-8, STK-9; defect X-16).

use sea_orm_migration::prelude::*;

use crate::columns::{id, optional_big, optional_text, required_big, required_int, required_text, table};
use crate::steps::{create_table, drop_table, index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Goods {
    Table,
    Id,
    Name,
    Description,
    State,
    PriceMinor,
    StockTotal,
    Available,
    Version,
    CreatedBy,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum GoodsLedger {
    Table,
    Id,
    GoodsId,
    ReferenceId,
    Kind,
    Quantity,
    Reason,
    MadeBy,
    CreatedAt,
}

#[derive(DeriveIden)]
enum CartItem {
    Table,
    UserId,
    GoodsId,
    Quantity,
    AddedAt,
    UpdatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_table(
            manager,
            table(manager, Goods::Table)
                .col(id(Goods::Id))
                .col(required_text(Goods::Name, 128))
                .col(required_text(Goods::Description, 2000))
                .col(required_text(Goods::State, 16))
                .col(required_big(Goods::PriceMinor))
                .col(required_int(Goods::StockTotal))
                .col(required_int(Goods::Available))
                .col(required_big(Goods::Version))
                .col(required_big(Goods::CreatedBy))
                .col(required_big(Goods::CreatedAt))
                .col(required_big(Goods::UpdatedAt))
                .take(),
        )
        .await?;
        create_table(
            manager,
            table(manager, GoodsLedger::Table)
                .col(id(GoodsLedger::Id))
                .col(required_big(GoodsLedger::GoodsId))
                .col(required_big(GoodsLedger::ReferenceId))
                .col(required_text(GoodsLedger::Kind, 16))
                .col(required_int(GoodsLedger::Quantity))
                .col(optional_text(GoodsLedger::Reason, 256))
                .col(optional_big(GoodsLedger::MadeBy))
                .col(required_big(GoodsLedger::CreatedAt))
                .index(
                    Index::create()
                        .unique()
                        .name("goods_ledger_reference")
                        .col(GoodsLedger::ReferenceId)
                        .col(GoodsLedger::GoodsId)
                        .col(GoodsLedger::Kind),
                )
                .take(),
        )
        .await?;
        index(manager, GoodsLedger::Table, "goods_ledger_goods", [GoodsLedger::GoodsId, GoodsLedger::Id])
            .await?;
        create_table(
            manager,
            table(manager, CartItem::Table)
                .col(required_big(CartItem::UserId))
                .col(required_big(CartItem::GoodsId))
                .col(required_int(CartItem::Quantity))
                .col(required_big(CartItem::AddedAt))
                .col(required_big(CartItem::UpdatedAt))
                .primary_key(Index::create().col(CartItem::UserId).col(CartItem::GoodsId))
                .take(),
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_table(manager, CartItem::Table).await?;
        drop_table(manager, GoodsLedger::Table).await?;
        drop_table(manager, Goods::Table).await
    }
}
