//! Differences that one statement can find in a long table.

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Value};

use crate::db::bulk::statement;
use crate::db::{Database, DbFault};
use crate::ports::clock::{SharedClock, to_micros};

/// Rows that one statement looks at: few enough for its deadline, whatever the table holds.
const PAGE: i64 = 5000;

/// How long what follows from a change of an order or a payment may be on its way before its lack is a difference.
const IN_FLIGHT: TimeDelta = TimeDelta::minutes(1);

/// Before when a change must have been made to have had its consequences by now: a value for [`Search::all`].
pub fn settled_before(clock: &SharedClock) -> [Value; 1] {
    [to_micros(clock.now() - IN_FLIGHT).into()]
}

/// Looks through a table, range of ids by range of ids. Each range is seen as of one moment, so what changes meanwhile
/// is no difference.
#[derive(Debug, Clone, Copy)]
pub struct Search<T> {
    /// The table whose ids part the work.
    pub table: &'static str,
    /// Finds the rows at fault. Its first two placeholders are the id before the range and the last id in it.
    pub sql: &'static str,
    pub read: fn(&QueryResult) -> Result<T, DbFault>,
}

impl<T: Send + 'static> Search<T> {
    /// Everything at fault; `values` stand for the placeholders behind the first two.
    pub async fn all(&self, db: &Database, values: &[Value]) -> Result<Vec<T>, DbFault> {
        let (mut after, mut found) = (0, Vec::new());
        while let Some(last) = self.end_of_range(db, after).await? {
            found.extend(self.range(db, (after, last), values).await?);
            after = last;
        }
        Ok(found)
    }

    /// What is at fault with the row `id`.
    pub async fn one(&self, db: &Database, id: i64, values: &[Value]) -> Result<Option<T>, DbFault> {
        Ok(self.range(db, (id - 1, id), values).await?.pop())
    }

    async fn end_of_range(&self, db: &Database, after: i64) -> Result<Option<i64>, DbFault> {
        let table = self.table;
        let sql = format!(
            "SELECT MAX(page.id) AS last_id FROM (SELECT id FROM {table} WHERE id > ? ORDER BY id LIMIT ?) AS page"
        );
        db.read(move |connection: DatabaseConnection| async move {
            let sql = statement(connection.get_database_backend(), &sql, [after.into(), PAGE.into()]);
            let row = connection.query_one_raw(sql).await?;
            Ok(row.map(|row| row.try_get("", "last_id")).transpose()?.flatten())
        })
        .await
    }

    async fn range(
        &self,
        db: &Database,
        (after, last): (i64, i64),
        values: &[Value],
    ) -> Result<Vec<T>, DbFault> {
        let Self { sql, read, .. } = *self;
        let values: Vec<Value> =
            [after.into(), last.into()].into_iter().chain(values.iter().cloned()).collect();
        db.read(move |connection: DatabaseConnection| async move {
            let sql = statement(connection.get_database_backend(), sql, values);
            connection.query_all_raw(sql).await?.iter().map(read).collect()
        })
        .await
    }
}
