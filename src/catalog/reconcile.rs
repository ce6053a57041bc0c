//! Goods against their ledger (REC-3).

use async_trait::async_trait;
use entities::goods;
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::store;
use crate::db::bulk::{integer, statement};
use crate::db::{Database, DbFault};
use crate::ids::GoodsId;
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found, settled_before};

/// Goods that are listed in one statement.
const GOODS: u64 = 1000;

/// Entries that one statement adds up: few enough for its deadline, however long the ledger is.
const PAGE: i64 = 5000;

/// Total and free units of all goods against what their ledger adds up to.
#[derive(Debug)]
pub struct GoodsAgainstLedger {
    pub db: Database,
    pub clock: SharedClock,
}

/// What the ledger of some goods adds up to, as far as the entry `last`.
#[derive(Debug, Clone, Copy, Default)]
struct Added {
    total: i64,
    available: i64,
    last: i64,
}

/// Goods, and what their ledger adds up to, as of one moment.
struct Sums {
    goods: GoodsId,
    total: i64,
    available: i64,
    ledger_total: i64,
    ledger_available: i64,
}

impl Sums {
    /// How far the goods are off.
    fn off_by(&self) -> (i64, i64) {
        (self.total - self.ledger_total, self.available - self.ledger_available)
    }

    fn agree(&self) -> bool {
        self.off_by() == (0, 0)
    }
}

impl GoodsAgainstLedger {
    /// The last entry that is older than whatever may still be on its way to the ledger.
    async fn settled(&self) -> Result<i64, DbFault> {
        const SETTLED: &str = "SELECT id FROM goods_ledger WHERE created_at < ? ORDER BY id DESC LIMIT 1";
        let before = settled_before(&self.clock);
        let read = move |connection: DatabaseConnection| async move {
            let sql = statement(connection.get_database_backend(), SETTLED, before);
            let row = connection.query_one_raw(sql).await?;
            Ok(row.map(|row| row.try_get("", "id")).transpose()?.unwrap_or_default())
        };
        self.db.read(read).await
    }

    async fn goods_after(&self, after: i64) -> Result<Vec<i64>, DbFault> {
        let read = move |connection: DatabaseConnection| async move {
            let ids = goods::Entity::find().select_only().column(goods::Column::Id);
            let page = ids.filter(goods::Column::Id.gt(after)).order_by_asc(goods::Column::Id).limit(GOODS);
            Ok::<Vec<i64>, DbFault>(page.into_tuple().all(&connection).await?)
        };
        self.db.read(read).await
    }

    /// Adds up the entries of `goods` as far as `settled`, page by page; the last, if it is not full, is left out.
    async fn add_up(&self, goods: GoodsId, settled: i64) -> Result<Added, DbFault> {
        let mut added = Added::default();
        while let Some(more) = self
            .db
            .read(move |connection| async move { page(&connection, goods, added, settled).await })
            .await?
        {
            added = more;
        }
        Ok(added)
    }

    async fn look(&self, goods: GoodsId, settled: i64) -> Result<Option<Sums>, DbFault> {
        let added = self.add_up(goods, settled).await?;
        self.db.read(move |connection| async move { sums(&connection, goods, added).await }).await
    }
}

#[async_trait]
impl Comparison for GoodsAgainstLedger {
    fn name(&self) -> &'static str {
        "goods_stock"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let (mut after, mut differences) = (0, Vec::new());
        let settled = self.settled().await?;
        loop {
            let page = self.goods_after(after).await?;
            let Some(&last) = page.last() else { return Ok(differences) };
            after = last;
            for id in page.into_iter().map(GoodsId) {
                // The end of the ledger is added up in the statement that reads the goods, so a sale going on does not show
                // as a difference.
                let Some(sums) = self.look(id, settled).await?.filter(|sums| !sums.agree()) else { continue };
                // An entry with an id from before it was made, of a node whose clock was set, came behind the pages.
                let again = self.look(id, settled).await?;
                if again.is_some_and(|again| again.off_by() == sums.off_by()) {
                    differences.push(difference(&sums));
                }
            }
        }
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<GoodsId>() else { return Ok(None) };
        let added = self.add_up(id, self.settled().await?).await?;
        let recounting = self.db.transaction(move |tx| async move {
            // Sales, returns and adjustments in flight end first.
            store::lock(&tx, id).await?;
            let Some(sums) = sums(&tx, id, added).await?.filter(|sums| !sums.agree()) else {
                return Ok(None);
            };
            let units = |units: i64| Expr::value(i32::try_from(units).unwrap_or(i32::MAX));
            goods::Entity::update_many()
                .col_expr(goods::Column::StockTotal, units(sums.ledger_total))
                .col_expr(goods::Column::Available, units(sums.ledger_available))
                .col_expr(goods::Column::Version, Expr::col(goods::Column::Version).add(1))
                .filter(goods::Column::Id.eq(id.0))
                .exec(&tx)
                .await?;
            Ok(Some(format!(
                "{} of {} units were free, now {} of {}",
                sums.available, sums.total, sums.ledger_available, sums.ledger_total
            )))
        });
        recounting.await
    }
}

fn difference(sums: &Sums) -> Found {
    let Sums { goods, total, available, ledger_total, ledger_available } = sums;
    Found {
        subject: goods.to_string(),
        expected: format!("{ledger_total} units, {ledger_available} free"),
        found: format!("{total} units, {available} free"),
        detail: format!(
            "Goods {goods} say that {available} of {total} units are free; by their ledger {ledger_available} of \
             {ledger_total} are."
        ),
        action: "recount",
    }
}

/// `added` and the page of entries behind it, if that is full.
async fn page(
    connection: &impl ConnectionTrait,
    goods: GoodsId,
    added: Added,
    settled: i64,
) -> Result<Option<Added>, DbFault> {
    const ADDED: &str = "SELECT MAX(p.id) AS last_id, CAST(SUM(p.quantity) AS {int}) AS available, \
        CAST(SUM(CASE WHEN p.kind IN ('opening', 'adjustment') THEN p.quantity ELSE 0 END) AS {int}) AS total \
        FROM (SELECT id, kind, quantity FROM goods_ledger WHERE goods_id = ? AND id > ? AND id <= ? \
        ORDER BY id LIMIT ?) AS p HAVING COUNT(*) = ?";
    let backend = connection.get_database_backend();
    let values = [goods.0, added.last, settled, PAGE, PAGE].map(Into::into);
    let sql = statement(backend, &ADDED.replace("{int}", integer(backend)), values);
    let Some(row) = connection.query_one_raw(sql).await? else { return Ok(None) };
    let of = |column| row.try_get::<i64>("", column);
    Ok(Some(Added {
        total: added.total + of("total")?,
        available: added.available + of("available")?,
        last: of("last_id")?,
    }))
}

/// The goods, and what their ledger adds up to: what is `added` already, and what is behind that.
async fn sums(
    connection: &impl ConnectionTrait,
    goods: GoodsId,
    added: Added,
) -> Result<Option<Sums>, DbFault> {
    const SUMS: &str = "SELECT CAST(g.stock_total AS {int}) AS total, CAST(g.available AS {int}) AS available, \
        CAST(COALESCE((SELECT SUM(l.quantity) FROM goods_ledger AS l WHERE l.goods_id = g.id AND l.id > ? \
        AND l.kind IN ('opening', 'adjustment')), 0) AS {int}) AS ledger_total, \
        CAST(COALESCE((SELECT SUM(l.quantity) FROM goods_ledger AS l WHERE l.goods_id = g.id AND l.id > ?), 0) \
        AS {int}) AS ledger_available FROM goods AS g WHERE g.id = ?";
    let backend = connection.get_database_backend();
    let values = [added.last, added.last, goods.0].map(Into::into);
    let sql = statement(backend, &SUMS.replace("{int}", integer(backend)), values);
    let Some(row) = connection.query_one_raw(sql).await? else { return Ok(None) };
    let of = |column| row.try_get::<i64>("", column);
    Ok(Some(Sums {
        goods,
        total: of("total")?,
        available: of("available")?,
        ledger_total: added.total + of("ledger_total")?,
        ledger_available: added.available + of("ledger_available")?,
    }))
}
