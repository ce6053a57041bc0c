//! Whose turn it is to lock a row that many share.
//!
//! PostgreSQL lets whoever wants to share a shared row in at once, past those who wait to change it: several nodes that
//! sell one activity would keep its changes waiting for as long as they sell. Its advisory locks are a queue. So before a
//! transaction shares such a row or locks it for a change, it takes the advisory lock that has the row's id as its key; no
//! two rows have the same id. The row's own lock stays the truth: whoever takes no turn is impolite, and breaks nothing.
//!
//! MySQL's row locks are queues by themselves, and SQLite has one writer.

use sea_orm::{ConnectionTrait, DbBackend};

use super::{DbFault, Tx, bulk};

/// Shares the turn, behind those who wait to make a change.
pub(super) const SHARED: &str = "SELECT pg_advisory_xact_lock_shared(?)";

const EXCLUSIVE: &str = "SELECT pg_advisory_xact_lock(?)";

/// Waits until `tx` may share the row with this id with others that do.
pub async fn to_share(tx: &Tx, id: i64) -> Result<(), DbFault> {
    take(tx, SHARED, id).await
}

/// Waits until `tx` may change the row with this id: for those that share it now, and for none that come later.
pub async fn to_change(tx: &Tx, id: i64) -> Result<(), DbFault> {
    take(tx, EXCLUSIVE, id).await
}

async fn take(tx: &Tx, turn: &str, id: i64) -> Result<(), DbFault> {
    if tx.get_database_backend() == DbBackend::Postgres {
        tx.execute_raw(bulk::statement(DbBackend::Postgres, turn, [id.into()])).await?;
    }
    Ok(())
}
