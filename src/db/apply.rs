//! Transactions that are known before they begin, in one round trip.
//!
//! Under load every answer of a database waits for a thread that reads it: of the time a batch of takes needs, BEGIN and
//! COMMIT cost more than its rows. So what needs no answer in between is sent at once: one statement, which is a
//! transaction by itself, on PostgreSQL, and one text from BEGIN to COMMIT on SQLite. MySQL takes one statement at a time.

use std::fmt::Write;

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, Executor};
use sea_orm::{ConnAcquireErr, ConnectionTrait, DbBackend, DbErr, RuntimeErr, Statement, Value};
use sea_query_sqlx::SqlxValues;
use tracing::warn;

use super::bulk::{self, Script};
use super::{Database, DbFault, Tx, fault, turn};
use crate::faults;

/// What must still be so for changes to be made, in the notation of [`Rows::statement`](bulk::Rows::statement) without
/// rows.
#[derive(Debug, Clone)]
pub enum Fence {
    /// The [turn] to share the row with this id, which the next fence finds.
    Turn(i64),
    /// A SELECT that must find a row of the one table it names.
    Finds(&'static str, Vec<Value>),
    /// A change that must touch a row.
    Touches(&'static str, Vec<Value>),
}

impl Database {
    /// Makes the changes of `script` in a transaction of their own, if each of `fences` finds its row; these are looked
    /// at first, in their order, and the rows stay as they are until the commit. `false`: one found none, and nothing
    /// is changed.
    ///
    /// Nothing is tried twice. Once the changes are on their way, no answer means that their outcome is
    /// [open](DbFault::Ambiguous).
    pub async fn apply(&self, fences: Vec<Fence>, script: Script) -> Result<bool, DbFault> {
        let db = self.clone();
        let announces = script.announces();
        let applying = self.run(async move {
            if !fences.is_empty() {
                faults::point("before_fence").await?;
            }
            let applied = match db.backend() {
                DbBackend::MySql => db.one_by_one(fences, script).await,
                _ => db.in_one_go(fences, script).await,
            };
            // Of unknown outcome: looking is free.
            if announces {
                db.0.announced.notify_one();
            }
            applied
        });
        // Beside it and not within: a panic must not stop what is under way.
        let (applied, point) = tokio::join!(applying, faults::point("after_send"));
        point.map_err(|_| DbFault::unanswered())?;
        applied?
    }

    async fn in_one_go(&self, fences: Vec<Fence>, script: Script) -> Result<bool, DbFault> {
        faults::point("before_begin").await?;
        faults::point("before_commit").await?;
        let applied = match self.backend() {
            DbBackend::Postgres => self.as_one_statement(fences, script).await?,
            _ => self.as_one_text(fences, script).await?,
        };
        faults::point("after_commit").await.map_err(|_| DbFault::unanswered())?;
        Ok(applied)
    }

    /// One statement, whose rows are counted: a fence without a row is a division by zero, which PostgreSQL logs.
    async fn as_one_statement(&self, fences: Vec<Fence>, script: Script) -> Result<bool, DbFault> {
        let (mut sql, mut values, fenced) = (String::with_capacity(2048), Vec::new(), fences.len());
        for (i, fence) in fences.into_iter().enumerate() {
            let (template, scalars, end) = match fence {
                Fence::Turn(id) => (turn::SHARED, vec![id.into()], ")"),
                Fence::Finds(template, scalars) => (template, scalars, " FOR SHARE)"),
                Fence::Touches(template, scalars) => (template, scalars, " RETURNING 1)"),
            };
            let _ = write!(sql, "{} f{i} AS (", if i == 0 { "WITH" } else { "," });
            bulk::render(DbBackend::Postgres, template, scalars, None, &mut sql, &mut values);
            sql.push_str(end);
        }
        let changes = script.write_clauses(&mut sql, &mut values);
        // Summed up in this order, which is the order in which they are made.
        let rows = (0..fenced).map(|i| format!("(SELECT 1 / count(*) FROM f{i})"));
        let rows = rows.chain((0..changes).map(bulk::rows_of_clause));
        let _ = write!(sql, " SELECT {} AS touched", rows.collect::<Vec<_>>().join(" + "));
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        let write = self.pools().write.clone();
        match write.query_one_raw(statement).await {
            Ok(_) => Ok(true),
            // Nothing was sent: there was no connection.
            Err(error @ (DbErr::ConnectionAcquire(_) | DbErr::Conn(_))) => Err(error.into()),
            Err(error) => match DbFault::once_sent(error) {
                DbFault::Statement(error) if fenced > 0 && fault::is_division_by_zero(&error) => Ok(false),
                fault => Err(fault),
            },
        }
    }

    /// One text, on the connection that writes: a fence without a row is JSON that cannot be read.
    async fn as_one_text(&self, fences: Vec<Fence>, script: Script) -> Result<bool, DbFault> {
        const MALFORMED_JSON: &str = "malformed JSON";
        let (mut sql, mut values, fenced) = (String::with_capacity(2048), Vec::new(), !fences.is_empty());
        sql.push_str("BEGIN IMMEDIATE;");
        for fence in fences {
            // `changes()` is what the statement before touched.
            let (before, template, scalars, after) = match fence {
                Fence::Turn(_) => continue,
                Fence::Finds(template, scalars) => {
                    ("SELECT json(iif(EXISTS(", template, scalars, "), '0', ''));")
                }
                Fence::Touches(template, scalars) => {
                    ("", template, scalars, ";SELECT json(iif(changes() > 0, '0', ''));")
                }
            };
            sql.push_str(before);
            bulk::render(DbBackend::Sqlite, template, scalars, None, &mut sql, &mut values);
            sql.push_str(after);
        }
        script.write_one_after_the_other(&mut sql, &mut values);
        sql.push_str("COMMIT");
        let write = self.pools().write.clone();
        let mut connection = write.get_sqlite_connection_pool().acquire().await.map_err(not_acquired)?;
        let values = SqlxValues(sea_orm::sea_query::Values(values));
        let query = sqlx::query_with(sqlx::AssertSqlSafe(sql), values);
        let Err(error) = query.execute(&mut *connection).await else { return Ok(true) };
        end(connection).await;
        if matches!(&error, sqlx::Error::Database(error) if fenced && error.message() == MALFORMED_JSON) {
            return Ok(false);
        }
        Err(DbFault::once_sent(DbErr::Exec(RuntimeErr::SqlxError(error.into()))))
    }

    async fn one_by_one(&self, fences: Vec<Fence>, script: Script) -> Result<bool, DbFault> {
        let work = |tx: Tx| async move {
            for fence in fences {
                let found = match fence {
                    Fence::Turn(_) => true,
                    Fence::Finds(template, scalars) => {
                        let locking = format!("{template} LOCK IN SHARE MODE");
                        let query = bulk::statement(DbBackend::MySql, &locking, scalars);
                        tx.query_one_raw(query).await?.is_some()
                    }
                    Fence::Touches(template, scalars) => {
                        let change = bulk::statement(DbBackend::MySql, template, scalars);
                        tx.execute_raw(change).await?.rows_affected() > 0
                    }
                };
                if !found {
                    return Err(Stopped::ByFence);
                }
            }
            script.execute(&tx).await?;
            Ok(faults::point("after_insert").await?)
        };
        match self.attempt(work).await {
            Ok(()) => Ok(true),
            Err(Stopped::ByFence) => Ok(false),
            Err(Stopped::ByFault(fault)) => Err(fault),
        }
    }
}

/// Why a transaction was rolled back.
enum Stopped {
    ByFence,
    ByFault(DbFault),
}

impl<E: Into<DbFault>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::ByFault(error.into())
    }
}

/// Ends the transaction that a failed text may have left open, before the connection is used again.
async fn end(mut connection: PoolConnection<sqlx::Sqlite>) {
    const NONE_OPEN: &str = "cannot rollback - no transaction is active";
    match connection.execute("ROLLBACK").await {
        Ok(_) => {}
        // SQLite rolled back by itself.
        Err(sqlx::Error::Database(error)) if error.message() == NONE_OPEN => {}
        Err(error) => {
            warn!(%error, "Closed the connection that writes: its transaction could not be rolled back");
            let _ = connection.close().await;
        }
    }
}

fn not_acquired(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::bulk::{Column, Rows};
    use super::super::testing::{self, Engine};
    use super::*;

    /// Job leases: a row has a name and a holder.
    fn insert(names: &[&str]) -> Script {
        let mut script = Script::new();
        let names = Column::Text(names.iter().map(|name| (*name).to_owned()).collect());
        script.push_rows(
            "INSERT INTO job_lease (name, holder, expires_at) SELECT r.lease, ?, ? FROM {rows}",
            [1_i64.into(), 2_i64.into()],
            Rows::new().column("lease", names),
        );
        script
    }

    fn known(name: &str) -> Fence {
        Fence::Finds("SELECT 1 FROM job_lease WHERE name = ?", vec![name.into()])
    }

    fn taken_over(name: &str, holder: i64) -> Fence {
        Fence::Touches("UPDATE job_lease SET holder = ? WHERE name = ?", vec![holder.into(), name.into()])
    }

    async fn rows(db: &Database) -> Vec<(String, i64)> {
        let read = |connection: sea_orm::DatabaseConnection| async move {
            let backend = connection.get_database_backend();
            let all = Statement::from_string(backend, "SELECT name, holder FROM job_lease ORDER BY name");
            let rows = connection.query_all_raw(all).await?;
            rows.iter()
                .map(|row| Ok::<_, DbFault>((row.try_get("", "name")?, row.try_get("", "holder")?)))
                .collect()
        };
        db.read(read).await.unwrap()
    }

    #[rstest]
    #[case::sqlite(Engine::Sqlite)]
    #[case::postgres(Engine::Postgres)]
    #[case::mariadb(Engine::MariaDb)]
    #[tokio::test(flavor = "multi_thread")]
    async fn all_or_nothing(#[case] engine: Engine) {
        let (_place, db) = testing::fresh_on(engine).await;
        assert!(db.apply(Vec::new(), insert(&["a", "b"])).await.unwrap());
        let first = [("a".to_owned(), 1), ("b".to_owned(), 1)];
        assert_eq!(rows(&db).await, first);

        // Nothing is changed if a fence finds no row, wherever it stands, and the connection is as good as before.
        for fences in [
            vec![known("c")],
            vec![Fence::Turn(1), known("c")],
            vec![taken_over("c", 2)],
            vec![known("a"), taken_over("a", 2), known("c")],
            vec![taken_over("a", 2), taken_over("c", 2)],
        ] {
            assert!(!db.apply(fences, insert(&["d"])).await.unwrap());
            assert_eq!(rows(&db).await, first);
        }
        // What the changes would run into makes no difference.
        assert!(!db.apply(vec![known("c")], insert(&["a"])).await.unwrap());
        // Nor is anything changed if a change is refused, and that tells that nothing stands.
        let refused = db.apply(vec![taken_over("a", 2)], insert(&["d", "b"])).await.unwrap_err();
        assert!(refused.is_duplicate() && !refused.is_ambiguous(), "{refused}");
        let mut unknown = insert(&["d"]);
        unknown.push("UPDATE no_such_table SET a = ?", [1.into()]);
        let refused = db.apply(Vec::new(), unknown).await.unwrap_err();
        assert!(!refused.is_ambiguous(), "{refused}");
        assert_eq!(rows(&db).await, first);

        let fences = vec![Fence::Turn(1), known("a"), taken_over("b", 2)];
        assert!(db.apply(fences, insert(&["c"])).await.unwrap());
        assert_eq!(rows(&db).await, [("a".to_owned(), 1), ("b".to_owned(), 2), ("c".to_owned(), 1)]);
        let transaction =
            db.transaction(|tx| async move { Ok::<_, DbFault>(insert(&["e"]).execute(&tx).await?) });
        assert_eq!(transaction.await.unwrap(), 1);
        db.close().await;
    }

    #[rstest]
    #[case::sqlite(Engine::Sqlite)]
    #[case::postgres(Engine::Postgres)]
    #[case::mariadb(Engine::MariaDb)]
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_committed_is_announced(#[case] engine: Engine) {
        let (_place, db) = testing::fresh_on(engine).await;
        let mut script = insert(&["a"]);
        script.announce();
        assert!(db.apply(Vec::new(), script).await.unwrap());
        db.announced().await;
        db.close().await;
    }
}
