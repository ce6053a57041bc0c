//! One door to the database.
//!
//! All database work runs in tasks of one runtime of its own, so a client that hangs up never cancels a statement or
//! a transaction half-way (RELIABILITY R2). [`Database::transaction`] begins one: any error in it means rollback (R1), a
//! deadlock or a lock timeout means the whole of it again, and whatever outlives its deadline is given up as unknown and
//! the pool replaced, because a stalled peer never gives its connection back (R3). What is known beforehand goes there at
//! once, by [`Database::apply`].

mod apply;
pub mod bulk;
mod clock;
mod connect;
mod crowd;
mod fault;
mod migrate;
#[cfg(test)]
pub(crate) mod testing;
pub mod turn;
mod tx;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, SqliteTransactionMode, Statement, TransactionOptions,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{info, warn};

pub use apply::Fence;
pub use clock::DatabaseClock;
pub use connect::{DatabaseSettings, InvalidDatabaseUrl};
pub use crowd::Crowd;
pub use fault::{AsDbFault, DbFault};
pub use tx::Tx;

use crate::faults;
use crate::trace::{self, Traceparent};

/// How often a transaction that lost a deadlock or waited too long for a lock is begun again.
const ATTEMPTS: u32 = 4;

/// A database and the tasks that speak to it. Clones share both.
#[derive(Debug, Clone)]
pub struct Database(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: DatabaseSettings,
    backend: DbBackend,
    runtime: Handle,
    pools: RwLock<Arc<Pools>>,
    announced: Notify,
    crowd: Crowd,
}

/// Connections to read with and connections to write with; on SQLite one writer (R19), elsewhere the same pool.
#[derive(Debug)]
struct Pools {
    read: DatabaseConnection,
    write: DatabaseConnection,
    /// Set once an idle connection does not answer.
    stalled: Arc<AtomicBool>,
}

impl Database {
    /// Opens the database; its work runs on `runtime`.
    pub async fn connect(settings: DatabaseSettings, runtime: Handle) -> Result<Self, DbFault> {
        let backend = settings.backend();
        let opening = settings.clone();
        let pools = runtime.spawn(async move { opening.open().await });
        let pools = pools.await.map_err(|panic| DbFault::panicked(&panic))??;
        let db = Self(Arc::new(Inner {
            settings,
            backend,
            runtime,
            pools: RwLock::new(Arc::new(pools)),
            announced: Notify::new(),
            crowd: Crowd::default(),
        }));
        db.check_version().await?;
        Ok(db)
    }

    /// Which of the three dialects it speaks.
    pub fn backend(&self) -> DbBackend {
        self.0.backend
    }

    /// The configuration it was opened with.
    pub fn settings(&self) -> &DatabaseSettings {
        &self.0.settings
    }

    /// Who waits for it.
    pub fn crowd(&self) -> &Crowd {
        &self.0.crowd
    }

    /// Runs `work` on the database's runtime, in the caller's trace and to its end even if the caller goes away.
    pub async fn run<T, F>(&self, work: F) -> Result<T, DbFault>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let pools = self.pools();
        let running = self.0.runtime.spawn(trace::within(Traceparent::current(), work));
        match tokio::time::timeout(self.0.settings.deadline, running).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(panic)) => Err(DbFault::panicked(&panic)),
            Err(_) => {
                self.replace(&pools);
                Err(DbFault::Deadline)
            }
        }
    }

    /// Runs `work` on the database's runtime without a deadline: for actors, whose steps each have their own.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.0.runtime.spawn(work)
    }

    /// Reads outside a transaction.
    pub async fn read<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbFault> + Send + 'static,
        F: FnOnce(DatabaseConnection) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let connection = self.pools().read.clone();
        self.run(async move { work(connection).await }).await?
    }

    /// Runs `work` in a transaction and commits it if it answers `Ok`; any `Err` rolls it back.
    ///
    /// `work` runs again, in a new transaction, after a deadlock, a lock timeout or a busy database, unless another wait
    /// for a lock would not fit in the deadline. An
    /// [ambiguous](DbFault::Ambiguous) commit is not repeated: only the caller knows whether that is safe.
    pub async fn transaction<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbFault> + AsDbFault + Send + 'static,
        F: Fn(Tx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let db = self.clone();
        self.run(async move {
            let (begun, settings) = (Instant::now(), &db.0.settings);
            let mut attempt = 1;
            loop {
                let result = db.attempt(&work).await;
                let conflict = result.as_ref().err().and_then(E::db_fault).is_some_and(DbFault::is_conflict);
                // Whoever was held up that long is not to be given up as unknown at the deadline.
                let late = begun.elapsed() + settings.lock_timeout >= settings.deadline;
                if !conflict || late || attempt == ATTEMPTS {
                    return result;
                }
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..=8) << attempt)).await;
                attempt += 1;
            }
        })
        .await?
    }

    /// [`Database::transaction`] without a second attempt: for a caller that must learn of every conflict.
    pub async fn transaction_once<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbFault> + Send + 'static,
        F: FnOnce(Tx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let db = self.clone();
        self.run(async move { db.attempt(work).await }).await?
    }

    async fn attempt<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        E: From<DbFault>,
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let tx = self.begin().await?;
        match work(tx.clone()).await {
            Ok(done) => {
                let announces = tx.announces();
                let committed = tx.commit().await;
                // Of unknown outcome: looking is free.
                if announces {
                    self.0.announced.notify_one();
                }
                committed.map(|()| done).map_err(E::from)
            }
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that begins transactions")]
    async fn begin(&self) -> Result<Tx, DbFault> {
        use sea_orm::TransactionTrait;
        faults::point("before_begin").await?;
        let write = self.pools().write.clone();
        Ok(Tx::new(write.begin_with_options(self.transaction_options()).await?))
    }

    fn transaction_options(&self) -> TransactionOptions {
        TransactionOptions {
            sqlite_transaction_mode: (self.0.backend == DbBackend::Sqlite)
                .then_some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        }
    }

    /// Waits until a transaction of this process has written events; one that did so since the last wait counts.
    pub async fn announced(&self) {
        self.0.announced.notified().await;
    }

    /// The database's own clock, in microseconds since the Unix epoch: what leases are measured by (R23).
    pub async fn now_micros(&self) -> Result<i64, DbFault> {
        self.read(|connection| async move { now_micros(&connection).await }).await
    }

    /// Asks the database for a sign of life.
    pub async fn ping(&self) -> Result<(), DbFault> {
        self.read(|connection| async move { Ok(connection.ping().await?) }).await
    }

    /// Closes the pools; later work fails.
    pub async fn close(&self) {
        let pools = self.pools();
        let closing = self.0.runtime.spawn(async move { pools.close().await });
        let _ = tokio::time::timeout(Duration::from_secs(5), closing).await;
    }

    fn pools(&self) -> Arc<Pools> {
        let pools = self.current_pools();
        if !pools.stalled.load(Ordering::Acquire) {
            return pools;
        }
        self.replace(&pools);
        self.current_pools()
    }

    fn current_pools(&self) -> Arc<Pools> {
        self.0.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new pool in the place of one whose connections do not answer, once per stalled pool.
    fn replace(&self, stalled: &Arc<Pools>) {
        // A SQLite file has no peer that could stall: a slow disk is not healed by opening it again.
        if self.0.backend == DbBackend::Sqlite {
            return;
        }
        let mut current = self.0.pools.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, stalled) {
            return;
        }
        match self.0.settings.open_lazily(&self.0.runtime) {
            Ok(fresh) => {
                metrics::counter!("tombola_database_pools_replaced_total").increment(1);
                info!("Replaced the database connections: one did not answer in time");
                let old = std::mem::replace(&mut *current, Arc::new(fresh));
                self.0.runtime.spawn(async move { old.close().await });
            }
            Err(fault) => warn!(error = %fault, "Cannot replace the database connections"),
        }
    }

    /// Refuses a SQLite whose write-ahead log can corrupt the file (fixed in 3.51.3).
    async fn check_version(&self) -> Result<(), DbFault> {
        if self.0.backend != DbBackend::Sqlite {
            return Ok(());
        }
        self.read(|connection| async move {
            let sql = Statement::from_string(DbBackend::Sqlite, "SELECT sqlite_version() AS version");
            let row = connection.query_one_raw(sql).await?.ok_or(DbFault::Missing("sqlite_version()"))?;
            let version: String = row.try_get("", "version")?;
            let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
            let parts = [(); 3].map(|()| parts.next().unwrap_or(0));
            if parts < [3, 51, 3] { Err(DbFault::SqliteTooOld(version)) } else { Ok(()) }
        })
        .await
    }
}

impl Pools {
    async fn close(&self) {
        let _ = self.read.close_by_ref().await;
        let _ = self.write.close_by_ref().await;
    }
}

/// The database's clock, seen from within `connection`.
pub async fn now_micros(connection: &impl ConnectionTrait) -> Result<i64, DbFault> {
    let backend = connection.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => {
            "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now"
        }
        DbBackend::MySql => "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED) AS now",
        _ => "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now",
    };
    let row = connection.query_one_raw(Statement::from_string(backend, sql)).await?;
    Ok(row.ok_or(DbFault::Missing("the database's clock"))?.try_get("", "now")?)
}

/// `text` for a column of `chars` characters: what is too long ends in `…`, and NUL, which PostgreSQL refuses, is left out.
pub fn fit(text: &str, chars: usize) -> String {
    let mut letters = text.chars().filter(|letter| *letter != '\0');
    let mut fitting: String = letters.by_ref().take(chars).collect();
    if letters.next().is_some() {
        fitting.pop();
        fitting.push('…');
    }
    fitting
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::fit;

    #[rstest]
    #[case::fits("一二三", "一二三")]
    #[case::is_cut_between_characters("一二三四", "一二…")]
    #[case::has_no_nul("\0a\0bc\0", "abc")]
    #[case::is_cut_without_nul("a\0bcd", "ab…")]
    fn a_text_fits_its_column(#[case] text: &str, #[case] fitting: &str) {
        assert_eq!(fit(text, 3), fitting);
    }
}
