//! What a user is about to order (ORD-1): goods and quantities. Prices are not kept: a cart shows those of now.

use entities::{cart_item, goods, users};
use sea_orm::ActiveValue::Set;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QuerySelect,
};
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::model::State;
use crate::db::{AsDbFault, Database, DbFault, Tx, bulk};
use crate::ids::{GoodsId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::money::Currency;
use crate::ports::clock::{SharedClock, Timestamp, from_micros, to_micros};

/// Kinds of goods that one cart holds.
pub const MOST_ITEMS: u64 = 100;
/// Units of each in a cart.
pub const MOST_UNITS: i32 = 999;

/// Goods in a cart, as they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CartItem {
    pub goods_id: GoodsId,
    pub name: String,
    #[schema(minimum = 1, maximum = 999)]
    pub quantity: i32,
    /// What one unit costs now.
    pub unit_price_minor: i64,
    /// What these units cost now.
    pub amount_minor: i64,
    pub currency: Currency,
    /// Whether it can be ordered at all.
    pub on_sale: bool,
    /// Units that no order holds.
    pub available: i32,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub added_at: Timestamp,
}

/// A user's cart, in the order things were put into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cart {
    pub items: Vec<CartItem>,
    /// What everything that is on sale costs now.
    pub goods_amount_minor: i64,
    pub currency: Currency,
}

/// Why goods were not put into a cart.
#[derive(Debug, Error)]
pub enum CartError {
    #[error("there are no such goods on sale")]
    NotFound,
    #[error("a cart holds up to {MOST_ITEMS} different goods")]
    Full,
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for CartError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Db(fault) => Some(fault),
            Self::NotFound | Self::Full => None,
        }
    }
}

/// The front door of the carts.
#[derive(Debug, Clone)]
pub struct CartService {
    db: Database,
    clock: SharedClock,
    currency: Currency,
}

impl CartService {
    pub fn new(db: Database, clock: SharedClock, currency: Currency) -> Self {
        Self { db, clock, currency }
    }

    /// The user's cart, with the prices of now.
    pub async fn show(&self, user: UserId) -> Result<Cart, DbFault> {
        let currency = self.currency;
        let read = move |connection: DatabaseConnection| async move {
            items(&connection, currency, user, None).await
        };
        let items = self.db.read(read).await?;
        let amounts = items.iter().filter(|item| item.on_sale).map(|item| item.amount_minor);
        Ok(Cart { goods_amount_minor: amounts.sum(), items, currency })
    }

    /// Makes `quantity` units of `goods` be in the user's cart.
    pub async fn put(&self, user: UserId, goods: GoodsId, quantity: i32) -> Result<CartItem, CartError> {
        let (now, currency) = (self.clock.now(), self.currency);
        let putting = self.db.transaction(move |tx| async move {
            put(&tx, now, user, goods, quantity).await?;
            let put = items(&tx, currency, user, Some(goods)).await?.pop();
            put.ok_or(CartError::Db(DbFault::Missing("what was put into the cart")))
        });
        putting.await
    }

    /// Takes `goods` out of the user's cart, if they are in it.
    pub async fn remove(&self, user: UserId, goods: GoodsId) -> Result<(), DbFault> {
        let removing = self.db.transaction(move |tx| async move {
            cart_item::Entity::delete_by_id((user.0, goods.0)).exec(&tx).await?;
            Ok(())
        });
        removing.await
    }
}

async fn put(tx: &Tx, now: Timestamp, user: UserId, goods: GoodsId, quantity: i32) -> Result<(), CartError> {
    // One change of a cart at a time, so that it is counted right.
    users::Entity::find_by_id(user.0).lock_exclusive().one(tx).await.map_err(DbFault::from)?;
    let row = goods::Entity::find_by_id(goods.0).one(tx).await.map_err(DbFault::from)?;
    row.filter(|row| row.state == State::OnSale.word()).ok_or(CartError::NotFound)?;
    let before = cart_item::Entity::find_by_id((user.0, goods.0)).one(tx).await.map_err(DbFault::from)?;
    let item = cart_item::ActiveModel {
        user_id: Set(user.0),
        goods_id: Set(goods.0),
        quantity: Set(quantity),
        added_at: Set(before.as_ref().map_or(to_micros(now), |before| before.added_at)),
        updated_at: Set(to_micros(now)),
    };
    if before.is_some() {
        cart_item::Entity::update(item).exec(tx).await.map_err(DbFault::from)?;
        return Ok(());
    }
    let others = cart_item::Entity::find().filter(cart_item::Column::UserId.eq(user.0));
    if others.count(tx).await.map_err(DbFault::from)? >= MOST_ITEMS {
        return Err(CartError::Full);
    }
    cart_item::Entity::insert(item).exec_without_returning(tx).await.map_err(DbFault::from)?;
    Ok(())
}

/// What is in the user's cart, or `only` these goods of it.
async fn items(
    connection: &impl ConnectionTrait,
    currency: Currency,
    user: UserId,
    only: Option<GoodsId>,
) -> Result<Vec<CartItem>, DbFault> {
    const ITEMS: &str = "SELECT c.goods_id, c.quantity, c.added_at, g.name, g.price_minor, g.state, g.available \
        FROM cart_item AS c JOIN goods AS g ON g.id = c.goods_id WHERE c.user_id = ?{only} \
        ORDER BY c.added_at, c.goods_id";
    let sql = ITEMS.replace("{only}", if only.is_some() { " AND c.goods_id = ?" } else { "" });
    let scalars = std::iter::once(user.0).chain(only.map(|goods| goods.0)).map(Into::into);
    let sql = bulk::statement(connection.get_database_backend(), &sql, scalars);
    let rows = connection.query_all_raw(sql).await?;
    rows.into_iter()
        .map(|row| {
            let (quantity, unit_price_minor): (i32, i64) =
                (row.try_get("", "quantity")?, row.try_get("", "price_minor")?);
            let state: State = row.try_get::<String>("", "state")?.parse()?;
            Ok(CartItem {
                goods_id: GoodsId(row.try_get("", "goods_id")?),
                name: row.try_get("", "name")?,
                quantity,
                unit_price_minor,
                amount_minor: unit_price_minor * i64::from(quantity),
                currency,
                on_sale: state == State::OnSale,
                available: row.try_get("", "available")?,
                added_at: from_micros(row.try_get("", "added_at")?),
            })
        })
        .collect()
}
