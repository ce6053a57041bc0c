//! Goods against their ledger (REC-3).

use async_trait::async_trait;
use entities::goods;
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter};

use super::store;
use crate::db::{self, Database, DbFault};
use crate::ids::GoodsId;
use crate::reconciliation::{Comparison, ComparisonError, Found};

/// Total and free units of all goods against what their ledger adds up to.
#[derive(Debug)]
pub struct GoodsAgainstLedger(pub Database);

/// Goods, and what their ledger adds up to, as of one moment.
struct Sums {
    goods: GoodsId,
    total: i64,
    available: i64,
    ledger_total: i64,
    ledger_available: i64,
}

impl Sums {
    fn agree(&self) -> bool {
        (self.total, self.available) == (self.ledger_total, self.ledger_available)
    }
}

#[async_trait]
impl Comparison for GoodsAgainstLedger {
    fn name(&self) -> &'static str {
        "goods_stock"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let read = |connection: DatabaseConnection| async move { sums(&connection, None).await };
        let differing = self.0.read(read).await?.into_iter().filter(|sums| !sums.agree());
        Ok(differing
            .map(|sums| Found {
                subject: sums.goods.to_string(),
                expected: format!("{} units, {} free", sums.ledger_total, sums.ledger_available),
                found: format!("{} units, {} free", sums.total, sums.available),
                detail: format!(
                    "Goods {} say that {} of {} units are free; by their ledger {} of {} are.",
                    sums.goods, sums.available, sums.total, sums.ledger_available, sums.ledger_total
                ),
                action: "recount",
            })
            .collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<GoodsId>() else { return Ok(None) };
        let recounting = self.0.transaction(move |tx| async move {
            // Sales, returns and adjustments in flight end first.
            store::lock(&tx, id).await?;
            let Some(sums) = sums(&tx, Some(id)).await?.pop().filter(|sums| !sums.agree()) else {
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

async fn sums(connection: &impl ConnectionTrait, only: Option<GoodsId>) -> Result<Vec<Sums>, DbFault> {
    const SUMS: &str = "SELECT g.id AS id, CAST(g.stock_total AS {int}) AS total, CAST(g.available AS {int}) AS available, \
        CAST(COALESCE((SELECT SUM(l.quantity) FROM goods_ledger AS l WHERE l.goods_id = g.id \
        AND l.kind IN ('opening', 'adjustment')), 0) AS {int}) AS ledger_total, \
        CAST(COALESCE((SELECT SUM(l.quantity) FROM goods_ledger AS l WHERE l.goods_id = g.id), 0) AS {int}) \
        AS ledger_available FROM goods AS g";
    let backend = connection.get_database_backend();
    let mut sql = SUMS.replace("{int}", db::bulk::integer(backend));
    if only.is_some() {
        sql.push_str(" WHERE g.id = ?");
    }
    let sql = db::bulk::statement(backend, &sql, only.map(|id| id.0.into()));
    let rows = connection.query_all_raw(sql).await?;
    rows.iter()
        .map(|row| {
            Ok(Sums {
                goods: GoodsId(row.try_get("", "id")?),
                total: row.try_get("", "total")?,
                available: row.try_get("", "available")?,
                ledger_total: row.try_get("", "ledger_total")?,
                ledger_available: row.try_get("", "ledger_available")?,
            })
        })
        .collect()
}
