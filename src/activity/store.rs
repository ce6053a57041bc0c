//! Activities in the database.

use entities::activity;
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::ExprTrait;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::machine::State;
use super::model::{Activity, Count, Due, Invalid, Listing, Name, Sale, Window};
use crate::db::{DbFault, Tx, turn};
use crate::ids::{ActivityId, GoodsId, UserId};
use crate::ports::clock::{Timestamp, from_micros, to_micros};
use crate::stock::blocks;

pub(super) async fn find(
    connection: &impl ConnectionTrait,
    id: ActivityId,
) -> Result<Option<Activity>, DbFault> {
    let row = activity::Entity::find_by_id(id.0).one(connection).await?;
    row.map(parse).transpose()
}

/// Reads an activity and keeps everybody else from changing it, and batches of takes from starting, until `tx` ends.
pub(super) async fn lock(tx: &Tx, id: ActivityId) -> Result<Option<Activity>, DbFault> {
    turn::to_change(tx, id.0).await?;
    // SQLite has one writer, and this is its transaction.
    let row = activity::Entity::find_by_id(id.0).lock_exclusive().one(tx).await?;
    row.map(parse).transpose()
}

pub(super) async fn insert(tx: &Tx, new: &Activity) -> Result<(), DbFault> {
    activity::Entity::insert(row(new)).exec_without_returning(tx).await?;
    Ok(())
}

/// Stores `changed` over the version it was made from.
pub(super) async fn update(tx: &Tx, changed: &Activity, made_from: i64) -> Result<(), DbFault> {
    let done = activity::Entity::update_many()
        .set(activity::ActiveModel { id: NotSet, created_by: NotSet, created_at: NotSet, ..row(changed) })
        .filter(activity::Column::Id.eq(changed.id.0))
        .filter(activity::Column::Version.eq(made_from))
        .exec(tx)
        .await?;
    if done.rows_affected == 1 { Ok(()) } else { Err(DbFault::Missing("the version of the locked activity")) }
}

/// The page of `listing`, among activities in one of `visible`, each with its taken units.
pub(super) async fn page(
    connection: &impl ConnectionTrait,
    listing: &Listing,
    visible: &[State],
) -> Result<Vec<(Activity, i64)>, DbFault> {
    let states = visible.iter().filter(|&&state| listing.state.is_none_or(|wanted| wanted == state));
    let mut query = activity::Entity::find()
        .filter(activity::Column::State.is_in(states.map(|state| state.word())))
        .order_by_desc(activity::Column::Id)
        .limit(listing.limit);
    if let Some(kind) = listing.kind {
        query = query.filter(activity::Column::Kind.eq(kind.word()));
    }
    if let Some(before) = listing.before {
        query = query.filter(activity::Column::Id.lt(before.0));
    }
    let rows = query.all(connection).await?;
    let sold = blocks::sold(connection, rows.iter().map(|row| ActivityId(row.id)).collect()).await?;
    rows.into_iter()
        .map(|row| {
            let activity = parse(row)?;
            let units = sold.get(&activity.id).copied().unwrap_or(0);
            Ok((activity, units))
        })
        .collect()
}

/// Up to `limit` activities behind `after` for which it is time, by id.
pub(super) async fn due(
    connection: &impl ConnectionTrait,
    what: Due,
    now: Timestamp,
    after: ActivityId,
    limit: u64,
) -> Result<Vec<ActivityId>, DbFault> {
    let now = to_micros(now);
    let (states, ripe): (&[State], _) = match what {
        Due::Start => {
            (&[State::Approved], activity::Column::StartsAt.lte(now).and(activity::Column::EndsAt.gte(now)))
        }
        Due::Close => (&[State::Approved, State::Running], activity::Column::EndsAt.lt(now)),
    };
    let ids: Vec<i64> = activity::Entity::find()
        .select_only()
        .column(activity::Column::Id)
        .filter(activity::Column::State.is_in(states.iter().map(|state| state.word())))
        .filter(ripe)
        .filter(activity::Column::Id.gt(after.0))
        .order_by_asc(activity::Column::Id)
        .limit(limit)
        .into_tuple()
        .all(connection)
        .await?;
    Ok(ids.into_iter().map(ActivityId).collect())
}

fn row(activity: &Activity) -> activity::ActiveModel {
    activity::ActiveModel {
        id: Set(activity.id.0),
        name: Set(activity.name.as_str().to_owned()),
        kind: Set(activity.kind.word().to_owned()),
        state: Set(activity.state.word().to_owned()),
        starts_at: Set(to_micros(activity.window.starts_at())),
        ends_at: Set(to_micros(activity.window.ends_at())),
        stock_total: Set(activity.stock_total),
        take_limit_per_user: Set(activity.take_limit_per_user.map(Count::get)),
        // The stock's own note.
        sold_out_at: NotSet,
        version: Set(activity.version),
        goods_id: Set(activity.sale.and_then(|sale| sale.goods_id).map(|goods| goods.0)),
        sale_price_minor: Set(activity.sale.map(|sale| sale.price_minor)),
        created_by: Set(activity.created_by.0),
        created_at: Set(to_micros(activity.created_at)),
        updated_at: Set(to_micros(activity.updated_at)),
    }
}

fn parse(row: activity::Model) -> Result<Activity, DbFault> {
    let invalid = |_: Invalid| DbFault::Missing("a valid activity");
    let kind = row.kind.parse()?;
    Ok(Activity {
        id: ActivityId(row.id),
        name: Name::parse(row.name).map_err(invalid)?,
        kind,
        sale: Sale::of(kind, row.goods_id.map(GoodsId), row.sale_price_minor).map_err(invalid)?,
        state: row.state.parse()?,
        window: Window::new(from_micros(row.starts_at), from_micros(row.ends_at)).map_err(invalid)?,
        stock_total: row.stock_total,
        take_limit_per_user: row
            .take_limit_per_user
            .map(|limit| Count::parse(limit.into()))
            .transpose()
            .map_err(invalid)?,
        version: row.version,
        created_by: UserId(row.created_by),
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
    })
}

/// Whether there are such goods.
pub(super) async fn goods_exist(connection: &impl ConnectionTrait, id: GoodsId) -> Result<bool, DbFault> {
    Ok(entities::goods::Entity::find_by_id(id.0).one(connection).await?.is_some())
}
