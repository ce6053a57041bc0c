//! Removes what nobody needs any more from tables that only grow.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tracing::warn;

use super::job::{Job, RunContext, Summary};
use super::schedule::Schedule;
use crate::db::{Database, DbFault};
use crate::ports::clock::{SharedClock, Timestamp, from_micros, to_micros};

/// The name of the job.
pub const LOG_TRIMMING: &str = "log_trimming";

/// Rows that are removed in one transaction, so that nobody waits long for a lock.
const BATCH: u64 = 1000;

/// A table whose rows are of no use once they are old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub table: &'static str,
    /// The `_at` column that tells a row's age, indexed unless `only_if` finds the rows; rows where it is NULL stay.
    pub aged_by: &'static str,
    /// Whose clock wrote that column, and tells how old a row is.
    pub stamped_by: Stamp,
    pub kept_for: TimeDelta,
    /// What else must hold for a row to be of no use, in SQL.
    pub only_if: Option<Cow<'static, str>>,
}

/// Who writes the time into a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    Server,
    Database,
}

/// The history of jobs, of which each run is kept for so long after its end.
pub fn history(kept_for: TimeDelta) -> Log {
    Log { table: "job_run", aged_by: "finished_at", stamped_by: Stamp::Server, kept_for, only_if: None }
}

/// Runs of jobs that are not among `jobs`, even of those that were asked for and never began.
pub fn history_of_others(kept_for: TimeDelta, jobs: impl IntoIterator<Item = &'static str>) -> Log {
    Log { aged_by: "created_at", only_if: Some(none_of("job", jobs)), ..history(kept_for) }
}

/// The condition that `column` is none of `words`, which are lower-case and need no quoting.
///
/// Of `NOT IN` alone a database looks at every row; what lies between two words it finds in an index that begins with
/// `column`. A collation may order them differently: then a row stays, and none goes too much.
pub fn none_of(column: &str, words: impl IntoIterator<Item = &'static str>) -> Cow<'static, str> {
    const BEFORE_EVERY_WORD: &str = "";
    const BEHIND_EVERY_WORD: &str = "zzzzzzzz";
    let words: BTreeSet<&str> = words.into_iter().collect();
    let known: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let after = std::iter::once(BEFORE_EVERY_WORD).chain(words.iter().copied());
    let before = words.iter().copied().chain([BEHIND_EVERY_WORD]);
    let gaps = after.zip(before).map(|(a, b)| format!("({column} > '{a}' AND {column} < '{b}')"));
    let gaps = gaps.collect::<Vec<_>>().join(" OR ");
    Cow::Owned(format!("({gaps}) AND {column} NOT IN ({})", known.join(", ")))
}

/// The job that removes the old rows of `logs`.
pub fn log_trimming(db: Database, clock: SharedClock, schedule: Schedule, logs: Vec<Log>) -> Job {
    Job::new(LOG_TRIMMING, schedule, move |_: RunContext| {
        let (db, server, logs) = (db.clone(), clock.now(), logs.clone());
        async move {
            let database = from_micros(db.now_micros().await?);
            let (mut removed, mut failed) = (Vec::new(), None);
            for log in logs {
                let now = match log.stamped_by {
                    Stamp::Server => server,
                    Stamp::Database => database,
                };
                match trim(&db, &log, now - log.kept_for).await {
                    Ok(0) => {}
                    Ok(rows) => removed.push(format!("{rows} of {}", log.table)),
                    Err(fault) => {
                        warn!(table = log.table, error = %fault, "Could not trim {}", log.table);
                        failed = Some(format!("could not trim {}: {fault}", log.table));
                    }
                }
            }
            match (failed, removed.as_slice()) {
                (Some(failure), _) => Err(failure.into()),
                (None, []) => Ok(Summary::NOTHING),
                (None, removed) => Ok(Summary::of(format!("removed {}", removed.join(", ")))),
            }
        }
    })
}

/// Removes the rows of `log` from before `before`; tells how many.
async fn trim(db: &Database, log: &Log, before: Timestamp) -> Result<u64, DbFault> {
    let sql: Arc<str> = delete(db.backend(), log).into();
    let mut removed = 0;
    loop {
        let sql = sql.clone();
        let removing = db.transaction(move |tx| {
            let values = [to_micros(before).into(), i64::try_from(BATCH).unwrap_or(i64::MAX).into()];
            let delete = Statement::from_sql_and_values(tx.get_database_backend(), &*sql, values);
            async move { Ok::<_, DbFault>(tx.execute_raw(delete).await?.rows_affected()) }
        });
        let batch = removing.await?;
        removed += batch;
        if batch < BATCH {
            return Ok(removed);
        }
    }
}

/// By the rows' place, because keys differ from table to table.
pub(crate) fn delete(backend: DbBackend, Log { table, aged_by, only_if, .. }: &Log) -> String {
    let and = only_if.as_ref().map(|condition| format!(" AND {condition}")).unwrap_or_default();
    match backend {
        DbBackend::MySql => format!("DELETE FROM {table} WHERE {aged_by} < ?{and} LIMIT ?"),
        DbBackend::Postgres => format!(
            "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {aged_by} < $1{and} LIMIT $2))"
        ),
        _ => format!(
            "DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {aged_by} < ?{and} LIMIT ?)"
        ),
    }
}
