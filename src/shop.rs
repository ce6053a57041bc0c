//! What the shop is for good: its currency.
//!
//! Balances, coupons and prices are bare numbers. Under another `shop.currency` each would mean something else, and nothing
//! converts them: so the first server keeps the currency in the database, and none starts in another one.

use entities::{orders, shop};
use sea_orm::{ConnectionTrait, EntityTrait, QueryOrder, QuerySelect};

use crate::db::{Database, DbFault, bulk};
use crate::money::Currency;

/// The one row.
const THE_SHOP: i32 = 1;

/// The currency of the amounts in the database, from now on: what is known, or else `wanted`.
pub async fn keep_currency(db: &Database, wanted: Currency) -> Result<Currency, DbFault> {
    const KEEP: &str = "INTO shop (id, currency) VALUES (?, ?)";
    if let Some(kept) = kept(db).await? {
        return Ok(kept);
    }
    let currency = first_sold_in(db).await?.unwrap_or(wanted);
    let keep = db.transaction(move |tx| async move {
        let (backend, values) = (tx.get_database_backend(), [THE_SHOP.into(), currency.to_string().into()]);
        tx.execute_raw(bulk::statement(backend, &bulk::insert_if_absent(backend, KEEP), values)).await?;
        Ok::<_, DbFault>(())
    });
    keep.await?;
    // Another server may have been faster.
    kept(db).await?.ok_or(DbFault::Missing("the shop's currency"))
}

/// The currency of the amounts in the database, if it is known.
pub async fn known_currency(db: &Database) -> Result<Option<Currency>, DbFault> {
    match kept(db).await? {
        Some(kept) => Ok(Some(kept)),
        None => first_sold_in(db).await,
    }
}

async fn kept(db: &Database) -> Result<Option<Currency>, DbFault> {
    let row =
        db.read(|db| async move { Ok::<_, DbFault>(shop::Entity::find_by_id(THE_SHOP).one(&db).await?) });
    parsed(row.await?.map(|row| row.currency))
}

/// What the first order was made in: of a database whose servers did not keep their currency, it tells most.
async fn first_sold_in(db: &Database) -> Result<Option<Currency>, DbFault> {
    let first = db.read(|db| async move {
        let currencies = orders::Entity::find().select_only().column(orders::Column::Currency);
        let first = currencies.order_by_asc(orders::Column::Id).into_tuple::<String>();
        Ok::<_, DbFault>(first.one(&db).await?)
    });
    parsed(first.await?)
}

fn parsed(code: Option<String>) -> Result<Option<Currency>, DbFault> {
    code.map(|code| code.parse()).transpose().map_err(|_| DbFault::Missing("a known currency"))
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use rstest::rstest;

    use super::*;
    use crate::db::testing::{Engine, fresh, fresh_on};

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    #[rstest]
    #[case::sqlite(Engine::Sqlite)]
    #[case::postgres(Engine::Postgres)]
    #[case::mariadb(Engine::MariaDb)]
    #[tokio::test(flavor = "multi_thread")]
    async fn the_first_of_many_servers_decides(#[case] engine: Engine) {
        let (_place, db) = fresh_on(engine).await;
        assert_eq!(known_currency(&db).await.unwrap(), None);
        let wishes = ["CNY", "JPY", "KWD", "EUR"].map(|code| keep_currency(&db, currency(code)));
        let kept: Vec<Currency> = join_all(wishes).await.into_iter().map(Result::unwrap).collect();
        assert!(kept.iter().all(|other| *other == kept[0]), "{kept:?}");
        assert_eq!(keep_currency(&db, currency("CHF")).await.unwrap(), kept[0]);
        assert_eq!(known_currency(&db).await.unwrap(), Some(kept[0]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_sold_before_it_was_kept_tells_it() {
        let (_place, db) = fresh().await;
        let sell = |(id, code): (i64, &'static str)| {
            db.transaction(move |tx| async move {
                let sql = format!(
                    "INSERT INTO orders (id, user_id, kind, state, version, items, goods_amount_minor, \
                     shipping_fee_minor, order_amount_minor, coupon_deduction_minor, balance_paid_minor, \
                     payable_minor, currency, due_at, created_at, updated_at) \
                     VALUES ({id}, 1, 'shop', 'paid', 2, '[]', 1, 0, 1, 0, 0, 1, '{code}', 0, 0, 0)"
                );
                Ok::<_, DbFault>(tx.execute_unprepared(&sql).await?)
            })
        };
        for order in [(8, "JPY"), (7, "CNY")] {
            sell(order).await.unwrap();
        }
        assert_eq!(known_currency(&db).await.unwrap(), Some(currency("CNY")));
        assert_eq!(keep_currency(&db, currency("JPY")).await.unwrap(), currency("CNY"));
    }
}
