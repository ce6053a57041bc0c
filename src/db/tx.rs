//! A transaction that cannot be committed after an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use tracing::warn;

use super::DbFault;
use crate::faults;

/// An open transaction, handed to the work of [`Database::transaction`](super::Database::transaction).
///
/// It remembers whether a statement failed: PostgreSQL answers COMMIT with ROLLBACK then and the driver calls that
/// success (RELIABILITY R1), so a swallowed error must not reach the commit.
#[derive(Debug, Clone)]
pub struct Tx(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transaction: DatabaseTransaction,
    failed: AtomicBool,
    announces: AtomicBool,
}

impl Tx {
    pub(super) fn new(transaction: DatabaseTransaction) -> Self {
        Self(Arc::new(Inner {
            transaction,
            failed: AtomicBool::new(false),
            announces: AtomicBool::new(false),
        }))
    }

    /// Says that the transaction writes events: whoever waits at
    /// [`Database::announced`](super::Database::announced) is woken when it has committed.
    pub fn announce(&self) {
        self.0.announces.store(true, Ordering::Relaxed);
    }

    pub(super) fn announces(&self) -> bool {
        self.0.announces.load(Ordering::Relaxed)
    }

    /// Commits. An error from here on leaves the outcome open.
    pub(super) async fn commit(self) -> Result<(), DbFault> {
        let failed = self.0.failed.load(Ordering::Acquire);
        let Some(inner) = Arc::into_inner(self.0) else { return Err(DbFault::StillInUse) };
        if failed {
            roll_back(inner.transaction).await;
            return Err(DbFault::CommitAfterError);
        }
        if let Err(fault) = faults::point("before_commit").await {
            roll_back(inner.transaction).await;
            return Err(fault.into());
        }
        inner.transaction.commit().await.map_err(DbFault::Ambiguous)?;
        faults::point("after_commit").await.map_err(|_| DbFault::unanswered())
    }

    pub(super) async fn rollback(self) {
        // Still shared only if the work leaked a clone into a task; dropping it rolls back then.
        if let Some(inner) = Arc::into_inner(self.0) {
            roll_back(inner.transaction).await;
        }
    }

    /// Runs a statement, unless one failed before: SQLite may have rolled back by itself, and what follows would commit
    /// on its own.
    async fn watch<T>(&self, statement: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        if self.0.failed.load(Ordering::Acquire) {
            return Err(DbErr::Custom("a statement of this transaction failed before".to_owned()));
        }
        let result = statement.await;
        if result.is_err() {
            self.0.failed.store(true, Ordering::Release);
        }
        result
    }
}

/// A rollback that fails is not an outcome of its own: the connection is gone, and the transaction with it.
async fn roll_back(transaction: DatabaseTransaction) {
    if let Err(error) = transaction.rollback().await {
        warn!(%error, "Could not send ROLLBACK; the database rolls back by itself");
    }
}

#[async_trait]
impl ConnectionTrait for Tx {
    fn get_database_backend(&self) -> DbBackend {
        self.0.transaction.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.watch(self.0.transaction.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.watch(self.0.transaction.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.watch(self.0.transaction.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.watch(self.0.transaction.query_all_raw(statement)).await
    }
}
