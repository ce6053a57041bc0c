//! Bringing the schema up to date, wholly or so that the next process can go on.
//!
//! A process may die in the middle of it. On SQLite all that is missing is one transaction, on PostgreSQL each change is
//! one; MySQL and MariaDB commit every step, and the next process passes over those that are done
//! (migrations/src/steps.rs).

use migrations::{Migrator, MigratorTrait};
use sea_orm::{DatabaseTransaction, DbBackend};

use super::{Database, DbFault};

impl Database {
    /// Brings the schema up to date.
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
        let tx = self.begin_alone().await?;
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
        let write = self.pools().write.clone();
        Ok(Migrator::up(&write, None).await?)
    }
}

#[cfg(feature = "faults")]
async fn after_step() -> Result<(), sea_orm::DbErr> {
    let passed = crate::faults::point("after_migration_step").await;
    passed.map_err(|fault| sea_orm::DbErr::Custom(fault.to_string()))
}
