//! Stock against takes, and the projection against the stock (REC-3).

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use entities::{activity, stock_projection, token_block};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryResult, QuerySelect,
};

use super::{blocks, projection};
use crate::db::{Database, DbFault, bulk, turn};
use crate::ids::{ActivityId, BlockId};
use crate::reconciliation::{Comparison, ComparisonError, Found};

/// What the projection may lag behind: its steps, and an event's way to it.
const GRACE: Duration = Duration::from_secs(3);

/// Activities that are looked at in one statement.
const PAGE: i64 = 1000;

/// Each block's count against the takes that hold its tokens.
#[derive(Debug)]
pub struct BlocksAgainstTakes(pub Database);

#[async_trait]
impl Comparison for BlocksAgainstTakes {
    fn name(&self) -> &'static str {
        "stock_blocks"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let ids = |connection: DatabaseConnection| async move {
            let ids = token_block::Entity::find().select_only().column(token_block::Column::Id);
            Ok::<Vec<i64>, DbFault>(ids.into_tuple().all(&connection).await?)
        };
        let mut differences = Vec::new();
        // One at a time: each is one statement, so a sale going on does not show as a difference.
        for id in self.0.read(ids).await? {
            if let Some((block, held)) = self.0.read(move |c| async move { counted(&c, id).await }).await?
                && i64::from(block.sold) != held
            {
                differences.push(Found {
                    subject: id.to_string(),
                    expected: format!("{held} sold"),
                    found: format!("{} sold", block.sold),
                    detail: format!(
                        "Tokens {} to {} of activity {}: the block counts {} as sold, takes hold {held}.",
                        block.first_token, block.last_token, block.activity_id, block.sold
                    ),
                    action: "recount",
                });
            }
        }
        Ok(differences)
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<BlockId>() else { return Ok(None) };
        let recounting = self.0.transaction(move |tx| async move {
            // Batches in flight end first; those decided before find the epoch changed and are decided again.
            blocks::fence_off(&tx, id).await?;
            let Some((block, held)) = counted(&tx, id.0).await? else { return Ok(None) };
            if i64::from(block.sold) == held {
                return Ok(None);
            }
            let sold = i32::try_from(held).unwrap_or(i32::MAX);
            token_block::Entity::update_many()
                .col_expr(token_block::Column::Sold, Expr::value(sold))
                .filter(token_block::Column::Id.eq(id.0))
                .exec(&tx)
                .await?;
            Ok(Some(format!("the block counted {} as sold, now {held}", block.sold)))
        });
        recounting.await
    }
}

/// A block, and how many of its tokens live takes hold, as of one moment.
async fn counted(
    connection: &impl ConnectionTrait,
    block: i64,
) -> Result<Option<(token_block::Model, i64)>, DbFault> {
    const COUNTED: &str = "SELECT b.*, (SELECT COUNT(*) FROM take AS t WHERE t.activity_id = b.activity_id \
        AND t.live_token BETWEEN b.first_token AND b.last_token) AS held FROM token_block AS b WHERE b.id = ?";
    use sea_orm::FromQueryResult;
    let sql = bulk::statement(connection.get_database_backend(), COUNTED, [block.into()]);
    let Some(row) = connection.query_one_raw(sql).await? else { return Ok(None) };
    Ok(Some((token_block::Model::from_query_result(&row, "")?, row.try_get("", "held")?)))
}

/// Each activity's total against the tokens in its blocks.
#[derive(Debug)]
pub struct TotalAgainstBlocks(pub Database);

#[async_trait]
impl Comparison for TotalAgainstBlocks {
    fn name(&self) -> &'static str {
        "stock_total"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let read = |connection: DatabaseConnection| async move { totals(&connection, None).await };
        let differing = self.0.read(read).await?.into_iter().filter(|(_, total, tokens)| total != tokens);
        Ok(differing
            .map(|(activity, total, tokens)| Found {
                subject: activity.to_string(),
                expected: format!("{tokens} tokens"),
                found: format!("a total of {total}"),
                detail: format!(
                    "Activity {activity} says it has {total} units, its blocks hold {tokens} tokens."
                ),
                action: "set_total_to_tokens",
            })
            .collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<ActivityId>() else { return Ok(None) };
        let mending = self.0.transaction(move |tx| async move {
            turn::to_change(&tx, id.0).await?;
            activity::Entity::find_by_id(id.0).lock_exclusive().one(&tx).await?;
            let Some(&(_, total, tokens)) = totals(&tx, Some(id)).await?.first() else { return Ok(None) };
            if total == tokens {
                return Ok(None);
            }
            let tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
            activity::Entity::update_many()
                .col_expr(activity::Column::StockTotal, Expr::value(tokens))
                .col_expr(
                    activity::Column::Version,
                    sea_orm::sea_query::ExprTrait::add(Expr::col(activity::Column::Version), 1),
                )
                .filter(activity::Column::Id.eq(id.0))
                .exec(&tx)
                .await?;
            Ok(Some(format!("the total was {total}, now {tokens}")))
        });
        mending.await
    }
}

/// Of each activity: its id, its total and the tokens on offer in its blocks, as of one moment.
async fn totals(
    connection: &impl ConnectionTrait,
    only: Option<ActivityId>,
) -> Result<Vec<(i64, i64, i64)>, DbFault> {
    const TOTALS: &str = "SELECT a.id AS id, CAST(a.stock_total AS {int}) AS total, \
        CAST(COALESCE((SELECT SUM(b.last_token - b.first_token + 1) FROM token_block AS b \
        WHERE b.activity_id = a.id AND b.state <> 'retired'), 0) AS {int}) AS tokens FROM activity AS a";
    let backend = connection.get_database_backend();
    let mut sql = TOTALS.replace("{int}", bulk::integer(backend));
    if only.is_some() {
        sql.push_str(" WHERE a.id = ?");
    }
    let sql = bulk::statement(backend, &sql, only.map(|id| id.0.into()));
    let rows = connection.query_all_raw(sql).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("", "id")?, row.try_get("", "total")?, row.try_get("", "tokens")?)))
        .collect()
}

/// The remaining number that events keep up against the blocks.
#[derive(Debug)]
pub struct ProjectionAgainstBlocks(pub Database);

#[async_trait]
impl Comparison for ProjectionAgainstBlocks {
    fn name(&self) -> &'static str {
        "stock_projection"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let differing: HashMap<i64, _> =
            self.differing().await?.into_iter().map(|row| (row.0, row)).collect();
        if differing.is_empty() {
            return Ok(Vec::new());
        }
        // What still differs, and was not counted meanwhile, does not only lag behind.
        tokio::time::sleep(GRACE).await;
        let still = self.differing().await?.into_iter();
        let still = still.filter(|row| differing.get(&row.0).is_some_and(|before| before.2 == row.2));
        Ok(still
            .map(|(activity, remaining, _, projected)| Found {
                subject: activity.to_string(),
                expected: format!("{remaining} remaining"),
                found: projected.map_or_else(|| "never counted".to_owned(), |n| format!("{n} remaining")),
                detail: format!("The remaining number of activity {activity} does not follow its takes."),
                action: "recount",
            })
            .collect())
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<ActivityId>() else { return Ok(None) };
        let recounting = self.0.transaction(move |tx| async move {
            let before = stock_projection::Entity::find_by_id(id.0).one(&tx).await?;
            let counted = projection::count(&tx, id).await?;
            Ok(before
                .is_none_or(|before| before.remaining != counted)
                .then(|| format!("now {counted} remaining")))
        });
        recounting.await
    }
}

impl ProjectionAgainstBlocks {
    /// Activity, remaining by its blocks, when it was counted for the projection, and the projection.
    async fn differing(&self) -> Result<Vec<(i64, i64, Option<i64>, Option<i64>)>, DbFault> {
        const COMPARED: &str = "SELECT a.id AS id, p.as_of_at AS as_of_at, p.remaining AS projected, \
            CAST(COALESCE((SELECT SUM(b.last_token - b.first_token + 1 - b.sold) FROM token_block AS b \
            WHERE b.activity_id = a.id AND b.state <> 'retired'), 0) AS {int}) AS remaining \
            FROM activity AS a LEFT JOIN stock_projection AS p ON p.activity_id = a.id \
            WHERE a.id > ? ORDER BY a.id LIMIT ?";
        let (mut after, mut differing) = (0, Vec::new());
        loop {
            let read = move |connection: DatabaseConnection| async move {
                let backend = connection.get_database_backend();
                let sql = COMPARED.replace("{int}", bulk::integer(backend));
                let sql = bulk::statement(backend, &sql, [after.into(), PAGE.into()]);
                let rows = connection.query_all_raw(sql).await?;
                let parse = |row: &QueryResult| {
                    let (as_of, projected) = (row.try_get("", "as_of_at")?, row.try_get("", "projected")?);
                    Ok((row.try_get("", "id")?, row.try_get("", "remaining")?, as_of, projected))
                };
                rows.iter().map(parse).collect::<Result<Vec<_>, DbFault>>()
            };
            let page = self.0.read(read).await?;
            let Some(last) = page.last() else { return Ok(differing) };
            after = last.0;
            differing.extend(page.into_iter().filter(|row| row.3 != Some(row.1)));
        }
    }
}
