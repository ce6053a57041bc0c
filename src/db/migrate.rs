//! Bringing the schema up to date: by one process at a time, whole, and however long it takes.
//!
//! A process may die in the middle of it. On SQLite all that is missing is one transaction, whose lock the others wait
//! for. On PostgreSQL each change is one; MySQL and MariaDB commit every step, and the next process passes over those
//! that are done (migrations/src/steps.rs). There the lock belongs to the connection that migrates, not to the process:
//! a statement that its process did not live to see the end of keeps the others waiting until it is through.

use std::time::Duration;

use migrations::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, Statement};
use tracing::info;

use super::{Database, DbFault};

/// How often the lock is asked for. A statement that waits for it would keep PostgreSQL from cleaning up all the while.
const POLL: Duration = Duration::from_millis(200);

impl Database {
    /// Brings the schema up to date, or waits until another process has.
    pub async fn migrate(&self) -> Result<(), DbFault> {
        if self.pending_migrations().await? == 0 {
            return Ok(());
        }
        #[cfg(feature = "faults")]
        migrations::AFTER_STEP.get_or_init(|| || Box::pin(after_step()));
        let db = self.clone();
        let running = self.spawn(async move {
            match db.backend() {
                DbBackend::Sqlite => db.migrate_file().await,
                _ => db.migrate_shared().await,
            }
        });
        running.await.map_err(|panic| DbFault::panicked(&panic))?
    }

    /// How many schema changes are not applied yet.
    pub async fn pending_migrations(&self) -> Result<usize, DbFault> {
        self.read(|connection| async move {
            Ok(Migrator::get_pending_migrations_read_only(&connection).await?.len())
        })
        .await
    }

    async fn migrate_file(&self) -> Result<(), DbFault> {
        let mut waiting = Waiting::default();
        let tx = loop {
            match self.begin_alone().await {
                Err(fault) if fault.is_conflict() => {
                    waiting.goes_on("The database file is locked; waiting to bring the tables up to date");
                }
                begun => break begun?,
            }
        };
        Migrator::up(&tx, None).await?;
        Ok(tx.commit().await?)
    }

    #[expect(clippy::disallowed_methods, reason = "a transaction of transactions, which `Tx` does not know")]
    async fn begin_alone(&self) -> Result<DatabaseTransaction, DbFault> {
        use sea_orm::TransactionTrait;
        let write = self.pools().write.clone();
        Ok(write.begin_with_options(self.transaction_options()).await?)
    }

    async fn migrate_shared(&self) -> Result<(), DbFault> {
        let connection = self.settings().open_for_migration().await?;
        let migrated = self.migrate_alone(&connection).await;
        let _ = connection.close().await;
        migrated
    }

    async fn migrate_alone(&self, connection: &DatabaseConnection) -> Result<(), DbFault> {
        let mut waiting = Waiting::default();
        loop {
            // Nothing else would notice that the database went away meanwhile.
            let locked = tokio::time::timeout(self.settings().deadline, lock(connection)).await;
            if locked.map_err(|_| DbFault::Deadline)?? {
                break;
            }
            waiting.goes_on("Another server brings the tables up to date; waiting for it");
            tokio::time::sleep(POLL).await;
        }
        Ok(Migrator::up(connection, None).await?)
    }
}

/// Takes the lock if nobody has it, until `connection` ends.
async fn lock(connection: &DatabaseConnection) -> Result<bool, DbFault> {
    let backend = connection.get_database_backend();
    let sql = match backend {
        // One per database; the number is `tombola` in ASCII.
        DbBackend::Postgres => {
            "SELECT CAST(CAST(pg_try_advisory_lock(32773612892023905) AS INTEGER) AS BIGINT) AS locked"
        }
        // One per server, by a name of at most 64 characters.
        _ => "SELECT CAST(GET_LOCK(CONCAT('tombola_migrate_', MD5(DATABASE())), 0) AS SIGNED) AS locked",
    };
    let row = connection.query_one_raw(Statement::from_string(backend, sql)).await?;
    let locked: Option<i64> = row.ok_or(DbFault::Missing("the migration lock"))?.try_get("", "locked")?;
    Ok(locked == Some(1))
}

/// Says once that it waits.
#[derive(Default)]
struct Waiting {
    said: bool,
}

impl Waiting {
    fn goes_on(&mut self, why: &'static str) {
        if !self.said {
            info!("{why}");
            self.said = true;
        }
    }
}

#[cfg(feature = "faults")]
async fn after_step() -> Result<(), sea_orm::DbErr> {
    let passed = crate::faults::point("after_migration_step").await;
    passed.map_err(|fault| sea_orm::DbErr::Custom(fault.to_string()))
}
