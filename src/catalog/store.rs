//! Goods in the database.

use entities::goods;
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect,
};

use super::model::{Goods, State};
use crate::db::bulk::{Column, Rows};
use crate::db::{DbFault, Tx};
use crate::ids::GoodsId;
use crate::ports::clock::to_micros;

pub(super) async fn find(connection: &impl ConnectionTrait, id: GoodsId) -> Result<Option<Goods>, DbFault> {
    let row = goods::Entity::find_by_id(id.0).one(connection).await?;
    row.map(Goods::try_from).transpose()
}

/// Those of `ids` that there are, by id.
pub(super) async fn find_all(
    connection: &impl ConnectionTrait,
    ids: Vec<GoodsId>,
) -> Result<Vec<Goods>, DbFault> {
    let rows = Rows::new().column("id", Column::Big(ids.into_iter().map(|id| id.0).collect()));
    let sql = "SELECT g.* FROM goods AS g WHERE g.id IN (SELECT r.id FROM {rows}) ORDER BY g.id";
    let found = connection.query_all_raw(rows.statement(connection.get_database_backend(), sql, [])).await?;
    found.iter().map(|row| Goods::try_from(goods::Model::from_query_result(row, "")?)).collect()
}

/// Reads goods and keeps everybody else from changing or selling them until `tx` ends.
pub(super) async fn lock(tx: &Tx, id: GoodsId) -> Result<Option<Goods>, DbFault> {
    // SQLite has one writer, and this is its transaction.
    let row = goods::Entity::find_by_id(id.0).lock_exclusive().one(tx).await?;
    row.map(Goods::try_from).transpose()
}

pub(super) async fn insert(tx: &Tx, new: &Goods) -> Result<(), DbFault> {
    goods::Entity::insert(row(new)).exec_without_returning(tx).await?;
    Ok(())
}

/// Stores `changed` over the version it was made from.
pub(super) async fn update(tx: &Tx, changed: &Goods, made_from: i64) -> Result<(), DbFault> {
    let done = goods::Entity::update_many()
        .set(goods::ActiveModel { id: NotSet, created_by: NotSet, created_at: NotSet, ..row(changed) })
        .filter(goods::Column::Id.eq(changed.id.0))
        .filter(goods::Column::Version.eq(made_from))
        .exec(tx)
        .await?;
    if done.rows_affected == 1 { Ok(()) } else { Err(DbFault::Missing("the version of the locked goods")) }
}

/// Up to `limit` goods older than `before`, newest first.
pub(super) async fn page(
    connection: &impl ConnectionTrait,
    on_sale_only: bool,
    before: Option<GoodsId>,
    limit: u64,
) -> Result<Vec<Goods>, DbFault> {
    let mut query = goods::Entity::find().order_by_desc(goods::Column::Id).limit(limit);
    if on_sale_only {
        query = query.filter(goods::Column::State.eq(State::OnSale.word()));
    }
    if let Some(before) = before {
        query = query.filter(goods::Column::Id.lt(before.0));
    }
    query.all(connection).await?.into_iter().map(Goods::try_from).collect()
}

fn row(goods: &Goods) -> goods::ActiveModel {
    goods::ActiveModel {
        id: Set(goods.id.0),
        name: Set(goods.name.as_str().to_owned()),
        description: Set(goods.description.as_str().to_owned()),
        store_id: Set(goods.store.map(|store| store.0)),
        state: Set(goods.state.word().to_owned()),
        price_minor: Set(goods.price.minor()),
        stock_total: Set(goods.stock.total),
        available: Set(goods.stock.available),
        version: Set(goods.version),
        created_by: Set(goods.created_by.0),
        created_at: Set(to_micros(goods.created_at)),
        updated_at: Set(to_micros(goods.updated_at)),
    }
}
